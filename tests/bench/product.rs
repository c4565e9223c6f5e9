//! Products with packed weights, in multiply-adds a second: `cargo bench --bench product [-- NAME]`. One token is generation,
//! 512 are a window of text. `RAYON_NUM_THREADS` sets the threads.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quant::codec;
use quant::container::Weight;
use quant::device::cpu;
use quant::tensor::{Dims, Packed};

const DIMS: Dims = Dims { rows: 2048, cols: 2048 };

fn product(c: &mut Criterion) {
    let mut group = c.benchmark_group("product");
    for name in ["f32", "f16", "q8_0", "q4_k", "q6_k"] {
        let codec = codec::find(name).expect("a row of the table");
        let bytes = codec.bytes(DIMS).expect("2048 is a multiple of every block");
        // Small bytes: no float is a NaN or subnormal.
        let packed = Packed::one(DIMS, (0..bytes).map(|i| (i * 31 % 61) as u8).collect::<Vec<_>>());
        let weight = Weight { codec, packed, scale: 1.0, inputs: None };
        for tokens in [1, 512] {
            let x = vec![0.5; tokens * DIMS.cols];
            let mut out = vec![0.0; tokens * DIMS.rows];
            group.throughput(Throughput::Elements((tokens * DIMS.len()) as u64));
            group.bench_function(format!("{name} {tokens}"), |b| {
                b.iter(|| cpu::linear(&weight, 0..DIMS.rows, None, &x, &mut out));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, product);
criterion_main!(benches);

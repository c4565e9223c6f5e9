//! Weights decoded a second, for every row of the table, in the cache: `cargo bench --bench decode [-- NAME]`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quant::codec;
use quant::tensor::{Dims, Packed};

/// A row of a large model. Its bytes and its weights stay in the second-level cache.
const DIMS: Dims = Dims { rows: 4, cols: 8192 };

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(DIMS.len() as u64));
    for codec in codec::all() {
        let parts = codec.layout(DIMS).expect("8192 is a multiple of every block");
        let parts = parts.iter().map(|p| noise(p.bytes).into()).collect();
        let packed = Packed { dims: DIMS, parts };
        let mut out = vec![0.0; DIMS.len()];
        group.bench_function(codec.name(), |b| b.iter(|| codec.decode(&packed, 0..DIMS.rows, &mut out)));
        if let Some(block) = codec.block() {
            let name = format!("{} plain", codec.name());
            group.bench_function(name, |b| b.iter(|| (block.decode_plain)(&packed.parts[0], &mut out)));
        }
    }
    group.finish();
}

/// A linear congruential generator is random enough to defeat caches and branch predictors. Its bytes stay below 64, so
/// that no float is a NaN or subnormal.
fn noise(bytes: usize) -> Vec<u8> {
    let step = |x: &u64| Some(x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
    std::iter::successors(Some(1), step).map(|x| (x >> 58) as u8).take(bytes).collect()
}

criterion_group!(benches, decode);
criterion_main!(benches);

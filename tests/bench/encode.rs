//! Encoding speed of every block format, in weights per second: as `convert` runs it and by the plain twin, without and with
//! an importance vector. `cargo bench --bench encode -- q4_k`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quant::codec::{self, Importance};

const ROWS: usize = 64;
const COLS: usize = 4096;

/// Roughly normal, deviation 0.02: sums of four uniform numbers.
fn weights(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.035 * (uniform() + uniform() + uniform() + uniform())).collect()
}

fn encode(c: &mut Criterion) {
    let w = weights(ROWS * COLS);
    let squares: Vec<f32> = w[..COLS].iter().map(|x| x * x).collect();
    for block in codec::all().filter_map(|c| c.block()) {
        let Some(encode) = block.encode else { continue };
        let mut group = c.benchmark_group(block.name);
        group.throughput(Throughput::Elements(w.len() as u64));
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
        let mut out = vec![0; ROWS * block.row_bytes(COLS)];
        for (name, importance) in [("", None), ("-importance", Some(&squares[..]))] {
            let skip = if importance.is_some() { Importance::Ignored } else { Importance::Required };
            if encode.importance == skip {
                continue;
            }
            for (way, run) in [("run", encode.run), ("plain", encode.plain)] {
                group.bench_function(format!("{way}{name}"), |b| {
                    b.iter(|| run(black_box(&w), COLS, importance, &mut out))
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);

//! Tells models apart by a little of their weights, whatever container they lie in.
//!
//! BLAKE3 of the names and shapes of all matrices that read a site, and of a few rows of a few of them as float16. Of those, values below
//! 2^-16 count as zero: above it every bfloat16 is a float16, so a BF16 folder, and the F16 or BF16 GGUF made of it, have one
//! name; a quantized file has another. Only weights that no container permutes are sampled.

use half::f16;

use crate::arch::Role;
use crate::container::Checkpoint;
use crate::error::Result;

/// Rows of each sampled matrix.
const ROWS: usize = 8;
const SAMPLED: &[Role] = &[Role::FfnDown, Role::FfnDownExps, Role::AttnOutput];
const LEAST: f32 = 1.0 / 65536.0;

/// 32 hexadecimal digits.
pub fn of(checkpoint: &dyn Checkpoint) -> Result<String> {
    let tensors = checkpoint.tensors();
    let mut matrices: Vec<usize> = (0..tensors.len())
        .filter(|i| tensors[*i].id.role.site().is_some() && tensors[*i].name.ends_with(".weight"))
        .filter(|i| tensors[*i].shape.len() > 1)
        .collect();
    matrices.sort_by(|a, b| tensors[*a].name.cmp(&tensors[*b].name));
    let mut hasher = blake3::Hasher::new();
    for i in &matrices {
        hasher.update(format!("{} {:?}\n", tensors[*i].name, tensors[*i].shape).as_bytes());
    }
    let layers: Vec<u32> = matrices.iter().filter_map(|i| tensors[*i].id.layer).collect();
    let ends = [layers.iter().min(), layers.iter().max()].map(|l| l.copied());
    let sampled = |i: &&usize| SAMPLED.contains(&tensors[**i].id.role) && ends.contains(&tensors[**i].id.layer);
    let embedding = checkpoint.find("token_embd.weight");
    for &i in embedding.iter().chain(matrices.iter().filter(sampled)) {
        for plane in [0, tensors[i].planes().saturating_sub(1)] {
            let weight = checkpoint.read(i, plane)?;
            let dims = weight.packed.dims;
            if dims.is_empty() {
                continue;
            }
            let mut row = vec![0.0; dims.cols];
            for at in (0..ROWS).map(|k| (dims.rows - 1) * k / (ROWS - 1)) {
                weight.codec.decode(&weight.packed, at..at + 1, &mut row);
                for x in &row {
                    let x = f16::from_f32(x * weight.scale);
                    let x = if x.to_f32().abs() < LEAST { f16::ZERO } else { x };
                    hasher.update(&x.to_le_bytes());
                }
            }
        }
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

//! What runtimes make of the inputs of quantized weights before they multiply: rounded to the weights' format, so that both sides
//! of a product are small. Sources: compressed-tensors `quantization/lifecycle/forward.py`; ModelOpt `quantization/`.

use super::ggml::fp4::E2M1_DOUBLED;
use super::scheme::Family;
use super::{Activations, Codec, fp4, fp8};

/// Rounds inputs `[tokens][cols]` as a runtime would. `scale`: what was measured beforehand, where `activations` is static.
/// False if the format leaves its inputs as they are.
pub fn round_inputs(
    codec: &dyn Codec,
    activations: Activations,
    scale: Option<f32>,
    cols: usize,
    x: &mut [f32],
) -> bool {
    let Some(scheme) = codec.scheme().filter(|_| activations != Activations::Plain && cols > 0) else { return false };
    match (scheme.family, scheme.group, scale) {
        (Family::Int, ..) => x.chunks_exact_mut(cols).for_each(bytes),
        (Family::Float8 | Family::Float8Tensor | Family::ModelOptFloat8, group, None) => {
            x.chunks_exact_mut(cols).flat_map(|row| row.chunks_mut(group.unwrap_or(cols))).for_each(|part| {
                eights(part, largest(part) / fp8::MAX);
            });
        }
        (Family::Float8 | Family::Float8Tensor | Family::ModelOptFloat8, _, Some(scale)) => eights(x, scale),
        (Family::Nvfp4 | Family::ModelOptNvfp4, Some(group), Some(scale)) => {
            x.chunks_exact_mut(group).for_each(|part| fours(part, scale));
        }
        _ => return false,
    }
    true
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max, x| x.abs().max(max))
}

/// Signed bytes under one scale a token.
fn bytes(x: &mut [f32]) {
    let scale = largest(x) / 127.5;
    if scale > 0.0 {
        x.iter_mut().for_each(|x| *x = (*x / scale).round_ties_even().clamp(-128.0, 127.0) * scale);
    }
}

fn eights(x: &mut [f32], scale: f32) {
    if scale > 0.0 {
        x.iter_mut().for_each(|x| *x = fp8::nearest(*x / scale).1 * scale);
    }
}

/// Four bits under an E4M3 of their own and the scale of the whole.
fn fours(x: &mut [f32], scale: f32) {
    let own = fp8::nearest(largest(x) / 6.0 / scale).1 * scale;
    for x in x {
        let code = if own == 0.0 { 0 } else { fp4::LEVELS.nearest(2.0 * *x / own, ONE) };
        *x = f32::from(E2M1_DOUBLED[usize::from(code)]) * 0.5 * own;
    }
}

const ONE: super::grid::Scale = super::grid::Scale { step: 1.0, zero: 0.0, offset: 0.0 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::find;

    fn rounded(codec: &str, activations: Activations, scale: Option<f32>, x: &[f32]) -> Option<Vec<f32>> {
        let mut out = x.to_vec();
        round_inputs(find(codec).unwrap(), activations, scale, x.len(), &mut out).then_some(out)
    }

    #[test]
    fn inputs_become_values_of_the_format() {
        let mut x = [0.0; 16];
        (x[0], x[1], x[2]) = (6.0, -2.4, 0.2);
        let four = rounded("pack-nvfp4", Activations::Static, Some(1.0), &x).unwrap();
        assert_eq!(four[..4], [6.0, -2.0, 0.0, 0.0]);
        let beyond = rounded("pack-nvfp4", Activations::Static, Some(1.0 / 4096.0), &x).unwrap();
        assert!(beyond[0] < 1.0, "scales of groups end at 448");
        let eight = rounded("fp8-channel", Activations::Dynamic, None, &x).unwrap();
        assert!((eight[1] + 2.4).abs() < 2.4 / 16.0 && eight[0] == 6.0);
        let fixed = rounded("fp8-tensor", Activations::Static, Some(1.0 / 448.0), &x).unwrap();
        assert_eq!(fixed[0], 1.0, "cut off");
        let byte = rounded("int-8bit-channel-sym", Activations::Dynamic, None, &x).unwrap();
        assert!((byte[1] + 2.4).abs() <= 6.0 / 255.0);
    }

    #[test]
    fn what_is_not_declared_is_not_done() {
        let x = [1.03; 16];
        assert!(rounded("pack-nvfp4", Activations::Plain, Some(1.0), &x).is_none());
        assert!(rounded("pack-4bit-g16-sym", Activations::Dynamic, None, &x).is_none());
        assert!(rounded("q8_0", Activations::Dynamic, None, &[1.0; 32]).is_none());
        assert_eq!(rounded("fp8-channel", Activations::Dynamic, None, &[0.0; 16]).unwrap(), [0.0; 16]);
    }
}

//! The CPU's fast paths against their plain twins: what `quant selftest --device cpu` prints.

use super::check::{Check, Difference, bytes, noise};
use crate::codec::{self, Importance};

/// Every decoder and encoder that has two forms.
pub fn checks() -> Vec<Check<()>> {
    let mut out = Vec::new();
    for block in codec::all().filter_map(|c| c.block()) {
        let count = 37;
        let shape = format!("{count} x {}", block.weights);
        out.push(Check::new(("decode", block.name), &shape, "f32", 0.0, move |()| {
            let stored = bytes(count * block.bytes, 1);
            let (mut fast, mut plain) = (vec![0.0; count * block.weights], vec![0.0; count * block.weights]);
            (block.decode)(&stored, &mut fast);
            (block.decode_plain)(&stored, &mut plain);
            Ok(Difference::singles(&fast, &plain))
        }));
        let Some(encode) = block.encode else { continue };
        for weighted in [false, true] {
            let pointless = if weighted { Importance::Ignored } else { Importance::Required };
            if encode.importance == pointless {
                continue;
            }
            let dtype = if weighted { "f32, importance" } else { "f32" };
            out.push(Check::new(("encode", block.name), &shape, dtype, 0.0, move |()| {
                let (cols, w) = (count * block.weights, noise(count * block.weights, 2));
                let importance: Option<Vec<f32>> =
                    weighted.then(|| noise(cols, 3).iter().map(|x| x * x + 1e-3).collect());
                let (mut fast, mut plain) = (vec![0; count * block.bytes], vec![0; count * block.bytes]);
                (encode.run)(&w, cols, importance.as_deref(), &mut fast);
                (encode.plain)(&w, cols, importance.as_deref(), &mut plain);
                Ok(Difference::bytes(&fast, &plain))
            }));
        }
    }
    out
}

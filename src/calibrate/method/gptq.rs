//! GPTQ (Frantar et al. 2022): codes are chosen column by column, the most active first, and what one column gets wrong is made
//! good by those that follow. Computed as LDLQ (Chee et al. 2023), which gives the same codes without inverting anything.

use super::ops::Ops;
use crate::calibrate::stats::Gram;
use crate::device::cpu::Feedback;
use crate::error::{Error, Result};

/// Shares of each entry of the Gram matrix's diagonal that are added to it. Of its own entry, not of the mean of all: a few
/// inputs are hundreds of times as large as the rest, and a share of their mean would leave the rest no feedback. Which is best
/// depends on how much text there was and how like it what comes will be (`evals/quality.md` has figures).
pub const DAMPING: [f64; 5] = [0.05, 0.1, 0.2, 0.4, 0.8];
/// Where nothing was held out that could tell.
const FIRST: usize = 2;

/// The feedback of a site, with the least damping from a moderate one on that suffices, and the damping.
///
/// Errors: a device that fails; within, a matrix that no damping makes positive definite.
pub fn feedback<O: Ops>(on: &O, gram: &O::Gram<'_>) -> Result<Result<(O::Feedback, f64)>> {
    let mut last = None;
    for damping in &DAMPING[FIRST..] {
        match on.feedback(gram, *damping)? {
            Ok(feedback) => return Ok(Ok((feedback, *damping))),
            Err(e) => last = Some(e),
        }
    }
    Ok(Err(last.unwrap_or_else(|| Error::input("it was not damped"))))
}

/// The order in which columns are solved: the most active first.
///
/// Errors: one that is not finite.
pub fn order(gram: &Gram<'_>) -> Result<Vec<u32>> {
    let diagonal = gram.diagonal();
    if let Some(bad) = diagonal.iter().position(|x| !x.is_finite()) {
        return Err(Error::input(format!("its input {bad} is not finite")));
    }
    let mut order: Vec<u32> = (0..diagonal.len() as u32).collect();
    order.sort_by(|a, b| diagonal[*b as usize].total_cmp(&diagonal[*a as usize]).then(a.cmp(b)));
    Ok(order)
}

pub fn no_factor(damping: f64) -> Error {
    Error::input(format!("its Gram matrix has no factor, not even with {:.0} % damping", damping * 100.0))
        .help("calibrate on more text")
}

/// The same with this damping.
///
/// Errors: a matrix that is not positive definite then.
pub fn damped(gram: &Gram<'_>, damping: f64) -> Result<Feedback> {
    Feedback::factored(gram.dense(), order(gram)?, 1.0 + damping).map_err(|_| no_factor(damping))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::method::ops::OnCpu;

    #[test]
    fn shares_factor_the_damped_matrix() {
        let n = 70;
        let gram = crate::calibrate::method::tests::correlated(n);
        let (f, damping) = feedback(&OnCpu, &&gram).unwrap().unwrap();
        assert_eq!(damping, DAMPING[FIRST]);
        let h = |j: usize, k: usize| {
            let value = f64::from(gram.get(f.order[j] as usize, f.order[k] as usize));
            if j == k { value * (1.0 + damping) } else { value }
        };
        let unit = |j: usize, k: usize| if j == k { 1.0 } else { f64::from(f.shares[j * f.stride + k]) };
        // H = U D U^T with U unit upper triangular; D follows from the last column on.
        let mut d = vec![0.0; n];
        for k in (0..n).rev() {
            d[k] = h(k, k) - (k + 1..n).map(|m| unit(k, m).powi(2) * d[m]).sum::<f64>();
            assert!(d[k] > 0.0 && (d[k] / f64::from(f.variances[f.order[k] as usize]) - 1.0).abs() < 1e-3);
            for j in 0..k {
                let sum: f64 = (k..n).map(|m| unit(j, m) * d[m] * unit(k, m)).sum();
                assert!((sum - h(j, k)).abs() < 1e-4, "{j}, {k}: {sum} is not {}", h(j, k));
            }
        }
        assert!(f.order.windows(2).all(|w| h(w[0] as usize, 0).is_finite() && w[0] != w[1]));
    }

    #[test]
    fn dead_columns_take_no_part_and_singular_matrices_are_damped() {
        // Column 2 is always zero, columns 0 and 1 are the same.
        let upper = vec![1.0, 1.0, 0.0, 0.5, 1.0, 0.0, 0.5, 0.0, 0.0, 1.0];
        let feedback = |gram: Gram<'_>| feedback(&OnCpu, &&gram).unwrap();
        let (f, _) = feedback(Gram::new(4, upper.into()).unwrap()).unwrap();
        assert_eq!(f.order, [0, 1, 3, 2]);
        assert!((0..4).all(|j| j == 3 || f.shares[j * f.stride + 3] == 0.0));
        assert!(feedback(Gram::new(1, vec![f32::NAN].into()).unwrap()).is_err());
        let upper = vec![1.0, 5.0, 1.0];
        assert!(feedback(Gram::new(2, upper.into()).unwrap()).is_err(), "no matrix of inner products");
    }
}

//! Would greedy decoding write the answer? One forward pass over prompt and answer tells.

use super::{Found, Kind, Outcome, Prepared, Subject, branch};
use crate::error::Result;

pub const KIND: Kind = Kind {
    name: "predict",
    about: "whether every token of the answer is the most likely one after those before it",
    metrics: &["acc"],
    run,
};

fn run(subject: &Subject<'_>, items: &[Prepared<'_>], progress: &dyn Fn(u64)) -> Result<Vec<Outcome>> {
    let outcome = |predictions: Vec<Vec<branch::Prediction>>| {
        let right = predictions.iter().flatten().all(|p| p.hit);
        let sum: f64 = -predictions.iter().flatten().map(|p| p.nll).sum::<f64>();
        let said = format!("probability {:.3}", sum.exp());
        Outcome { marks: vec![right], said, found: Found::Likelihoods(vec![sum]) }
    };
    Ok(branch::run(subject, items, progress)?.into_iter().map(outcome).collect())
}

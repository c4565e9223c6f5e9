//! Which of several continuations is the most likely? `acc` and `acc_norm` are those of lm-evaluation-harness.

use super::branch::{self, Prediction};
use super::{Found, Kind, Outcome, Prepared, Question, Subject};
use crate::error::Result;

pub const KIND: Kind = Kind {
    name: "choice",
    about: "the likeliest of several continuations; acc_norm divides log-likelihoods by the number of characters",
    metrics: &["acc", "acc_norm"],
    run,
};

fn run(subject: &Subject<'_>, items: &[Prepared<'_>], progress: &dyn Fn(u64)) -> Result<Vec<Outcome>> {
    let found = branch::run(subject, items, progress)?;
    Ok(items.iter().zip(found).map(|(p, predictions)| outcome(&p.item.question, &predictions)).collect())
}

fn outcome(question: &Question, predictions: &[Vec<Prediction>]) -> Outcome {
    let Question::Choice { choices, gold, .. } = question else {
        return Outcome {
            marks: vec![false; KIND.metrics.len()],
            said: String::new(),
            found: Found::Likelihoods(Vec::new()),
        };
    };
    let sums: Vec<f64> = predictions.iter().map(|p| -p.iter().map(|p| p.nll).sum::<f64>()).collect();
    // The space in front of a choice is no part of it.
    let length = |c: &String| c.strip_prefix(' ').unwrap_or(c).chars().count().max(1) as f64;
    let normed: Vec<f64> = sums.iter().zip(choices).map(|(sum, c)| sum / length(c)).collect();
    let (best, best_normed) = (first_largest(&sums), first_largest(&normed));
    let said = choices.get(best).map_or("", |c| c.trim()).to_owned();
    Outcome { marks: vec![best == *gold, best_normed == *gold], said, found: Found::Likelihoods(sums) }
}

/// As numpy's argmax.
fn first_largest(x: &[f64]) -> usize {
    (0..x.len()).rev().max_by(|a, b| x[*a].total_cmp(&x[*b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_can_change_the_choice() {
        let choices = vec![" no".to_owned(), " certainly".to_owned()];
        let question = Question::Choice { prompts: vec![String::new(); 2], choices, gold: 1 };
        let nll = |x: f64| vec![Prediction { nll: x, hit: false }];
        let found = outcome(&question, &[nll(2.0), nll(3.0)]);
        assert_eq!((found.marks, found.said.as_str()), (vec![false, true], "no"));
        assert_eq!(first_largest(&[1.0, 2.0, 2.0]), 1);
    }
}

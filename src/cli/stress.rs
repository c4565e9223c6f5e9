//! `quant eval --stress`: what reference and artifacts write when they are let go on.

use serde_json::{Value, json};

use super::report::{Reporter, table};
use crate::container::{Checkpoint, tokenizer};
use crate::device::cpu;
use crate::engine::Engine;
use crate::error::{At, Error, Result};
use crate::eval::protocol::Window;
use crate::eval::stress::{Continuation, Stress, compare, go_on};

/// Tokens of the text that stand in front, and that are written behind.
const PROMPT: usize = 64;
const LIMIT: usize = 160;
/// Pairs of continuations that are kept for people.
const EXAMPLES: usize = 6;

/// Of one artifact.
pub struct Finding {
    path: String,
    stress: Stress,
    examples: Vec<Value>,
}

/// Lets all models continue the beginnings of `count` windows, evenly spread.
pub fn run(
    reference: &dyn Checkpoint,
    artifacts: &[(&str, &dyn Checkpoint)],
    windows: &[Window],
    count: usize,
    threads: usize,
    reporter: &Reporter,
) -> Result<Vec<Finding>> {
    let tokenizer = reference.tokenizer()?;
    let ends = tokenizer::end_tokens(&reference.metadata()?)?;
    let count = count.min(windows.len());
    let prompts: Vec<&[u32]> = (0..count)
        .map(|i| &windows[i * windows.len() / count].tokens[..])
        .map(|tokens| &tokens[..tokens.len().min(PROMPT)])
        .collect();
    let most = prompts.iter().map(|p| p.len()).max().unwrap_or(0) + LIMIT;
    let context = reference.family().and_then(|(_, spec)| spec.context).map_or(usize::MAX, |n| n as usize);
    if most > context {
        return Err(Error::request(format!("continuations need {most} positions, the model's context has {context}")));
    }
    let each = prompts.iter().map(|p| p.len() + LIMIT).sum::<usize>();
    let bar = reporter.tokens("continue", (each * (artifacts.len() + 1)) as u64);
    let write = |checkpoint: &dyn Checkpoint| {
        let engine = Engine::new(checkpoint, most)?;
        go_on(&engine, &tokenizer, &ends, &prompts, LIMIT, &|n| bar.advance(n))
    };
    let (expected, found) = cpu::pool(threads)?.install(|| {
        let expected = write(reference).at(|| "the reference")?;
        let mut found = Vec::with_capacity(artifacts.len());
        for (path, checkpoint) in artifacts {
            found.push((*path, write(*checkpoint).at(|| (*path).to_owned())?));
        }
        Ok::<_, Error>((expected, found))
    })?;
    bar.finish();
    let finding = |(path, written): (&str, Vec<Continuation>)| {
        let pairs = prompts.iter().zip(expected.iter().zip(&written));
        let example = |(prompt, (a, b)): (&&[u32], (&Continuation, &Continuation))| {
            Ok(json!({"prompt": tokenizer.decode(prompt)?, "reference": a.text, "artifact": b.text}))
        };
        let examples = pairs.filter(|(_, (a, b))| a.tokens != b.tokens).take(EXAMPLES).map(example);
        Ok(Finding {
            path: path.to_owned(),
            stress: compare(&expected, &written),
            examples: examples.collect::<Result<_>>()?,
        })
    };
    found.into_iter().map(finding).collect()
}

pub fn cells(findings: &[Finding]) -> String {
    let header = ["going on greedily", "the same", "first difference", "loops", "no end", "length", "other script"];
    let share = |x: f64| format!("{:.0} %", x * 100.0);
    let row = |f: &Finding| {
        let s = &f.stress;
        let first = s.first_divergence.map_or_else(|| "none".to_owned(), |[a, b, c]| format!("{b} ({a} - {c})"));
        let both = |s: &crate::eval::stress::Share| format!("{}, reference {}", share(s.artifact), share(s.reference));
        let length = format!("{:.2}", s.length_ratio);
        vec![f.path.clone(), share(s.identical), first, both(&s.repetition), both(&s.no_end), length, share(s.drift)]
    };
    table(&header, &[1, 2, 3, 4, 5, 6], findings.iter().map(row))
}

pub fn note(findings: &[Finding]) -> Option<String> {
    let prompts = findings.first()?.stress.prompts;
    Some(format!(
        "going on: {prompts} beginnings of {PROMPT} tokens, up to {LIMIT} more; the token of the first difference (quartiles) of those that differ"
    ))
}

/// `stress` of the whole report.
pub fn to_json(findings: &[Finding]) -> Value {
    let one = |f: &Finding| {
        let mut value = json!(f.stress);
        value["path"] = json!(f.path);
        value["examples"] = json!(f.examples);
        value
    };
    findings.iter().map(one).collect()
}

//! What is said of conversions: their plans, how they go on, what came out.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::report::{Progress, Reporter, table};
use super::size::Size;
use crate::container::LeftOut;
use crate::convert::{CHUNK_WEIGHTS, Counts, Event, Layout, Output, Plan, Planned};
use crate::error::Result;

/// Shows how a conversion goes on.
pub fn follow(event: Event, bar: &Progress, reporter: &Reporter) {
    match event {
        Event::Bytes(n) => bar.advance(n),
        Event::Resumed { weights, of } => {
            reporter.note(&format!("going on after {weights} of {of} weights of a run that was stopped"));
        }
    }
}

/// What would be written, tensor by tensor.
pub fn print_plans(plans: &[Plan], threads: usize, reporter: &Reporter) -> Result<()> {
    if reporter.json {
        let outputs: Vec<Value> = plans
            .iter()
            .map(|p| {
                json!({"path": p.path, "target": p.target, "bytes": p.layout.bytes(), "bpw": p.bpw(),
                    "disk": p.layout.bytes(), "memory": p.peak_memory(threads, CHUNK_WEIGHTS), "tensors": tensors_json(p),
                    "left_out": left_out_json(&p.left_out), "beside": left_out_json(&p.beside)})
            })
            .collect();
        return reporter.value(&json!({ "outputs": outputs }));
    }
    for plan in plans {
        let rows = plan.tensors.iter().map(|t| {
            vec![
                t.spec.name.clone(),
                format!("{:?}", t.spec.shape),
                t.spec.codec.name().to_owned(),
                Size(t.bytes as u64).to_string(),
                why(t),
            ]
        });
        reporter.text(&table(&["tensor", "shape", "format", "size", "because"], &[3], rows))?;
        reporter.text("")?;
        let rows = by_codec(plan).into_iter().map(|(codec, (tensors, weights, bytes))| {
            vec![codec.to_owned(), tensors.to_string(), weights.to_string(), Size(bytes).to_string()]
        });
        reporter.text(&table(&["format", "tensors", "weights", "size"], &[1, 2, 3], rows))?;
        reporter.text(&format!(
            "\n{}: {} in {} file(s), {:.2} bits per weight, {} of buffers with {threads} threads\n{}",
            plan.path.display(),
            Size(plan.layout.bytes()),
            plan.layout.shards(),
            plan.bpw(),
            Size(plan.peak_memory(threads, CHUNK_WEIGHTS)),
            fallback_note(plan),
        ))?;
        outside(plan).iter().try_for_each(|note| reporter.text(note))?;
    }
    Ok(())
}

/// What decided, in words.
fn why(t: &Planned) -> String {
    match &t.choice.fallback {
        Some(f) => format!("{}; {}", t.choice.reason, f.because),
        None => t.choice.reason.clone(),
    }
}

fn by_codec(plan: &Plan) -> BTreeMap<&'static str, (usize, usize, u64)> {
    let mut sums = BTreeMap::new();
    for t in &plan.tensors {
        let sum: &mut (usize, usize, u64) = sums.entry(t.spec.codec.name()).or_default();
        sum.0 += 1;
        sum.1 += t.spec.shape.iter().product::<usize>();
        sum.2 += t.bytes as u64;
    }
    sums
}

pub fn fallback_note(plan: &Plan) -> String {
    let fallen = plan.tensors.iter().filter(|t| t.choice.fallback.is_some()).count();
    let quantized = plan.tensors.iter().filter(|t| t.choice.keeps.is_none()).count();
    match fallen {
        0 => format!("{}: {quantized} tensors get their format, none falls back", plan.target),
        n => format!(
            "{}: {n} of {} tensors fall back to another format or stay as they are: they are no multiple of its blocks (`quant plan` lists them)",
            plan.target,
            quantized + plan.tensors.iter().filter(|t| t.choice.keeps.is_some() && t.choice.fallback.is_some()).count()
        ),
    }
}

/// Names of the files that a tokenizer may be in.
const TOKENIZERS: &[&str] = &["tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json"];

/// A folder that nothing can be asked in words.
pub fn wordless_note(plan: &Plan) -> Option<String> {
    let Layout::Folder(folder) = &plan.layout else { return None };
    let has = |name: &&str| folder.files.iter().any(|f| f.path.as_os_str() == *name);
    let none = !TOKENIZERS.iter().any(has);
    none.then(|| format!("warning: {}: the model has no tokenizer; copy its files into the folder", plan.target))
}

/// Weights whose format has an encoder of its own, which searches whatever the method says.
pub fn searched_note(plan: &Plan) -> Option<String> {
    let own = |t: &&Planned| {
        t.choice.keeps.is_none() && !t.copied && !t.on_grid() && t.spec.codec.block().is_some_and(|b| b.weights > 1)
    };
    let count = plan.tensors.iter().filter(own).count();
    let text = format!("warning: {}: {count} weights go through llama.cpp's search all the same", plan.target);
    (count > 0).then_some(text)
}

/// Weights that an importance matrix says nothing of, though their format asks: heads and embeddings aside, which none has.
pub fn unweighted_note(plan: &Plan) -> Option<String> {
    let unweighted: Vec<&str> = plan.unweighted().map(|t| t.spec.name.as_str()).collect();
    let first = unweighted.first()?;
    Some(format!(
        "warning: {}: the importance matrix has nothing for {} weights, {first} first: they are quantized as without one",
        plan.target,
        unweighted.len()
    ))
}

/// What becomes of tensors that no recipe is asked about.
fn outside(plan: &Plan) -> Vec<String> {
    let note = |verb: &str, l: &LeftOut| {
        let (n, size) = (l.tensors, Size(l.bytes));
        let tensors = if n == 1 { "tensor" } else { "tensors" };
        format!("{}: {n} {tensors} of {size} {verb}, {} first: {}", plan.target, l.example, l.reason)
    };
    let left_out = plan.left_out.iter().map(|l| note("left out", l));
    left_out.chain(plan.beside.iter().map(|l| note("kept as they are", l))).collect()
}

fn left_out_json(all: &[LeftOut]) -> Vec<Value> {
    let one = |l: &LeftOut| json!({"reason": l.reason, "tensors": l.tensors, "bytes": l.bytes, "first": l.example});
    all.iter().map(one).collect()
}

fn tensors_json(plan: &Plan) -> Vec<Value> {
    plan.tensors
        .iter()
        .map(|t| {
            json!({"name": t.spec.name, "codec": t.spec.codec.name(), "shape": t.spec.shape, "bytes": t.bytes,
                "because": why(t), "fallback": t.choice.fallback.as_ref().map(|f| f.wanted.name()),
                "importance": t.weighted})
        })
        .collect()
}

/// `allocation`: how the formats were found, where they were measured for.
pub fn print(plans: &[Plan], outputs: &[Output], allocation: Option<Value>, reporter: &Reporter) -> Result<()> {
    if reporter.json {
        let outputs: Vec<Value> = plans
            .iter()
            .zip(outputs)
            .map(|(p, o)| {
                json!({"path": o.paths[0], "paths": o.paths, "target": p.target, "bytes": o.bytes, "bpw": p.bpw(),
                    "seconds": o.seconds, "carried": o.counts.carried, "requantized": o.counts.requantized, "rounded": o.counts.rounded, "exact": exact(o),
                    "tensors": tensors_json(p), "solved": o.solved, "left_out": left_out_json(&p.left_out),
                    "beside": left_out_json(&p.beside)})
            })
            .collect();
        let mut value = json!({ "outputs": outputs });
        if let Some(allocation) = allocation {
            value["outputs"][0]["allocation"] = allocation;
        }
        return reporter.value(&value);
    }
    let rows = plans.iter().zip(outputs).map(|(p, o)| {
        vec![
            o.paths[0].display().to_string(),
            Size(o.bytes).to_string(),
            format!("{:.2}", p.bpw()),
            format!("{:.1} s", o.seconds),
        ]
    });
    reporter.text(&table(&["file", "size", "bits/weight", "time"], &[1, 2, 3], rows))?;
    for (p, o) in plans.iter().zip(outputs) {
        outside(p).iter().try_for_each(|note| reporter.text(note))?;
        if let Some(note) = solved_note(p, o) {
            reporter.text(&note)?;
        }
        let Counts { carried, requantized, rounded } = o.counts;
        let path = o.paths[0].display();
        let others = match rounded {
            0 => String::new(),
            n => format!("; {n} that were not quantized are now, which rounds them"),
        };
        match exact(o) {
            Some(true) => {
                reporter
                    .text(&format!("{path}: exact: yes, all {carried} quantized weights keep their values{others}"))?;
            }
            Some(false) => {
                let again = format!("{requantized} weights were quantized again, {carried} keep their values");
                reporter.text(&format!("{path}: exact: no, {again}{others}"))?;
            }
            None => {}
        }
    }
    Ok(())
}

/// What solving did, and where it was given up.
fn solved_note(plan: &Plan, output: &Output) -> Option<String> {
    if output.solved.is_empty() {
        return None;
    }
    let mut ratios: Vec<f64> = output.solved.iter().filter_map(|s| s.error_ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let mut counts = BTreeMap::<&str, usize>::new();
    output.solved.iter().for_each(|s| *counts.entry(&s.method).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(name, n)| format!("{n} by {name}")).collect();
    let text = match output.solved.iter().all(|s| s.held_out) {
        true => "held-out text",
        false => "the calibration text itself (none was held out: it flatters)",
    };
    let mut note = format!("{}: {}", plan.target, counts.join(", "));
    if let Some(median) = ratios.get(ratios.len() / 2) {
        note += &format!("; median error of the outputs {median:.2} times that of imatrix, on {text}");
    }
    for s in &output.solved {
        if let Some(because) = &s.because {
            note += &format!("\n  {} (matrix {}): {}, because {because}", s.name, s.plane, s.method);
        }
    }
    Some(note)
}

/// Whether the source's quantized weights have their values still; `None` if there were none.
fn exact(output: &Output) -> Option<bool> {
    let Counts { carried, requantized, .. } = output.counts;
    (carried + requantized > 0).then_some(requantized == 0)
}

//! Several results as one: what was measured under the same conditions stands in one table, the rest apart.

use super::Results;
use super::data::{Artifact, Evaluation, Gate};

/// Results of the same conditions.
pub struct Group {
    pub files: Vec<String>,
    pub versions: Vec<String>,
    pub evaluation: Evaluation,
}

/// Every gate, by the file it is from.
pub fn gates(results: &[Results]) -> Vec<(&str, &Gate)> {
    results.iter().filter_map(|r| Some((r.name.as_str(), r.evaluation.gate.as_ref()?))).collect()
}

pub fn groups(results: &[Results]) -> Vec<Group> {
    let mut out: Vec<Group> = Vec::new();
    for result in results {
        let versions = result.evaluation.quant.iter().map(|q| q.version.clone());
        match out.iter_mut().find(|g| comparable(&g.evaluation, &result.evaluation)) {
            Some(group) => {
                group.add(result);
                group.versions.extend(versions);
            }
            None => out.push(Group {
                files: vec![result.name.clone()],
                versions: versions.collect(),
                evaluation: result.evaluation.clone(),
            }),
        }
    }
    for group in &mut out {
        group.versions.sort();
        group.versions.dedup();
        // Closest first; what has no divergence by perplexity, behind.
        let loss = |a: &Artifact| a.kld.as_ref().map_or(f64::INFINITY, |k| k.mean);
        let perplexity = |a: &Artifact| a.perplexity.map_or(f64::INFINITY, |p| p.value);
        group
            .evaluation
            .artifacts
            .sort_by(|a, b| loss(a).total_cmp(&loss(b)).then(perplexity(a).total_cmp(&perplexity(b))));
    }
    out
}

/// Same protocol, text, tokenizer and, where both have them, tokens and reference.
fn comparable(a: &Evaluation, b: &Evaluation) -> bool {
    fn agree<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
        a.is_none() || b.is_none() || a == b
    }
    let reference = |e: &Evaluation| e.reference.as_ref().map(|r| (r.name.clone(), r.bytes));
    let perplexity = |e: &Evaluation| e.reference.as_ref().and_then(|r| r.perplexity);
    a.protocol == b.protocol
        && a.conditions == b.conditions
        && agree(a.tokens, b.tokens)
        && agree(reference(a), reference(b))
        && agree(perplexity(a), perplexity(b))
}

impl Group {
    fn add(&mut self, result: &Results) {
        let (own, other) = (&mut self.evaluation, result.evaluation.clone());
        own.tokens = own.tokens.or(other.tokens);
        own.noise = own.noise.take().or(other.noise);
        own.reference = own.reference.take().or(other.reference);
        for task in other.tasks {
            if !own.tasks.iter().any(|t| t.name == task.name && t.hash == task.hash) {
                own.tasks.push(task);
            }
        }
        for mut artifact in other.artifacts {
            match own.artifacts.iter_mut().find(|a| a.path == artifact.path) {
                Some(known) if same(known, &artifact) => fill(known, artifact),
                Some(_) => {
                    artifact.path = format!("{} ({})", artifact.path, result.name);
                    own.artifacts.push(artifact);
                }
                None => own.artifacts.push(artifact),
            }
        }
        own.kv.extend(other.kv);
        own.stress.extend(other.stress);
        self.files.push(result.name.clone());
    }
}

/// Nothing that both have differs.
fn same(a: &Artifact, b: &Artifact) -> bool {
    fn agree<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
        a.is_none() || b.is_none() || a == b
    }
    let tasks = |x: &Artifact, y: &Artifact| x.tasks.iter().any(|t| y.tasks.iter().any(|u| u.name == t.name));
    let caches = a.kv.is_empty() || b.kv.is_empty() || a.reference == b.reference;
    a.bytes == b.bytes && agree(&a.kld, &b.kld) && agree(&a.perplexity, &b.perplexity) && !tasks(a, b) && caches
}

fn fill(known: &mut Artifact, more: Artifact) {
    known.format = known.format.take().or(more.format);
    known.bpw = known.bpw.or(more.bpw);
    known.perplexity = known.perplexity.or(more.perplexity);
    known.ln_ppl_ratio = known.ln_ppl_ratio.or(more.ln_ppl_ratio);
    known.kld = known.kld.take().or(more.kld);
    known.same_top = known.same_top.or(more.same_top);
    known.rms_delta_p = known.rms_delta_p.or(more.rms_delta_p);
    known.weights = known.weights.take().or(more.weights);
    known.tasks.extend(more.tasks);
    known.kv.extend(more.kv);
    known.reference = known.reference.take().or(more.reference);
    known.warnings.extend(more.warnings);
    if known.positions.is_empty() {
        known.positions = more.positions;
    }
    if known.blame.is_empty() {
        known.blame = more.blame;
    }
}

/// Names that are as short as they can be and still differ: without the folder that all share, the model's own name in
/// front and an ending that all have.
pub fn short(paths: &[String], model: Option<&str>) -> Vec<String> {
    let file =
        |path: &String| path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    let unique = |names: &[String]| {
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort();
        names.iter().all(|n| !n.is_empty()) && sorted.windows(2).all(|w| w[0] != w[1])
    };
    let mut out: Vec<String> = paths.iter().map(file).collect();
    if !unique(&out) {
        return paths.to_vec();
    }
    // One name needs no telling apart.
    if out.len() == 1 {
        return out;
    }
    let strip = |name: &String| {
        let rest = model.and_then(|m| name.strip_prefix(m))?.strip_prefix(['-', '_'])?;
        Some(rest.to_owned())
    };
    for change in [&strip as &dyn Fn(&String) -> Option<String>, &|name| Some(name.strip_suffix(".gguf")?.to_owned())] {
        let changed: Option<Vec<String>> = out.iter().map(change).collect();
        if let Some(changed) = changed.filter(|names| unique(names)) {
            out = changed;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_differ() {
        let short = |paths: &[&str], model| short(&paths.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>(), model);
        assert_eq!(short(&["out/m-q4_k_m.gguf", "out/m-q2_k.gguf"], Some("m")), ["q4_k_m", "q2_k"]);
        assert_eq!(short(&["out/m-q4_k_m.gguf", "out/m-awq"], Some("m")), ["q4_k_m.gguf", "awq"]);
        assert_eq!(short(&["a/m.gguf", "b/m.gguf"], Some("m")), ["a/m.gguf", "b/m.gguf"]);
        assert_eq!(short(&["m.gguf", "m-q8_0.gguf"], Some("m")), ["m", "m-q8_0"]);
        assert_eq!(short(&["out/m-awq/"], None), ["m-awq"]);
        assert_eq!(short(&["out/m-q4_k_m.gguf"], Some("m")), ["m-q4_k_m.gguf"]);
    }
}

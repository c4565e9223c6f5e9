//! Presets against llama.cpp: every file of `tests/golden/recipes` lists the tensors of a model and the types that llama.cpp
//! gives them. The format is described in `tests/interop/recipe_golden.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quant::codec;
use quant::recipe::{ModelFacts, Recipe, Size, Source, select};

#[derive(Default)]
struct Golden {
    facts: BTreeMap<String, String>,
    tensors: BTreeMap<String, (String, Vec<usize>)>,
    runs: Vec<Run>,
}

#[derive(Default)]
struct Run {
    /// Preset and options of runs that give the same.
    titles: Vec<String>,
    otherwise: String,
    types: BTreeMap<String, String>,
    fallbacks: Option<usize>,
    size: Option<f64>,
    wants_importance: bool,
    error: bool,
}

/// `blk.{0-1,7}.x` -> `blk.0.x`, `blk.1.x`, `blk.7.x`
fn expand(pattern: &str) -> Vec<String> {
    let Some((head, (ranges, tail))) = pattern.split_once('{').and_then(|(h, r)| Some((h, r.split_once('}')?))) else {
        return vec![pattern.to_owned()];
    };
    let numbers = ranges.split(',').flat_map(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        from.parse::<u32>().unwrap()..=to.parse().unwrap()
    });
    numbers.map(|n| format!("{head}{n}{tail}")).collect()
}

fn read(path: &Path) -> Golden {
    let text = std::fs::read_to_string(path).unwrap();
    let mut golden = Golden::default();
    let mut previous = "";
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (word, rest) = line.trim_start().split_once(' ').unwrap_or((line.trim(), ""));
        let starts = line.starts_with("run ") && !previous.starts_with("run ");
        previous = line;
        let run = golden.runs.last_mut().filter(|_| line.starts_with(' '));
        match (word, run) {
            ("facts", None) => {
                let pairs = rest.split(' ').map(|f| f.split_once('=').unwrap());
                golden.facts = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            }
            ("tensor", None) => {
                let mut words = rest.split(' ');
                let kind = words.next().unwrap();
                let shape: Vec<_> = words.next().unwrap().split('x').map(|d| d.parse().unwrap()).collect();
                golden.tensors.extend(words.flat_map(expand).map(|n| (n, (kind.to_owned(), shape.clone()))));
            }
            ("run", None) if starts => golden.runs.push(Run { titles: vec![rest.to_owned()], ..Run::default() }),
            ("run", None) => golden.runs.last_mut().unwrap().titles.push(rest.to_owned()),
            ("else", Some(run)) => run.otherwise = rest.to_owned(),
            ("fallbacks", Some(run)) => run.fallbacks = Some(rest.parse().unwrap()),
            ("size", Some(run)) => run.size = Some(rest.parse().unwrap()),
            ("wants", Some(run)) => run.wants_importance = true,
            ("error", Some(run)) => run.error = true,
            (kind, Some(run)) => run.types.extend(rest.split(' ').flat_map(expand).map(|n| (n, kind.to_owned()))),
            (word, None) => panic!("{}: {word:?}?", path.display()),
        }
    }
    golden
}

fn check(golden: &Golden, run: &Run, title: &str) -> Result<usize, String> {
    let number = |key: &str| golden.facts[key].parse().unwrap();
    let mut words = title.split(' ');
    let mut recipe = Recipe::load(words.next().unwrap()).map_err(|e| e.to_string())?;
    let mut has_importance = false;
    while let Some(word) = words.next() {
        match word {
            "importance" => has_importance = true,
            "--set" => recipe.set(words.next().unwrap()).map_err(|e| e.to_string())?,
            other => panic!("{other:?}?"),
        }
    }
    let facts = ModelFacts {
        arch: golden.facts["arch"].clone(),
        layers: number("layers"),
        heads: number("heads"),
        kv_heads: number("kv_heads"),
        experts: number("experts"),
        has_importance,
    };
    let sources: Vec<_> = golden
        .tensors
        .iter()
        .map(|(name, (kind, shape))| Source { name, shape, codec: codec::find(kind).unwrap() })
        .collect();
    let choices = match select(&recipe, &facts, &sources) {
        Err(_) if run.error => return Ok(1),
        Err(e) => return Err(e.to_string()),
        Ok(_) if run.error => return Err("llama.cpp refuses this".to_owned()),
        Ok(choices) => choices,
    };
    if choices.len() != golden.tensors.len() {
        return Err(format!("{} of {} tensors", choices.len(), golden.tensors.len()));
    }
    for choice in &choices {
        let expected = run.types.get(&choice.name).unwrap_or(&run.otherwise);
        if choice.codec.name() != expected {
            return Err(format!(
                "{}: expected {expected}, got {} ({})",
                choice.name,
                choice.codec.name(),
                choice.reason
            ));
        }
    }
    let fallbacks = choices.iter().filter(|c| c.fallback.is_some()).count();
    if run.fallbacks.is_some_and(|n| n != fallbacks) {
        return Err(format!("{fallbacks} fallbacks instead of {:?}", run.fallbacks));
    }
    let mebibytes = Size::total(&choices).bytes as f64 / 1048576.0;
    if run.size.is_some_and(|size| (size - mebibytes).abs() > 0.0051) {
        return Err(format!("{mebibytes} MiB instead of {:?}", run.size));
    }
    let wants = choices.iter().any(|c| c.needs_importance);
    if run.fallbacks.is_some() && !has_importance && wants != run.wants_importance {
        return Err(format!("needs importance: {wants}"));
    }
    Ok(choices.len())
}

#[test]
fn types_are_llama_cpps() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/recipes");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let (mut runs, mut types, mut wrong) = (0, 0, Vec::new());
    for path in &files {
        let golden = read(path);
        assert!(!golden.runs.is_empty() && !golden.tensors.is_empty(), "{}", path.display());
        for (run, title) in golden.runs.iter().flat_map(|run| run.titles.iter().map(move |t| (run, t))) {
            runs += 1;
            match check(&golden, run, title) {
                Ok(n) => types += n,
                Err(e) => wrong.push(format!("{} {}: {e}", path.file_name().unwrap().display(), title)),
            }
        }
    }
    println!("{} models, {runs} runs, {types} types", files.len());
    assert!(wrong.is_empty(), "{} of {runs} runs differ:\n{}", wrong.len(), wrong.join("\n"));
}

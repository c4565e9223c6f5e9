//! Named mixes of text (`calibration/*.toml`), and the corpora that come with the program.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::data::{Source, Tokens};
use crate::error::{At, Error, Result};
use crate::eval::text;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    pub about: String,
    #[serde(rename = "source")]
    pub sources: Vec<Part>,
}

/// A source: one of `corpus`, `file` and `hub`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Of the mix's tokens.
    share: f64,
    /// A bundled corpus.
    corpus: Option<String>,
    /// Beside the mix.
    file: Option<PathBuf>,
    /// A public set, which the user has to fetch, and how.
    hub: Option<String>,
    note: Option<String>,
}

macro_rules! bundled {
    ($($name:literal),*) => { &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/calibration/", $name)))),*] };
}

/// Files of `calibration/`.
static MIXES: &[(&str, &str)] =
    bundled!("general.toml", "code.toml", "chat.toml", "math.toml", "multilingual.toml", "public-general.toml");
static CORPORA: &[(&str, &str)] = bundled!("prose.txt", "code.txt", "chat.jsonl", "math.txt", "multilingual.txt");

/// What is run when nothing else is asked for.
pub const DEFAULT: &str = "general";

fn stem(file: &str) -> &str {
    file.split('.').next().unwrap_or(file)
}

/// Names of the bundled mixes, and what they are.
pub fn all() -> impl Iterator<Item = (&'static str, Result<Mix>)> {
    MIXES.iter().map(|(file, text)| (stem(file), parse(text)))
}

fn parse(text: &str) -> Result<Mix> {
    let mix: Mix = toml::from_str(text).map_err(|e| Error::input(format!("not a mix: {}", e.message())))?;
    let one = |p: &Part| [p.corpus.is_some(), p.file.is_some(), p.hub.is_some()].iter().filter(|b| **b).count() == 1;
    if mix.sources.is_empty() || mix.sources.iter().any(|p| !one(p) || !p.share.is_finite() || p.share <= 0.0) {
        return Err(Error::input("a mix has sources, each with a share above 0 and one of `corpus`, `file` and `hub`"));
    }
    Ok(mix)
}

/// The sources of a bundled mix, or of a file that ends in `.toml`, `weight` divided among them.
///
/// Errors: no such mix; one of public sets, with what to do; files that cannot be read.
pub fn load(name: &str, weight: f64, tokens: &Tokens) -> Result<Vec<Source>> {
    let bundled = MIXES.iter().find(|(file, _)| stem(file) == name);
    let (mix, folder) = match bundled {
        Some((_, text)) => (parse(text).at(|| name.to_owned())?, PathBuf::new()),
        None if name.ends_with(".toml") => {
            let mix = std::fs::read_to_string(name).map_err(Error::from);
            let mix = mix.and_then(|text| parse(&text).map_err(Error::in_request));
            (mix.at(|| name.to_owned())?, Path::new(name).parent().unwrap_or(Path::new("")).to_owned())
        }
        None => {
            let known: Vec<_> = MIXES.iter().map(|(file, _)| stem(file)).collect();
            return Err(Error::request(format!("there is no mix {name:?}"))
                .help(format!("mixes are {}, or a file NAME.toml", known.join(", "))));
        }
    };
    let total: f64 = mix.sources.iter().map(|p| p.share).sum();
    let source = |p: &Part| {
        let weight = weight * p.share / total;
        match (&p.corpus, &p.file) {
            (Some(corpus), _) => bundled_source(corpus, weight, tokens),
            (_, Some(file)) => Source::file(&folder.join(file), weight, tokens),
            _ => Err(fetch_yourself(&mix)),
        }
    };
    mix.sources.iter().map(source).collect::<Result<_>>().at(|| format!("mix {name}"))
}

fn fetch_yourself(mix: &Mix) -> Error {
    let sets: Vec<String> = mix
        .sources
        .iter()
        .filter_map(|p| {
            let note = p.note.as_deref().unwrap_or("as .jsonl or .parquet");
            p.hub.as_ref().map(|hub| format!("{hub} ({note}; weight {})", p.share))
        })
        .collect();
    Error::request("this mix names public sets, which are not downloaded")
        .help(format!("fetch them and pass each as --data FILE:WEIGHT: {}", sets.join("; ")))
}

fn bundled_source(name: &str, weight: f64, tokens: &Tokens) -> Result<Source> {
    let found = CORPORA.iter().find(|(file, _)| stem(file) == name);
    let (file, content) = found.ok_or_else(|| {
        let known: Vec<_> = CORPORA.iter().map(|(file, _)| stem(file)).collect();
        Error::request(format!("there is no corpus {name:?}")).help(format!("corpora are {}", known.join(", ")))
    })?;
    let rendered = Cell::new(false);
    let documents = match file.ends_with(".jsonl") {
        true => text::json_lines(content, &|row| {
            rendered.set(tokens.has_template());
            if tokens.has_template() { tokens.render(row) } else { Ok(plain(row)) }
        })?,
        false => content.trim_end().split(text::SEPARATOR).map(str::to_owned).collect(),
    };
    let corpus = text::Corpus::new(format!("bundled {name}"), documents);
    Ok(Source { name: corpus.name, hash: corpus.hash, weight, documents: corpus.documents, chat: rendered.get() })
}

/// A conversation as a transcript, for models that know no conversations.
fn plain(row: &serde_json::Value) -> String {
    let messages = row["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let turn = |m: &serde_json::Value| {
        let role = match m["role"].as_str() {
            Some("user") => "User",
            Some("assistant") => "Assistant",
            _ => "Instructions",
        };
        format!("{role}: {}", m["content"].as_str().unwrap_or_default())
    };
    messages.iter().map(turn).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn mixes_name_corpora_that_exist() {
        for (name, mix) in all() {
            let mix = mix.unwrap();
            assert!(!mix.about.is_empty());
            let corpora = mix.sources.iter().filter_map(|p| p.corpus.as_deref());
            corpora.for_each(|c| assert!(CORPORA.iter().any(|(file, _)| stem(file) == c), "{name}: {c}"));
            assert!((mix.sources.iter().map(|p| p.share).sum::<f64>() - 1.0).abs() < 1e-9, "{name}");
        }
        assert!(all().any(|(name, _)| name == DEFAULT));
        for wrong in [
            "",
            "about = ''\nsource = []",
            "about = ''\n[[source]]\nshare = 1",
            "about = ''\n[[source]]\ncorpus = 'a'\nshare = 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    /// Runs of 8 words.
    fn shingles(text: &str) -> HashSet<String> {
        let words: Vec<String> =
            text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
        words.windows(8).map(|w| w.join(" ")).collect()
    }

    #[test]
    fn nothing_of_the_evaluation_corpus_is_calibrated_on() {
        let evaluated: HashSet<String> = text::Corpus::bundled().documents.iter().flat_map(|d| shingles(d)).collect();
        for (file, content) in CORPORA {
            let found: Vec<_> = shingles(content).into_iter().filter(|s| evaluated.contains(s)).collect();
            assert!(found.is_empty(), "{file}: {found:?}");
        }
    }
}

//! `quant list`: the tables that everything else walks.

use std::collections::HashSet;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::report::{Reporter, table};
use crate::calibrate::method::METHODS;
use crate::calibrate::mix;
use crate::codec::kv::{KV_FORMATS, KvFormat};
use crate::codec::{self, Importance};
use crate::error::Result;
use crate::eval::task::{File, presets};
use crate::{arch, container, recipe};

#[derive(Args)]
pub struct List {
    /// What to list [default: everything]
    what: Option<What>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    Formats,
    #[value(alias = "recipes")]
    Presets,
    Methods,
    Archs,
    Containers,
    Mixes,
    #[value(alias = "evals")]
    Tasks,
    Kv,
}

const ALL: &[What] =
    &[What::Presets, What::Methods, What::Formats, What::Archs, What::Containers, What::Mixes, What::Tasks, What::Kv];

impl List {
    pub fn run(&self, reporter: &Reporter) -> Result<bool> {
        let chosen: Vec<What> = self.what.map_or_else(|| ALL.to_vec(), |w| vec![w]);
        let mut all = serde_json::Map::new();
        for what in chosen {
            let (name, header, rows) = what.rows();
            if reporter.json {
                let rows: Vec<Value> = rows
                    .into_iter()
                    .map(|row| header.iter().zip(row).map(|(k, v)| (k.replace(' ', "_"), typed(v))).collect())
                    .collect();
                all.insert(name.to_owned(), Value::Array(rows));
            } else {
                reporter.text(&table(header, &[], rows))?;
                reporter.text("")?;
            }
        }
        if reporter.json {
            reporter.value(&Value::Object(all))?;
        }
        Ok(true)
    }
}

/// A cell as JSON has it: numbers and truths are none of its texts.
fn typed(cell: String) -> Value {
    match cell.parse::<serde_json::Number>() {
        Ok(number) => Value::Number(number),
        Err(_) => match cell.as_str() {
            YES => json!(true),
            NOT_YET => json!(false),
            "" => Value::Null,
            _ => json!(cell),
        },
    }
}

const YES: &str = "yes";
const NOT_YET: &str = "not yet";

impl What {
    fn rows(self) -> (&'static str, &'static [&'static str], Vec<Vec<String>>) {
        match self {
            What::Formats => ("formats", &["format", "bits", "block", "written", "importance", "about"], formats()),
            What::Presets => ("presets", &["preset", "container", "written", "about"], presets()),
            What::Methods => ("methods", &["method", "needs to know", "about"], methods()),
            What::Archs => ("archs", &["arch", "classes"], archs()),
            What::Containers => ("containers", &["container", "about"], containers()),
            What::Mixes => ("mixes", &["mix", "about"], mixes()),
            What::Tasks => ("tasks", &["task", "kind", "rows", "about"], tasks()),
            What::Kv => ("kv", &["cache type", "key bits", "value bits", "about"], kv()),
        }
    }
}

fn formats() -> Vec<Vec<String>> {
    let row = |c: &'static dyn codec::Codec| {
        let block = c.block();
        let one = c.pattern() == c.name();
        let bits = codec::bits_per_weight(c).filter(|_| one).map_or(String::new(), |b| format!("{b:.4}"));
        let encode = block.and_then(|b| b.encode);
        let importance = match encode.map(|e| e.importance) {
            Some(Importance::Used) => "used",
            Some(Importance::Required) => "required",
            None if c.packed() => "used",
            _ => "",
        };
        let weights = block.map_or(String::new(), |b| b.weights.to_string());
        let written = yes(codec::is_written(c));
        vec![c.pattern().into(), bits, weights, written, importance.into(), c.about().into()]
    };
    // Families of many formats have one row.
    let mut seen = HashSet::new();
    codec::all().filter(|c| seen.insert(c.pattern())).map(row).collect()
}

fn yes(it_is: bool) -> String {
    if it_is { YES } else { NOT_YET }.to_owned()
}

fn presets() -> Vec<Vec<String>> {
    recipe::list()
        .unwrap_or_default()
        .into_iter()
        .map(|p| vec![p.name.to_lowercase(), p.container, yes(p.writable), p.about])
        .collect()
}

fn methods() -> Vec<Vec<String>> {
    METHODS.iter().map(|m| vec![m.name.to_owned(), m.needs.to_string(), m.about.to_owned()]).collect()
}

fn archs() -> Vec<Vec<String>> {
    arch::ARCHES.iter().map(|a| vec![a.name.to_owned(), a.classes.join(", ")]).collect()
}

fn containers() -> Vec<Vec<String>> {
    container::CONTAINERS.iter().map(|c| vec![c.name.to_owned(), c.about.to_owned()]).collect()
}

fn mixes() -> Vec<Vec<String>> {
    let about = |mix: Result<mix::Mix>| mix.map_or_else(|e| e.message().to_owned(), |m| m.about);
    mix::all().map(|(name, mix)| vec![name.to_owned(), about(mix)]).collect()
}

fn tasks() -> Vec<Vec<String>> {
    let row = |name: &str, file: File| {
        let rows = match (&file.published, &file.hub, file.fields.as_slice()) {
            _ if file.has_rows() => "bundled".to_owned(),
            (Some(at), Some(_), _) => format!("{name}=hf, {at}"),
            (Some(at), None, _) => format!("{name}=ROWS of {at}"),
            (None, _, fields) => format!("yours, with {}", fields.join(", ")),
        };
        let check = if file.checks().is_empty() { String::new() } else { format!(", {}", file.checks()) };
        vec![name.to_owned(), format!("{}{check}", file.kind().map_or("", |k| k.name)), rows, file.about]
    };
    let all = presets::EMBEDDED.iter().map(|(name, _)| (*name, File::preset(name)));
    all.filter_map(|(name, file)| Some(row(name, file.ok()?))).collect()
}

/// Bits of a value, of heads of 128.
fn kv() -> Vec<Vec<String>> {
    let row = |f: &KvFormat| {
        let [key, value] = f.bits(128).map(|bits| format!("{bits:.3}"));
        vec![f.name.to_owned(), key, value, f.about.to_owned()]
    };
    KV_FORMATS.iter().map(row).collect()
}

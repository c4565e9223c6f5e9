//! The page: which parts there are, in which order.

use std::collections::HashSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::answers::{self, Flips, Pair};
use super::data::{Artifact, Gate, KvRow};
use super::merge::{self, Group};
use super::number::{interval, percent, perplexity, range, significant, thousands};
use super::quality::Judged;
use super::svg::Plot;
use super::table::Table;
use super::terms::{TERMS, Term};
use super::{Results, heat, palette};
use crate::error::{At, Error, Result};

#[derive(Serialize)]
struct Page {
    title: String,
    gate: Option<Verdict>,
    groups: Vec<Section>,
    terms: Vec<&'static Term>,
    style: String,
    program: &'static str,
}

#[derive(Serialize)]
struct Verdict {
    word: String,
    class: &'static str,
    meaning: &'static str,
    table: Option<Table>,
}

/// All parts of a group.
#[derive(Serialize)]
struct Section {
    /// Where there are several.
    title: Option<String>,
    id: String,
    headline: Vec<String>,
    quality: Option<Table>,
    size: Option<Figure>,
    positions: Option<Figure>,
    layers: Option<Figure>,
    weights: Vec<Table>,
    caches: Vec<Caches>,
    tasks: Option<Table>,
    flips: Vec<Flips>,
    stress: Option<Table>,
    pairs: Vec<Pair>,
    provenance: Vec<(&'static str, String)>,
}

#[derive(Serialize)]
struct Figure {
    svg: String,
    id: String,
}

/// The matrix of one model's cache types.
#[derive(Serialize)]
struct Caches {
    table: Table,
    warnings: Vec<String>,
}

/// Verdicts from the one that decides most.
const VERDICTS: [(&str, &str, &str); 4] = [
    ("INVALID", "bad", "Something could not be compared; nothing was judged."),
    ("REGRESSION", "bad", "At least one budget is exceeded beyond doubt."),
    ("INCONCLUSIVE", "open", "No budget is exceeded beyond doubt, but not all are kept beyond doubt: measure more."),
    ("PASS", "good", "Every budget is kept."),
];

fn class(verdict: &str) -> &'static str {
    VERDICTS.iter().find(|(word, ..)| *word == verdict).map_or("bad", |(_, class, _)| class)
}

/// The worst of all gates; a word that is not known decides like INVALID.
fn verdict(gates: &[(&str, &Gate)], name: &dyn Fn(&str) -> String) -> Option<Verdict> {
    let rank = |word: &str| VERDICTS.iter().position(|(known, ..)| *known == word).unwrap_or(0);
    let (_, worst) = gates.iter().min_by_key(|(_, gate)| rank(&gate.verdict))?;
    let rows: Vec<_> = gates.iter().flat_map(|(_, gate)| &gate.rows).collect();
    let file = |row: &&super::data::GateRow| row.artifact.as_deref().map_or_else(String::new, name);
    let mut table = Table::new("gate", "Budgets, and what was measured.", "file", rows.iter().map(file).collect());
    table.words("metric", None, rows.iter().map(|r| r.metric.clone()).collect());
    table.words("limit", None, rows.iter().map(|r| r.limit.clone().unwrap_or_default()).collect());
    let measured = |r: &super::data::GateRow| match r.value {
        Some(value) => format!("{} {}", significant(value), r.unit).trim_end().to_owned(),
        None => String::new(),
    };
    table.numbers("measured", None, rows.iter().map(|r| measured(r)).collect());
    let ranges = rows.iter().map(|r| interval(r.low, r.high, significant)).collect();
    table.numbers("95 % interval", Some("interval"), ranges);
    table.words("verdict", Some("gate"), rows.iter().map(|r| r.verdict.clone()).collect());
    table.classes(rows.iter().map(|r| format!("verdict-{}", class(&r.verdict))));
    table.words("note", None, rows.iter().map(|r| r.note.clone().unwrap_or_default()).collect());
    Some(Verdict {
        word: worst.verdict.clone(),
        class: class(&worst.verdict),
        meaning: VERDICTS[rank(&worst.verdict)].2,
        table: (!table.is_empty()).then_some(table),
    })
}

/// The plots of a group, in the order of the page.
struct Plots {
    size: Option<Plot>,
    positions: Option<Plot>,
    layers: Option<Plot>,
}

struct Parts<'a> {
    group: &'a Group,
    judged: Judged<'a>,
    plots: Plots,
    /// Title and rows of each cache matrix.
    caches: Vec<(String, &'a [KvRow], &'a [String])>,
    all: Vec<(&'a Artifact, String)>,
}

impl<'a> Parts<'a> {
    fn new(group: &'a Group) -> Parts<'a> {
        let e = &group.evaluation;
        let paths: Vec<String> = e.artifacts.iter().map(|a| a.path.clone()).collect();
        let names = merge::short(&paths, e.reference.as_ref().map(|r| r.name.as_str()));
        let judged = Judged::new(e, &names);
        let plots = Plots { size: judged.scatter(), positions: judged.positions(), layers: judged.layers() };
        let mut caches = Vec::new();
        if !e.kv.is_empty() {
            caches.push((String::new(), e.kv.as_slice(), &[] as &[String]));
        }
        let own = e.artifacts.iter().zip(&names).filter(|(a, _)| !a.kv.is_empty());
        let title = |a: &Artifact, name: &String| match (&a.reference, &e.reference) {
            (None, Some(reference)) => format!("{name} against {}", reference.name),
            _ => name.clone(),
        };
        caches.extend(own.map(|(a, name)| (title(a, name), a.kv.as_slice(), a.warnings.as_slice())));
        Parts { group, judged, plots, caches, all: e.artifacts.iter().zip(names).collect() }
    }

    /// The name by which tables call a path.
    fn name(&self, path: &str) -> String {
        self.all.iter().find(|(a, _)| a.path == path).map_or_else(|| path.to_owned(), |(_, name)| name.clone())
    }

    fn section(&self, index: usize, several: bool) -> Result<Section> {
        let e = &self.group.evaluation;
        let figure = |plot: &Option<Plot>| {
            plot.as_ref().map(|p| {
                let id = format!("{}-{index}", p.name);
                Figure { svg: p.inline(&format!("plot-{id}")), id }
            })
        };
        let mut headline: Vec<String> = self.judged.headline().into_iter().collect();
        headline.extend(answers::headline(e, &self.all)?);
        if headline.is_empty() && !self.caches.is_empty() {
            headline.extend(self.caches.iter().filter_map(|(name, rows, _)| cheapest(name, rows)));
        }
        let mut out = Section {
            title: several.then(|| match e.protocol.is_empty() {
                true => "tasks alone".to_owned(),
                false => format!("{}, windows of {}, {}", e.protocol, e.conditions.context, e.conditions.corpus),
            }),
            id: format!("part-{index}"),
            headline,
            quality: self.judged.table(),
            size: figure(&self.plots.size),
            positions: figure(&self.plots.positions),
            layers: figure(&self.plots.layers),
            weights: self.judged.weights(),
            caches: self
                .caches
                .iter()
                .enumerate()
                .map(|(i, (name, rows, warnings))| caches(i, name, rows, warnings))
                .collect(),
            tasks: answers::tasks(e, &self.all)?,
            flips: answers::flips(&self.all),
            stress: answers::stress(&e.stress, &|path| self.name(path)),
            pairs: answers::pairs(&e.stress, &|path| self.name(path)),
            provenance: self.provenance(),
        };
        // Ids are unique in a page.
        let tables = out.quality.iter_mut().chain(&mut out.weights).chain(&mut out.tasks).chain(&mut out.stress);
        tables.chain(out.caches.iter_mut().map(|c| &mut c.table)).for_each(|t| t.id = format!("{}-{index}", t.id));
        Ok(out)
    }

    fn provenance(&self) -> Vec<(&'static str, String)> {
        let (e, c) = (&self.group.evaluation, &self.group.evaluation.conditions);
        let mut out = Vec::new();
        if !e.protocol.is_empty() {
            out.push(("protocol", format!("{}, windows of {} tokens", e.protocol, thousands(c.context))));
            out.extend(e.tokens.map(|n| ("tokens scored", thousands(n))));
            out.push(("corpus", c.corpus.clone()));
            out.push(("corpus hash", c.corpus_hash.clone()));
            out.push(("tokenizer hash", c.tokenizer_hash.clone()));
            out.push(("BOS", c.bos.map_or_else(|| "none".to_owned(), |id| format!("token {id}"))));
            out.extend(c.activations.clone().map(|how| ("activations", how)));
        }
        let reference = e.reference.as_ref();
        out.extend(reference.map(|r| ("reference", r.path.clone().unwrap_or_else(|| r.name.clone()))));
        out.extend(e.noise.as_ref().map(|n| {
            let (batch, rounded) = (significant(n.batch_kld), significant(n.bf16_kld));
            (
                "noise floor",
                format!(
                    "{batch} between batch shapes (largest), {rounded} for hidden states rounded to BF16 (mean KLD)"
                ),
            )
        }));
        let files = self.all.iter().filter(|(a, name)| a.path != *name);
        let files: Vec<String> = files.map(|(a, name)| format!("{name}: {}", a.path)).collect();
        out.extend((!files.is_empty()).then(|| ("files", files.join("\n"))));
        for task in &e.tasks {
            let parts = [
                task.items.map(|n| format!("{} items", thousands(n))),
                task.hash.as_ref().map(|h| format!("hash {h}")),
            ];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            out.push(("task", format!("{} ({})", task.name, parts.join(", "))));
        }
        out.extend((!self.group.versions.is_empty()).then(|| ("quant", self.group.versions.join(", "))));
        out.push(("results", self.group.files.join(", ")));
        out
    }
}

/// What to quote of a cache matrix.
fn cheapest(name: &str, rows: &[KvRow]) -> Option<String> {
    let worst = |r: &KvRow| r.buckets.iter().map(|b| b.kld.value).fold(f64::NAN, f64::max);
    let fine: Vec<&KvRow> = rows.iter().filter(|r| worst(r) < 0.01).collect();
    let of = if name.is_empty() { String::new() } else { format!(" of {name}") };
    Some(match fine.iter().min_by(|a, b| a.bytes_per_token.total_cmp(&b.bytes_per_token)) {
        Some(row) => format!(
            "Of {} cache types{of}, {} is the smallest that stays below a mean KLD of 0.01 at every range of positions: {} bytes per token.",
            rows.len(),
            row.name,
            thousands(row.bytes_per_token.round() as u64)
        ),
        None => format!(
            "None of {} cache types{of} stays below a mean KLD of 0.01 at every range of positions.",
            rows.len()
        ),
    })
}

fn caches(index: usize, name: &str, rows: &[KvRow], warnings: &[String]) -> Caches {
    let of = if name.is_empty() { String::new() } else { format!(" of {name}") };
    let caption = format!(
        "Cache types{of}: what each position costs, and mean KLD (nats) of predictions at ranges of positions."
    );
    let mut table =
        Table::new(&format!("kv-{index}"), caption, "keys / values", rows.iter().map(|r| r.name.clone()).collect());
    let every =
        |show: &dyn Fn(&KvRow) -> Option<String>| rows.iter().map(|r| show(r).unwrap_or_default()).collect::<Vec<_>>();
    table.numbers("bytes per token", Some("kv"), every(&|r| Some(thousands(r.bytes_per_token.round() as u64))));
    table.numbers("perplexity", Some("perplexity"), every(&|r| r.perplexity.map(|p| perplexity(p.value))));
    table.numbers("KLD mean", Some("kld"), every(&|r| r.kld.map(|k| significant(k.value))));
    table.numbers("same top", Some("top"), every(&|r| r.same_top.map(|t| percent(t.value, 2))));
    for at in heat::ranges(rows) {
        let bucket = |r: &KvRow| r.buckets.iter().find(|b| (b.from, b.to) == at).cloned();
        table.numbers(range(at.0, at.1), Some("kv"), every(&|r| bucket(r).map(|b| significant(b.kld.value))));
        table.classes(
            rows.iter()
                .map(|r| bucket(r).map_or_else(String::new, |b| format!("heat h{}", palette::step(b.kld.value)))),
        );
    }
    Caches { table, warnings: warnings.to_vec() }
}

pub fn render(results: &[Results]) -> Result<String> {
    let groups = merge::groups(results);
    let files = || results.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ");
    let parts: Vec<Parts<'_>> = groups.iter().map(Parts::new).collect();
    let sections = parts.iter().enumerate().map(|(i, p)| p.section(i, groups.len() > 1)).collect::<Result<Vec<_>>>();
    let groups_view = sections.at(files)?;
    let name = |path: &str| {
        let known = parts.iter().find_map(|p| p.all.iter().find(|(a, _)| a.path == path));
        known.map_or_else(|| path.to_owned(), |(_, name)| name.clone())
    };
    let gate = verdict(&merge::gates(results), &name);
    let mut used: HashSet<&str> = HashSet::from(["noise"]);
    let tables = groups_view.iter().flat_map(|s| {
        s.quality.iter().chain(&s.weights).chain(&s.tasks).chain(&s.stress).chain(s.caches.iter().map(|c| &c.table))
    });
    tables.chain(gate.iter().filter_map(|g| g.table.as_ref())).for_each(|t| used.extend(t.terms()));
    let figures = [
        ("front", &|s: &Section| s.size.is_some() as _),
        ("positions", &|s| s.positions.is_some()),
        ("blame", &|s| s.layers.is_some()),
    ] as [(&str, &dyn Fn(&Section) -> bool); 3];
    used.extend(figures.iter().filter(|(_, has)| groups_view.iter().any(has)).map(|(term, _)| *term));
    let reference = groups.iter().find_map(|g| g.evaluation.reference.as_ref());
    let page = Page {
        title: reference.map_or_else(|| "Evaluation".to_owned(), |r| format!("Evaluation against {}", r.name)),
        gate,
        groups: groups_view,
        terms: TERMS.iter().filter(|t| used.contains(t.id)).collect(),
        style: format!("{}{}", palette::css(), include_str!("page.css")),
        program: env!("CARGO_PKG_VERSION"),
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    // Templates named *.html escape what they print.
    let rendered = environment.render_named_str("page.html", include_str!("page.html"), Serde(&page));
    rendered.map_err(|e| Error::input(format!("the page cannot be made: {e:#}")).at(files()))
}

pub fn files(results: &[Results]) -> Result<Vec<(String, String)>> {
    let groups = merge::groups(results);
    let mut out = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let parts = Parts::new(group);
        let Plots { size, positions, layers } = parts.plots;
        let mut plots: Vec<Plot> = [size, positions, layers].into_iter().flatten().collect();
        for (k, (_, rows, _)) in parts.caches.iter().enumerate() {
            plots.extend(heat::draw(rows, if k == 0 { "kv".to_owned() } else { format!("kv-{}", k + 1) }));
        }
        let suffix = if i == 0 { String::new() } else { format!("-{}", i + 1) };
        out.extend(plots.iter().map(|p| (format!("{}{suffix}.svg", p.name), p.file())));
    }
    Ok(out)
}

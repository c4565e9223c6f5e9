//! The quality table, its plots, and the sentence to quote.

use super::data::{Artifact, Evaluation, LayerCost, Position};
use super::lines::{self, Chart, Dot, Series};
use super::number::{bytes, fixed, interval, percent, perplexity, signed, significant};
use super::scatter::{self, Measure, Point};
use super::svg::Plot;
use super::table::Table;

/// Artifacts that were judged on the text, with their short names.
pub struct Judged<'a> {
    pub evaluation: &'a Evaluation,
    pub artifacts: Vec<(&'a Artifact, String)>,
}

impl<'a> Judged<'a> {
    /// `names`: one for each artifact of the evaluation.
    pub fn new(evaluation: &'a Evaluation, names: &[String]) -> Judged<'a> {
        let all = evaluation.artifacts.iter().zip(names.iter().cloned());
        Judged { evaluation, artifacts: all.filter(|(a, _)| a.kld.is_some() || a.perplexity.is_some()).collect() }
    }

    fn measured(&self) -> bool {
        self.artifacts.iter().any(|(a, _)| a.kld.is_some())
    }

    /// Points of the plane, and which of the artifacts each is.
    fn points(&self) -> (Vec<usize>, Vec<Point>) {
        let kld = self.measured();
        let point = |(i, (a, label)): (usize, &(&Artifact, String))| {
            let (value, low, high) = match kld {
                true => a.kld.as_ref().map(|k| (k.mean, k.low, k.high))?,
                false => a.perplexity.map(|p| (p.value, p.low, p.high))?,
            };
            (a.bytes > 0).then(|| (i, Point { label: label.clone(), bytes: a.bytes, value, low, high }))
        };
        self.artifacts.iter().enumerate().filter_map(point).unzip()
    }

    pub fn table(&self) -> Option<Table> {
        if self.artifacts.is_empty() {
            return None;
        }
        let reference = self.evaluation.reference.as_ref();
        let extra = usize::from(reference.is_some());
        let names = reference.map(|r| format!("{} (reference)", r.name)).into_iter();
        let names = names.chain(self.artifacts.iter().map(|(_, name)| name.clone())).collect();
        let (which, points) = self.points();
        let front = scatter::front(&points);
        let caption = match (self.measured(), points.len() > 1) {
            (true, true) => {
                "What each file lost, the closest first. Bold: the best of a column. ● no other file is both smaller and closer; \
                 ○ some file is."
            }
            (true, false) => "What the file lost.",
            _ => "The likeliest text first. Without a reference these figures do not say what was lost.",
        };
        let mut table = Table::new("quality", caption, "file", names);
        if points.len() > 1 {
            let mut marks = vec![""; extra + self.artifacts.len()];
            which.iter().zip(&front).for_each(|(i, on)| marks[extra + i] = if *on { "●" } else { "○" });
            table.marks(marks);
        }
        let mut column = |head: &str,
                          term,
                          first: Option<String>,
                          value: &dyn Fn(&Artifact) -> Option<(f64, String)>,
                          best: bool| {
            let values: Vec<_> = self.artifacts.iter().map(|(a, _)| value(a)).collect();
            let own = reference.map(|_| first.unwrap_or_default()).into_iter();
            let texts =
                own.chain(values.iter().map(|v| v.as_ref().map_or_else(String::new, |v| v.1.clone()))).collect();
            table.numbers(head, term, texts);
            if best {
                let keys: Vec<Option<f64>> =
                    std::iter::repeat_n(None, extra).chain(values.iter().map(|v| v.as_ref().map(|v| v.0))).collect();
                table.best(&keys);
            }
        };
        let plain = |x: f64| Some((x, significant(x)));
        column(
            "size",
            Some("bpw"),
            reference.map(|r| bytes(r.bytes)),
            &|a| Some((a.bytes as f64, bytes(a.bytes))),
            true,
        );
        column(
            "bits/weight",
            Some("bpw"),
            reference.and_then(|r| r.bpw).map(|b| fixed(b, 2)),
            &|a| a.bpw.map(|b| (b, fixed(b, 2))),
            true,
        );
        let first = reference.and_then(|r| r.perplexity).map(perplexity);
        column(
            "perplexity",
            Some("perplexity"),
            first,
            &|a| a.perplexity.map(|p| (p.value, perplexity(p.value))),
            !self.measured(),
        );
        if !self.measured() {
            let range = |a: &Artifact| a.perplexity.map(|p| (0.0, interval(p.low, p.high, perplexity)));
            column("95 % interval", Some("interval"), None, &range, false);
            return Some(table);
        }
        let change = |a: &Artifact| {
            a.ln_ppl_ratio.map(|r| r.value.exp_m1() * 100.0).map(|c| (c.abs(), format!("{}\u{a0}%", signed(c, 2))))
        };
        column("change", Some("perplexity"), None, &change, true);
        column("KLD mean", Some("kld"), None, &|a| plain(a.kld.as_ref()?.mean), true);
        let range = |a: &Artifact| a.kld.as_ref().map(|k| (0.0, interval(k.low, k.high, significant)));
        column("95 % interval", Some("interval"), None, &range, false);
        column("p99", Some("tail"), None, &|a| plain(a.kld.as_ref()?.p99?), true);
        column("max", Some("tail"), None, &|a| plain(a.kld.as_ref()?.max?), true);
        column("same top", Some("top"), None, &|a| a.same_top.map(|t| (-t.value, percent(t.value, 2))), true);
        column("RMS Δp", Some("rms"), None, &|a| a.rms_delta_p.map(|t| (t.value, percent(t.value, 2))), true);
        Some(table)
    }

    pub fn scatter(&self) -> Option<Plot> {
        let floor = self.evaluation.noise.as_ref().map(|n| n.bf16_kld.max(n.batch_kld));
        let measure = match self.measured() {
            true => Measure { name: "size-kld", title: "mean KLD (nats per token)", floor },
            false => Measure { name: "size-perplexity", title: "perplexity", floor: None },
        };
        scatter::draw(&self.points().1, &measure)
    }

    pub fn positions(&self) -> Option<Plot> {
        let series = |(a, label): &(&Artifact, String)| {
            let dot = |p: &Position| Dot {
                x: (p.from as f64 + p.to as f64) / 2.0,
                y: p.kld.value,
                interval: p.kld.low.zip(p.kld.high),
            };
            let points = a.positions.iter().map(dot);
            Series { label: label.clone(), points: points.collect() }
        };
        lines::draw(&Chart {
            name: "kld-position",
            title: "KLD by position",
            x: "position in the window (tokens)",
            y: "mean KLD (nats per token)",
            series: self.artifacts.iter().map(series).collect(),
        })
    }

    pub fn layers(&self) -> Option<Plot> {
        let series = |(a, label): &(&Artifact, String)| {
            let dot = |b: &LayerCost| Dot { x: f64::from(b.layer), y: b.kld, interval: None };
            let mut points: Vec<Dot> = a.blame.iter().map(dot).collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            Series { label: label.clone(), points }
        };
        lines::draw(&Chart {
            name: "kld-layer",
            title: "KLD by layer",
            x: "layer",
            y: "KLD (nats per token)",
            series: self.artifacts.iter().map(series).collect(),
        })
    }

    /// The ten weights of each artifact that differ most.
    pub fn weights(&self) -> Vec<Table> {
        let table = |(i, (a, label)): (usize, &(&Artifact, String))| {
            let mut worst: Vec<_> = a.weights.as_ref()?.iter().collect();
            worst.sort_by(|a, b| b.relative.total_cmp(&a.relative));
            worst.truncate(10);
            let names = worst.iter().map(|w| w.name.clone()).collect();
            let mut table =
                Table::new(&format!("weights-{i}"), format!("Largest errors of weights of {label}."), "weight", names);
            table.words("format", None, worst.iter().map(|w| w.codec.clone()).collect());
            table.numbers("relative error", Some("weights"), worst.iter().map(|w| fixed(w.relative, 5)).collect());
            Some(table)
        };
        self.artifacts.iter().enumerate().filter_map(table).filter(|t| !t.is_empty()).collect()
    }

    /// What was compared, and what came out.
    pub fn headline(&self) -> Option<String> {
        let bpw = |a: &Artifact| a.bpw.map_or_else(String::new, |b| format!(", {} bits per weight", fixed(b, 2)));
        let size = |a: &Artifact| format!("{}{}", bytes(a.bytes), bpw(a));
        let kld = |a: &Artifact| a.kld.as_ref().map_or_else(String::new, |k| significant(k.mean));
        let same = |a: &Artifact| a.same_top.map_or_else(String::new, |t| percent(t.value, 1));
        let (first, name) = self.artifacts.first()?;
        let reference = self.evaluation.reference.as_ref().map_or("the reference", |r| r.name.as_str());
        if !self.measured() {
            let lowest = first.perplexity.map_or_else(String::new, |p| perplexity(p.value));
            return Some(match self.artifacts.len() {
                1 => format!("{name} ({}) has a perplexity of {lowest}.", size(first)),
                n => format!("Of {n} files, {name} ({}) has the lowest perplexity: {lowest}.", size(first)),
            });
        }
        if self.artifacts.len() == 1 {
            let interval = first.kld.as_ref().map_or_else(String::new, |k| interval(k.low, k.high, significant));
            let interval = if interval.is_empty() { interval } else { format!(" (95 % interval {interval})") };
            let change = first.ln_ppl_ratio.map(|r| {
                format!(", and its perplexity is {}\u{a0}% of the reference's", fixed(r.value.exp() * 100.0, 2))
            });
            return Some(format!(
                "{name} ({}) diverges from {reference} by {} nats per token{interval}; it agrees on the most likely token {} of the \
                 time{}.",
                size(first),
                kld(first),
                same(first),
                change.unwrap_or_default()
            ));
        }
        let smallest = self.artifacts.iter().filter(|(a, _)| a.bytes > 0).min_by_key(|(a, _)| a.bytes)?;
        let one = |a: &Artifact| format!("{}: mean KLD {}, same top token {}", size(a), kld(a), same(a));
        Some(match std::ptr::eq(smallest.0, *first) {
            true => format!(
                "Of {} files compared with {reference}, {name} is both the smallest and the closest ({}).",
                self.artifacts.len(),
                one(first)
            ),
            false => format!(
                "Of {} files compared with {reference}, {name} is the closest ({}) and {} the smallest ({}).",
                self.artifacts.len(),
                one(first),
                smallest.1,
                one(smallest.0)
            ),
        })
    }
}

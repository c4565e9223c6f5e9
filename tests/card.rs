//! Models on a card that is the host: what `quant eval` and `quant calibrate` say there is what the CPU says.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::card::FakeCard;
use common::family::{FAMILIES, Family, family};
use common::folder::Folder;
use common::model::{DENSE, Shape, model};
use common::quant_ok;
use quant::calibrate::stats::{SiteStats, Statistics};
use serde_json::Value;

/// A model, an artifact of it and a text.
struct Bench {
    card: FakeCard,
    dir: tempfile::TempDir,
    model: Folder,
}

impl Bench {
    /// `None`: there is no C++ compiler.
    fn new(model: Folder, to: &str) -> Option<Bench> {
        let Some(card) = FakeCard::new() else {
            eprintln!("SKIPPED: no C++ compiler (c++, g++, clang++): no card was made of the host");
            return None;
        };
        let bench = Bench { card, dir: tempfile::tempdir().unwrap(), model };
        let text: String = (0..60).map(|i| format!("the {} heron sees {} fish. ", i % 7, i * i % 31)).collect();
        fs::write(bench.path("text.txt"), text).unwrap();
        let (source, out) = (bench.source(), bench.text("artifact"));
        quant_ok(&["convert", &source, "--to", to, "-o", &out, "--quiet"]);
        Some(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn source(&self) -> String {
        self.model.path().to_str().unwrap().to_owned()
    }

    /// `quant eval ARTIFACT --reference MODEL` on three windows.
    fn eval(&self, more: &[&str], settings: &[(&str, &str)]) -> std::process::Output {
        let [artifact, text] = ["artifact", "text.txt"].map(|name| self.text(name));
        let args = ["eval", &artifact, "--data", &text, "--context", "48", "--chunks", "3", "--json", "--quiet"];
        self.card.quant_with(&[&args[..], more].concat(), settings)
    }

    fn report(&self, more: &[&str]) -> Value {
        let out = self.eval(more, &[]);
        assert!(out.status.success(), "{more:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// What an evaluation must fail with.
    fn refusal(&self, more: &[&str], settings: &[(&str, &str)]) -> String {
        let out = self.eval(more, settings);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1), "{more:?} {settings:?}: {said}");
        assert_eq!(said.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{said}");
        said
    }

    fn calibrate(&self, device: &[&str]) -> Statistics {
        let (source, text, out) = (self.source(), self.text("text.txt"), self.path(&format!("stats{}", device.len())));
        let args = ["calibrate", &source, "--data", &text, "--rows", "4", "--length", "32", "--gram", "--quiet", "-o"];
        let made = self.card.quant(&[&args[..], &[out.to_str().unwrap()], device].concat(), "");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Statistics::open(&out).unwrap()
    }
}

const CARD: [&str; 2] = ["--device", "cuda:0"];

fn llama() -> Folder {
    model(&Shape { layers: 2, inter: 192, ..DENSE })
}

/// Every figure of two reports, by its place there.
fn figures(report: &Value) -> Vec<(String, f64)> {
    fn walk(at: &str, value: &Value, out: &mut Vec<(String, f64)>) {
        match value {
            Value::Number(n) => out.push((at.to_owned(), n.as_f64().unwrap())),
            Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| walk(&format!("{at}.{i}"), v, out)),
            Value::Object(map) => map.iter().for_each(|(k, v)| walk(&format!("{at}.{k}"), v, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk("", report, &mut out);
    out
}

/// Figures are equal to a millionth, divergences to a millionth of a nat at least.
fn same_figures(name: &str, cpu: &Value, card: &Value) {
    let (ours, theirs) = (figures(&cpu["artifacts"]), figures(&card["artifacts"]));
    assert!(ours.len() > 10 && ours.len() == theirs.len(), "{name}");
    for ((place, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        assert!((ours - theirs).abs() <= 1e-6 * ours.abs().max(1.0), "{name}{place}: {ours} and {theirs}");
    }
}

fn families() -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter()
}

#[test]
fn perplexity_and_divergence_are_the_cpu_s_in_every_family() {
    for of in families() {
        let Some(bench) = Bench::new(family(of), "q8_0") else { return };
        let source = bench.source();
        let reference = ["--reference", source.as_str()];
        let cpu = bench.report(&reference);
        let card = bench.report(&[&reference[..], &CARD].concat());
        same_figures(of.name, &cpu, &card);
        assert!(cpu["artifacts"][0]["kld"]["mean"].as_f64().unwrap() > 1e-7, "{}: nothing was compared", of.name);
        assert_eq!((cpu["device"].as_str(), card["device"].as_str()), (Some("cpu"), Some("cuda:0 (the host)")));
    }
}

#[test]
fn weights_of_every_kind_come_to_the_card() {
    // Blocks with kernels, blocks without, floats, parts with scales of their own, a scale of the whole matrix.
    for to in ["q4_k_m", "tq2_0", "f16", "gptq", "nvfp4", "exl2"] {
        let Some(bench) = Bench::new(llama(), to) else { return };
        same_figures(to, &bench.report(&[]), &bench.report(&CARD));
    }
}

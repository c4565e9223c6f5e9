//! What the tests share: models to convert, and the binary that does it.
#![allow(dead_code)] // each test binary uses its own part

pub mod card;
pub mod family;
pub mod folder;
pub mod model;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use quant::calibrate::stats::Statistics;
use quant::container::Checkpoint;
use quant::convert::Request;
use quant::device::Worker;

use folder::Folder;

pub fn quant(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quant")).args(args).env("NO_COLOR", "1").output().unwrap()
}

/// Runs `quant`, which must succeed; returns its standard output.
pub fn quant_ok(args: &[&str]) -> String {
    let out = quant(args);
    assert!(out.status.success(), "quant {args:?}\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs `quant`, which must fail with exit code 1 or 2, not by a panic; returns its standard error.
pub fn quant_fails(args: &[&str]) -> String {
    let out = quant(args);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(matches!(out.status.code(), Some(1 | 2)), "quant {args:?} ended with {:?}\n{stderr}", out.status);
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(stderr.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{stderr}");
    stderr
}

/// Names of what is not meant to stay.
pub fn hidden(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with('.')).collect()
}

/// A little text through a model, with Gram matrices.
pub fn statistics(dir: &Path, model: &Folder) -> PathBuf {
    let (text, stats) = (dir.join("text.txt"), dir.join("stats"));
    let line = |i: usize| format!("the {} heron sees {} fish, and {} of them see it. ", i % 7, i * i % 31, i % 5);
    fs::write(&text, (0..100).map(line).collect::<String>()).unwrap();
    let [model, text, out] = [model.path(), &text, &stats].map(|p| p.to_str().unwrap());
    let amount = ["--rows", "8", "--length", "64"];
    quant_ok(&[&["calibrate", model, "--data", text, "--gram", "--quiet", "-o", out], &amount[..]].concat());
    stats
}

/// What AWQ would do with the statistics; without, rounding to nearest.
pub fn request<'a>(source: &'a dyn Checkpoint, statistics: Option<&'a Statistics>) -> Request<'a> {
    Request {
        source,
        imatrix: None,
        statistics,
        fold: statistics.is_some(),
        feedback: false,
        search: true,
        exact_llama: false,
        allow_requantize: false,
        split_max_bytes: None,
        worker: Worker::Cpu,
    }
}

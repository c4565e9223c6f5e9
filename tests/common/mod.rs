//! What the tests share: models to convert, and the binary that does it.
#![allow(dead_code)] // each test binary uses its own part

pub mod folder;
pub mod model;

use std::process::{Command, Output};

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

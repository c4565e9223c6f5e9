//! What is said of arguments that are wrong, to people and to programs.

mod common;

use std::fs;

use common::{quant, quant_fails, quant_ok};
use serde_json::Value;
use tempfile::tempdir;

const PROBE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/evals/probe/model");

#[test]
fn programs_are_told_of_wrong_usage() {
    for (args, wanted) in [
        (&["convert", "--json"][..], "<MODEL>"),
        (&["list", "--threads", "0", "--json"], "--threads"),
        (&["--json", "list", "--unknown"], "--unknown"),
    ] {
        let out = quant(args);
        let said: Value = serde_json::from_slice(&out.stdout).unwrap();
        let (error, stderr) = (&said["error"], String::from_utf8_lossy(&out.stderr));
        assert!(error["kind"] == "request" && error["message"].as_str().unwrap().contains(wanted), "{said}");
        assert!(!error["message"].as_str().unwrap().contains("Usage") && stderr.starts_with("error: "), "{stderr}");
        assert_eq!(out.status.code(), Some(2));
    }
    assert!(quant(&["convert"]).stdout.is_empty());
    assert_eq!(quant(&["--json", "--help"]).status.code(), Some(0));
}

#[test]
fn items_are_lines_or_one_object() {
    let lines = quant_ok(&["probe", "--skill", "sort", "--count", "3"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let object = quant_ok(&["probe", "--skill", "sort", "--count", "3", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&object).unwrap()["items"], Value::Array(lines));
    assert!(quant_fails(&["probe", "--text", "--json"]).contains("cannot be used with"));
}

#[test]
fn mistyped_names_are_understood() {
    for (args, wanted) in [
        (&["--to", "q4_k_n"][..], "did you mean q4_k_m or q4_k_s?"),
        (&["--to", "q4_k_m,"], "is empty"),
        (&["--to", "gtpq"], "did you mean gptq?"),
        (&["--to", "q4_k_m", "--set", "output=q8_00"], "did you mean q8_0"),
        (&["--to", "smallest"], "`quant list presets`"),
    ] {
        let said = quant_fails(&[&["plan", PROBE], args].concat());
        assert!(said.contains(wanted) && said.len() < 300, "{args:?}: {said}");
    }
}

#[test]
fn negative_numbers_are_no_flags() {
    for (args, wanted) in [
        (&["generate", PROBE, "--prompt", "x", "--temperature", "-1"][..], "it must be a number from 0 on"),
        (&["generate", PROBE, "--prompt", "x", "--tokens", "-1"], "-1 is not in 1.."),
        (&["convert", PROBE, "--to", "gguf", "--target-bpw", "-1"], "no number above 0"),
        (&["calibrate", PROBE, "--rows", "-1", "-o", "x"], "--rows"),
    ] {
        let said = quant_fails(args);
        assert!(said.contains(wanted) && !said.contains("unexpected"), "{args:?}: {said}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quant"));
    let out = command.arg("inspect").arg(std::ffi::OsStr::from_bytes(b"m\xff.gguf")).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("\"m\\xFF.gguf\" is not UTF-8") && out.status.code() == Some(2), "{said}");
}

#[test]
fn a_folder_has_one_size() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let path = out.to_str().unwrap();
    let json = |args: &[&str]| -> Value { serde_json::from_str(&quant_ok(args)).unwrap() };
    let plan = json(&["plan", PROBE, "--to", "w8a16", "-o", path, "--json"]);
    let made = json(&["convert", PROBE, "--to", "w8a16", "-o", path, "--json", "--quiet"]);
    let eval = json(&["eval", path, "--chunks", "1", "--context", "64", "--json", "--quiet"]);
    let seen = json(&["inspect", path, "--json"]);
    let files = fs::read_dir(&out).unwrap().map(|f| f.unwrap().metadata().unwrap().len());
    let bytes = Value::from(files.sum::<u64>());
    for said in [&plan["outputs"][0], &made["outputs"][0], &eval["artifacts"][0], &seen] {
        assert_eq!(said["bytes"], bytes);
    }
}

/// Folders that outputs lie in are made, for one target as for several; a file's name is no folder's.
#[test]
fn folders_of_outputs_are_made() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let convert = |to: &str, out: &str| ["convert", PROBE, "--quiet", "--to", to, "-o", out].map(str::to_owned);
    let ok = |to: &str, out: &str| quant_ok(&convert(to, out).each_ref().map(String::as_str));
    let fails = |to: &str, out: &str| quant_fails(&convert(to, out).each_ref().map(String::as_str));
    ok("q8_0", &at("a/b/one.gguf"));
    ok("q8_0,q4_0", &at("c/d"));
    assert!(fs::metadata(at("a/b/one.gguf")).unwrap().is_file() && fs::metadata(at("c/d/model-q4_0.gguf")).is_ok());
    for to in ["w8a16", "w8a16,q8_0"] {
        let said = fails(to, &at("e/x.gguf"));
        assert!(said.contains("x.gguf is the name of a file") && fs::metadata(at("e")).is_err(), "{said}");
    }
    quant_ok(&["plan", PROBE, "--to", "q8_0", "-o", &at("f/x.gguf")]);
    assert!(fs::metadata(at("f")).is_err(), "a plan writes nothing");
}

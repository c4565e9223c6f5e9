//! Conversions that are killed go on where they stopped.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use common::model::{DENSE, MOE, Shape, model};
use common::{hidden, quant_ok, request, statistics};
use quant::container::open;
use quant::convert::{self, Plan};
use quant::recipe::Recipe;
use serde_json::Value;

/// All files under a path, in the order of their names, with what they hold.
fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    if path.is_file() {
        return vec![(PathBuf::new(), fs::read(path).unwrap())];
    }
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    names.iter().map(|p| (p.file_name().unwrap().into(), fs::read(p).unwrap())).collect()
}

#[test]
fn killed_runs_go_on_and_end_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let model = model(&Shape { layers: 2, ..MOE });
    let stats = statistics(dir.path(), &model);
    for (to, more) in [("q4_k_m", "awq+gptq"), ("w4a16", "gptq"), ("q6_k", "rtn")] {
        let (whole, killed) = (file(&format!("{to}-whole")), file(&format!("{to}-killed")));
        let args = |out: &Path| {
            let [model, stats, out] = [model.path(), &stats, out].map(|p| p.to_str().unwrap().to_owned());
            let args = ["convert", &model, "--to", to, "--stats", &stats, "--method", more, "--json", "-o", &out];
            args.map(str::to_owned)
        };
        let start = Instant::now();
        let said = |args: &[String]| -> Value {
            let said = quant_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
            serde_json::from_str(&said).unwrap()
        };
        let expected = said(&args(&whole));
        let mut took = start.elapsed();
        let (mut kills, mut resumed) = (0, 0);
        for i in 0..80 {
            let mut child = Command::new(env!("CARGO_BIN_EXE_quant"))
                .args(args(&killed))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            std::thread::sleep(took.mul_f64(0.1 + 0.9 * f64::from(i * 7 % 10) / 10.0));
            child.kill().unwrap();
            let out = child.wait_with_output().unwrap();
            resumed += usize::from(String::from_utf8_lossy(&out.stderr).contains("weights of a run that was stopped"));
            // A run that is killed while it reports has published its files.
            if killed.exists() {
                assert!(contents(&whole) == contents(&killed), "{to}");
                if killed.is_dir() {
                    fs::remove_dir_all(&killed).unwrap()
                } else {
                    fs::remove_file(&killed).unwrap()
                }
                // The machine has become faster since: the next kill comes earlier.
                took = took.mul_f64(0.9);
            } else {
                kills += 1;
                took = took.mul_f64(1.03);
            }
            if kills >= 20 && resumed >= 5 {
                break;
            }
        }
        assert!(kills >= 20 && resumed >= 5, "{to}: {kills} kills, {resumed} resumed");
        let end = said(&args(&killed));
        assert!(contents(&whole) == contents(&killed), "{to}");
        assert_eq!(hidden(dir.path()), [""; 0], "{to}");
        // What was solved by a run that was killed is told as if it had not been.
        for key in ["solved", "carried", "requantized"] {
            assert_eq!(expected["outputs"][0][key], end["outputs"][0][key], "{to}");
        }
    }
}

/// What the journal of a conversion to q8_0 says when all is done: its first line, and a line for each weight.
fn journal_of(model: &Path) -> (String, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let (source, text) = (open(model).unwrap(), Mutex::new(String::new()));
    let request = request(source.as_ref(), None);
    let plan = Plan::new(&request, &Recipe::load("q8_0").unwrap(), &dir.path().join("m.gguf")).unwrap();
    let listen = |_| *text.lock().unwrap() = fs::read_to_string(dir.path().join(".m.gguf.journal")).unwrap();
    convert::run(&request, &[plan], 1, &listen).unwrap();
    assert!(hidden(dir.path()).is_empty());
    let text = text.into_inner().unwrap();
    let mut lines = text.lines().map(|line| format!("{line}\n"));
    (lines.next().unwrap(), lines.collect())
}

#[test]
fn what_a_killed_run_left_is_used_by_the_same_job_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (model, other) = (model(&Shape { layers: 1, ..DENSE }), model(&Shape { layers: 1, ..MOE }));
    let (whole, out) = (file("whole.gguf"), file("out.gguf"));
    quant_ok(&["convert", model.path().to_str().unwrap(), "--to", "q8_0", "-o", whole.to_str().unwrap(), "--quiet"]);
    let expected = fs::read(&whole).unwrap();
    // A run that was killed at its very end: everything is there but the name.
    let (job, done) = journal_of(model.path());
    let left = |bytes: &[u8], lines: &str| {
        fs::write(file(".out.gguf.partial"), bytes).unwrap();
        fs::write(file(".out.gguf.journal"), lines).unwrap();
    };
    let run = |model: &Path, to: &str| {
        let args = ["convert", model.to_str().unwrap(), "--to", to, "-o", out.to_str().unwrap()];
        let said = common::quant(&args);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(hidden(dir.path()), [""; 0]);
        String::from_utf8(said.stderr).unwrap().lines().find(|l| l.contains("going on")).map(str::to_owned)
    };
    let (all, lines) = (done.len(), format!("{job}{}", done.concat()));
    left(&expected, &lines);
    let going_on = |n: usize| Some(format!("going on after {n} of {all} weights of a run that was stopped"));
    assert_eq!(run(model.path(), "q8_0"), going_on(all));
    assert!(fs::read(&out).unwrap() == expected);
    // One weight has other bytes by now, another was never done.
    let last = open(&whole).unwrap().tensors().last().unwrap().name.clone();
    let undone = done.iter().find(|line| !line.contains(&last)).unwrap();
    let mut damaged = expected.clone();
    *damaged.last_mut().unwrap() ^= 1;
    left(&damaged, &lines.replace(undone, ""));
    assert_eq!(run(model.path(), "q8_0"), going_on(all - 2));
    assert!(fs::read(&out).unwrap() == expected);
    // A file of another length, another job, another model.
    left(&expected[1..], &lines);
    assert_eq!(run(model.path(), "q8_0"), None);
    assert!(fs::read(&out).unwrap() == expected);
    for (model, to) in [(model.path(), "q4_0"), (other.path(), "q8_0")] {
        left(&expected, &lines);
        assert_eq!(run(model, to), None);
    }
    // The same model, changed since.
    model.write();
    left(&expected, &lines);
    assert_eq!(run(model.path(), "q8_0"), None);
}

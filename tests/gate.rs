//! Gates: from evaluation to verdict, exit codes, files, a baseline.

mod common;

use std::fs;

use common::{quant, quant_fails, quant_ok};
use tempfile::tempdir;

const PROBE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/evals/probe/model");

#[test]
fn a_gate_says_pass_or_stop() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let convert = |to: &str| {
        let out = at(&format!("{to}.gguf"));
        quant_ok(&["convert", PROBE, "--to", to, "-o", &out, "--quiet"]);
        out
    };
    let (good, bad) = (convert("q8_0"), convert("q2_k"));
    let write = |name: &str, text: &str| {
        fs::write(at(name), text).unwrap();
        at(name)
    };
    let budgets = write("gate.toml", "[budgets]\n\"kld.mean\" = \"<= 0.005\"\n\"tasks.json.acc\" = \">= -20 pt\"\n");
    let run = |artifact: &str, save: &str, more: &[&str]| {
        let arguments = [
            "eval",
            artifact,
            "--reference",
            PROBE,
            "--chunks",
            "6",
            "--suite",
            "json",
            "--items",
            "30",
            "--quiet",
            "--save",
            save,
        ];
        quant(&[&arguments, more].concat())
    };
    let (junit, page) = (at("junit.xml"), at("verdicts.md"));
    let passed = run(&good, &at("good.json"), &["--gate", &budgets, "--junit", &junit, "--verdicts", &page]);
    assert_eq!(passed.status.code(), Some(0), "{}", String::from_utf8_lossy(&passed.stdout));
    assert!(fs::read_to_string(&junit).unwrap().contains("failures=\"0\" errors=\"0\""));
    assert!(fs::read_to_string(&page).unwrap().starts_with("**PASS**"));
    let missed = run(&bad, &at("bad.json"), &["--max", "kld=0.0001"]);
    assert_eq!(missed.status.code(), Some(3), "{}", String::from_utf8_lossy(&missed.stdout));

    // Old reports are judged without a model, and are what new ones are compared with.
    let gate = |report: &str, more: &[&str]| quant(&[&["gate", &at(report)], more].concat()).status.code();
    assert_eq!(gate("good.json", &["--max", "kld=0.005"]), Some(0));
    assert_eq!(gate("bad.json", &["--max", "kld=0.0001"]), Some(3));
    assert_eq!(gate("bad.json", &["--max", "kv.nothing.kld=1"]), Some(1));
    for wrong in ["nothing=1", "kld=much", "kld", "same_top=0.9"] {
        assert_eq!(gate("bad.json", &["--max", wrong]), Some(2), "{wrong}");
    }
    let since = write("since.toml", "[since]\n\"kld.mean\" = \"<= +10 %\"\n");
    let (good, bad) = (at("good.json"), at("bad.json"));
    assert_eq!(gate("good.json", &["--budgets", &since, "--baseline", &good]), Some(0));
    assert_eq!(gate("bad.json", &["--budgets", &since, "--baseline", &good]), Some(3));
    assert_eq!(gate("good.json", &["--budgets", &since, "--baseline", &bad]), Some(0));
    assert_eq!(gate("good.json", &["--budgets", &since]), Some(2), "no baseline");
    let torn = write("torn.toml", "[budgets\n");
    assert_eq!(gate("good.json", &["--budgets", &torn]), Some(2), "what the user wrote");
    assert_eq!(gate("torn.toml", &["--budgets", &since]), Some(1), "data");
    let nonsense = write("nonsense.json", "{}");
    let said = quant_fails(&["gate", &nonsense, "--max", "kld=1"]);
    assert!(said.contains("artifacts"), "{said}");
    let typo = write("typo.toml", "[budgets]\n\"kld.maen\" = \"<= 1\"\n\"kdl\" = \"<= 1\"");
    assert!(quant_fails(&["eval", PROBE, "--gate", &typo]).contains("there is no metric \"kld.maen\""));
}

//! What every preset loses on the probe model, held against `recipes/bounds.toml`.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::quant_ok;
use quant::eval::probe::model;
use serde_json::Value;

type Bounds = BTreeMap<String, f64>;

/// Divergences are the same on every machine; so much is left to kernels that round sums differently.
const SLACK: f64 = 1.2;
const NOISE: f64 = 1e-7;

#[test]
fn presets_lose_no_more_than_their_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("probe")).unwrap();
    model::write(Path::new(&path("probe"))).unwrap();
    let text = |split: &str, count: &str| quant_ok(&["probe", "--split", split, "--count", count, "--text"]);
    fs::write(path("calibration.txt"), text("calibration", "8")).unwrap();
    fs::write(path("test.txt"), text("test", "4")).unwrap();
    let (probe, stats, out) = (path("probe"), path("stats"), path("out"));
    let calibration = ["--data", &path("calibration.txt"), "--rows", "16", "--length", "512", "--gram"];
    quant_ok(&[&["calibrate", &probe, "-o", &stats, "--quiet"], &calibration[..]].concat());
    let listed: Value = serde_json::from_str(&quant_ok(&["list", "presets", "--json"])).unwrap();
    let presets: Vec<&str> =
        listed["presets"].as_array().unwrap().iter().map(|p| p["preset"].as_str().unwrap()).collect();
    fs::create_dir(&out).unwrap();
    quant_ok(&["convert", &probe, "--to", &presets.join(","), "-o", &out, "--stats", &stats, "--quiet"]);
    let made: Vec<String> =
        fs::read_dir(&out).unwrap().map(|e| e.unwrap().path().to_str().unwrap().to_owned()).collect();
    assert_eq!(made.len(), presets.len());
    let made: Vec<&str> = made.iter().map(String::as_str).collect();
    let judged = ["--reference", &probe, "--data", &path("test.txt"), "--chunks", "3", "--json", "--quiet"];
    let report: Value = serde_json::from_str(&quant_ok(&[&["eval"], &made[..], &judged[..]].concat())).unwrap();

    let bounds: Bounds = toml::from_str(&fs::read_to_string("recipes/bounds.toml").unwrap()).unwrap();
    let mut found = String::new();
    let mut wrong = Vec::new();
    for artifact in report["artifacts"].as_array().unwrap() {
        let name = Path::new(artifact["path"].as_str().unwrap()).file_name().unwrap().to_str().unwrap();
        let preset = name.trim_start_matches("probe-").trim_end_matches(".gguf");
        let kld = artifact["kld"]["mean"].as_f64().unwrap();
        found += &format!("{preset} = {:.1e}\n", (kld * SLACK.sqrt()).max(NOISE));
        match bounds.get(preset) {
            None => wrong.push(format!("{preset} has no bound")),
            Some(bound) if kld > *bound => wrong.push(format!("{preset} loses {kld:.2e}, more than {bound:.2e}")),
            // A bound that nothing comes near bounds nothing; of what loses nothing, only noise is left.
            Some(bound) if kld * SLACK * 1.1 < *bound && *bound > NOISE => {
                wrong.push(format!("{preset} loses only {kld:.2e} of {bound:.2e}"))
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}\nmeasured, with half the slack:\n{found}", wrong.join("\n"));
    assert_eq!(bounds.len(), presets.len(), "bounds of presets that are gone");
}

//! `quant probe` and `quant quickstart` through the binary, on the model that comes with the program.

mod common;

use common::{quant_fails, quant_ok};
use quant::container;
use quant::device::cpu;
use quant::engine::Engine;
use quant::eval::probe::{SKILLS, Skill, Split, model};
use quant::eval::skills::{Scored, right, windows};
use quant::eval::{Candidate, longest};
use serde_json::Value;

fn figure(artifact: &Value, name: &str) -> f64 {
    artifact["kld"][name].as_f64().unwrap()
}

/// The whole pipeline with fewer questions: what has fewer bits loses more, beyond doubt for those far apart.
#[test]
fn fewer_bits_lose_more() {
    let report: Value =
        serde_json::from_str(&quant_ok(&["quickstart", "--texts", "6", "--questions", "6", "--json", "--quiet"]))
            .unwrap();
    let artifacts = report["artifacts"].as_array().unwrap();
    let find = |target: &str| artifacts.iter().find(|a| a["path"] == format!("probe-{target}")).unwrap();
    for (closer, farther) in
        [("q8_0", "q6_k"), ("q6_k", "q4_k_m"), ("q4_k_m", "q3_k_m"), ("q3_k_m", "q2_k"), ("q2_k", "q2_0")]
    {
        let (closer, farther) = (find(closer), find(farther));
        assert!(figure(closer, "high") < figure(farther, "low"), "{closer} {farther}");
        assert!(closer["bpw"].as_f64().unwrap() > farther["bpw"].as_f64().unwrap());
    }
    let skills = report["skills"].as_array().unwrap();
    let total = |model: &str| -> u64 {
        let row = skills.iter().find(|s| s["model"] == model).unwrap();
        row["exact"].as_object().unwrap().values().map(|a| a["right"].as_u64().unwrap()).sum()
    };
    assert_eq!(skills.len(), artifacts.len() + 1);
    // Of 8 x 6.
    assert!(total("probe") >= 38 && total("probe-q8_0") >= 38, "{skills:?}");
    assert!(total("probe-q2_0") <= 6, "{skills:?}");
}

/// An answer that teacher forcing calls right is what `quant generate` writes, and the company of other windows changes nothing.
#[test]
fn right_answers_are_those_that_are_generated() {
    let dir = tempfile::tempdir().unwrap();
    model::write(dir.path()).unwrap();
    let checkpoint = container::open(dir.path()).unwrap();
    let items: Vec<_> =
        SKILLS.iter().filter(|s| s.asks).flat_map(|s| s.items(Split::Test, 1, 2, None).unwrap()).collect();
    let windows = windows(checkpoint.as_ref(), &items, Scored::Answer).unwrap();
    let found = cpu::pool(2).unwrap().install(|| {
        let engine = Engine::new(checkpoint.as_ref(), longest(&windows)).unwrap();
        let model = Candidate { name: "probe".into(), engine };
        let together = right(&model, &windows, &|_| {}).unwrap();
        for (window, right_together) in windows.iter().zip(&together) {
            assert_eq!(right(&model, std::slice::from_ref(window), &|_| {}).unwrap(), [*right_together]);
        }
        together
    });
    assert!(found.iter().filter(|right| **right).count() >= 10, "{found:?}");
    for (item, right) in items.iter().zip(found) {
        // BOS and the question are known, the rest is the answer.
        let path = dir.path().to_str().unwrap();
        let said = quant_ok(&["generate", path, "--prompt", &item.prompt, "--tokens", "160", "--json", "--quiet"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        let text = said["text"].as_str().unwrap();
        // A wrong answer may begin with the right one and go on.
        assert_eq!(text.starts_with(&item.answer), right, "{item:?} {text}");
    }
}

#[test]
fn probes_are_lines_of_json_or_text() {
    let args = ["probe", "--skill", "arithmetic,recall", "--count", "3", "--seed", "9"];
    let lines = quant_ok(&args);
    let items: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let skills: Vec<&str> = items.iter().map(|i| i["skill"].as_str().unwrap()).collect();
    assert_eq!(skills, ["arithmetic", "recall", "arithmetic", "recall", "arithmetic", "recall"]);
    let text = |item: &Value| format!("{}{}\n", item["prompt"].as_str().unwrap(), item["answer"].as_str().unwrap());
    assert_eq!(quant_ok(&[&args[..], &["--text"]].concat()), items.iter().map(text).collect::<String>());
    assert_eq!(items[5]["nats"], Skill::find("recall").unwrap().item(Split::Test, 9, 2, None).unwrap().nats);
    assert_ne!(lines, quant_ok(&[&args[..], &["--split", "train"]].concat()));
    let long = quant_ok(&["probe", "--length", "20000", "--count", "1", "--text"]);
    assert!(long.len() > 60_000, "{}", long.len());
    let said = quant_fails(&["probe", "--skill", "story", "--length", "500"]);
    assert!(said.contains("recall"), "{said}");
}

use serde_json::json;

use super::*;
use crate::device::cpu::TokenScore;
use crate::engine::sample::Random;
use crate::eval::interval::resampled;
use crate::eval::stats;

fn report(kld: [f64; 3]) -> Value {
    let [mean, low, high] = kld;
    json!({
        "protocol": "p", "conditions": {"protocol": "p", "context": 512, "corpus_hash": "c", "tokenizer_hash": "t"},
        "tasks": [{"name": "json", "hash": "h"}],
        "artifacts": [{
            "path": "a/b.gguf", "bytes": 1000, "bpw": 4.5, "perplexity": {"value": 8.0, "low": 7.0, "high": 9.0},
            "ln_ppl_ratio": {"value": 0.01, "low": 0.005, "high": 0.015},
            "kld": {"mean": mean, "low": low, "high": high, "p99": 0.3, "max": 0.45, "intervals": {"p99": [0.25, 0.4]}},
            "same_top": {"value": 0.97, "low": 0.96, "high": 0.98},
            "positions": [{"from": 0, "to": 256, "kld": {"value": 0.1, "low": 0.05, "high": 0.2}}],
            "kv": [{"kv": "q4h/q8_0", "kld": {"mean": 0.01, "low": 0.009, "high": 0.011}}],
            "chunks": [{"tokens": 10, "kld": 10.0 * mean, "nll": 20.0}, {"tokens": 10, "kld": 10.0 * mean, "nll": 21.0}],
            "tasks": [{"name": "json", "marks": {"acc": "1".repeat(90) + &"0".repeat(10)}, "metrics": {"acc": {"right": 90, "of": 100, "low": 0.83, "high": 0.94,
                "against": {"difference": -0.02, "low": -0.06, "high": 0.02, "detectable": 0.05}}}}],
        }]
    })
}

fn verdict(report: &Value, metric: &str, limit: &str) -> Verdict {
    let budgets = Budgets::parse(&format!("[budgets]\n\"{metric}\" = \"{limit}\"")).unwrap();
    judge(report, None, &budgets).verdict
}

#[test]
fn intervals_decide() {
    let r = report([0.02, 0.018, 0.022]);
    for (metric, limit, wanted) in [
        ("kld.mean", "<= 0.03", Verdict::Pass),
        ("kld.mean", "<= 0.021", Verdict::Inconclusive),
        ("kld.mean", "<= 0.01", Verdict::Regression),
        ("kld.p99", "<= 0.5", Verdict::Pass),
        ("kld.p99", "<= 0.35", Verdict::Inconclusive),
        ("kld.p99", "<= 0.2", Verdict::Regression),
        ("kld.max", "<= 0.5", Verdict::Pass),
        ("kld.max", "<= 0.4", Verdict::Regression),
        ("perplexity", "<= +2 %", Verdict::Pass),
        ("perplexity", "<= +1 %", Verdict::Inconclusive),
        ("perplexity", "<= 6", Verdict::Regression),
        ("same_top", ">= 0.95", Verdict::Pass),
        ("same_top", ">= 0.99", Verdict::Regression),
        ("bytes", "<= 1000", Verdict::Pass),
        ("bytes", "<= 999", Verdict::Regression),
        ("tasks.json.acc", ">= -7 pt", Verdict::Pass),
        ("tasks.json.acc", ">= -1 pt", Verdict::Inconclusive),
        ("tasks.json.acc", ">= 0.95", Verdict::Regression),
        ("tasks.other.acc", ">= 0.5", Verdict::Invalid),
        ("positions.0-256.kld", "<= 0.2", Verdict::Pass),
        ("positions.256-512.kld", "<= 0.2", Verdict::Invalid),
        ("kv.q4h/q8_0.kld", "<= 0.011", Verdict::Pass),
    ] {
        assert_eq!(verdict(&r, metric, limit), wanted, "{metric} {limit}");
    }
}

#[test]
fn what_is_no_number_never_passes() {
    assert_eq!(verdict(&json!({"artifacts": []}), "kld.mean", "<= 1"), Verdict::Invalid);
    assert_eq!(verdict(&json!({}), "kld.mean", "<= 1"), Verdict::Invalid);
    let mut r = report([0.02, 0.018, 0.022]);
    r["artifacts"][0]["kld"]["mean"] = Value::Null;
    assert_eq!(verdict(&r, "kld.mean", "<= 1"), Verdict::Invalid);
    let mut r = report([0.02, 0.018, 0.022]);
    r["artifacts"][0]["kld"]["low"] = Value::Null;
    assert_eq!(verdict(&r, "kld.mean", "<= 1"), Verdict::Inconclusive, "one window");
    r["artifacts"][0]["kld"]["intervals"] = Value::Null;
    assert_eq!(verdict(&r, "kld.p99", "<= 1"), Verdict::Inconclusive, "one window");
    r["artifacts"][0]["kld"].as_object_mut().unwrap().remove("intervals");
    assert_eq!(verdict(&r, "kld.p99", "<= 0.3"), Verdict::Pass, "a report of an earlier version");
    r["artifacts"][0]["tasks"][0]["metrics"]["acc"]["of"] = json!(0);
    assert_eq!(verdict(&r, "tasks.json.acc", ">= 0"), Verdict::Invalid);
    let m = Measure { value: f64::NAN, low: None, high: None, exact: true, note: String::new() };
    assert_eq!(m.verdict(&"<= 1".parse().unwrap()), None);
}

#[test]
fn baselines_must_be_of_the_same_text_and_items() {
    let since = |now: &Value, then: Option<&Value>, metric: &str, limit: &str| {
        let budgets = Budgets::parse(&format!("[since]\n\"{metric}\" = \"{limit}\"")).unwrap();
        judge(now, then, &budgets)
    };
    let (now, then) = (report([0.03, 0.02, 0.04]), report([0.02, 0.01, 0.03]));
    assert_eq!(since(&now, Some(&then), "kld.mean", "<= +60 %").verdict, Verdict::Pass);
    assert_eq!(since(&now, Some(&then), "kld.mean", "<= +10 %").verdict, Verdict::Regression);
    assert_eq!(since(&now, Some(&then), "kld.mean", "<= 0.011").verdict, Verdict::Pass);
    assert_eq!(since(&now, Some(&then), "perplexity", "<= +1 %").verdict, Verdict::Pass);
    assert_eq!(since(&now, Some(&then), "bytes", "<= +0 %").verdict, Verdict::Pass);
    let lossless = report([0.0, 0.0, 0.0]);
    assert_eq!(since(&lossless, Some(&lossless), "kld.mean", "<= +5 %").verdict, Verdict::Pass);
    assert_eq!(since(&now, Some(&then), "tasks.json.acc", ">= -5 pt").verdict, Verdict::Pass);
    assert_eq!(since(&now, None, "kld.mean", "<= +10 %").verdict, Verdict::Invalid);
    // What the reference says tells which it was; what was rounded, too.
    let said = |mut report: Value, nll_ref: f64| {
        for chunk in report["artifacts"][0]["chunks"].as_array_mut().unwrap() {
            chunk["nll_ref"] = json!(nll_ref);
        }
        report
    };
    let (ours, same, other) = (said(now.clone(), 20.0), said(then.clone(), 20.0001), said(then.clone(), 23.0));
    assert_eq!(since(&ours, Some(&same), "kld.mean", "<= +60 %").verdict, Verdict::Pass);
    assert_eq!(since(&ours, Some(&other), "kld.mean", "<= +60 %").verdict, Verdict::Invalid);
    let mut served = then.clone();
    served["conditions"]["activations"] = json!("as-served");
    assert_eq!(since(&now, Some(&served), "kld.mean", "<= +60 %").verdict, Verdict::Invalid);
    for (key, value) in
        [("/conditions/corpus_hash", "d"), ("/conditions/tokenizer_hash", "u"), ("/conditions/protocol", "q")]
    {
        let mut other = then.clone();
        *other.pointer_mut(key).unwrap() = json!(value);
        let found = since(&now, Some(&other), "kld.mean", "<= +90 %");
        assert_eq!(found.verdict, Verdict::Invalid, "{key}");
        assert!(found.rows[0].note.contains("cannot be compared"), "{}", found.rows[0].note);
    }
    let mut other = then.clone();
    other["tasks"][0]["hash"] = json!("g");
    assert_eq!(since(&now, Some(&other), "tasks.json.acc", ">= -50 pt").verdict, Verdict::Invalid);
    other["artifacts"][0]["chunks"][0]["tokens"] = json!(9);
    assert_eq!(since(&now, Some(&other), "kld.mean", "<= +90 %").verdict, Verdict::Invalid);
}

#[test]
fn budgets_are_checked_before_anything_runs() {
    for text in [
        "",
        "[budgets]",
        "[budgets]\n\"kld.mean\" = \"0.02\"",
        "[budgets]\n\"kld.mean\" = 0.02",
        "[budgets]\n\"kdl\" = \"<= 1\"",
        "[budgets]\n\"kld.mean\" = \"<= many\"",
        "[budget]\n",
        "[budgets]\n\"kld.mean\" = \"<= inf\"",
        "[budgets]\n\"kld.mean\" = \"<= +5 %\"",
        "[budgets]\n\"bytes\" = \"<= +5 %\"",
        "[budgets]\n\"tasks.a.acc\" = \">= -5 %\"",
        "[since]\n\"kld.mean\" = \"<= +5 pt\"",
        "[budgets]\n\"kld.maen\" = \"<= 1\"",
        "[budgets]\n\"kld.p98\" = \"<= 1\"",
        "[budgets]\n\"kld.mean\" = \">= 0.02\"",
        "[budgets]\n\"tasks.a.acc\" = \"<= -2 pt\"",
        "[budgets]\n\"positions.0-256.same_top\" = \"<= 93 %\"",
        "[since]\n\"bytes\" = \">= +0 %\"",
    ] {
        assert!(Budgets::parse(text).is_err(), "{text}");
    }
    let shown = |text: &str| text.parse::<Limit>().unwrap().to_string();
    assert_eq!([shown("<=0.02"), shown(">= -1pt"), shown("<= 1 %")], ["<= 0.02", ">= -1 pt", "<= +1 %"]);
    assert_eq!(Budgets::at_most(&["kld=0.02".into()]).unwrap().budgets[0].0, "kld.mean");
    assert!(Budgets::at_most(&["kld".into()]).is_err() && Budgets::at_most(&["x=1".into()]).is_err());
}

#[test]
fn limits_that_are_kept_by_getting_worse_are_refused() {
    let said = Budgets::parse("[budgets]\n\"same_top\" = \"<= 93 %\"").unwrap_err().to_string();
    assert!(said.contains("better when it is higher") && said.contains("\"same_top\" = \">= 93 %\""), "{said}");
    assert!(Budgets::at_most(&["same_top=0.9".into()]).unwrap_err().to_string().contains("higher"));
}

#[test]
fn only_changes_have_a_sign() {
    let text = "[budgets]\n\"same_top\" = \">= 93 %\"\n\"perplexity\" = \"<= 2 %\"\n\"tasks.json.acc\" = \">= -7pt\"";
    let rows = judge(&report([0.02, 0.018, 0.022]), None, &Budgets::parse(text).unwrap()).rows;
    let shown: Vec<_> = rows.iter().map(|r| (r.limit.clone(), r.figures())).collect();
    assert_eq!(shown[0], (">= 93 %".to_owned(), "97.00 % (96.00 % - 98.00 %)".to_owned()));
    assert!(shown[1].0 == "<= +2 %" && shown[1].1.starts_with("+1.01 %"), "{shown:?}");
    assert!(shown[2].0 == ">= -7 pt" && shown[2].1.ends_with("+2.00 pt)"), "{shown:?}");
}

#[test]
fn junit_escapes_what_it_is_given() {
    let mut r = report([0.03, 0.02, 0.04]);
    r["artifacts"][0]["path"] = json!("<a&\"b\">\u{1}");
    let budgets = Budgets::parse("[budgets]\n\"kld.mean\" = \"<= 0.01\"\n\"tasks.x.acc\" = \">= 0\"").unwrap();
    let xml = judge(&r, None, &budgets).junit();
    assert!(xml.contains("failures=\"1\" errors=\"1\"") && xml.contains("&lt;a&amp;&quot;b&quot;&gt;"), "{xml}");
    assert!(!xml.contains('\u{1}'));
}

/// Trials of a gate on the mean divergence since a baseline: windows whose divergences vary as real ones do (lognormal), the same
/// windows for both. The same artifact on other windows regresses in at most 5 %; one that loses twice what is detectable at this
/// number of windows is found in at least 80 %.
#[test]
fn gates_keep_their_word() {
    let mut random = Random::new(7);
    let mut normal = move || -> f64 {
        let (u, v) = (random.uniform().max(1e-12), random.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    let windows = 40;
    let own = 0.05; // what a window differs by between two files of the same quality
    let mut trial = |worse: f64| {
        let chunks: Vec<[f64; 2]> = (0..windows)
            .map(|_| {
                let then = 255.0 * 0.02 * (0.5 * normal()).exp();
                [then * (1.0 + worse) * (own * normal()).exp(), then]
            })
            .collect();
        let artifact = |i: usize| {
            let chunks: Vec<Value> = chunks.iter().map(|c| json!({"tokens": 255, "kld": c[i], "nll": 500.0})).collect();
            json!({"conditions": {"protocol": "p", "context": 512, "corpus_hash": "c", "tokenizer_hash": "t"},
                "artifacts": [{"path": "a", "chunks": chunks}]})
        };
        let budgets = Budgets::parse("[since]\n\"kld.mean\" = \"<= +0 %\"").unwrap();
        judge(&artifact(0), Some(&artifact(1)), &budgets).verdict
    };
    let mut share = |worse: f64| (0..200).filter(|_| trial(worse) == Verdict::Regression).count() as f64 / 200.0;
    let same = share(0.0);
    assert!(same <= 0.05, "{same} of equal files regress");
    // The mean's standard error of so many windows, which weigh by their divergence; 1.96 + 0.84 of it is detectable.
    let weights = 1.0 + (0.5f64 * 0.5).exp_m1();
    let detectable = 2.8 * own * (weights / windows as f64).sqrt();
    let found = share(2.0 * detectable);
    assert!(found >= 0.8, "{found} of losses of {:.1} % are found", 200.0 * detectable);
    let [mean, low, high] = resampled(&[[1.0, 1.0], [3.0, 1.0]], |[a, b]| a / b);
    assert!(mean == 2.0 && low < 0.0 && high > 4.0, "two windows say little");
}

/// The same of a budget on a quantile, by the summary that a report has: tokens whose divergences are lognormal, and vary with
/// their window. What is exactly at the limit regresses in at most 5 %, what is twice as far off in at least 80 %, and as many
/// pass of what is half as far.
#[test]
fn gates_on_quantiles_keep_their_word() {
    let mut random = Random::new(11);
    let mut normal = move || -> f64 {
        let (u, v) = (random.uniform().max(1e-12), random.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    let mut trial = |worse: f64| {
        let token = |kld| TokenScore { nll_ref: 2.0, nll: 2.0, kld, same_top: true };
        let mut window = || {
            let own = 0.5 * normal();
            (0..64).map(|_| token(0.02 * worse * (own + normal()).exp())).collect::<Vec<_>>()
        };
        let windows: Vec<_> = (0..40).map(|_| window()).collect();
        let kld = stats::summarize(&windows).unwrap().kld;
        // 99 % of a normal variable lie below 2.3263 standard deviations.
        let limit = 0.02 * (2.3263 * 1.25f64.sqrt()).exp();
        verdict(&json!({"artifacts": [{"path": "a", "kld": kld}]}), "kld.p99", &format!("<= {limit}"))
    };
    let mut share = |worse, of: Verdict| (0..100).filter(|_| trial(worse) == of).count();
    let same = share(1.0, Verdict::Regression);
    assert!(same <= 5, "{same} of 100 at the limit regress");
    let (found, passed) = (share(2.0, Verdict::Regression), share(0.5, Verdict::Pass));
    assert!(found >= 80 && passed >= 80, "{found} of 100 that are twice as far off regress, {passed} half as far pass");
}

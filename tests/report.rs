//! `quant report` and `quant eval --html` through the binary: pages are well-formed, self-contained, accessible, and show what
//! the results say.

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use common::{quant_fails, quant_ok};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Value, json};

const HOSTILE: &str = "<script>alert('x')</script>\"&\u{1}]]>";

fn text<'a>(node: Node<'a, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|n| n.text()).collect()
}

fn named<'a, 'i>(page: &'a Document<'i>, tag: &'a str) -> impl Iterator<Item = Node<'a, 'i>> {
    page.descendants().filter(move |n| n.is_element() && n.tag_name().name() == tag)
}

/// What every page must be. Pages are written so that a strict XML parser reads them.
fn check(html: &str) -> Document<'_> {
    let page = Document::parse_with_options(html, ParsingOptions { allow_dtd: true, ..Default::default() })
        .unwrap_or_else(|e| panic!("{e}"));
    // Nothing is fetched, nothing runs.
    let outside = html.replace("http://www.w3.org/2000/svg", "");
    for word in ["http:", "https:", "url(", "@import", "src=", "javascript:"] {
        assert!(!outside.contains(word), "{word} in the page");
    }
    let mut attributes = page.descendants().flat_map(|n| n.attributes());
    assert!(attributes.all(|a| !a.name().starts_with("on")), "a handler");
    for tag in ["script", "iframe", "link", "img", "object", "embed", "base", "form"] {
        assert_eq!(named(&page, tag).count(), 0, "<{tag}>");
    }
    // Ids are unique, and what refers to them finds them.
    let mut ids = HashSet::new();
    page.descendants().filter_map(|n| n.attribute("id")).for_each(|id| assert!(ids.insert(id), "{id} twice"));
    for node in page.descendants() {
        let labels = node.attribute("aria-labelledby").unwrap_or_default();
        assert!(labels.split_whitespace().all(|id| ids.contains(id)), "{labels}");
        let target = node.attribute("href").map(|h| h.strip_prefix('#').expect("a link leaves the page"));
        assert!(target.is_none_or(|id| ids.contains(id)), "{target:?}");
    }
    // Tables say what they hold and which cells are heads; each row has as many cells as there are heads.
    for table in named(&page, "table") {
        let rows: Vec<Node<'_, '_>> = table.descendants().filter(|n| n.has_tag_name("tr")).collect();
        assert!(table.children().any(|n| n.has_tag_name("caption")));
        let width = |row: &Node<'_, '_>| {
            let cells = row.children().filter(Node::is_element);
            cells.map(|c| c.attribute("colspan").map_or(1, |n| n.parse().unwrap())).sum::<usize>()
        };
        assert!(rows.iter().all(|r| width(r) == width(&rows[0])), "{}", text(table));
    }
    assert!(named(&page, "th").all(|th| th.attribute("scope").is_some()));
    for svg in named(&page, "svg") {
        assert_eq!(svg.attribute("role"), Some("img"));
        assert!(svg.attribute("aria-labelledby").is_some());
    }
    for figure in named(&page, "figure") {
        assert!(figure.children().any(|n| n.has_tag_name("figcaption")));
    }
    // Headings go down one level at a time.
    let level = |n: Node<'_, '_>| n.tag_name().name().strip_prefix('h').and_then(|l| l.parse::<u32>().ok());
    let levels: Vec<u32> = page.descendants().filter(Node::is_element).filter_map(level).collect();
    assert!(levels[0] == 1 && levels.windows(2).all(|w| w[1] <= w[0] + 1), "{levels:?}");
    assert!(page.root_element().attribute("lang").is_some());
    page
}

fn write(dir: &Path, name: &str, value: &Value) -> String {
    let path = dir.join(name);
    fs::write(&path, value.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn report(dir: &Path, files: &[&str], more: &[&str]) -> String {
    let out = dir.join("report.html");
    quant_ok(&[&["report"], files, &["-o", out.to_str().unwrap(), "--quiet"], more].concat());
    fs::read_to_string(out).unwrap()
}

fn artifact(path: &str, bytes: u64, kld: f64) -> Value {
    let around = |v: f64| json!({"value": v, "low": v * 0.9, "high": v * 1.1});
    json!({"path": path, "format": "q", "bytes": bytes, "bpw": bytes as f64 / 1e6, "perplexity": around(8.0 + kld),
        "ln_ppl_ratio": around(kld / 8.0), "same_top": around(0.9), "mean_delta_p": around(0.0), "rms_delta_p": around(0.02),
        "kld": {"mean": kld, "low": kld * 0.9, "high": kld * 1.1, "median": kld, "p90": kld, "p95": kld, "p99": 3.0 * kld,
            "p999": 4.0 * kld, "max": 9.0 * kld}})
}

fn results(artifacts: Vec<Value>) -> Value {
    json!({"protocol": "llamacpp-512", "tokens": 7650,
        "conditions": {"protocol": "llamacpp-512", "context": 512, "corpus": "a text", "corpus_hash": "c0ffee",
            "tokenizer_hash": "70cafe", "bos": 1},
        "noise": {"batch_kld": 0.0, "bf16_kld": 3e-6},
        "reference": {"path": "models/m", "name": "m", "bytes": 16_000_000, "bpw": 16.0, "perplexity": 8.0},
        "artifacts": artifacts})
}

/// Every part there can be, with `word` wherever a file may put a word.
fn full(word: &str) -> Value {
    let share =
        |right: u64, against: Value| json!({"right": right, "of": 200, "low": 0.5, "high": 0.9, "against": against});
    let mut artifacts = Vec::new();
    for (i, kld) in [0.001, 0.02, 0.3].into_iter().enumerate() {
        let mut a = artifact(&format!("out/m-{word}{i}.gguf"), 8_000_000 - 2_000_000 * i as u64, kld);
        a["positions"] = (0..4)
            .map(|p| {
                json!({"from": p * 128, "to": p * 128 + 128, "tokens": 1, "kld": {"value": kld * f64::from(p + 1),
            "low": kld, "high": kld * 6.0}, "same_top": {"value": 0.9, "low": null, "high": null}})
            })
            .collect();
        a["blame"] = (0..6).map(|l| json!({"layer": l, "kld": kld / f64::from(l + 1)})).collect();
        a["weights"] = json!([{"name": format!("blk.0.{word}"), "codec": "q4_k", "relative": 0.05}]);
        let against = json!({"lost": 5 * i, "gained": 1, "difference": -0.02 * i as f64, "low": -0.05, "high": 0.01,
            "p": 0.5 / (1.0 + 30.0 * i as f64), "holm": 0.6 / (1.0 + 30.0 * i as f64), "detectable": 0.04, "verdict": word});
        a["tasks"] = json!([{"name": format!("sums {word}"), "metrics": {"acc": share(170 - 5 * i as u64, against)}, "marks": {"acc": "10"},
            "flips": (0..5).map(|f| json!({"id": format!("{word}{f}"), "prompt": format!("{word} {}", "long ".repeat(200)), "expected": 7,
                "reference": "7", "artifact": format!("{word}{}", "\nand on".repeat(40)), "lost": f != 1})).collect::<Vec<_>>()}]);
        artifacts.push(a);
    }
    let mut out = results(artifacts);
    out["tasks"] = json!([{"name": format!("sums {word}"), "about": word, "kind": "generate", "check": "number", "items": 200,
        "hash": "0123456789abcdef", "metrics": ["acc"], "reference": {"acc": share(171, Value::Null)}}]);
    out["kv"] = json!([
        {"type": format!("q8_0{word}"), "bytes_per_token": 13056, "perplexity": {"value": 8.0, "low": 7.9, "high": 8.1},
            "buckets": [{"from": 0, "to": 1024, "kld": 0.00001, "same_top": 0.99}, {"from": 1024, "to": 4096, "kld": 0.02, "same_top": 0.9}]},
        {"type": "q4", "bytes_per_token": 6912, "buckets": [{"from": 0, "to": 1024, "kld": 0.2, "same_top": 0.8}]}]);
    out["stress"] = json!([{"path": format!("out/m-{word}2.gguf"), "prompts": 50, "identical": 0.2,
        "first_divergence": [12, 31, 60], "repetition": {"reference": 0.0, "artifact": 0.02},
        "no_end": {"reference": 0.1, "artifact": 0.2}, "length_ratio": 1.03, "drift": 0.0,
        "examples": [{"prompt": word, "reference": format!("the heron {word} flies"), "artifact": format!("the heron {word} the heron")}]}]);
    out["gate"] = json!({"verdict": "REGRESSION", "rows": [
        {"artifact": format!("out/m-{word}2.gguf"), "metric": "kld.mean", "limit": "<= 0.02", "value": 0.3, "low": 0.2, "high": 0.4,
            "verdict": "REGRESSION", "note": word},
        {"artifact": null, "metric": word, "limit": null, "value": null, "low": null, "high": null, "verdict": "INVALID", "note": null}]});
    out["quant"] = json!({"version": word});
    out
}

#[test]
fn a_real_evaluation_becomes_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/probe/model");
    let model = model.to_str().unwrap();
    let formats = ["q8_0", "q4_k_m", "q3_k_m", "q2_k"];
    quant_ok(&["convert", model, "--to", &formats.join(","), "-o", dir.path().to_str().unwrap(), "--quiet"]);
    let files = formats.map(|f| at(&format!("model-{f}.gguf")));
    let (page, data) = (at("own.html"), at("data.txt"));
    fs::write(&data, "the heron sees nine fish, and two of them see it. ".repeat(60)).unwrap();
    let mut args = vec!["eval", "--reference", model, "--data", &data, "--context", "96", "--chunks", "4", "--weights"];
    args.extend(files.iter().map(String::as_str));
    let printed = quant_ok(&[&args[..], &["--html", &page, "--json", "--quiet"]].concat());
    let value: Value = serde_json::from_str(&printed).unwrap();

    let own = fs::read_to_string(&page).unwrap();
    let again = report(dir.path(), &[&write(dir.path(), "r.json", &value)], &["--svg", &at("plots/all")]);
    let page = check(&again);
    check(&own);
    let table = named(&page, "table").find(|t| t.attribute("id").is_some_and(|id| id.starts_with("quality"))).unwrap();
    let rows: Vec<String> = table.descendants().filter(|n| n.has_tag_name("tr")).map(text).collect();
    assert_eq!(rows.len(), 2 + formats.len());
    for (row, found) in rows[2..].iter().zip(value["artifacts"].as_array().unwrap()) {
        let format = formats.iter().find(|f| found["path"].as_str().unwrap().ends_with(&format!("-{f}.gguf"))).unwrap();
        assert!(row.contains(format) && row.contains(&format!("{:.2}", found["bpw"].as_f64().unwrap())), "{row}");
    }
    for format in formats {
        assert!(again.contains(&format!(">{format}</text>")), "no label {format}");
    }
    let words = text(page.root_element());
    for word in [value["conditions"]["corpus_hash"].as_str().unwrap(), "llamacpp-512", "noise floor", "Largest errors"]
    {
        assert!(words.contains(word), "{word}");
    }
    let plot = fs::read_to_string(at("plots/all/size-kld.svg")).unwrap();
    assert_eq!(Document::parse(&plot).unwrap().root_element().tag_name().name(), "svg");

    // Without a reference, and over an input.
    let alone =
        [&["eval", &files[0], &files[3]][..], &["--data", &data, "--context", "96", "--chunks", "4", "--quiet"]]
            .concat();
    quant_ok(&[&alone[..], &["--html", &at("alone.html")]].concat());
    let alone_page = fs::read_to_string(at("alone.html")).unwrap();
    assert!(text(check(&alone_page).root_element()).contains("do not say what was lost"));
    assert!(quant_fails(&[&alone[..], &["--html", &files[0]]].concat()).contains("one of the inputs"));
}

#[test]
fn every_part_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("svg");
    let html = report(dir.path(), &[&write(dir.path(), "full.json", &full("w"))], &["--svg", svg.to_str().unwrap()]);
    let page = check(&html);
    let words = text(page.root_element());
    for word in [
        "At least one budget is exceeded",
        "w0 is the closest",
        "w2 the smallest",
        "What each file lost",
        "Loss of predictions by their position",
        "What the weights of each layer cost",
        "Largest errors",
        "bytes per token",
        "13\u{202f}056",
        "Answers that changed",
        "more characters",
        "characters before",
        "Greedy continuations",
        "c0ffee",
        "70cafe",
        "0123456789abcdef",
        "token 1",
        "do not rank them",
        "protocols or tokenizers cannot be compared",
        "no detectable loss",
        "0.008 (0.010)",
        "−4.0",
    ] {
        assert!(words.contains(word), "no {word} in\n{words}");
    }
    // The verdict is the first thing that is said.
    let first = page.descendants().find(|n| n.has_tag_name("main")).map(text).unwrap();
    assert!(first.trim_start().starts_with("REGRESSION"), "{}", &first[..80]);
    let mut plots: Vec<String> =
        fs::read_dir(&svg).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    plots.sort();
    assert_eq!(plots, ["kld-layer.svg", "kld-position.svg", "kv.svg", "size-kld.svg"]);
    for plot in plots {
        Document::parse(&fs::read_to_string(svg.join(plot)).unwrap()).unwrap();
    }
}

#[test]
fn nothing_of_a_file_becomes_markup() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("svg");
    let html =
        report(dir.path(), &[&write(dir.path(), "full.json", &full(HOSTILE))], &["--svg", svg.to_str().unwrap()]);
    let page = check(&html);
    assert!(text(page.root_element()).contains("<script>alert('x')</script>\"&\u{fffd}]]>"));
    for plot in fs::read_dir(&svg).unwrap() {
        let plot = fs::read_to_string(plot.unwrap().path()).unwrap();
        assert!(named(&Document::parse(&plot).unwrap(), "script").next().is_none());
    }
}

#[test]
fn results_of_the_same_conditions_share_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let one = results(vec![artifact("a.gguf", 4_000_000, 0.02)]);
    let two = results(vec![artifact("b.gguf", 2_000_000, 0.2), artifact("a.gguf", 4_000_000, 0.02)]);
    let mut other = two.clone();
    other["conditions"]["corpus_hash"] = json!("another");
    let paths = [("1.json", one), ("2.json", two), ("3.json", other)].map(|(name, v)| write(dir.path(), name, &v));
    let quality = |html: &str| {
        let page = check(html);
        let tables = named(&page, "table").filter(|t| t.attribute("id").is_some_and(|id| id.starts_with("quality")));
        tables.map(|t| t.descendants().filter(|n| n.has_tag_name("tr")).count()).collect::<Vec<_>>()
    };
    // Head, reference, files.
    assert_eq!(quality(&report(dir.path(), &[&paths[0]], &[])), [3]);
    assert_eq!(quality(&report(dir.path(), &[&paths[0], &paths[1]], &[])), [4]);
    let html = report(dir.path(), &[&paths[0], &paths[1], &paths[2]], &[]);
    assert_eq!(quality(&html), [4, 4]);
    assert!(html.contains("cannot be compared"));
    // The worst verdict decides.
    let gated = |verdict: &str| {
        let mut v = results(vec![artifact("a.gguf", 4_000_000, 0.02)]);
        v["gate"] = json!({"verdict": verdict, "rows": []});
        write(dir.path(), &format!("{verdict}.json"), &v)
    };
    let [pass, open, odd] = ["PASS", "INCONCLUSIVE", "ODD"].map(gated);
    for (files, class) in [([&pass, &pass], "good"), ([&pass, &open], "open"), ([&open, &odd], "bad")] {
        assert!(
            report(dir.path(), &[files[0], files[1]], &[]).contains(&format!("class=\"verdict {class}\"")),
            "{class}"
        );
    }
}

#[test]
fn what_is_no_result_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.html");
    let refused = |name: &str, text: &str, words: &[&str]| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let error = quant_fails(&["report", path.to_str().unwrap(), "-o", out.to_str().unwrap()]);
        words.iter().chain(&[name]).for_each(|word| assert!(error.contains(word), "no {word} in\n{error}"));
        assert!(!out.exists());
    };
    refused("text.json", "hello", &["no JSON", "quant eval"]);
    refused("list.json", "[]", &["no result of `quant eval`"]);
    refused("deep.json", &"[".repeat(100_000), &["no JSON"]);
    refused("other.json", "{\"loss\": 3}", &["artifacts"]);
    let mut wrong = results(vec![artifact("a.gguf", 1, 0.1)]);
    wrong["artifacts"][0]["kld"]["mean"] = json!("little");
    refused("kld.json", &wrong.to_string(), &["artifacts[0].kld.mean", "little"]);
    let mut wrong = full("w");
    wrong["artifacts"][1]["tasks"][0]["metrics"]["acc"] = json!({"right": 3});
    refused("task.json", &wrong.to_string(), &["acc", "sums w", "of"]);
    assert!(quant_fails(&["report", dir.path().join("none.json").to_str().unwrap()]).contains("none.json"));
    let path = write(dir.path(), "r.json", &results(vec![]));
    assert!(quant_fails(&["report", &path, "-o", &path]).contains("one of the inputs"));
    check(&report(dir.path(), &[&path], &[]));
}

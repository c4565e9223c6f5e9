//! Models on a card that is the host: what `quant eval` and `quant calibrate` say there is what the CPU says.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use common::card::FakeCard;
use common::family::{FAMILIES, family};
use common::folder::Folder;
use common::model::{DENSE, Shape, model};
use common::quant_ok;
use quant::calibrate::stats::{Gram, Statistics};
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
        assert!(matches!(out.status.code(), Some(1 | 2)), "{more:?} {settings:?}: {said}");
        assert_eq!(said.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{said}");
        said
    }

    fn calibrate(&self, name: &str, more: &[&str]) -> Statistics {
        let [source, text, out] = [self.source(), self.text("text.txt"), self.text(name)];
        let args =
            ["calibrate", &source, "--data", &text, "--rows", "4", "--length", "32", "--gram", "--quiet", "-o", &out];
        let made = self.card.quant(&[&args[..], more].concat(), "");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Statistics::open(&self.path(name)).unwrap()
    }
}

const CARD: [&str; 2] = ["--device", "cuda:0"];

/// The least of them.
fn small() -> Folder {
    family(&FAMILIES[0])
}

fn llama() -> Folder {
    model(&Shape { layers: 1, inter: 256, ..DENSE })
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

#[test]
fn perplexity_and_divergence_are_the_cpu_s_in_every_family() {
    for of in FAMILIES {
        let Some(bench) = Bench::new(family(of), of.artifact) else { return };
        let source = bench.source();
        let reference = ["--reference", source.as_str()];
        let cpu = bench.report(&reference);
        let card = bench.report(&[&reference[..], &CARD].concat());
        same_figures(of.name, &cpu, &card);
        assert!(cpu["artifacts"][0]["kld"]["mean"].as_f64().unwrap() > 1e-7, "{}: nothing was compared", of.name);
        assert_eq!((cpu["device"].as_str(), card["device"].as_str()), (Some("cpu"), Some("cuda:0 (the host, exact)")));
    }
}

/// A dense model, and one with experts whose sums are weighted.
#[test]
fn by_a_library_figures_and_statistics_are_close() {
    for of in FAMILIES.iter().filter(|f| f.name.starts_with("qwen2-moe") || f.name.starts_with("gemma2")) {
        let Some(bench) = Bench::new(family(of), of.artifact) else { return };
        let source = bench.source();
        let cpu = bench.report(&["--reference", &source]);
        let [artifact, text] = ["artifact", "text.txt"].map(|name| bench.text(name));
        let args = ["eval", &artifact, "--reference", &source, "--data", &text, "--context", "48", "--chunks", "3"];
        // Perplexity and divergence, as shares.
        for (precision, allowed) in [("f32", [1e-6, 1e-4]), ("tf32", [5e-4, 0.02]), ("bf16", [5e-3, 0.2])] {
            let fast = ["--json", "--quiet", "--precision", precision];
            let out = bench.card.quant_fast(&[&args[..], &fast, &CARD].concat(), "");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let card: Value = serde_json::from_slice(&out.stdout).unwrap();
            assert_eq!(card["device"], format!("cuda:0 (the host, {precision})"));
            for ((what, of_it), allowed) in [("perplexity", "value"), ("kld", "mean")].into_iter().zip(allowed) {
                let [ours, theirs] = [&cpu, &card].map(|r| r["artifacts"][0][what][of_it].as_f64().unwrap());
                let off = (ours - theirs).abs() / ours;
                println!("{}, {precision}: {what} {ours}, off by {off:.1e}", of.name);
                assert!(off <= allowed && off > 0.0, "{}, {precision}: {what} {ours}, {theirs}", of.name);
            }
        }
        let ours = bench.calibrate("cpu.st", &[]);
        let out = bench.text("fast.st");
        let args =
            ["calibrate", &source, "--data", &text, "--rows", "4", "--length", "32", "--gram", "--quiet", "-o", &out];
        let made = bench.card.quant_fast(&[&args[..], &CARD].concat(), "");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let theirs = Statistics::open(&bench.path("fast.st")).unwrap();
        for (i, shape) in ours.about().sites.iter().enumerate() {
            let [ours, theirs] = [ours.nth(i), theirs.nth(i)].map(|site| dense(&site.gram));
            let most = ours.iter().fold(0f32, |most, x| most.max(x.abs()));
            let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(ours.len() == theirs.len() && worst <= 4e-3 * most, "{}: {worst} of {most}", shape.key);
        }
    }
}

#[test]
fn factors_by_a_library_choose_nearly_the_same_codes() {
    let Some(bench) = Bench::new(small(), "q4_0") else { return };
    bench.calibrate("s.st", &[]);
    let [source, stats] = [bench.source(), bench.text("s.st")];
    for (to, method, allowed) in [("q4_0", "gptq", 1), ("q4_0", "awq", 1), ("mlx-4bit", "awq+gptq", 3)] {
        let files = ["exact", "f32"].map(|precision| {
            let out = bench.text(&format!("{to}-{method}-{precision}"));
            let args = ["convert", &source, "--to", to, "--method", method, "--stats", &stats, "--quiet", "-o", &out];
            let made = bench.card.quant_fast(&[&args[..], &CARD, &["--precision", precision]].concat(), "");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let out = PathBuf::from(out);
            fs::read(if out.is_dir() { out.join("model.safetensors") } else { out }).unwrap()
        });
        let (differ, all) = (files[0].iter().zip(&files[1]).filter(|(a, b)| a != b).count(), files[0].len());
        println!("{to} by {method}: {differ} of {all} bytes differ");
        assert!(files[1].len() == all && differ * 1000 <= allowed * all, "{to} by {method}: {differ} of {all}");
    }
    // It was the library that did it.
    let out = bench.text("none");
    let args = ["convert", &source, "--to", "q4_0", "--method", "gptq", "--stats", &stats, "--quiet", "-o", &out];
    let made = bench.card.quant_fast(&[&args[..], &CARD, &["--precision", "f32"]].concat(), "cusolverDnDpotrf:6");
    assert!(!made.status.success(), "a library that fails is an error");
}

#[test]
fn a_reference_in_a_file_is_as_good_as_the_model() {
    let Some(bench) = Bench::new(family(&FAMILIES[1]), FAMILIES[1].artifact) else { return };
    let [source, text] = [bench.source(), bench.text("text.txt")];
    let reports = [&["--device", "cpu"], &CARD].map(|device| {
        let file = bench.text(&format!("{}.ref", &device[1][..3]));
        let args = ["reference", &source, "--data", &text, "--context", "48", "--chunks", "3", "--quiet", "-o", &file];
        let made = bench.card.quant(&[&args[..], device].concat(), "");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let artifact = bench.text("artifact");
        let args = ["eval", &artifact, "--reference", &file, "--json", "--quiet"];
        let out = bench.card.quant(&[&args[..], device].concat(), "");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    });
    same_figures("from a file", &reports[0], &reports[1]);
}

#[test]
fn weights_of_every_kind_come_to_the_card() {
    // Blocks with kernels, blocks without, floats, parts with scales of their own, a scale of the whole matrix.
    for to in ["q4_k_m", "tq2_0", "f16", "gptq", "nvfp4a16", "exl2"] {
        let Some(bench) = Bench::new(llama(), to) else { return };
        same_figures(to, &bench.report(&[]), &bench.report(&CARD));
    }
}

fn close(what: &str, ours: &[f32], theirs: &[f32]) {
    let most = ours.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= 4e-6 * most, "{what}: {worst} of {most}");
}

fn dense(gram: &Option<Gram<'_>>) -> Vec<f32> {
    gram.as_ref().map_or_else(Vec::new, |g| (0..g.columns()).flat_map(|i| g.row(i).to_vec()).collect())
}

#[test]
fn statistics_are_the_cpu_s() {
    for of in FAMILIES.iter().filter(|f| f.name.starts_with("qwen2-moe") || f.name.starts_with("gemma2")) {
        let Some(bench) = Bench::new(family(of), of.artifact) else { return };
        let (cpu, card) = (bench.calibrate("cpu.st", &[]), bench.calibrate("card.st", &CARD));
        assert_eq!(
            (&cpu.about().runs[0].device, card.about().runs[0].device.as_deref()),
            (&None, Some("cuda:0 (the host, exact)"))
        );
        let mut grams = 0;
        for (i, shape) in cpu.about().sites.iter().enumerate() {
            let (ours, theirs, key) = (cpu.nth(i), card.nth(i), &shape.key);
            assert_eq!((ours.tokens, ours.held_out_tokens), (theirs.tokens, theirs.held_out_tokens), "{key}");
            assert!((ours.weight - theirs.weight).abs() <= 1e-6 * ours.weight, "{key}");
            close(key, &ours.mean_square, &theirs.mean_square);
            close(key, &ours.absmax, &theirs.absmax);
            close(key, &ours.held_out_mean_square, &theirs.held_out_mean_square);
            let weighted = |w: &Option<std::borrow::Cow<'_, [f32]>>| w.as_deref().unwrap_or_default().to_vec();
            close(key, &weighted(&ours.weighted_mean_square), &weighted(&theirs.weighted_mean_square));
            close(key, &dense(&ours.gram), &dense(&theirs.gram));
            grams += usize::from(ours.gram.is_some() && theirs.gram.is_some());
        }
        assert!(grams > 8, "{}: {grams}", of.name);
    }
}

/// States that stay on the card are written down now and then; a run that is killed goes on from there.
#[test]
fn a_killed_calibration_goes_on() {
    let Some(bench) = Bench::new(model(&Shape { layers: 3, inter: 256, ..DENSE }), "q4_0") else { return };
    bench.calibrate("whole.st", &CARD);
    let [source, text, out] = [bench.source(), bench.text("text.txt"), bench.text("killed.st")];
    let args = ["calibrate", &source, "--data", &text, "--rows", "4", "--length", "32", "--gram", "-o", &out];
    let args = [&args[..], &CARD].concat();
    let said = |from: &[u8]| String::from_utf8_lossy(from).contains("going on after layer");
    let journal = bench.path(".killed.st.journal");
    let mut child = bench.card.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !std::fs::read_to_string(&journal).is_ok_and(|lines| lines.contains("\"layer\"")) {
        assert!(child.try_wait().unwrap().is_none(), "it ended, and nothing was written down");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let again = bench.card.quant(&args, "");
    assert!(again.status.success() && said(&again.stderr), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(fs::read(bench.path("whole.st")).unwrap() == fs::read(&out).unwrap());
}

#[test]
fn a_bound_on_memory_is_kept_and_changes_nothing() {
    let Some(bench) = Bench::new(small(), "q4_0") else { return };
    let source = bench.source();
    let bounded = |bytes: &str, settings: &[(&str, &str)]| {
        bench.eval(&[&["--reference", &source, "--vram", bytes], &CARD[..]].concat(), settings)
    };
    let cpu = bench.report(&["--reference", &source]);
    let (mut kept, mut refused) = (0, 0);
    // A card that has no more than was promised: either it is known beforehand not to suffice, or it does.
    for bytes in (0..6).map(|n| (220_000 + n * 70_000).to_string()) {
        let out = bounded(&bytes, &[("HOST_CARD_MEMORY", &bytes)]);
        if out.status.success() {
            same_figures(&bytes, &cpu, &serde_json::from_slice(&out.stdout).unwrap());
            kept += 1;
        } else {
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(said.contains("a sequence of 48 tokens takes"), "{bytes}: {said}");
            refused += 1;
        }
    }
    assert!(kept > 1 && refused > 0, "{kept} were enough");
    for (bytes, fits) in [("500kB", false), ("2MB", true)] {
        let (text, out) = (bench.text("text.txt"), bench.text("bounded.st"));
        let args =
            ["calibrate", &source, "--data", &text, "--rows", "4", "--length", "32", "--gram", "--quiet", "-o", &out];
        let made = bench.card.quant_with(
            &[&args[..], &CARD, &["--vram", bytes]].concat(),
            &[("HOST_CARD_MEMORY", if fits { "2000000" } else { "500000" })],
        );
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(
            made.status.success() == fits && (fits || said.contains("a sequence of 32 tokens takes")),
            "{bytes}: {said}"
        );
    }
    let out = bounded("100kB", &[]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1), "{said}");
    assert!(
        said.contains("a sequence of 48 tokens takes 0.3 MiB of the card, 0.1 MiB") && said.contains("--vram"),
        "{said}"
    );
    let said = bench.refusal(&["--vram", "1GiB"], &[]);
    assert!(said.contains("--vram bounds a card's memory"), "{said}");
}

#[test]
fn what_a_card_does_not_run_is_refused_by_name_and_left_to_the_cpu_by_auto() {
    let Some(bench) = Bench::new(small(), "q4_0") else { return };
    let refused = [(&["--kv", "q8_0"][..], "quantized caches (--kv)"), (&["--suite", "arithmetic"], "tasks (--suite)")];
    for (more, what) in refused {
        let said = bench.refusal(&[more, &CARD].concat(), &[]);
        assert!(said.contains(&format!("no card runs {what}")) && said.contains("--device cpu"), "{said}");
    }
    let auto = bench.report(&["--kv", "q8_0", "--device", "auto"]);
    assert!(auto["artifacts"][0].is_object(), "{auto}");
    assert_eq!(bench.report(&["--device", "auto"])["device"], "cuda:0 (the host, exact)");
    // Heads of a size without a kernel.
    let Some(odd) = Bench::new(model(&Shape { layers: 1, ..common::model::ODD }), "q8_0") else { return };
    let said = odd.refusal(&CARD, &[]);
    assert!(said.contains("no card runs heads of 32"), "{said}");
    assert_eq!(odd.report(&["--device", "auto"])["device"], "cpu");
    // Inputs are rounded on the way.
    let Some(served) = Bench::new(small(), "fp8") else { return };
    let (cpu, card) = (["--activations", "as-served"], ["--activations", "as-served", CARD[0], CARD[1]]);
    same_figures("as served", &served.report(&cpu), &served.report(&card));
}

#[test]
fn a_card_that_fails_on_the_way_is_an_error_with_its_name() {
    let Some(bench) = Bench::new(small(), "q4_0") else { return };
    for (fails, says) in [
        ("cuMemAlloc_v2:2:5", "cannot allocate memory: out of memory"),
        ("cuMemcpyHtoD_v2:700:15", "cannot upload"),
        ("cuLaunchKernel:719:30", "cannot launch"),
        ("cuMemcpyDtoH_v2:700:1", "cannot download"),
        ("cuModuleLoadData:209:3", "cannot load"),
    ] {
        let said = bench.refusal(&CARD, &[("HOST_CARD_FAILS", fails)]);
        assert!(said.contains(says) && said.contains("artifact"), "{fails}: {said}");
    }
}

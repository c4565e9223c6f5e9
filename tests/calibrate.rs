//! `quant calibrate` through the binary, on small random models.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::folder::Folder;
use common::model::{DENSE, MOE, Shape, model};
use common::{hidden, quant, quant_fails, quant_ok};
use quant::arch::Role;
use quant::calibrate::imatrix::Imatrix;
use quant::calibrate::stats::{SiteStats, Statistics};
use quant::container;
use serde_json::Value;

struct Bench {
    dir: tempfile::TempDir,
    model: Folder,
}

impl Bench {
    fn new(shape: &Shape) -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap(), model: model(shape) };
        let line = |i: usize| format!("the {} heron sees {} fish, and {} of them see it. ", i % 7, i * i % 31, i % 5);
        fs::write(bench.file("text.txt"), (0..300).map(line).collect::<String>()).unwrap();
        let row = |i: usize| format!("{{\"text\": \"row {i} of another file: {} {}\"}}\n", i * 17 % 101, i * i);
        fs::write(bench.file("rows.jsonl"), (0..200).map(row).collect::<String>()).unwrap();
        bench
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    fn source(&self) -> &str {
        self.model.path().to_str().unwrap()
    }

    /// `quant calibrate MODEL --data text.txt --length 64 --rows 20 -o OUT ...`
    fn args(&self, out: &str, more: &[&str]) -> Vec<String> {
        let (text, out) = (self.path("text.txt"), self.path(out));
        let mut args = vec!["calibrate", self.source(), "-o", &out, "--quiet"];
        let has = |flag: &str| more.contains(&flag);
        if !has("--data") && !has("--mix") {
            args.extend(["--data", &text]);
        }
        if !has("--rows") {
            args.extend(["--rows", "20"]);
        }
        if !has("--length") {
            args.extend(["--length", "64"]);
        }
        args.extend(more);
        args.into_iter().map(str::to_owned).collect()
    }

    fn run(&self, out: &str, more: &[&str]) -> Statistics {
        let args = self.args(out, more);
        quant_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        Statistics::open(&self.file(out)).unwrap()
    }

    fn fails(&self, more: &[&str], words: &[&str]) {
        let args = self.args("never", more);
        let error = quant_fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
        words.iter().for_each(|word| assert!(error.contains(word), "no {word} in\n{error}"));
        assert!(!self.file("never").exists() && hidden(self.dir.path()).is_empty());
    }
}

fn site<'a>(s: &'a Statistics, layer: Option<u32>, role: Role) -> SiteStats<'a> {
    s.site(layer, &role, None).unwrap()
}

#[test]
fn statistics_fit_together() {
    let bench = Bench::new(&DENSE);
    let s = bench.run("s", &["--gram", "--keep-tokens"]);
    let about = s.about();
    assert_eq!((about.arch.as_str(), about.runs.len(), about.sites.len()), ("llama", 1, 4 * (4 + 2) + 1));
    let run = &about.runs[0];
    assert_eq!((run.tokens, run.rows * run.length), (1280, 1280));
    assert!(run.held_out_tokens > 0 && run.held_out_tokens < 300);
    let kept = run.kept.as_ref().unwrap();
    // BOS in front of each, and nowhere else.
    assert!(kept.iter().all(|t| t.len() <= 64 && t[0] == 257 && !t[1..].contains(&257)));
    assert_eq!(kept.iter().map(Vec::len).sum::<usize>() as u64, run.tokens);
    for role in [Role::AttnQ, Role::AttnV, Role::AttnOutput, Role::FfnUp, Role::FfnDown] {
        let found = site(&s, Some(3), role.clone());
        assert_eq!(found.tokens + found.held_out_tokens, run.tokens);
        let (gram, held_out) = (found.gram.as_ref().unwrap(), found.held_out.as_ref().unwrap());
        for i in 0..found.columns {
            let (square, mean, most) = (found.mean_square[i], found.mean[i], found.absmax[i]);
            assert!((gram.get(i, i) - square).abs() <= 1e-5 * square, "{role:?} {i}");
            assert!((held_out.get(i, i) - found.held_out_mean_square[i]).abs() <= 1e-5 * found.held_out_mean_square[i]);
            assert!(mean * mean <= square * 1.000_01 && square <= most * most * 1.000_01);
        }
        let dense = gram.dense();
        assert_eq!((dense[[3, 1]], dense[[1, 3]]), (gram.get(1, 3), gram.get(3, 1)));
    }
    assert_eq!(site(&s, None, Role::Output).columns, 256);
    let [keys, values] = ["k", "v"].map(|half| s.find(&format!("blk.2.cache_{half}")).unwrap());
    assert!(keys.tokens == values.tokens && keys.columns == values.columns && keys.gram.is_none());
    let largest = |s: &SiteStats<'_>| s.absmax.iter().copied().fold(0.0, f32::max);
    assert_eq!(s.cache_absmax(2), Some([largest(&keys), largest(&values)]));
    assert!(largest(&keys) > 0.0 && largest(&keys) != largest(&values) && s.cache_absmax(4).is_none());
    // Weights that read one activation share a site.
    assert_eq!(site(&s, Some(0), Role::AttnK).mean_square, site(&s, Some(0), Role::AttnQ).mean_square);
    assert!(s.site(Some(4), &Role::AttnQ, None).is_none() && s.site(Some(0), &Role::AttnNorm, None).is_none());
    assert!(hidden(bench.dir.path()).is_empty());
}

#[test]
fn threads_change_no_byte() {
    let bench = Bench::new(&MOE);
    bench.run("one", &["--gram", "--threads", "1"]);
    bench.run("three", &["--gram", "--threads", "3"]);
    assert!(fs::read(bench.file("one")).unwrap() == fs::read(bench.file("three")).unwrap());
    bench.run("seed", &["--seed", "1"]);
    assert!(fs::read(bench.file("one")).unwrap() != fs::read(bench.file("seed")).unwrap());
}

#[test]
fn experts_see_the_tokens_that_the_router_sends() {
    let bench = Bench::new(&MOE);
    let s = bench.run("s", &["--gram"]);
    let tokens = s.about().tokens();
    for layer in 0..2 {
        let experts: Vec<_> = (0..4).map(|e| s.site(Some(layer), &Role::FfnUpExps, Some(e)).unwrap()).collect();
        assert_eq!(experts.iter().map(|e| e.tokens + e.held_out_tokens).sum::<u64>(), 2 * tokens);
        for e in experts.iter().filter(|e| e.tokens > 0) {
            // Two weights of each token add up to 1.
            assert!(e.weight > 0.0 && e.weight < e.tokens as f64);
            let weighted = e.weighted_mean_square.as_ref().unwrap();
            let gram = e.gram.as_ref().unwrap();
            (0..e.columns).for_each(|i| assert!((gram.get(i, i) - weighted[i]).abs() <= 1e-5 * weighted[i]));
        }
        assert_eq!(
            site(&s, Some(layer), Role::FfnGateInp).tokens + site(&s, Some(layer), Role::FfnGateInp).held_out_tokens,
            tokens
        );
    }
    let imatrix = s.imatrix();
    assert_eq!(imatrix.get("blk.1.ffn_down_exps.weight").unwrap().planes, 4);
    assert!(imatrix.get("blk.1.ffn_gate_inp.weight").is_some() && imatrix.get("output.weight").is_none());
    for name in ["m.gguf", "m.dat"] {
        quant_ok(&["calibrate", "export", &bench.path("s"), "-o", &bench.path(name)]);
        let read = Imatrix::open(&bench.file(name)).unwrap();
        assert_eq!(read.entries().collect::<Vec<_>>(), imatrix.entries().collect::<Vec<_>>());
        for (name, entry) in imatrix.iter() {
            let values = &read.get(name).unwrap().values;
            entry.values.iter().zip(values).for_each(|(a, b)| assert!((a - b).abs() <= 1e-6 * a, "{name} {a} {b}"));
        }
    }
    let out = bench.path("q4.gguf");
    quant_ok(&["convert", bench.source(), "--to", "q4_k_m", "--imatrix", &bench.path("m.gguf"), "-o", &out, "--quiet"]);
}

/// Largest difference of two vectors, relative to the largest value.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let most = a.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / most
}

#[test]
fn parts_add_up_to_the_whole() {
    let bench = Bench::new(&MOE);
    let more = ["--gram", "--data", &bench.path("text.txt"), "--data", &format!("{}:0.5", bench.path("rows.jsonl"))];
    let whole = bench.run("whole", &more);
    let paths: Vec<String> = (1..=3).map(|k| bench.path(&format!("part{k}"))).collect();
    for k in 1..=3 {
        bench.run(&format!("part{k}"), &[&more[..], &["--shard", &format!("{k}/3")]].concat());
    }
    let out = bench.path("merged");
    quant_ok(&["calibrate", "merge", &paths[0], &paths[1], &paths[2], "-o", &out]);
    let merged = Statistics::open(Path::new(&out)).unwrap();
    assert_eq!((merged.about().tokens(), merged.about().runs.len()), (whole.about().tokens(), 3));
    for (i, shape) in whole.about().sites.iter().enumerate() {
        let (a, b) = (whole.nth(i), merged.nth(i));
        assert_eq!((a.tokens, a.held_out_tokens, &a.absmax), (b.tokens, b.held_out_tokens, &b.absmax), "{}", shape.key);
        assert!((a.weight - b.weight).abs() <= 1e-9 * a.weight);
        let mut pairs =
            vec![(a.mean_square, b.mean_square), (a.mean, b.mean), (a.held_out_mean_square, b.held_out_mean_square)];
        pairs.extend(a.weighted_mean_square.zip(b.weighted_mean_square));
        pairs.iter().for_each(|(a, b)| assert!(apart(a, b) < 1e-5, "{}", shape.key));
        for (a, b) in [(a.gram, b.gram), (a.held_out, b.held_out)] {
            let Some((a, b)) = a.zip(b) else { continue };
            (0..shape.columns).for_each(|i| assert!(apart(a.row(i), b.row(i)) < 1e-4, "{}", shape.key));
        }
    }
    // Twice the same text, and another model.
    let error = quant_fails(&["calibrate", "merge", &paths[0], &paths[0], "-o", &bench.path("never")]);
    assert!(error.contains("twice"), "{error}");
    let other = Bench::new(&Shape { layers: 2, ..DENSE });
    other.run("other", &["--gram"]);
    let error = quant_fails(&["calibrate", "merge", &paths[0], &other.path("other"), "-o", &bench.path("never")]);
    assert!(error.contains("different models"), "{error}");
}

#[test]
fn killed_runs_go_on_and_end_in_the_same_bytes() {
    let bench = Bench::new(&MOE);
    let more = ["--gram", "--rows", "60", "--mix", "general"];
    let start = Instant::now();
    bench.run("whole", &more);
    let took = start.elapsed();
    let args: Vec<String> = bench.args("killed", &more).into_iter().filter(|a| a != "--quiet").collect();
    let mut resumed = 0;
    let mut kills = 0;
    for i in 0..80 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_quant"))
            .args(&args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(took.mul_f64(0.15 + 0.8 * f64::from(i * 7 % 10) / 10.0).max(Duration::from_millis(20)));
        child.kill().unwrap();
        let out = child.wait_with_output().unwrap();
        resumed += usize::from(String::from_utf8_lossy(&out.stderr).contains("going on after layer"));
        // A run that is killed while it reports has published its file.
        if bench.file("killed").exists() {
            assert!(fs::read(bench.file("whole")).unwrap() == fs::read(bench.file("killed")).unwrap());
            fs::remove_file(bench.file("killed")).unwrap();
        } else {
            kills += 1;
        }
        if kills >= 20 && resumed >= 5 {
            break;
        }
    }
    assert!(kills >= 20 && resumed >= 5, "{kills} kills, {resumed} resumed");
    quant_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(fs::read(bench.file("whole")).unwrap() == fs::read(bench.file("killed")).unwrap());
    assert!(hidden(bench.dir.path()).is_empty(), "{:?}", hidden(bench.dir.path()));

    // What a killed run of another job left is not gone on from.
    fs::write(bench.file(".other.journal"), "{}\n{\"layer\":0,\"states\":\"\",\"parts\":\"\"}\n").unwrap();
    fs::write(bench.file(".other.partial"), vec![7u8; 100_000]).unwrap();
    bench.run("other", &more);
    assert!(fs::read(bench.file("whole")).unwrap() == fs::read(bench.file("other")).unwrap());
}

#[test]
fn files_that_lie_are_refused() {
    let bench = Bench::new(&Shape { layers: 1, ..DENSE });
    bench.run("s", &["--gram"]);
    let good = fs::read(bench.file("s")).unwrap();
    let header = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let refused = |bytes: &[u8], word: &str| {
        fs::write(bench.file("bad"), bytes).unwrap();
        let error = Statistics::open(&bench.file("bad")).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("bad"), "no {word} in\n{error}");
    };
    let cut = |bytes: usize, of: usize| refused(&good[..bytes], &format!("cut short: {bytes} of {of} bytes"));
    cut(good.len() - 4, good.len());
    cut(header, good.len());
    cut(header / 2, header);
    refused(b"", "");
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let text = std::str::from_utf8(&good[8..header]).unwrap();
        assert!(text.contains(from));
        let text = text.replacen(from, to, 1);
        [&good[..8], text.as_bytes(), &good[header..]].concat()
    };
    refused(&replaced("quant.statistics", "quant.statistocs"), "not a statistics file");
    refused(&replaced("\\\"version\\\":1", "\\\"version\\\":9"), "version 9");
    refused(&replaced("\\\"columns\\\":256", "\\\"columns\\\":255"), "");
    refused(&replaced("\\\"gram\\\":true", "\\\"gram\\\":!!!!"), "");
    refused(&replaced("blk.0.attn_output", "blk.0.attn_outpot"), "");
    let at = |name: &str| {
        let statistics: Value = serde_json::from_slice(&good[8..header]).unwrap();
        header + statistics[name]["data_offsets"][0].as_u64().unwrap() as usize
    };
    let with = |name: &str, bytes: &[u8]| {
        let mut file = good.clone();
        file[at(name)..][..bytes.len()].copy_from_slice(bytes);
        file
    };
    refused(&with("blk.0.attn_q.mean_square", &f32::NAN.to_le_bytes()), "not finite");
    refused(&with("blk.0.attn_q.mean_square", &(-1f32).to_le_bytes()), "negative");
    refused(&with("blk.0.attn_q.mean", &1f32.to_le_bytes()), "hash");
    refused(&with("blk.0.attn_q.tokens", &u64::MAX.to_le_bytes()), "tokens");
    let error = quant_fails(&["calibrate", "show", bench.model.file("model.safetensors").to_str().unwrap()]);
    assert!(error.contains("not a statistics file"), "{error}");
    let (model, stats) = (bench.model.path(), bench.file("s"));
    let [model, stats] = [model, &stats].map(|p| p.to_str().unwrap());
    let error = quant_fails(&["plan", model, "--to", "q4_0", "--imatrix", stats]);
    assert!(error.contains("pass them with --stats"), "{error}");
}

#[test]
fn a_model_is_known_in_any_container() {
    let bench = Bench::new(&MOE);
    let s = bench.run("s", &[]);
    let with = |format: &str| {
        let out = bench.path(&format!("{format}.gguf"));
        quant_ok(&["convert", bench.source(), "--to", format, "-o", &out, "--quiet"]);
        s.check_model(container::open(Path::new(&out)).unwrap().as_ref())
    };
    with("f32").unwrap();
    with("f16").unwrap();
    assert!(with("q8_0").unwrap_err().to_string().contains("another model"));
    assert!(s.check_model(container::open(model(&DENSE).path()).unwrap().as_ref()).is_err());
}

#[test]
fn text_that_is_none_is_refused_by_name() {
    let bench = Bench::new(&Shape { layers: 1, ..DENSE });
    let put = |name: &str, bytes: &[u8]| {
        fs::write(bench.file(name), bytes).unwrap();
        bench.path(name)
    };
    bench.fails(&["--data", &put("empty.txt", b"")], &["empty.txt", "empty"]);
    bench.fails(&["--data", &put("latin.txt", b"a\nb\xe9")], &["latin.txt", "line 2", "UTF-8"]);
    bench.fails(&["--data", &put("x.jsonl", b"{\"text\": \"a\"}\n{\"txt\": \"b\"}")], &["x.jsonl", "line 2", "txt"]);
    bench.fails(&["--data", &put("y.jsonl", b"{\"text\": 3}")], &["y.jsonl", "line 1", "a number"]);
    bench.fails(&["--data", &put("z.parquet", b"PAR1")], &["z.parquet"]);
    bench.fails(&["--data", &bench.path("none.txt")], &["none.txt"]);
    bench.fails(&["--data", &format!("{}:-1", bench.path("text.txt"))], &["weight"]);
    bench.fails(&["--length", "600"], &["88 more", "--length 512"]);
    bench.fails(&["--memory", "1MiB"], &["0 MiB are left", "--memory"]);
    bench.fails(&["--mix", "soup"], &["soup", "general"]);
    bench.fails(&["--mix", "public-general"], &["Salesforce/wikitext", "--data"]);
    bench.fails(&["--shard", "3/2"], &["2/4"]);
    let error =
        quant_fails(&["calibrate", bench.source(), "--data", &bench.path("text.txt"), "-o", &bench.path("text.txt")]);
    assert!(error.contains("one of the inputs"), "{error}");
}

#[test]
fn an_activation_that_is_no_number_is_named() {
    let bench = Bench::new(&Shape { layers: 2, ..DENSE });
    let mut broken = model(&Shape { layers: 2, ..DENSE });
    let up = broken.tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap();
    up.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    broken.write();
    let out = bench.path("never");
    let error =
        quant_fails(&["calibrate", broken.path().to_str().unwrap(), "--data", &bench.path("text.txt"), "-o", &out]);
    assert!(error.contains("blk.1.ffn_down") && error.contains("not finite"), "{error}");
    assert!(hidden(bench.dir.path()).is_empty());
}

#[test]
fn conversations_go_through_the_template_and_text_stays_private() {
    let bench = Bench::new(&Shape { layers: 1, ..DENSE });
    let secret = "my secret is a heron";
    let row = format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"  {secret} <|end|>  \"}}]}}\n");
    fs::write(bench.file("chat.jsonl"), row).unwrap();
    fs::write(bench.file("plain.txt"), format!("{secret} <|end|>")).unwrap();
    let tokens = |name: &str, more: &[&str]| {
        let data = bench.path(name);
        let s = bench.run("s", &[&["--data", data.as_str(), "--held-out", "0"], more].concat());
        s.about().runs[0].kept.clone()
    };
    // The template strips; special tokens are read in conversations alone.
    let (chat, plain) =
        (tokens("chat.jsonl", &["--keep-tokens"]).unwrap(), tokens("plain.txt", &["--keep-tokens"]).unwrap());
    assert_eq!((chat[0].first(), chat[0].last()), (Some(&257), Some(&258)));
    assert!(!plain[0].contains(&258) && plain[0].len() == chat[0].len() + 6);
    assert_eq!(tokens("chat.jsonl", &[]), None);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(bench.file("s")).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let file = fs::read(bench.file("s")).unwrap();
    assert!(!file.windows(secret.len()).any(|w| w == secret.as_bytes()));
}

#[test]
fn shares_are_kept_and_overlap_is_told() {
    let bench = Bench::new(&Shape { layers: 1, ..DENSE });
    let (text, rows) = (bench.path("text.txt"), format!("{}:0.25", bench.path("rows.jsonl")));
    let mut args = bench.args("s", &["--data", &text, "--data", &rows, "--json", "--rows", "40"]);
    let json = |args: &[String]| -> Value {
        serde_json::from_str(&quant_ok(&args.iter().map(String::as_str).collect::<Vec<_>>())).unwrap()
    };
    let report = json(&args);
    let tokens = |i: usize| report["runs"][0]["corpora"][i]["tokens"].as_u64().unwrap();
    assert_eq!((tokens(0), tokens(1), report["tokens"].as_u64().unwrap()), (2048, 512, 2560));
    assert_eq!(report["overlap"], 0.0);
    args.extend(["--eval-data".to_owned(), text.clone()]);
    let overlap = json(&args)["overlap"].as_f64().unwrap();
    assert!(overlap > 0.05 && overlap <= 1.0, "{overlap}");
    let args: Vec<&str> = args.iter().map(String::as_str).filter(|a| *a != "--quiet" && *a != "--json").collect();
    let out = quant(&args);
    assert!(String::from_utf8_lossy(&out.stderr).contains("of the evaluation text occurs"));
    let said = String::from_utf8(out.stdout).unwrap();
    for word in ["text.txt", "80.0 %", "attn_output", "held out", "<|begin|> in front of every sequence"] {
        assert!(said.contains(word), "no {word} in\n{said}");
    }
    // All of it, across documents.
    let packed = bench.run("p", &["--data", &bench.path("rows.jsonl"), "--pack", "--keep-tokens"]);
    let lengths: Vec<usize> = packed.about().runs[0].kept.as_ref().unwrap().iter().map(Vec::len).collect();
    assert!(lengths.len() == 20 && lengths.iter().all(|n| *n == 64), "{lengths:?}");
}

/// The trained sibling of the probe: its router spreads the tokens, and every expert is measured.
#[test]
fn experts_of_a_trained_model_are_covered() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("text"), quant_ok(&["probe", "--split", "calibration", "--count", "6", "--text"])).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/evals/probe/model-moe");
    let (text, out) = (path("text"), path("stats"));
    let said = quant_ok(&[
        "calibrate",
        model,
        "--data",
        &text,
        "--rows",
        "8",
        "--length",
        "512",
        "-o",
        &out,
        "--json",
        "--quiet",
    ]);
    let said: Value = serde_json::from_str(&said).unwrap();
    for layer in 0..2 {
        let of = |s: &&Value| s["key"].as_str().unwrap().starts_with(&format!("blk.{layer}.ffn_down_exps."));
        let shares: Vec<f64> =
            said["sites"].as_array().unwrap().iter().filter(of).map(|s| s["share"].as_f64().unwrap()).collect();
        assert_eq!(shares.len(), 8);
        // Two experts a token.
        assert!((shares.iter().sum::<f64>() - 2.0).abs() < 1e-9, "{shares:?}");
        assert!(shares.iter().all(|s| (0.01..0.9).contains(s)), "{shares:?}");
    }
    assert!(said["starved"].as_array().unwrap().is_empty(), "{}", said["starved"]);
}

/// A statistics file whose scalars of these names have another value.
fn with_scalars(file: &Path, names: &[&str], value: i64) {
    let mut bytes = fs::read(file).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let range = |entry: &Value| {
        let [from, to] = [0, 1].map(|i| start + entry["data_offsets"][i].as_u64().unwrap() as usize);
        from..to
    };
    for name in names {
        bytes[range(&header[*name])].copy_from_slice(&value.to_le_bytes());
    }
    let (description, _) = header["__metadata__"]
        .as_object()
        .unwrap()
        .values()
        .next()
        .unwrap()
        .as_str()
        .unwrap()
        .rsplit_once("\"hash\"")
        .unwrap();
    let mut hasher = blake3::Hasher::new();
    hasher.update(description.as_bytes());
    let kept = |name: &str| !name.ends_with(".gram") && name != "__metadata__";
    let mut parts: Vec<_> =
        header.as_object().unwrap().iter().filter(|(n, _)| kept(n)).map(|(_, e)| range(e)).collect();
    parts.sort_by_key(|r| r.start);
    for part in parts {
        hasher.update(&bytes[part]);
    }
    let before = Statistics::open(file).unwrap().about().hash.clone();
    let at = bytes.windows(before.len()).position(|w| w == before.as_bytes()).unwrap();
    bytes[at..][..before.len()].copy_from_slice(hasher.finalize().to_hex().as_bytes());
    fs::write(file, bytes).unwrap();
}

/// What a few tokens say of an expert is noise: it is rounded by importance, and the report names it.
#[test]
fn starved_experts_are_rounded_and_named() {
    let bench = Bench::new(&MOE);
    bench.run("s", &["--gram"]);
    with_scalars(&bench.file("s"), &["blk.1.ffn_gate_exps.3.tokens", "blk.1.ffn_gate_exps.3.held_out.tokens"], 2);
    let (stats, out) = (bench.path("s"), bench.path("q.gguf"));
    let said =
        quant_ok(&["convert", bench.source(), "--to", "q4_0", "--method", "gptq", "--stats", &stats, "-o", &out]);
    let named: Vec<&str> = said.lines().filter(|l| l.contains("0.31 % of the calibration text's tokens")).collect();
    assert!(named.len() == 2 && named.iter().all(|l| l.contains("(matrix 3): imatrix")), "{said}");
    assert!(named[0].contains("blk.1.ffn_gate_exps") && named[1].contains("blk.1.ffn_up_exps"), "{said}");
    assert!(said.contains(" by gptq"), "{said}");
}

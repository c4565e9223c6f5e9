use super::vocab::Vocab;
use crate::metadata::*;
use serde_json::Value as J;

pub fn metadata(path: &str) -> Metadata {
    let kvs: Vec<(String, String, Option<String>, J)> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut m = Metadata::default();
    for (k, t, _, v) in kvs {
        let value: Value = match (t.as_str(), &v) {
            ("STRING", J::String(s)) => s.as_str().into(),
            ("BOOL", J::Bool(b)) => (*b).into(),
            ("UINT32", v) => (v.as_u64().unwrap() as u32).into(),
            ("INT32", v) => (v.as_i64().unwrap() as i32).into(),
            ("ARRAY", J::Array(a)) if a[0].is_string() => {
                a.iter().map(|s| s.as_str().unwrap().to_owned()).collect::<Vec<_>>().into()
            }
            ("ARRAY", J::Array(a)) if a[0].is_i64() => {
                a.iter().map(|s| s.as_i64().unwrap() as i32).collect::<Vec<_>>().into()
            }
            ("ARRAY", J::Array(a)) => a.iter().map(|s| s.as_f64().unwrap() as f32).collect::<Vec<_>>().into(),
            x => panic!("{k} {x:?}"),
        };
        m.set(k, value);
    }
    m
}
#[test]
fn dev_ids() {
    let strings: Vec<String> = include_str!("awkward.txt").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for e in std::fs::read_dir("/work/scratch/tok/cmp").unwrap() {
        let p = e.unwrap().path();
        let p = p.to_str().unwrap();
        let Some(stem) = p.strip_suffix(".kv.json") else { continue };
        let Ok(ids) = std::fs::read_to_string(format!("{stem}.ids.json")) else {
            println!("{stem} no ids");
            continue;
        };
        let ids: Vec<Vec<J>> = serde_json::from_str(&ids).unwrap();
        let v = match Vocab::new(&metadata(p)) {
            Ok(v) => v,
            Err(e) => {
                println!("{stem}: {e}");
                continue;
            }
        };
        let mut bad = 0;
        let t = std::time::Instant::now();
        for (s, want) in strings.iter().zip(&ids) {
            for (i, (a, p)) in [(false, true), (true, true), (false, false)].into_iter().enumerate() {
                let got = match v.encode(s, a, p) {
                    Ok(g) => serde_json::to_value(g).unwrap(),
                    Err(e) => J::String(e.to_string()),
                };
                if got != want[i] {
                    bad += 1;
                    if bad < 6 {
                        let pc = |x: &J| {
                            x.as_array().map(|a| {
                                a.iter()
                                    .take(30)
                                    .map(|i| v.token(i.as_u64().unwrap() as u32).unwrap_or("?").to_owned())
                                    .collect::<Vec<_>>()
                            })
                        };
                        println!(
                            "  {s:?} {a} {p}\n    got  {:?} {}\n    want {:?}",
                            pc(&got),
                            if got.is_string() { got.to_string() } else { String::new() },
                            pc(&want[i])
                        );
                    }
                }
            }
        }
        println!("{stem}: {bad} bad of {} in {:?}", strings.len() * 3, t.elapsed());
    }
}
#[test]
fn dev_pres() {
    let c: J = serde_json::from_str(&std::fs::read_to_string("/work/scratch/tok/cross.json").unwrap()).unwrap();
    let j: J = serde_json::from_str(&std::fs::read_to_string("/work/scratch/tok/cmppre/pre.json").unwrap()).unwrap();
    let list = |v: &J| v.as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect::<Vec<String>>();
    let tokens = list(&c["tokens"]);
    let merges: Vec<String> = c["merges"].as_array().unwrap().iter().map(|m| list(m).join(" ")).collect();
    let strings = list(&j["strings"]);
    println!("{} rows in the table", super::pres::PRES.len());
    for (name, ids) in j["ids"].as_object().unwrap() {
        let mut m = Metadata::default();
        m.set("tokenizer.ggml.model", "gpt2");
        m.set("tokenizer.ggml.pre", name.as_str());
        m.set("tokenizer.ggml.tokens", tokens.clone());
        m.set(
            "tokenizer.ggml.token_type",
            (0..tokens.len()).map(|i| if i < 3 { 3 } else { 1i32 }).collect::<Vec<i32>>(),
        );
        m.set("tokenizer.ggml.merges", merges.clone());
        m.set("tokenizer.ggml.bos_token_id", 0u32);
        m.set("tokenizer.ggml.eos_token_id", 2u32);
        let v = Vocab::new(&m).unwrap_or_else(|e| panic!("{name} {e}"));
        let mut bad = 0;
        for (s, want) in strings.iter().zip(ids.as_array().unwrap()) {
            let got = v.encode(s, true, true).unwrap();
            let want: Vec<u32> = want.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
            if got != want {
                bad += 1;
                let t = |x: &[u32]| x.iter().take(40).map(|&i| v.token(i).unwrap()).collect::<Vec<_>>().join("|");
                if bad < 4 {
                    println!("  {name} {s:?}\n    got  {}\n    want {}", t(&got), t(&want));
                }
            }
        }
        println!("{name}: {bad} bad");
    }
}
#[test]
fn dev_folders() {
    use super::*;
    for (dir, arch, n, json) in [
        ("/work/scratch/models/smollm2", "llama", 49152, "smollm2"),
        ("/work/scratch/models/qwen2.5-coder-0.5b", "qwen2", 151936, "qwen2.5-coder-0.5b"),
        ("/work/shared/models/story-llama", "llama", 2048, "story-llama"),
        ("/work/shared/models/stories-xs", "llama", 512, "stories-xs"),
    ] {
        let t = std::time::Instant::now();
        let got = match from_folder(
            std::path::Path::new(dir),
            arch,
            n,
            &TokenizerOptions { exact_llama: true, ..Default::default() },
        ) {
            Ok(g) => g,
            Err(e) => {
                println!("{dir}: {e}");
                continue;
            }
        };
        let took = t.elapsed();
        let want = metadata(&format!("/work/scratch/tok/{json}.json"));
        let keys = |m: &Metadata| {
            m.iter().map(|(k, v)| format!("{k}={v}").chars().take(90).collect::<String>()).collect::<Vec<_>>()
        };
        println!("{dir}: equal {} ({took:?})", got == want);
        if got != want {
            println!("{:#?}\n{:#?}", keys(&got), keys(&want));
            for (k, v) in want.iter() {
                if got.get(k) != Some(v) {
                    println!("differs {k}");
                    if let (Some(Value::Array(Array::Str(a))), Value::Array(Array::Str(b))) = (got.get(k), v) {
                        println!("{:?}", a.iter().zip(b).filter(|(a, b)| a != b).take(5).collect::<Vec<_>>());
                    }
                    if let (Some(Value::Array(Array::I32(a))), Value::Array(Array::I32(b))) = (got.get(k), v) {
                        println!(
                            "{:?}",
                            a.iter().zip(b).enumerate().filter(|(_, (a, b))| a != b).take(5).collect::<Vec<_>>()
                        );
                    }
                }
            }
        }
        let source = load_folder(std::path::Path::new(dir)).unwrap();
        for exact_llama in [true, false] {
            let m = from_folder(
                std::path::Path::new(dir),
                arch,
                n,
                &TokenizerOptions { exact_llama, ..Default::default() },
            )
            .unwrap();
            let art = rebuild(&m).unwrap();
            let mut bad = vec![];
            let mut err = 0;
            for s in awkward() {
                match parity(&source, &art, [s.as_str()]) {
                    Ok(m) => bad.extend(m),
                    Err(e) => {
                        err += 1;
                        if err < 2 {
                            println!("{e}")
                        }
                    }
                }
            }
            println!(
                "   exact {exact_llama}: {} mismatches, {err} errors: {:?}",
                bad.len(),
                bad.iter()
                    .take(4)
                    .map(|m| (
                        &m.text,
                        m.source.iter().map(|&i| source.token(i).unwrap_or_default()).collect::<Vec<_>>().join("|"),
                        m.artifact.iter().map(|&i| art.token(i).unwrap_or_default()).collect::<Vec<_>>().join("|")
                    ))
                    .collect::<Vec<_>>()
            );
        }
    }
    for a in ["llama", "llama-odd", "qwen2", "qwen3", "gemma3", "mixtral", "qwen3moe", "phi3"] {
        let d = format!("/work/scratch/models/syn-{a}");
        let c: J = serde_json::from_str(&std::fs::read_to_string(format!("{d}/config.json")).unwrap()).unwrap();
        let arch = match a {
            "mixtral" | "llama-odd" => "llama",
            x => x,
        };
        match from_folder(
            std::path::Path::new(&d),
            arch,
            c["vocab_size"].as_u64().unwrap() as usize,
            &Default::default(),
        ) {
            Ok(m) => println!(
                "{a}: {:?}",
                m.iter()
                    .map(|(k, v)| format!("{}={v}", k.replace("tokenizer.", "")).chars().take(50).collect::<String>())
                    .collect::<Vec<_>>()
            ),
            Err(e) => println!("{a}: {e}"),
        }
    }
}
#[test]
fn dev_templates() {
    let d = "/work/scratch/sdist/llama_cpp_python-0.3.36/vendor/llama.cpp/models/templates";
    let (mut ok, mut n) = (0, 0);
    for e in std::fs::read_dir(d).unwrap() {
        let p = e.unwrap().path();
        if p.extension().is_none_or(|e| e != "jinja") {
            continue;
        }
        n += 1;
        let s = std::fs::read_to_string(&p).unwrap();
        match super::check_template(&s) {
            Ok(()) => ok += 1,
            Err(e) => println!("{p:?} {e}"),
        }
        let ctx = serde_json::json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "go"}], "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>"});
        if let Err(e) = super::render_template(&s, &ctx) {
            println!("   render {:?} {e}", p.file_name())
        }
    }
    println!("{ok} of {n}");
}
#[test]
fn dev_hf() {
    use super::*;
    for (name, arch) in [
        ("deepseek_v3", "deepseek2"),
        ("deepseek_tokenizer", "deepseek2"),
        ("gpt4o", "gpt-oss"),
        ("gptoss", "gpt-oss"),
        ("llama2", "llama"),
        ("llama3", "llama"),
        ("llama3_1", "llama"),
        ("qwen3", "qwen3"),
        ("gemma3", "gemma3"),
    ] {
        let dir = format!("/work/scratch/tok/hf/{name}");
        let dir = std::path::Path::new(&dir);
        let c: J = serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
        let n = c["vocab_size"].as_u64().unwrap() as usize;
        let source = load_folder(dir).unwrap();
        for exact_llama in [true, false] {
            let t = std::time::Instant::now();
            let got = match from_folder(dir, arch, n, &TokenizerOptions { exact_llama, ..Default::default() }) {
                Ok(g) => g,
                Err(e) => {
                    println!("{name}: {e}");
                    continue;
                }
            };
            let took = t.elapsed();
            let want = dir.join("want.json");
            if exact_llama && want.exists() {
                let want = metadata(want.to_str().unwrap());
                println!(
                    "{name}: equal to the converter {} ({took:?}) pre {:?}",
                    got == want,
                    got.str("tokenizer.ggml.pre")
                );
                let keys = |m: &Metadata| {
                    m.iter().map(|(k, v)| format!("{k}={v}").chars().take(90).collect::<String>()).collect::<Vec<_>>()
                };
                if got != want {
                    println!("{:#?}\n{:#?}", keys(&got), keys(&want));
                    for (k, v) in want.iter() {
                        if got.get(k) != Some(v) {
                            println!("differs {k}");
                            if let (Some(Value::Array(Array::Str(a))), Value::Array(Array::Str(b))) = (got.get(k), v) {
                                println!("{:?}", a.iter().zip(b).filter(|(a, b)| a != b).take(5).collect::<Vec<_>>());
                            }
                            if let (Some(Value::Array(Array::I32(a))), Value::Array(Array::I32(b))) = (got.get(k), v) {
                                println!(
                                    "{:?}",
                                    a.iter()
                                        .zip(b)
                                        .enumerate()
                                        .filter(|(_, (a, b))| a != b)
                                        .take(5)
                                        .collect::<Vec<_>>()
                                );
                            }
                        }
                    }
                }
            }
            let art = rebuild(&got).unwrap();
            let bad = parity(&source, &art, awkward().iter().map(|s| s.as_str())).unwrap();
            println!(
                "   exact {exact_llama} {:?} ({took:?}): {} mismatches: {:?}",
                got.str("tokenizer.ggml.pre"),
                bad.len(),
                bad.iter()
                    .take(12)
                    .map(|m| (
                        &m.text,
                        m.source.iter().map(|&i| source.token(i).unwrap_or_default()).collect::<Vec<_>>().join("|"),
                        m.artifact.iter().map(|&i| art.token(i).unwrap_or_default()).collect::<Vec<_>>().join("|")
                    ))
                    .collect::<Vec<_>>()
            );
        }
    }
}

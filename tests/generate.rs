//! `quant generate` on the small random model: what it says is what the engine computes, however it is run.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::folder::Folder;
use common::model::{ODD, Shape, model};
use common::{quant, quant_fails, quant_ok};
use quant::container::{self, Checkpoint};
use quant::device::cpu;
use quant::engine::chat::{self, Message};
use quant::engine::generate::{Stopped, generate};
use quant::engine::sample::{Sampler, Sampling, argmax};
use quant::engine::{Engine, Sequence};
use serde_json::{Value, json};

const SMALL: Shape = Shape { layers: 2, ..ODD };
const PROMPT: &str = "hello, how are you?";

fn path(folder: &Folder) -> &str {
    folder.path().to_str().unwrap()
}

/// The object that `--json` prints.
fn answer(model: &str, flags: &[&str]) -> Value {
    let args = [&["generate", model, "--json", "--quiet"], flags].concat();
    serde_json::from_str(&quant_ok(&args)).unwrap()
}

fn ids(answer: &Value) -> Vec<u32> {
    answer["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

fn f32_gguf(folder: &Folder) -> String {
    let out = folder.file("m.gguf").to_str().unwrap().to_owned();
    quant_ok(&["convert", path(folder), "--to", "f32", "-o", &out, "--quiet"]);
    out
}

/// Each token the slow way: the whole text again, in one pass over whole sequences.
fn greedy(checkpoint: &dyn Checkpoint, prompt: &[u32], n: usize) -> Vec<u32> {
    let engine = Engine::new(checkpoint, prompt.len() + n).unwrap();
    let head = engine.head().unwrap();
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        let mut cache = engine.transient(tokens.len()).unwrap();
        let hidden = engine.forward(&mut [Sequence { tokens: &tokens, cache: &mut cache }]).unwrap();
        let logits = head.logits(&hidden);
        tokens.push(argmax(&logits[logits.len() - engine.vocab()..]).unwrap());
    }
    tokens.split_off(prompt.len())
}

#[test]
fn greedy_is_the_argmax_of_every_pass_with_any_threads_in_any_container() {
    let folder = model(&SMALL);
    let checkpoint = container::open(folder.path()).unwrap();
    let (metadata, tokenizer) = (checkpoint.metadata().unwrap(), checkpoint.tokenizer().unwrap());
    let prompt = chat::tokens(&metadata, &tokenizer, PROMPT).unwrap();
    assert_eq!((prompt[0], prompt[1]), (257, 256), "BOS, then `he`");
    let expected = greedy(checkpoint.as_ref(), &prompt, 12);

    let one = answer(path(&folder), &["--prompt", PROMPT, "--tokens", "12", "--threads", "1"]);
    let two = answer(path(&folder), &["--prompt", PROMPT, "--tokens", "12", "--threads", "2"]);
    let gguf = answer(&f32_gguf(&folder), &["--prompt", PROMPT, "--tokens", "12"]);
    for answer in [&one, &two, &gguf] {
        assert_eq!(ids(answer), expected);
        assert_eq!(answer["prompt_tokens"], prompt.len());
        assert_eq!((&answer["generated_tokens"], &answer["stopped"]), (&json!(12), &json!("length")));
    }
    assert_eq!(one["text"], two["text"]);
}

#[test]
fn a_seed_decides_every_choice_and_the_text_is_that_of_the_tokens() {
    let folder = model(&SMALL);
    let flags = |seed| ["--prompt", PROMPT, "--tokens", "60", "--temperature", "1.5", "--seed", seed];
    let hot = |seed, more: &[&str]| answer(path(&folder), &[&flags(seed), more].concat());
    let first = hot("1", &[]);
    assert_eq!(ids(&first), ids(&hot("1", &["--threads", "1"])));
    assert_ne!(ids(&first), ids(&hot("2", &[])));
    assert_eq!(ids(&hot("2", &["--top-k", "1"])), ids(&hot("3", &["--min-p", "0.9999"])));

    // Random bytes: characters over several tokens, and what is none.
    let tokenizer = container::open(folder.path()).unwrap().tokenizer().unwrap();
    let bytes: Vec<u8> = ids(&first).into_iter().flat_map(|id| tokenizer.piece(id)).collect();
    assert_eq!(first["text"], String::from_utf8_lossy(&bytes).into_owned());
    assert!(bytes.len() > 20 && std::str::from_utf8(&bytes).is_err());
    let streamed = quant_ok(&[&["generate", path(&folder)], &flags("1")[..]].concat());
    assert_eq!(streamed, format!("{}\n", first["text"].as_str().unwrap()));
}

#[test]
fn pieces_of_a_folder_and_of_its_artifact_are_the_same() {
    let folder = model(&SMALL);
    let own = container::open(folder.path()).unwrap().tokenizer().unwrap();
    let rebuilt = container::open(Path::new(&f32_gguf(&folder))).unwrap().tokenizer().unwrap();
    for id in 0..own.vocab_size() as u32 {
        assert_eq!(own.piece(id), rebuilt.piece(id), "token {id}");
    }
    assert_eq!(own.piece(256), b"he");
    assert_eq!(own.piece(1 << 20), b"");
}

#[test]
fn an_end_token_ends_it_and_is_not_shown() {
    let mut folder = model(&SMALL);
    let all = ids(&answer(path(&folder), &["--prompt", PROMPT, "--tokens", "8"]));
    let end = all[4];
    let before = all.iter().position(|t| *t == end).unwrap();
    // Without a text for it, the end token is the one that config.json names.
    let settings: Value =
        serde_json::from_slice(&std::fs::read(folder.file("tokenizer_config.json")).unwrap()).unwrap();
    let mut settings = settings.as_object().unwrap().clone();
    settings.remove("eos_token");
    folder.put("tokenizer_config.json", Value::Object(settings).to_string());
    folder.config["eos_token_id"] = json!(end);
    folder.write();
    let ended = answer(path(&folder), &["--prompt", PROMPT, "--tokens", "8"]);
    assert_eq!((ids(&ended), &ended["stopped"]), (all[..before].to_vec(), &json!("eos")));
}

#[test]
fn the_library_stops_for_its_caller_and_for_any_end() {
    let folder = model(&SMALL);
    let checkpoint = container::open(folder.path()).unwrap();
    let engine = Engine::new(checkpoint.as_ref(), 32).unwrap();
    let prompt: Vec<u32> = (10..20).collect();
    let run = |limit: usize, ends: &[u32], patience: usize| {
        let mut sampler = Sampler::new(Sampling::default()).unwrap();
        let mut seen = Vec::new();
        let done = generate(&engine, &prompt, limit, ends, &mut sampler, &mut |t| {
            seen.push(t);
            Ok(seen.len() < patience)
        })
        .unwrap();
        assert_eq!(done.tokens, seen);
        (done.tokens, done.stopped)
    };
    let (all, stopped) = cpu::pool(2).unwrap().install(|| run(22, &[], usize::MAX));
    assert_eq!((all.len(), stopped), (22, Stopped::Length));
    assert_eq!(run(22, &[], 3), (all[..3].to_vec(), Stopped::Caller));
    assert_eq!(run(22, &all[..1], usize::MAX), (vec![], Stopped::End));
    let mut sampler = Sampler::new(Sampling::default()).unwrap();
    for (prompt, limit) in [(&prompt[..], 23), (&[], 4), (&prompt[..], usize::MAX)] {
        assert!(generate(&engine, prompt, limit, &[], &mut sampler, &mut |_| Ok(true)).is_err());
    }
}

#[test]
fn a_context_is_never_cut_silently() {
    let folder = model(&SMALL); // max_position_embeddings 512, and a BOS token before every prompt
    let long = "a".repeat(512);
    let error = quant_fails(&["generate", path(&folder), "--prompt", &long]);
    assert!(error.contains("513 tokens") && error.contains("2 more than the context of 512"), "{error}");
    assert!(error.contains("no larger context"), "{error}");
    let error = quant_fails(&["generate", path(&folder), "--prompt", &long[..20], "--context", "16"]);
    assert!(error.contains("21 tokens") && error.contains("6 more than the context of 16"), "{error}");
    assert!(error.contains("--context"), "{error}");
    let error = quant_fails(&["generate", path(&folder), "--prompt", "a", "--context", "600"]);
    assert!(error.contains("88 more than the model's 512"), "{error}");

    let full = answer(path(&folder), &["--prompt", &long[..510], "--tokens", "50"]);
    assert_eq!(
        (&full["generated_tokens"], &full["stopped"], &full["context"]),
        (&json!(1), &json!("length"), &json!(512))
    );
    let out = quant(&["generate", path(&folder), "--prompt", "abc", "--tokens", "50", "--context", "8"]);
    assert!(out.status.success() && String::from_utf8_lossy(&out.stderr).contains("the context of 8 is full"));
}

#[test]
fn chats_follow_the_template_with_one_bos() {
    let folder = model(&SMALL);
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}\
        {% if add_generation_prompt %}[assistant]{% endif %}{% if tools is none %}.{% endif %}";
    let settings = |template: Value| {
        json!({"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": true,
            "chat_template": template})
        .to_string()
    };
    folder.put("tokenizer_config.json", settings(json!(template)));
    let messages = [("system", "be kind"), ("user", "hi")].map(|(role, content)| Message { role, content });
    let gguf = f32_gguf(&folder);
    for path in [folder.path(), Path::new(&gguf)] {
        let checkpoint = container::open(path).unwrap();
        let (metadata, tokenizer) = (checkpoint.metadata().unwrap(), checkpoint.tokenizer().unwrap());
        let text = chat::prompt(&metadata, &tokenizer, &messages).unwrap();
        assert_eq!(text, "<|begin|>[system]be kind<|end|>[user]hi<|end|>[assistant].");
        let ids = chat::tokens(&metadata, &tokenizer, &text).unwrap();
        let count = |id| ids.iter().filter(|i| **i == id).count();
        assert_eq!((ids[0], count(257), count(258)), (257, 1, 2));
        let flags = ["--chat", "--system", "be kind", "--prompt", "hi", "--tokens", "3"];
        assert_eq!(answer(path.to_str().unwrap(), &flags)["prompt_tokens"], ids.len());
    }
    // A template that refuses says why; one of another name is not taken for the model's own.
    folder.put("tokenizer_config.json", settings(json!("{{ raise_exception('no system role') }}")));
    let error = quant_fails(&["generate", path(&folder), "--chat", "--prompt", "hi"]);
    assert!(error.contains("no system role") && error.contains("tokenizer.chat_template"), "{error}");
    // Both parse, and make no prompt: `verify` tells.
    let verified = || String::from_utf8(quant(&["verify", path(&folder), "--json"]).stdout).unwrap();
    assert!(verified().contains("no system role"), "{}", verified());
    folder.put("tokenizer_config.json", settings(json!("{{ bos_token }}{{ messages[0].text }}")));
    assert!(verified().contains("what users say is lost"), "{}", verified());
    folder.put("tokenizer_config.json", settings(json!(template)));
    assert!(verified().contains("a first message becomes"), "{}", verified());
    folder.put("tokenizer_config.json", settings(json!([{"name": "rag", "template": template}])));
    let error = quant_fails(&["generate", path(&folder), "--chat", "--prompt", "hi"]);
    assert!(error.contains("no default chat template, only rag") && error.contains("without --chat"), "{error}");
}

#[test]
fn wrong_usage_is_told_with_its_exit_code() {
    let folder = model(&SMALL);
    let m = path(&folder);
    folder
        .put("tokenizer_config.json", json!({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": false}).to_string());
    let usage: [&[&str]; 10] = [
        &[m, "--prompt", "hi", "--chat"], // no template
        &[m, "--prompt", ""],             // no tokens
        &[m],
        &[m, "--prompt", "hi", "--system", "x"],
        &[m, "--prompt", "hi", "--tokens", "0"],
        &[m, "--prompt", "hi", "--temperature", "nan"],
        &[m, "--prompt", "hi", "--temperature=-1"],
        &[m, "--prompt", "hi", "--top-p", "0"],
        &[m, "--prompt", "hi", "--min-p", "1"],
        &[m, "--prompt", "hi", "--context", "1"],
    ];
    for args in usage {
        let args = [&["generate"], args].concat();
        assert_eq!(quant(&args).status.code(), Some(2), "{args:?}");
    }
    let error = quant_fails(&["generate", m, "--prompt", "hi", "--chat"]);
    assert!(error.contains("chat template") && error.contains("--prompt without --chat"), "{error}");
    assert_eq!(quant(&["generate", "missing", "--prompt", "hi"]).status.code(), Some(1));
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_ends_it() {
    let folder = model(&SMALL);
    let mut child = Command::new(env!("CARGO_BIN_EXE_quant"))
        .args(["generate", path(&folder), "--prompt", "hi", "--tokens", "400"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !stderr.contains(" 400 generated"), "{stderr}");
}

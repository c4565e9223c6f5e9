//! Tasks: the bundled ones, the user's own, and what is wrong with files.

mod common;

use std::fs;
use std::path::Path;

use common::{quant, quant_fails, quant_ok};
use quant::eval::task::{self, Question};
use serde_json::{Value, json};
use tempfile::tempdir;

const PROBE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/evals/probe/model");

/// What `eval --json` says of one artifact and tasks, without a text.
fn ask(artifact: &str, reference: Option<&str>, tasks: &[&str], more: &[&str]) -> Value {
    let mut all = vec!["eval", artifact, "--no-text", "--json", "--quiet"];
    all.extend(reference.into_iter().flat_map(|r| ["--reference", r]));
    all.extend(tasks.iter().flat_map(|t| ["--suite", t]));
    all.extend(more);
    serde_json::from_str(&quant_ok(&all)).unwrap()
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn bundled_tasks_are_those_of_the_folder() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/evals/tasks");
    let files = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    let mut on_disk: Vec<String> = files
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .map(|p| p.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut embedded: Vec<_> = quant::eval::task::presets::EMBEDDED.iter().map(|(n, _)| (*n).to_owned()).collect();
    on_disk.sort();
    embedded.sort();
    assert_eq!(on_disk, embedded);
    for (name, text) in quant::eval::task::presets::EMBEDDED {
        let file = quant::eval::task::File::parse(text).unwrap();
        assert!(!file.about.is_empty() && file.kind().is_ok(), "{name}");
    }
}

#[test]
fn the_model_knows_what_it_was_trained_on() {
    let found = ask(PROBE, Some(PROBE), &["json", "arithmetic"], &["--items", "20"]);
    for task in found["artifacts"][0]["tasks"].as_array().unwrap() {
        let acc = &task["metrics"]["acc"];
        assert!(acc["right"].as_u64().unwrap() >= 18 && acc["of"] == 20, "{task}");
        assert_eq!(acc["against"]["lost"], 0);
        assert!(acc["against"]["detectable"].as_f64().unwrap() > 0.05);
        assert_eq!(task["marks"]["acc"].as_str().unwrap().len(), 20);
    }
    assert_eq!(found["tasks"][0]["reference"]["acc"]["of"], 20);
}

/// Sharing what choices begin with changes nothing: each prompt alone gives the same marks.
#[test]
fn choices_by_shared_and_by_separate_contexts_are_one() {
    let folder = tempdir().unwrap();
    let rows: Vec<(String, [&str; 3])> = (0..12)
        .map(|i| (format!("{} + {} = ", 100 + 7 * i, 23 + i), [" 12", " one hundred and something", " 7"]))
        .collect();
    let shared = rows.iter().map(|(c, choices)| json!({"context": c, "choices": choices, "gold": 0}).to_string());
    let apart =
        rows.iter().map(|(c, choices)| json!({"contexts": [c, c, c], "choices": choices, "gold": 0}).to_string());
    let (shared, apart) = (shared.collect::<Vec<_>>().join("\n"), apart.collect::<Vec<_>>().join("\n"));
    let (a, b) = (write(folder.path(), "a.jsonl", &shared), write(folder.path(), "b.jsonl", &apart));
    let found = ask(PROBE, None, &[&a, &b], &[]);
    let tasks = &found["artifacts"][0]["tasks"];
    assert_eq!(tasks[0]["marks"], tasks[1]["marks"]);
    assert_eq!(tasks[0]["name"], "choice:a");
}

/// Lines of `--answers`.
fn answers(artifact: &str, reference: Option<&str>, task: &str, folder: &Path) -> Vec<Value> {
    let path = folder.join("answers.out.jsonl").display().to_string();
    ask(artifact, reference, &[task], &["--answers", &path]);
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What is written side by side, behind a beginning that was read once for all, is what is written alone.
#[test]
fn answers_do_not_depend_on_their_neighbours() {
    let folder = tempdir().unwrap();
    let task = |shots: usize| {
        format!(
            "about = \"sums\"\nkind = \"generate\"\nprompt = \"{{{{ prompt }}}}\"\ndata = \"rows.jsonl\"\nstop = [\"\\n\"]\nlimit = 40\n\
             shots = {shots}\nshot = \"{{{{ prompt }}}}{{{{ answer }}}}\\n\"\n[check]\nkind = \"exact\"\nanswer = \"answer\"\n"
        )
    };
    let made = quant_ok(&["probe", "--skill", "arithmetic,json,sort", "--split", "test", "--count", "5"]);
    let rows: Vec<&str> = made.lines().collect();
    for shots in [0, 3] {
        let said = |rows: &[&str]| -> Vec<(Value, Value)> {
            write(folder.path(), "rows.jsonl", &rows.join("\n"));
            let task = write(folder.path(), "sums.toml", &task(shots));
            let lines = answers(PROBE, None, &task, folder.path());
            lines.into_iter().map(|mut line| (line["tokens"].take(), line["marks"]["acc"].take())).collect()
        };
        let together = said(&rows);
        let alone = |row: &&str| said(&[&rows[..shots], &[*row]].concat()).remove(0);
        let alone: Vec<(Value, Value)> = rows[shots..].iter().map(alone).collect();
        assert_eq!(together, alone);
        assert!(together.len() == 15 - shots && together.iter().any(|(_, mark)| *mark == true), "{together:?}");
    }
}

/// A line for every model and item; the likeliest choice is what was said, and its mark follows from it.
#[test]
fn every_answer_is_told() {
    let folder = tempdir().unwrap();
    let row = |i: usize| json!({"id": format!("n{i}"), "context": format!("{i} + {i} = "), "choices": [" 12", " x"], "gold": i % 2});
    let rows: Vec<String> = (0..5).map(|i| row(i).to_string()).collect();
    let path = write(folder.path(), "sums.jsonl", &rows.join("\n"));
    let lines = answers(PROBE, Some(PROBE), &path, folder.path());
    assert_eq!(lines.len(), 10);
    assert!(lines[0]["model"] == "reference" && lines[5]["model"] == PROBE && lines[6]["id"] == "n1");
    for line in &lines {
        let sums: Vec<f64> = line["log_likelihoods"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let best = usize::from(sums[1] > sums[0]);
        assert_eq!(line["marks"]["acc"], best == line["gold"].as_u64().unwrap() as usize);
        assert_eq!(line["choices"][best].as_str().unwrap().trim(), line["said"]);
        assert_eq!(line["marks"]["acc"], line["said"] == line["expected"], "{line}");
    }
    assert_eq!(lines[2]["log_likelihoods"], lines[7]["log_likelihoods"]);
}

#[test]
fn flips_and_losses_are_told() {
    let folder = tempdir().unwrap();
    let small = folder.path().join("q2_0.gguf").display().to_string();
    quant_ok(&["convert", PROBE, "--to", "q2_0", "-o", &small, "--quiet"]);
    let found = ask(&small, Some(PROBE), &["arithmetic"], &["--items", "40"]);
    let task = &found["artifacts"][0]["tasks"][0];
    assert_eq!(task["metrics"]["acc"]["against"]["verdict"], "loss", "{task}");
    let flip = &task["flips"][0];
    assert!(flip["lost"] == true && !flip["prompt"].as_str().unwrap().is_empty(), "{flip}");
}

/// Asking stops when it is known whether more than the margin is lost, one way or the other; the gate judges the same interval.
#[test]
fn asking_stops_when_it_is_decided() {
    let folder = tempdir().unwrap();
    let small = folder.path().join("q2_0.gguf").display().to_string();
    quant_ok(&["convert", PROBE, "--to", "q2_0", "-o", &small, "--quiet"]);
    let asked = |artifact: &str, more: &[&str]| {
        let found = ask(artifact, Some(PROBE), &["arithmetic"], &[&["--items", "300"], more].concat());
        let against = found["artifacts"][0]["tasks"][0]["metrics"]["acc"]["against"].clone();
        assert!(against["planned"] == 300 && found["tasks"][0]["planned"] == 300, "{against}");
        assert_eq!(found["tasks"][0]["items"], against["of"]);
        assert_eq!(found["artifacts"][0]["tasks"][0]["marks"]["acc"].as_str().unwrap().len() as u64, against["of"]);
        (against["of"].as_u64().unwrap(), against["low"].as_f64().unwrap(), against["high"].as_f64().unwrap())
    };
    let (items, _, high) = asked(&small, &["--until-decided=5"]);
    assert!(items < 150 && high < -0.05, "{items} items, at most {high}");
    let (items, low, _) = asked(PROBE, &["--until-decided=5"]);
    assert!(items < 200 && low >= -0.05, "{items} items, at least {low}");
    assert_eq!(asked(PROBE, &["--until-decided=0.5"]).0, 300, "no part of the items shows that");

    let gate = write(folder.path(), "gate.toml", "[budgets]\n\"tasks.arithmetic.acc\" = \">= -5 pt\"\n");
    let all =
        ["eval", PROBE, "--reference", PROBE, "--no-text", "--suite", "arithmetic", "--until-decided", "--gate", &gate];
    let said = quant_ok(&all);
    assert!(said.contains("of 200 until it was decided") && said.contains("gate: PASS"), "{said}");
}

#[test]
fn answers_are_counted_by_group() {
    let found = ask(PROBE, None, &["needles"], &["--items", "24", "--overlong", "skip"]);
    let groups = found["artifacts"][0]["tasks"][0]["groups"].as_array().unwrap().clone();
    let of: u64 = groups.iter().map(|g| g["of"].as_u64().unwrap()).sum();
    assert!(of == found["tasks"][0]["items"].as_u64().unwrap() && of > 0, "{groups:?}");
    let names: Vec<&str> = groups.iter().map(|g| g["group"].as_str().unwrap()).collect();
    assert!(names.contains(&"recall 1500") && names.contains(&"variables 1500"), "{names:?}");
}

#[test]
fn what_cannot_be_decided_early_is_refused() {
    let folder = tempdir().unwrap();
    let refused = |budget: &str, option: &str| {
        let gate = write(folder.path(), "gate.toml", budget);
        let all = ["eval", PROBE, "--reference", PROBE, "--no-text", "--suite", "arithmetic", option, "--gate", &gate];
        quant_fails(&all)
    };
    for (budget, option, wanted) in [
        ("[budgets]\n\"tasks.arithmetic.acc\" = \">= 0.9\"", "--until-decided", "write a change"),
        ("[since]\n\"tasks.arithmetic.acc\" = \">= -2 pt\"", "--until-decided", "pass it with --baseline"),
        ("[budgets]\n\"bytes\" = \"<= 9\"", "--until-decided", "--until-decided=2"),
        ("[budgets]\n\"bytes\" = \"<= 9\"", "--until-decided=-1", "in points"),
        ("[budgets]\n\"bytes\" = \"<= 9\"", "--until-decided=nan", "in points"),
    ] {
        let said = refused(budget, option);
        assert!(said.contains(wanted), "{budget} {option}: {said}");
    }
}

#[test]
fn bad_files_are_told_by_file_line_and_field() {
    let folder = tempdir().unwrap();
    let at = |name: &str, text: &str| write(folder.path(), name, text);
    let eval = |task: &str, more: &[&str]| {
        let mut all = vec!["eval", PROBE, "--no-text", "--suite", task];
        all.extend(more);
        quant_fails(&all)
    };
    let good = "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 1}\n";
    for (rows, wanted) in [
        ("{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 2}", "line 2"),
        ("{\"context\": \"a\", \"choices\": [\"b\"], \"gold\": 0}", "at least two"),
        ("{\"context\": \"a\", \"choices\": \"b\", \"gold\": 0}", "`choices`"),
        ("{\"context\": \"a\", \"choices\": [\"b\", 3], \"gold\": 0}", "`choices`"),
        ("{\"context\": \"a\", \"choices\": [\"b\", \" \"], \"gold\": 0}", "choice 1 is empty"),
        ("{\"context\": \"a\", \"choices\": [\"b\", \"c\"]}", "gold"),
        ("[1]", "a list, not a JSON object"),
        ("{\"context\"", "not JSON"),
    ] {
        let said = eval(&at("rows.jsonl", &format!("{good}{rows}\n")), &[]);
        assert!(said.contains(wanted) && said.contains("rows.jsonl") && said.contains("line 2"), "{said}");
    }
    assert!(eval(&at("empty.jsonl", ""), &[]).contains("no rows"));
    assert!(eval(&at("other.jsonl", "{\"x\": 1}\n"), &[]).contains("\"x\""));
    assert!(eval("jsn", &[]).contains("did you mean json?"));
    assert!(eval("hellaswag", &[]).contains("Rowan/hellaswag"));
    let schema = "{\"prompt\": \"p\", \"schema\": {\"type\": \"nonsense\"}}\n";
    assert!(eval(&at("schema.jsonl", schema), &[]).contains("does not compile"));
    let code = "{\"prompt\": \"def f():\", \"test\": \"f()\", \"entry_point\": \"f\"}\n";
    assert!(eval(&at("code.jsonl", code), &[]).contains("--allow-exec"));
    for (text, wanted) in [
        ("about = \"x\"\nkind = \"nonsense\"\nprompt = \"\"", "no kind of task"),
        ("about = \"x\"\nkind = \"choice\"\n", "prompt"),
        ("about = \"x\"\nkind = \"choice\"\nprompt = \"\"\nsurprise = 1", "surprise"),
        ("about = \"x\"\nkind = \"choice\"\nprompt = \"\"", "needs `choices`"),
        ("about = \"x\"\nkind = \"predict\"\nprompt = \"\"\nanswer = \"a\"\ndata = \"absent.jsonl\"", "absent.jsonl"),
    ] {
        let said = eval(&at("task.toml", text), &[]);
        assert!(said.contains(wanted) && said.contains("task.toml"), "{said}");
    }
}

/// What is wrong whatever the rows are is told by the task's file and key, not by a row's; it is wrong usage.
#[test]
fn what_is_wrong_with_a_task_is_told_by_its_key() {
    let folder = tempdir().unwrap();
    write(folder.path(), "rows.jsonl", "{\"q\": \"a\", \"a\": \"b\", \"tools\": []}\n");
    let good = "about = \"x\"\nkind = \"generate\"\ndata = \"rows.jsonl\"\nprompt = \"{{ q }}\"\nlimit = 5\n\
                [check]\nkind = \"exact\"\nanswer = \"a\"\n";
    for (from, to, wanted, code) in [
        ("{{ q }}", "{{ q ", "in prompt", 2),
        ("limit = 5", "limit = 0", "in limit", 2),
        ("limit = 5", "limit = 5\ngroup = \"a[\"", "in group", 2),
        ("limit = 5", "limit = 5\nshots = 1", "`shot`", 2),
        ("kind = \"exact\"", "kind = \"wat\"", "in [check]", 2),
        ("answer = ", "question = ", "in [check]", 2),
        ("answer = \"a\"", "answer = \"a +\"", "in answer", 2),
        ("answer = \"a\"", "answer = \"b\"", "line 1", 1),
        ("kind = \"exact\"\nanswer = \"a\"", "kind = \"call\"\nfunctions = \"tools\"", "`functions` is empty", 1),
    ] {
        let task = write(folder.path(), "task.toml", &good.replace(from, to));
        let out = quant(&["eval", PROBE, "--no-text", "--suite", &task]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(said.contains(wanted) && said.contains("task.toml") && out.status.code() == Some(code), "{to}: {said}");
        assert_eq!(said.contains("line 1") && !said.contains("TOML parse"), code == 1, "{to}: {said}");
    }
}

#[test]
fn items_beyond_the_context() {
    let folder = tempdir().unwrap();
    let long = "word ".repeat(4000);
    let rows = format!(
        "{}\n{}\n",
        json!({"context": long, "choices": ["b", "c"], "gold": 0}),
        json!({"context": "short", "choices": ["b", "c"], "gold": 0})
    );
    let task = write(folder.path(), "long.jsonl", &rows);
    let said = quant_fails(&["eval", PROBE, "--no-text", "--suite", &task]);
    assert!(said.contains("more than the model's context") && said.contains("--overlong"), "{said}");
    let skipped = ask(PROBE, None, &[&task], &["--overlong", "skip"]);
    assert_eq!((&skipped["tasks"][0]["items"], &skipped["tasks"][0]["skipped"]), (&1.into(), &1.into()));
    let cut = ask(PROBE, None, &[&task], &["--overlong", "left-truncate"]);
    assert_eq!((&cut["tasks"][0]["items"], &cut["tasks"][0]["truncated"]), (&2.into(), &1.into()));

    // What is to be written is put behind what is left of the prompt.
    let rows = format!("{}\n{}\n", json!({"q": long, "a": "b"}), json!({"q": "short", "a": "b"}));
    write(folder.path(), "write.jsonl", &rows);
    let text = "about = \"x\"\nkind = \"generate\"\ndata = \"write.jsonl\"\nprompt = \"{{ q }}\"\nlimit = 4\n[check]\nkind = \"exact\"\nanswer = \"a\"\n";
    let task = write(folder.path(), "write.toml", text);
    let cut = ask(PROBE, None, &[&task], &["--overlong", "left-truncate"]);
    assert_eq!((&cut["tasks"][0]["items"], &cut["tasks"][0]["truncated"]), (&2.into(), &1.into()));
}

/// Rows as the sets are published, and what each becomes.
#[test]
fn published_rows_are_understood() {
    let folder = tempdir().unwrap();
    let wishes = task::Wishes { items: Some(1), allow_exec: true };
    let one = |name: &str, row: Value| {
        let rows = format!("{row}\n").repeat(6);
        let path = write(folder.path(), "rows.jsonl", &rows);
        let task = task::load(&format!("{name}={path}"), &wishes).unwrap_or_else(|e| panic!("{name}: {e}"));
        task.items.into_iter().next().unwrap().question
    };
    let choice = |name: &str, row: Value| match one(name, row) {
        Question::Choice { prompts, choices, gold } => (prompts[gold].clone(), choices[gold].clone()),
        _ => panic!("{name} is no choice"),
    };
    assert_eq!(
        choice(
            "hellaswag",
            json!({"activity_label": "Baking", "ctx_a": "A cook [title] mixes.", "ctx_b": "then she", "label": "1",
            "endings": ["runs.", "bakes [substeps] it."]})
        ),
        ("Baking: A cook. mixes. Then she".into(), " bakes it.".into())
    );
    let arc = json!({"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"});
    assert_eq!(choice("arc", arc), ("Question: Why?\nAnswer:".into(), " y".into()));
    let piqa = json!({"goal": "To open.", "sol1": "Pull.", "sol2": "Push.", "label": 0});
    assert_eq!(choice("piqa", piqa), ("Question: To open.\nAnswer:".into(), " Pull.".into()));
    let winogrande =
        json!({"sentence": "Ann saw Eve, but _ did not wave.", "option1": "Ann", "option2": "Eve", "answer": "2"});
    assert_eq!(choice("winogrande", winogrande), ("Ann saw Eve, but Eve".into(), " did not wave.".into()));
    let boolq = json!({"passage": "P.", "question": "is it so", "label": 1});
    assert_eq!(choice("boolq", boolq), ("P.\nQuestion: is it so?\nAnswer:".into(), " yes".into()));
    let mmlu = json!({"question": " What? ", "subject": "world_history", "choices": ["a", "b", "c", "d"], "answer": 2});
    let (prompt, right) = choice("mmlu", mmlu);
    assert!(
        prompt.contains("about world history.\n\nWhat?\nA. a\nB. b\nC. c\nD. d\nAnswer:") && right == " C",
        "{prompt}"
    );
    match one("lambada", json!({"text": "so it was the end"})) {
        Question::Predict { prompt, answer } => {
            assert_eq!((prompt.as_str(), answer.as_str()), ("so it was the", " end"))
        }
        _ => panic!("lambada is a prediction"),
    }

    let judged = |name: &str, row: Value, right: &str, wrong: &str| match one(name, row) {
        Question::Generate { prompt, judge, .. } => {
            assert!(!judge(wrong).unwrap(), "{name}: {wrong}");
            assert!(judge(right).unwrap(), "{name}: {right}");
            prompt
        }
        _ => panic!("{name} generates"),
    };
    let sum = json!({"question": "How many?", "answer": "2 + 1 = <<2+1=3>>3\n#### 3"});
    let prompt = judged("gsm8k", sum, " 2 + 1 = 3\n#### 3\n", "#### 4");
    assert_eq!(prompt.matches("Question: How many?\nAnswer:").count(), 6);
    let instructions = json!({"prompt": "Say hi.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]});
    judged("ifeval", instructions, "hi", "h,i");
    let call = json!({"question": [[{"role": "user", "content": "Add."}]], "function": [{"name": "add", "parameters": {"type": "dict", "properties": {}}}]});
    assert!(judged("bfcl", call, "{\"name\": \"add\", \"arguments\": {}}", "{}").contains("\"add\""));
    if can_confine() {
        let code = json!({"prompt": "def f():\n", "test": "def check(f):\n    assert f() == 1", "entry_point": "f"});
        judged("humaneval", code, "    return 1\n", "    return 2\n");
        let code = json!({"text": "Write f.", "code": "def f(): return 1", "test_list": ["assert f() == 1", "assert f() > 0"]});
        judged("mbpp", code, "def f(): return 1", "def f(): return 2");
    }
}

/// Skipped, and said so, where there is no Python or no namespace for it.
fn can_confine() -> bool {
    let mut command = std::process::Command::new("unshare");
    let possible = command.args(["-Un", "python3", "-c", "pass"]).status().is_ok_and(|s| s.success());
    if !possible {
        eprintln!("skipped: this machine cannot confine Python programs");
    }
    possible
}

#[test]
fn programs_that_models_write_are_confined() {
    if !can_confine() {
        return;
    }
    let folder = tempdir().unwrap();
    let task = "about = \"code\"\nkind = \"generate\"\nprompt = \"{{ q }}\"\ndata = \"rows.jsonl\"\n\
                [check]\nkind = \"code\"\nbefore = \"'def f(x):\\n'\"\nafter = \"'assert f(2) == 4'\"\n";
    write(folder.path(), "rows.jsonl", "{\"q\": \"\"}\n");
    let task = write(folder.path(), "code.toml", task);
    let task = task::load(&task, &task::Wishes { items: None, allow_exec: true }).unwrap();
    let Question::Generate { judge, .. } = &task.items[0].question else { panic!("code is generated") };
    let ok = |said: &str| judge(said).unwrap();
    assert!(ok("    return x * x"));
    assert!(!ok("    return x"));
    assert!(!ok("    return ("));
    assert!(!ok("    while True: pass"), "time");
    assert!(!ok("    return len(bytearray(4 << 30))"), "memory");
    assert!(ok("    import sys; sys.stderr.write('x' * (1 << 22)); return x * x"), "a full pipe");
    assert!(!ok("    open('big', 'wb').write(b'x' * (2 << 20)); return x * x"), "a large file");
    let network = "    import socket\n    try: socket.create_connection(('1.1.1.1', 80), 1)\n    except OSError as e: return 4 if e.errno == 101 else 0";
    assert!(ok(network), "the network is unreachable, not merely silent");
}

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::*;

fn items(skill: &str, split: Split, count: usize) -> Vec<Item> {
    Skill::find(skill).unwrap().items(split, 3, count, None).unwrap()
}

/// Of all splits.
fn every(skill: &str) -> Vec<Item> {
    Split::ALL.iter().flat_map(|split| items(skill, *split, 200)).collect()
}

#[test]
fn a_seed_and_a_number_make_an_item() {
    for skill in all() {
        for split in Split::ALL {
            let made = |seed, count| skill.items(split, seed, count, None).unwrap();
            let ten = made(5, 10);
            assert_eq!(ten, made(5, 10), "{}", skill.name);
            assert_eq!(ten[..4], made(5, 4), "{}", skill.name);
            assert_eq!(ten[7], skill.item(split, 5, 7, None).unwrap(), "{}", skill.name);
            assert_ne!(ten, made(6, 10), "{}", skill.name);
        }
    }
}

#[test]
fn items_are_made_of_a_question_and_an_answer() {
    for skill in all() {
        for item in every(skill.name) {
            assert_eq!(item.prompt.is_empty(), !skill.asks);
            assert!(item.prompt.is_empty() || item.prompt.ends_with('\n'), "{item:?}");
            assert!(!item.answer.is_empty() && !item.answer.ends_with('\n'), "{item:?}");
            assert!(item.nats > 0.0 && item.nats.is_finite());
            assert_eq!(item.skill, skill.name);
        }
    }
}

/// Whatever the seeds.
#[test]
fn no_item_is_in_two_splits() {
    for skill in all() {
        for split in Split::ALL {
            for item in skill.items(split, split.name().len() as u64, 300, None).unwrap() {
                let text = if skill.asks { &item.prompt } else { &item.answer };
                let holding: Vec<_> = Split::ALL.into_iter().filter(|s| s.holds(text)).collect();
                assert_eq!(holding, [split]);
            }
        }
    }
}

#[test]
fn words_asked_for_in_a_test_were_never_seen() {
    let words = |skill: &str, split: Split| -> BTreeSet<String> {
        let invented = |line: &str| -> Vec<String> {
            match skill {
                "recall" | "multirecall" => line
                    .strip_prefix("The code of ")
                    .map(|l| l.split(' ').next().unwrap().to_owned())
                    .into_iter()
                    .collect(),
                "json" => {
                    line.split_once(' ').map(|(name, _)| name.to_owned()).into_iter().filter(|n| n != "Write").collect()
                }
                _ => line.split(' ').map(str::to_owned).filter(|_| !line.starts_with("Copy")).collect(),
            }
        };
        items(skill, split, 500).iter().flat_map(|i| i.prompt.lines().flat_map(invented).collect::<Vec<_>>()).collect()
    };
    for skill in ["recall", "multirecall", "copy", "json"] {
        let [train, calibration, test] = Split::ALL.map(|split| words(skill, split));
        assert!(
            train.len() > 300 && test.len() > 100 && calibration.len() > 100,
            "{skill}: {} {}",
            train.len(),
            test.len()
        );
        assert!(
            train.is_disjoint(&test) && train.is_disjoint(&calibration) && test.is_disjoint(&calibration),
            "{skill}"
        );
    }
}

#[test]
fn sums_are_right() {
    for item in every("arithmetic") {
        let numbers: Vec<u64> =
            item.prompt.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        let [a, b] = numbers[..] else { panic!("{item:?}") };
        let (work, result) = item.answer.rsplit_once('\n').unwrap();
        assert_eq!(result, (a + b).to_string());
        for (i, line) in work.lines().enumerate() {
            let (left, right) = line.split_once('=').unwrap();
            let sum: u64 = left.split('+').map(|n| n.parse::<u64>().unwrap()).sum();
            assert_eq!(sum, right.parse::<u64>().unwrap());
            let place = 10u64.pow(i as u32);
            assert_eq!(sum % 10, (a + b) / place % 10);
        }
        let digits = work.lines().count() as f64;
        let options = 3f64.ln() + 2.0 * 9f64.ln() + 2.0 * (digits - 1.0) * 10f64.ln();
        assert!((item.nats - options).abs() < 1e-9, "{item:?}");
    }
}

#[test]
fn objects_have_the_schema_and_the_values_told() {
    for item in every("json") {
        let (told, schema) = item.prompt.trim_end().split_once("\nWrite JSON: ").unwrap();
        let (schema, object): (Value, Value) =
            (serde_json::from_str(schema).unwrap(), serde_json::from_str(&item.answer).unwrap());
        let (schema, object) = (schema.as_object().unwrap(), object.as_object().unwrap());
        assert!(schema.keys().eq(object.keys()), "{item:?}");
        let name = object["name"].as_str().unwrap();
        for (kind, (field, value)) in schema.values().zip(object) {
            let fits = match kind.as_str().unwrap() {
                "string" => value.is_string(),
                "integer" => value.is_u64(),
                "boolean" => value.is_boolean(),
                "array" => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
                other => panic!("{other}"),
            };
            assert!(fits, "{field} in {item:?}");
            let said = match value {
                Value::String(s) => told.contains(s.as_str()),
                Value::Number(n) => told.contains(&format!(" {n} years")),
                Value::Bool(b) => told.contains(&format!("{name} is {}a member", if *b { "" } else { "not " })),
                Value::Array(list) => {
                    let list: Vec<_> = list.iter().map(|x| x.as_str().unwrap()).collect();
                    told.contains(&format!("likes {}.", list.join(" and ")))
                }
                _ => false,
            };
            assert!(said, "{field} in {item:?}");
        }
    }
}

#[test]
fn codes_are_those_of_the_facts() {
    for (skill, asked) in [("recall", 1), ("multirecall", 3)] {
        for item in every(skill) {
            let (facts, question) = item.prompt.trim_end().rsplit_once('\n').unwrap();
            let facts: HashMap<&str, &str> =
                facts.lines().map(|l| l.strip_prefix("The code of ").unwrap().split_once(" is ").unwrap()).collect();
            let (_, keys) = question.split_once(" of ").unwrap();
            let keys: Vec<&str> = keys.trim_end_matches('?').split(" and ").flat_map(|k| k.split(", ")).collect();
            assert_eq!(keys.len(), asked);
            let answers: Vec<String> = keys.iter().map(|k| format!("The code of {k} is {}", facts[k])).collect();
            assert_eq!(item.answer, answers.join("\n"));
            let lines = item.prompt.lines().filter(|l| l.starts_with("The")).count();
            assert_eq!(lines, facts.len(), "a key has one code");
        }
    }
}

#[test]
fn variables_are_what_a_run_makes_them() {
    for item in every("variables") {
        let mut values: HashMap<&str, u32> = HashMap::new();
        let mut asked = "";
        for line in item.prompt.lines() {
            if let Some((name, value)) = line.strip_prefix("let ").and_then(|l| l.split_once(" = ")) {
                let value = value.parse().unwrap_or_else(|_| values[value]);
                assert!(values.insert(name, value).is_none(), "set twice: {item:?}");
            } else {
                asked = line.strip_prefix("What is ").unwrap().trim_end_matches('?');
            }
        }
        let chain: Vec<&str> = item.answer.split(" = ").collect();
        assert_eq!(chain[0], asked);
        assert_eq!(chain.last().unwrap().parse::<u32>().unwrap(), values[asked], "{item:?}");
        for pair in chain.windows(2) {
            assert!(item.prompt.contains(&format!("let {} = {}\n", pair[0], pair[1])), "{item:?}");
        }
    }
}

#[test]
fn lines_are_copied_and_numbers_sorted() {
    for item in every("copy") {
        assert_eq!(item.prompt.lines().nth(1).unwrap(), item.answer);
    }
    for item in every("sort") {
        let mut numbers: Vec<u32> =
            item.prompt.lines().nth(1).unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(item.answer, numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    }
}

#[test]
fn functions_give_what_an_interpreter_gives() {
    for item in every("function") {
        let (mut functions, mut question) = (HashMap::new(), "");
        for line in item.prompt.lines() {
            match line.strip_prefix("fn ").and_then(|l| l.split_once("(x) = x ")) {
                Some((name, body)) => assert!(functions.insert(name, body).is_none()),
                None => question = line.strip_prefix("What is ").unwrap().trim_end_matches('?'),
            }
        }
        let apply = |name: &str, x: i64| {
            let (operator, constant) = functions[name].split_once(' ').unwrap();
            let c: i64 = constant.parse().unwrap();
            match operator {
                "+" => x + c,
                "-" => x - c,
                _ => x * c,
            }
        };
        let mut parts = question.trim_end_matches(')').split('(').rev();
        let mut value: i64 = parts.next().unwrap().parse().unwrap();
        for (name, line) in parts.zip(item.answer.lines()) {
            assert!(line.starts_with(&format!("{name}({value}) = ")), "{item:?}");
            value = apply(name, value);
            assert!(value >= 0 && line.ends_with(&format!(" = {value}")), "{item:?}");
        }
    }
}

#[test]
fn stories_have_one_cast_and_no_blanks() {
    for item in every("story") {
        assert!(!item.answer.contains(['{', '}']), "{item:?}");
        assert!(!item.answer.contains("  ") && item.answer.matches(['.', '?']).count() >= 5, "{item:?}");
    }
    assert!(every("language").iter().all(|i| i.answer.chars().filter(|c| !c.is_ascii()).count() > 8));
}

#[test]
fn lengths_are_kept() {
    for skill in all().filter(|s| s.stretches) {
        for length in [400, 3_000, 40_000] {
            let got = skill.item(Split::Test, 0, 0, Some(length)).unwrap().text().len() as f64;
            assert!((got / length as f64 - 1.0).abs() < 0.4, "{}: {got} instead of {length}", skill.name);
        }
    }
    // More facts than there are short words for them.
    let long = Skill::find("recall").unwrap().item(Split::Test, 0, 0, Some(600_000)).unwrap();
    assert!(long.prompt.len() > 500_000 && long.prompt.contains(&long.answer));
    assert!(Skill::find("story").unwrap().item(Split::Test, 0, 0, Some(400)).is_err());
    assert!(Skill::find("copy").unwrap().item(Split::Test, 0, 0, Some(LONGEST + 1)).is_err());
}

#[test]
fn the_frequent_words_are_the_most_frequent() {
    for length in [None, Some(500), Some(20_000)] {
        let item = Skill::find("frequent").unwrap().item(Split::Test, 1, 0, length).unwrap();
        let (list, _) = item.prompt.split_once("\n\n").unwrap();
        let mut counts = std::collections::BTreeMap::<&str, usize>::new();
        list.split(' ').for_each(|word| *counts.entry(word).or_default() += 1);
        let mut top: Vec<(usize, &str)> = counts.iter().map(|(word, n)| (*n, *word)).collect();
        top.sort_unstable();
        let mut wanted: Vec<&str> = item.answer.split(", ").collect();
        let mut found: Vec<&str> = top.split_off(top.len() - 3).iter().map(|(_, word)| *word).collect();
        wanted.sort_unstable();
        found.sort_unstable();
        assert_eq!(wanted, found);
        assert!(counts[found[0]] >= 5 * top[0].0 && top[0].0 == top[top.len() - 1].0);
    }
}

#[test]
fn latent_facts_lie_at_every_depth() {
    let items = Skill::find("latent").unwrap().items(Split::Test, 0, 40, Some(4000)).unwrap();
    let mut depths = [0; 4];
    for item in &items {
        assert_eq!(item.prompt.matches(&item.answer).count(), 1, "{item:?}");
        depths[item.prompt.find(&item.answer).unwrap() * 4 / item.prompt.len()] += 1;
    }
    assert!(depths.iter().all(|n| *n > 3), "{depths:?}");
}

#[test]
fn choices_count_their_options() {
    let mut choices = Choices::new(1, Split::Train);
    choices.below(10);
    choices.between(3, 6);
    choices.distinct(&[1, 2, 3], 2);
    assert!((choices.nats() - 240f64.ln()).abs() < 1e-12);
    let even = choices.until(|c| c.below(4), |n| n % 2 == 0);
    assert!(even.is_multiple_of(2) && (choices.nats() - 960f64.ln()).abs() < 1e-12);
    let mut seen = [0; 7];
    (0..7000).for_each(|_| seen[choices.below(7)] += 1);
    assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
}

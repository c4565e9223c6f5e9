//! A description and a schema become a JSON object.

use serde_json::{Map, Value, json};

use super::choices::Choices;
use super::{Skill, words};

const TEXT: &str = include_str!("../../../evals/probe/json.txt");

pub const SKILL: Skill = Skill {
    name: "json",
    about: "a JSON object from a description, with the fields of a schema in its order",
    stretches: false,
    asks: true,
    draw: |choices, _| object(choices),
};

/// A field of an object: its type, and a sentence that says its value of somebody.
struct Field {
    name: &'static str,
    kind: &'static str,
    draw: fn(&mut Choices, &str) -> (Value, String),
}

static FIELDS: &[Field] = &[
    Field {
        name: "age",
        kind: "integer",
        draw: |c, name| {
            let age = c.between(10, 99);
            (json!(age), format!("{name} is {age} years old."))
        },
    },
    Field {
        name: "city",
        kind: "string",
        draw: |c, name| {
            let city = c.name();
            let text = format!("{name} lives in {city}.");
            (json!(city), text)
        },
    },
    Field {
        name: "colour",
        kind: "string",
        draw: |c, name| {
            let colour = *c.pick(&words::list(TEXT, "colour"));
            (json!(colour), format!("{name} wears {colour}."))
        },
    },
    Field {
        name: "pet",
        kind: "string",
        draw: |c, name| {
            let pet = *c.pick(&words::list(TEXT, "pet"));
            (json!(pet), format!("{name} has a {pet}."))
        },
    },
    Field {
        name: "member",
        kind: "boolean",
        draw: |c, name| {
            let member = c.below(2) == 1;
            (json!(member), format!("{name} is {}a member.", if member { "" } else { "not " }))
        },
    },
    Field {
        name: "likes",
        kind: "array",
        draw: |c, name| {
            let count = c.between(1, 3);
            let likes = c.distinct(&words::list(TEXT, "likes"), count);
            let text = format!("{name} likes {}.", likes.join(" and "));
            (json!(likes), text)
        },
    },
];

fn object(choices: &mut Choices) -> (String, String) {
    let name = choices.name();
    let count = choices.between(2, 4);
    let every: Vec<&Field> = FIELDS.iter().collect();
    let (mut schema, mut object) = (Map::new(), Map::new());
    schema.insert("name".into(), json!("string"));
    object.insert("name".into(), json!(name));
    let mut sentences = Vec::new();
    for field in choices.distinct(&every, count) {
        let (value, sentence) = (field.draw)(choices, &name);
        schema.insert(field.name.into(), json!(field.kind));
        object.insert(field.name.into(), value);
        sentences.push(sentence);
    }
    // Told in another order than asked for.
    let sentences = choices.distinct(&sentences, count).join(" ");
    let prompt = format!("{sentences}\nWrite JSON: {}\n", Value::Object(schema));
    (prompt, Value::Object(object).to_string())
}

//! Answers that programs read: JSON by a schema, calls of tools.

use serde_json::{Value, json};

use super::{Check, Judge, flag};
use crate::error::{Error, Result};
use crate::eval::task::rows::Row;

pub const SCHEMA: Check = Check {
    name: "schema",
    about: "JSON that a JSON Schema accepts; with `answer`, its value too; with `strict`, nothing around it",
    needs: &["schema"],
    takes: &["answer", "strict"],
    executes: false,
    prepare: schema,
};

pub const CALL: Check = Check {
    name: "call",
    about: "one call of one of `functions`, as JSON with `name` and `arguments` that its parameters accept; with `answer`, that one",
    needs: &["functions"],
    takes: &["answer", "strict"],
    executes: false,
    prepare: call,
};

type Validator = Box<dyn Fn(&Value) -> bool + Send + Sync>;

/// References to elsewhere are refused: nothing is fetched.
fn compile(schema: &Value) -> Result<Validator> {
    let compiled = jsonschema::validator_for(schema)
        .map_err(|e| Error::input(format!("the schema does not compile: {e}")).at("schema"))?;
    Ok(Box::new(move |value| compiled.is_valid(value)))
}

fn schema(values: &Row) -> Result<Judge> {
    let schema = parsed(values, "schema")?;
    let valid = compile(&schema)?;
    let answer = values.get("answer").cloned();
    let strict = flag(values, "strict")?;
    Ok(Box::new(move |said| {
        let found = first_json(said, strict);
        Ok(found.is_some_and(|v| valid(&v) && answer.as_ref().is_none_or(|a| same(a, &v))))
    }))
}

fn call(values: &Row) -> Result<Judge> {
    let Value::Array(functions) = parsed(values, "functions")? else {
        return Err(Error::input("`functions` is no list"));
    };
    if functions.is_empty() {
        return Err(Error::input("`functions` is empty: there is nothing to call"));
    }
    let one = |f: &Value| {
        let f = f.get("function").unwrap_or(f);
        let name = f.get("name").and_then(Value::as_str).ok_or_else(|| Error::input("a function has no name"))?;
        let parameters = f.get("parameters").cloned().unwrap_or_else(|| json!({}));
        Ok((name.to_owned(), compile(&plain_types(parameters))?))
    };
    let functions: Vec<(String, Validator)> = functions.iter().map(one).collect::<Result<_>>()?;
    let answer = values.get("answer").cloned();
    let strict = flag(values, "strict")?;
    Ok(Box::new(move |said| {
        let found = first_json(said, strict);
        let found = found.and_then(|v| match v {
            Value::Array(mut list) if list.len() == 1 => list.pop(),
            Value::Array(_) => None,
            other => Some(other),
        });
        Ok(found.is_some_and(|call| {
            let part = |keys: [&str; 2]| keys.iter().find_map(|k| call.get(k));
            let (name, arguments) = (part(["name", "function"]), part(["arguments", "parameters"]));
            let (Some(name), Some(arguments)) = (name.and_then(Value::as_str), arguments) else { return false };
            let known = functions.iter().find(|(n, _)| n == name).is_some_and(|(_, valid)| valid(arguments));
            let right = |a: &Value| {
                a.get("name").is_none_or(|n| n == name) && a.get("arguments").is_none_or(|a| same(a, arguments))
            };
            known && answer.as_ref().is_none_or(right)
        }))
    }))
}

/// A value, or the text of one.
fn parsed(values: &Row, name: &str) -> Result<Value> {
    match values.get(name) {
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|e| Error::input(format!("`{name}` is not JSON: {e}")))
        }
        Some(value) => Ok(value.clone()),
        None => Ok(Value::Null),
    }
}

/// Some sets write types as Python calls them.
fn plain_types(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let plain = match value.as_str().filter(|_| key == "type") {
                    Some("dict") => Some("object"),
                    Some("float") => Some("number"),
                    Some("tuple" | "list") => Some("array"),
                    Some("any") => Some(""),
                    _ => None,
                };
                *value = plain.map_or_else(|| plain_types(value.take()), Value::from);
            }
            if map.get("type").and_then(Value::as_str) == Some("") {
                map.shift_remove("type");
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| *v = plain_types(v.take())),
        _ => {}
    }
    schema
}

/// Whether two values are one, however their numbers are written.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

/// The first object or list in the text: what stands between code fences, or begins with a bracket. `strict`: the text is it.
fn first_json(text: &str, strict: bool) -> Option<Value> {
    if strict {
        return serde_json::from_str(text.trim()).ok();
    }
    let mut starts = text.char_indices().filter(|(_, c)| matches!(c, '{' | '[')).map(|(i, _)| i);
    // Each start costs a look at what follows it: a text of brackets alone must not take forever.
    let mut starts = starts.by_ref().take(64);
    starts.find_map(|at| {
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        values.next()?.ok()
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::judge;
    use super::*;

    #[test]
    fn json_by_its_schema() {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false});
        let ok = |said: &str, strict: bool| judge("schema", json!({"schema": schema, "strict": strict}), said);
        assert!(ok("{\"n\": 3}", true));
        assert!(ok("Here it is:\n```json\n{\"n\": 3}\n```", false));
        assert!(!ok("Here it is:\n```json\n{\"n\": 3}\n```", true));
        assert!(!ok("{\"n\": \"3\"}", false));
        assert!(!ok("{\"n\": 3", false));
        assert!(!ok("", false));
        assert!(judge("schema", json!({"schema": schema, "answer": {"n": 3.0}}), "{\"n\": 3}"));
        assert!(!judge("schema", json!({"schema": schema, "answer": {"n": 4}}), "{\"n\": 3}"));
        assert!(!ok(&"[".repeat(1 << 20), false));
    }

    #[test]
    fn calls_of_tools() {
        let functions = json!([{"name": "area", "parameters": {"type": "dict", "properties": {"base": {"type": "float"}}, "required": ["base"]}}]);
        let ok = |said: &str| {
            judge("call", json!({"functions": functions, "answer": {"name": "area", "arguments": {"base": 10}}}), said)
        };
        assert!(ok(r#"{"name": "area", "arguments": {"base": 10.0}}"#));
        assert!(ok(r#"[{"name": "area", "parameters": {"base": 10}}]"#));
        assert!(!ok(r#"{"name": "volume", "arguments": {"base": 10}}"#));
        assert!(!ok(r#"{"name": "area", "arguments": {}}"#));
        assert!(!ok(r#"{"name": "area", "arguments": {"base": 9}}"#));
        assert!(!ok(r#"[{"name": "area", "arguments": {"base": 10}}, {"name": "area", "arguments": {"base": 10}}]"#));
    }
}

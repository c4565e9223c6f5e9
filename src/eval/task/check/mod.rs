//! When is what a model wrote right? One row a check; what it needs to know are expressions over the item's row.

mod code;
mod instruction;
mod json;
mod text;

use serde_json::Value;

use super::rows::Row;
use crate::error::{Error, Result};

/// Judges a text that a model wrote.
pub type Judge = Box<dyn Fn(&str) -> Result<bool> + Send + Sync>;

/// A row of the table of checks.
pub struct Check {
    pub name: &'static str,
    pub about: &'static str,
    /// What it must be told, and what it may be.
    pub needs: &'static [&'static str],
    pub takes: &'static [&'static str],
    /// Runs what models wrote.
    pub executes: bool,
    /// Errors: values of the wrong kind; a schema or pattern that does not compile.
    prepare: fn(&Row) -> Result<Judge>,
}

pub static CHECKS: &[Check] = &[
    text::EXACT,
    text::CONTAINS,
    text::REGEX,
    text::NUMBER,
    json::SCHEMA,
    json::CALL,
    instruction::CHECK,
    code::CHECK,
];

/// The check with this name.
pub fn find(name: &str) -> Result<&'static Check> {
    CHECKS.iter().find(|c| c.name == name).ok_or_else(|| {
        let known: Vec<_> = CHECKS.iter().map(|c| c.name).collect();
        Error::input(format!("there is no check {name:?}")).help(format!("one of: {}", known.join(", ")))
    })
}

impl Check {
    /// Errors: something that it needs and was not told; something that it does not know; code without permission.
    pub fn judge(&self, values: &Row, allow_exec: bool) -> Result<Judge> {
        if self.executes && !allow_exec {
            return Err(Error::request(format!("the check `{}` runs programs that the models write", self.name)).help(
                "pass --allow-exec if this machine may run them: each gets no network and bounds of time and memory",
            ));
        }
        self.takes(values.keys().map(String::as_str))?;
        (self.prepare)(values)
    }

    /// Errors: something that it needs and was not told; something that it does not know.
    pub fn takes<'a>(&self, told: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        if let Some(missing) = self.needs.iter().find(|n| !told.clone().any(|t| t == **n)) {
            return Err(Error::input(format!("the check `{}` needs `{missing}`", self.name)));
        }
        let mut told = told;
        match told.find(|t| !self.needs.contains(t) && !self.takes.contains(t)) {
            None => Ok(()),
            Some(other) => {
                let known: Vec<_> = self.needs.iter().chain(self.takes).copied().collect();
                Err(Error::input(format!("the check `{}` knows no `{other}`", self.name))
                    .help(format!("it takes: {}", known.join(", "))))
            }
        }
    }
}

/// A text among the values; "" if it is not there.
fn string(values: &Row, name: &str) -> Result<String> {
    match values.get(name) {
        None => Ok(String::new()),
        Some(Value::String(s)) => Ok(s.clone()),
        Some(Value::Number(n)) => Ok(n.to_string()),
        Some(other) => Err(Error::input(format!("`{name}` is {other}, not a text"))),
    }
}

fn flag(values: &Row, name: &str) -> Result<bool> {
    match values.get(name) {
        None => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(other) => Err(Error::input(format!("`{name}` is {other}, not true or false"))),
    }
}

/// One text or several.
fn strings(values: &Row, name: &str) -> Result<Vec<String>> {
    let wrong = || Error::input(format!("`{name}` is neither a text nor a list of texts"));
    match values.get(name) {
        Some(Value::Array(list)) => list.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
        _ => Ok(vec![string(values, name).map_err(|_| wrong())?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub fn judge(check: &str, values: Value, said: &str) -> bool {
        let Value::Object(values) = values else { panic!("values are an object") };
        find(check).unwrap().judge(&values, true).unwrap()(said).unwrap()
    }

    #[test]
    fn what_is_not_known_is_said() {
        let no = |check: &str, values: Value, allow| {
            let Value::Object(values) = values else { panic!("values are an object") };
            find(check).unwrap().judge(&values, allow).map(drop).unwrap_err().to_string()
        };
        assert!(no("exact", json!({}), false).contains("`answer`"));
        assert!(no("exact", json!({"answer": "a", "case": true}), false).contains("`case`"));
        assert!(no("regex", json!({"pattern": "("}), false).contains("pattern"));
        assert!(no("call", json!({"functions": []}), false).contains("`functions` is empty"));
        assert!(no("schema", json!({"schema": {"type": "nonsense"}}), false).contains("schema"));
        assert!(no("code", json!({"program": "x"}), false).contains("--allow-exec"));
        assert!(find("nothing").is_err());
    }
}

//! config.json as the family's configuration class sees it: nested text part, top level, defaults. All of it is untrusted.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Look-ups in config.json. The first source that has a key wins, even if it says `null`.
pub struct Config<'a> {
    sources: Vec<&'a Map<String, Value>>,
}

fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    let mut shown = value.to_string();
    if shown.chars().count() > 40 {
        shown = shown.chars().take(40).chain("...".chars()).collect();
    }
    Error::input(format!("{key} is {shown}, expected {expected}")).at("config.json")
}

impl<'a> Config<'a> {
    /// `root` is the whole file; models with several towers keep the language model's part in `text_config`.
    pub fn new(root: &'a Value, defaults: &'a Map<String, Value>) -> Result<Self> {
        let root = root.as_object().ok_or_else(|| Error::input("not a JSON object").at("config.json"))?;
        let sources = match root.get("text_config") {
            Some(Value::Object(text)) => vec![text, defaults, root],
            _ => vec![root, defaults],
        };
        Ok(Config { sources })
    }

    /// A view of a nested object; without one, nothing is found.
    pub fn inside(object: Option<&'a Map<String, Value>>) -> Self {
        Config { sources: object.into_iter().collect() }
    }

    /// The value of the first of `keys` that is present, with its key; `null` counts as absent only after it was chosen.
    pub fn find(&self, keys: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        let find = |key| self.sources.iter().find_map(|s| s.get(key));
        let (key, value) = keys.iter().find_map(|&key| Some((key, find(key)?)))?;
        (!value.is_null()).then_some((key, value))
    }

    /// Whether the key is present, even as `null`.
    pub fn has(&self, key: &str) -> bool {
        self.sources.iter().any(|s| s.contains_key(key))
    }

    /// A whole number that fits GGUF's u32.
    pub fn count(&self, keys: &[&'static str]) -> Result<Option<u32>> {
        let parse = |(key, v): (_, &Value)| {
            let count = v.as_u64().and_then(|n| u32::try_from(n).ok());
            count.ok_or_else(|| wrong(key, v, "a whole number below 2^32"))
        };
        self.find(keys).map(parse).transpose()
    }

    pub fn real(&self, keys: &[&'static str]) -> Result<Option<f64>> {
        // GGUF stores f32, so what is infinite there is refused here.
        let parse = |(key, v): (_, &Value)| {
            v.as_f64().filter(|x| (*x as f32).is_finite()).ok_or_else(|| wrong(key, v, "a number"))
        };
        self.find(keys).map(parse).transpose()
    }

    /// A number above 0.
    pub fn positive(&self, keys: &[&'static str]) -> Result<Option<f64>> {
        match (self.real(keys)?, self.find(keys)) {
            (Some(x), Some((key, v))) if x as f32 <= 0.0 => Err(wrong(key, v, "a number above 0")),
            (x, _) => Ok(x),
        }
    }

    /// Errors: something that is neither the id of a token nor a list of some.
    pub fn token_ids(&self, key: &'static str) -> Result<()> {
        let is_id = |v: &Value| v.is_i64() || v.is_u64();
        let are_ids = |v: &Value| is_id(v) || v.as_array().is_some_and(|list| list.iter().all(is_id));
        match self.find(&[key]).filter(|(_, v)| !are_ids(v)) {
            Some((key, v)) => Err(wrong(key, v, "the id of a token, or a list of ids")),
            None => Ok(()),
        }
    }

    pub fn bool(&self, key: &'static str) -> Result<Option<bool>> {
        self.find(&[key]).map(|(key, v)| v.as_bool().ok_or_else(|| wrong(key, v, "true or false"))).transpose()
    }

    pub fn text(&self, key: &'static str) -> Result<Option<&'a str>> {
        self.find(&[key]).map(|(key, v)| v.as_str().ok_or_else(|| wrong(key, v, "a string"))).transpose()
    }

    pub fn object(&self, key: &'static str) -> Result<Option<&'a Map<String, Value>>> {
        self.find(&[key]).map(|(key, v)| v.as_object().ok_or_else(|| wrong(key, v, "an object"))).transpose()
    }

    pub fn reals(&self, key: &'static str) -> Result<Option<Vec<f64>>> {
        let parse = |(key, v): (_, &Value)| {
            let number = |x: &Value| x.as_f64().filter(|x| (*x as f32).is_finite());
            let list = v.as_array().and_then(|a| a.iter().map(number).collect());
            list.ok_or_else(|| wrong(key, v, "a list of numbers"))
        };
        self.find(&[key]).map(parse).transpose()
    }
}

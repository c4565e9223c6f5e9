//! Chat templates: which there are, whether they can be read, and what they make of a conversation.

use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use regex::Regex;
use serde_json::Value as Json;

use super::{clock, keys};
use crate::error::{Error, Result, caught};
use crate::metadata::Metadata;

/// Steps that a rendering may take; real templates take a few thousand a message.
const FUEL: u64 = 10_000_000;
const MAX_SOURCE: usize = 1 << 20;

/// (name, source); the default one is called `default`.
pub fn templates(metadata: &Metadata) -> Vec<(&str, &str)> {
    let named = metadata.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(keys::CHAT_TEMPLATE)?;
        let name = if name.is_empty() { "default" } else { name.strip_prefix('.')? };
        Some((name, value.as_str()?))
    });
    named.collect()
}

/// Whether the template is Jinja that a chat program can read. Runs nothing of it.
pub fn check_template(source: &str) -> Result<()> {
    guarded(source, |env, source| env.template_from_str(source).map(|_| ()))
}

/// The text of a conversation. `context`: `messages`, `tools`, `add_generation_prompt`, `bos_token`, `eos_token` ...
pub fn render_template(source: &str, context: &Json) -> Result<String> {
    let context = Value::from(Serde(context));
    guarded(source, |env, source| env.render_str(source, context))
}

fn guarded<T>(source: &str, run: impl FnOnce(&Environment, &str) -> Result<T, minijinja::Error>) -> Result<T> {
    if source.trim().is_empty() {
        return Err(Error::input("the chat template is empty"));
    }
    if source.len() > MAX_SOURCE {
        return Err(Error::limits(format!("the chat template has {} bytes", source.len())));
    }
    let source = without_training_marks(source);
    // The source is untrusted; the library should not panic, this makes it certain.
    match caught(|| run(&environment(), &source)) {
        Some(done) => done.map_err(|e| explain(&e)),
        None => Err(Error::input("the chat template breaks the Jinja library")),
    }
}

/// `{% generation %}` marks what to train on and prints nothing; only transformers' own Jinja knows it.
fn without_training_marks(source: &str) -> String {
    static OPEN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").ok());
    static CLOSE: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").ok());
    let replaced = |pattern: &Option<Regex>, text: &str, with: &str| match pattern {
        Some(pattern) => pattern.replace_all(text, with).into_owned(),
        None => text.to_owned(),
    };
    replaced(&CLOSE, &replaced(&OPEN, source, "{%$1 if true $2%}"), "{%$1 endif $2%}")
}

/// As transformers sets it up: block tags swallow their lines, Python's methods work, a template may refuse.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(FUEL));
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: &str| -> Result<String, minijinja::Error> {
        clock::format(format, clock::now())
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.message().to_owned()))
    });
    env
}

fn explain(error: &minijinja::Error) -> Error {
    let line = error.line().map(|l| format!(" in line {l}")).unwrap_or_default();
    let detail = error.detail().map(|d| format!(": {d}")).unwrap_or_default();
    Error::input(format!("the chat template fails{line}: {}{detail}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CHAT: &str = "{% for m in messages %}<{{ m['role'] }}>{{ m.content.strip() }}{% endfor %}";

    #[test]
    fn reads_and_renders() {
        check_template(CHAT).unwrap();
        let context = json!({"messages": [{"role": "user", "content": " hi "}]});
        assert_eq!(render_template(CHAT, &context).unwrap(), "<user>hi");
    }

    #[test]
    fn training_marks_print_nothing() {
        let source = "{%- for m in messages %}{% generation %}{{ m.content }}{%- endgeneration -%}{% endfor %}";
        check_template(source).unwrap();
        assert_eq!(render_template(source, &json!({"messages": [{"content": "x"}]})).unwrap(), "x");
    }

    #[test]
    fn broken_templates_are_errors() {
        for source in ["", "{% for m in messages %}", "{% nonsense %}", "{{ 1 +", "{% if %}{% endif %}", "{{ '"] {
            assert!(check_template(source).is_err(), "{source}");
        }
        let nested = "(".repeat(100_000);
        assert!(check_template(&format!("{{{{ {nested} }}}}")).is_err());
    }

    #[test]
    fn endless_templates_run_out() {
        let source =
            "{% for i in range(10000) %}{% for j in range(10000) %}{% set x = i * j %}{% endfor %}{% endfor %}";
        check_template(source).unwrap();
        assert!(render_template(source, &json!({})).is_err());
    }

    #[test]
    fn a_template_may_ask_for_the_date() {
        let year = render_template("{{ strftime_now('%Y') }}", &json!({})).unwrap();
        assert!(year.parse::<u32>().is_ok_and(|y| (2024..2200).contains(&y)), "{year}");
        let error = render_template("{{ strftime_now('%Q') }}", &json!({})).unwrap_err();
        assert!(error.message().contains("%Q"), "{error}");
    }

    #[test]
    fn a_template_may_refuse() {
        let error = render_template("{{ raise_exception('no system role') }}", &json!({})).unwrap_err();
        assert!(error.message().contains("no system role"), "{error}");
    }
}

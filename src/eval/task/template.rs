//! What a task file says of its rows: text with `{{ fields }}` in it, and expressions over fields.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::Value;

use super::rows::Row;
use crate::error::{Error, Result, caught};

/// Steps that one row may take.
const FUEL: u64 = 1_000_000;

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(FUEL));
    // A field that a row lacks is a mistake to be told of, not an empty text.
    env.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        env.set_syntax(syntax);
    }
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("sub", |text: &str, pattern: &str, with: &str| {
        regex::Regex::new(pattern)
            .map(|p| p.replace_all(text, with).into_owned())
            .map_err(|e| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, e.to_string()))
    });
    env
}

/// A text with a row's fields filled in.
pub fn text(source: &str, row: &Row) -> Result<String> {
    guarded(source, row, |env| env.render_str(source, minijinja::Value::from(Serde(row))))
}

/// Errors: it cannot be read, whatever the row.
pub fn check_text(source: &str) -> Result<()> {
    evaluated(source, |env| env.template_from_str(source).map(drop))
}

/// The same of an expression.
pub fn check_value(source: &str) -> Result<()> {
    evaluated(source, |env| env.compile_expression(source).map(drop))
}

/// The value of an expression over a row's fields.
pub fn value(source: &str, row: &Row) -> Result<Value> {
    guarded(source, row, |env| {
        let value = env.compile_expression(source)?.eval(minijinja::Value::from(Serde(row)))?;
        if value.is_undefined() {
            return Err(minijinja::Error::from(minijinja::ErrorKind::UndefinedError));
        }
        serde_json::to_value(&value)
            .map_err(|e| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, e.to_string()))
    })
}

fn guarded<T>(
    source: &str,
    row: &Row,
    run: impl FnOnce(&Environment<'_>) -> std::result::Result<T, minijinja::Error>,
) -> Result<T> {
    let fields = || row.keys().take(12).map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
    evaluated(source, run).map_err(|e| e.help(format!("the row has the fields {}", fields())))
}

fn evaluated<T>(
    source: &str,
    run: impl FnOnce(&Environment<'_>) -> std::result::Result<T, minijinja::Error>,
) -> Result<T> {
    // Rows and task files come from anywhere; the library should not panic, this makes it certain.
    match caught(|| run(&environment())) {
        Some(done) => done.map_err(|e| {
            let detail = e.detail().map(|d| format!(": {d}")).unwrap_or_default();
            Error::input(format!("`{source}` cannot be evaluated: {}{detail}", e.kind()))
        }),
        None => Err(Error::input(format!("`{source}` breaks the template library"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row() -> Row {
        let Value::Object(row) = json!({"q": "What?", "answer": "so\n#### 18 ", "choices": {"text": ["a", "b"]}})
        else {
            unreachable!()
        };
        row
    }

    #[test]
    fn texts_and_values() {
        assert_eq!(text("Q: {{ q }}\n", &row()).unwrap(), "Q: What?\n");
        assert_eq!(value("answer.split('####')[-1].strip()", &row()).unwrap(), json!("18"));
        assert_eq!(value("choices.text", &row()).unwrap(), json!(["a", "b"]));
        assert_eq!(text("{{ q | sub('[A-Z]', '') }}", &row()).unwrap(), "hat?");
    }

    #[test]
    fn mistakes_name_the_fields_that_there_are() {
        for error in [text("{{ question }}", &row()), text("{{ q ", &row())].map(Result::unwrap_err) {
            assert!(error.to_string().contains("\"choices\""), "{error}");
        }
        assert!(value("gold", &row()).is_err());
        assert!(check_text("{{ question }}").is_ok() && check_text("{{ q ").is_err() && check_value("q[").is_err());
        assert!(text("{{ q | sub('(', '') }}", &row()).is_err());
        assert!(
            text("{% for i in range(100000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}", &row()).is_err()
        );
    }
}

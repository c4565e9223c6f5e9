//! The tasks inside the binary. A test compares this list with the `evals/tasks` folder.

use super::rows::{self, Placed};
use crate::error::{Error, Result};

macro_rules! embed {
    ($($name:literal)*) => {
        /// Name and text.
        pub const EMBEDDED: &[(&str, &str)] =
            &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/evals/tasks/", $name, ".toml")))),*];
    };
}

embed! {
    "arithmetic" "json" "recall" "multirecall" "variables" "copy" "sort" "needles" "frequent" "latent"
    "schema" "calls" "instructions"
    "hellaswag" "arc" "piqa" "winogrande" "boolq" "mmlu" "lambada" "gsm8k" "humaneval" "mbpp" "ifeval" "bfcl"
    "choice" "completions" "answers" "patterns" "schemas" "tools"
}

/// Rows that come with the program.
static ROWS: &[(&str, &str)] = &[
    ("schema.jsonl", include_str!("../../../evals/tasks/schema.jsonl")),
    ("calls.jsonl", include_str!("../../../evals/tasks/calls.jsonl")),
    ("instructions.jsonl", include_str!("../../../evals/tasks/instructions.jsonl")),
];

pub(super) fn rows(name: &str) -> Result<Vec<Placed>> {
    let found = ROWS.iter().find(|(n, _)| *n == name);
    let (_, text) = found.ok_or_else(|| Error::input(format!("{name} does not come with the program")))?;
    rows::json_lines(text.as_bytes().to_vec())
}

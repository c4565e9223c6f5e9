//! Texts to evaluate on: the user's files, or the mixed corpus that comes with the program.

mod parquet;
mod schema;

pub(crate) use parquet::rows as parquet_rows;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{At, Error, Result};

/// Bytes of one file, and of all text together. Far more than an evaluation can use.
const MAX_BYTES: u64 = 1 << 30;

/// Turns a row of JSON that has `messages` (and perhaps `tools` ...) into text: the model's chat template.
pub type Render<'a> = &'a dyn Fn(&Value) -> Result<String>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// File names joined by `+`, or `bundled`.
    pub name: String,
    /// In order; single ones may be empty, for an empty row is part of a text (wikitext has many).
    pub documents: Vec<String>,
    /// BLAKE3 of every document's length (u64, little-endian) and bytes, in order, as hex.
    pub hash: String,
}

impl Corpus {
    /// Reads `.jsonl` and `.parquet` (rows with `text`, or `prompt` and `completion`, or `messages`), and any other file as one document, exactly as it is. Errors name the file and the line.
    pub fn load(paths: &[PathBuf], render: Render) -> Result<Corpus> {
        if paths.is_empty() {
            return Err(Error::request("no file of text was given"));
        }
        let mut documents = Vec::new();
        let mut room = MAX_BYTES;
        for path in paths {
            let found = read(path, render, room).at(|| path.display().to_string())?;
            room -= found.iter().map(|d| d.len() as u64).sum::<u64>().min(room);
            documents.extend(found);
        }
        let names: Vec<_> = paths.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect();
        Ok(Corpus::new(names.join("+"), documents))
    }

    /// Prose, code, chat, other languages and data, written for this purpose. The kinds take turns, so that a part of
    /// the corpus is mixed too.
    pub fn bundled() -> Corpus {
        let mut kinds: Vec<_> = BUNDLED.iter().map(|file| file.trim_end().split(SEPARATOR)).collect();
        let mut documents = Vec::new();
        loop {
            let before = documents.len();
            documents.extend(kinds.iter_mut().filter_map(Iterator::next).map(str::to_owned));
            if documents.len() == before {
                return Corpus::new("bundled".into(), documents);
            }
        }
    }

    /// Documents from elsewhere.
    pub fn new(name: String, documents: Vec<String>) -> Corpus {
        let mut hasher = blake3::Hasher::new();
        for document in &documents {
            hasher.update(&(document.len() as u64).to_le_bytes());
            hasher.update(document.as_bytes());
        }
        Corpus { name, documents, hash: hasher.finalize().to_hex().to_string() }
    }
}

macro_rules! bundled {
    ($($name:literal),*) => { [$(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/evals/corpus/", $name, ".txt"))),*] };
}

static BUNDLED: [&str; 5] = bundled!("prose", "code", "chat", "multilingual", "data");
/// Stands between the documents of a bundled file.
pub const SEPARATOR: &str = "\n%%%%\n";

/// From a file's bytes, the renderer and the most bytes of text it may give.
type Reader = fn(Vec<u8>, Render, u64) -> Result<Vec<String>>;
/// By extension; any other file is plain text.
static READERS: &[(&str, Reader)] = &[
    ("jsonl", |bytes, render, room| within(json_lines(&utf8(bytes)?, render)?, room)),
    ("parquet", |bytes, render, room| {
        parquet::documents(bytes, &["messages", "completion"], &|row| document(row, render), room)
    }),
    ("json", |_, _, _| {
        Err(Error::unsupported("JSON is no text to evaluate on")
            .help("make it .jsonl: an object a line, with a field `text`"))
    }),
];

fn read(path: &Path, render: Render, room: u64) -> Result<Vec<String>> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let plain: Reader = |bytes, _, room| within(utf8(bytes).map(|text| vec![text])?, room);
    let reader = READERS.iter().find(|(name, _)| *name == extension).map_or(plain, |(_, reader)| *reader);
    let documents = reader(bytes(path, room)?, render, room)?;
    match documents.iter().all(|d| d.trim().is_empty()) {
        true => Err(Error::input("the file is empty").help("give a file with text")),
        false => Ok(documents),
    }
}

fn bytes(path: &Path, room: u64) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::request("not a regular file").help("name the files of text themselves"));
    }
    let mut bytes = Vec::new();
    file.take(room + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > room { Err(too_large()) } else { Ok(bytes) }
}

fn too_large() -> Error {
    let message = format!("more than {} MiB of text", MAX_BYTES >> 20);
    Error::limits(message).help("give a part of it: a few megabytes are enough")
}

fn within(documents: Vec<String>, room: u64) -> Result<Vec<String>> {
    let size: u64 = documents.iter().map(|d| d.len() as u64).sum();
    if size > room { Err(too_large()) } else { Ok(documents) }
}

pub(crate) fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let before = &e.as_bytes()[..at];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let byte = e.as_bytes().get(at).copied().unwrap_or_default();
        Error::input(format!("not UTF-8: byte {byte:#04x} at offset {at}"))
            .at(format!("line {line}"))
            .help("save it as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`")
    })
}

/// Documents of JSON lines, as [`Corpus::load`] reads them.
pub fn json_lines(text: &str, render: Render) -> Result<Vec<String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    rows.map(|(index, line)| json_line(line, render).at(|| format!("line {}", index + 1))).collect()
}

/// One line's value.
pub(crate) fn json(line: &str) -> Result<Value> {
    serde_json::from_str(line).map_err(|e| {
        let whole = e.to_string();
        let what = whole.split(" at line ").next().unwrap_or_default();
        Error::input(format!("not JSON: {what}, column {}", e.column())).help("put one JSON object on each line")
    })
}

fn json_line(line: &str, render: Render) -> Result<String> {
    document(&json(line)?, render)
}

fn document(row: &Value, render: Render) -> Result<String> {
    let Value::Object(fields) = row else {
        return Err(Error::input(format!("{}, not a JSON object", kind(row))).help(FIELDS));
    };
    let has = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    if has("text") {
        return string(fields, "text").map(str::to_owned);
    }
    if has("prompt") && has("completion") {
        return Ok([string(fields, "prompt")?, string(fields, "completion")?].concat());
    }
    match fields.get("messages") {
        Some(Value::Array(_)) => render(row),
        Some(other) if !other.is_null() => Err(wrong_kind("messages", other, "a list")),
        _ => Err(Error::input(format!("no field with text; it has {}", listed(fields.keys()))).help(FIELDS)),
    }
}

const FIELDS: &str = "each row needs `text`, or `prompt` and `completion`, or `messages`";

fn string<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str> {
    match &fields[name] {
        Value::String(text) => Ok(text),
        other => Err(wrong_kind(name, other, "a string")),
    }
}

fn wrong_kind(name: &str, value: &Value, wanted: &str) -> Error {
    Error::input(format!("`{name}` is {}, not {wanted}", kind(value))).help(FIELDS)
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Names from a file, quoted and cut to a length that a message can bear.
fn listed<S: AsRef<str>>(names: impl ExactSizeIterator<Item = S>) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let mut shown: Vec<String> =
        names.take(MOST_NAMES).map(|n| format!("{:?}", n.as_ref().chars().take(40).collect::<String>())).collect();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    if shown.is_empty() { "none".into() } else { shown.join(", ") }
}

const MOST_NAMES: usize = 12;

#[cfg(test)]
mod tests;

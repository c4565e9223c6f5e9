//! Rows of data as JSON objects: JSON lines, a JSON list, Parquet, each also compressed by gzip.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{At, Error, Result};
use crate::eval::text;

/// Bytes of one file, decompressed. Public sets have a few megabytes.
const MAX_BYTES: u64 = 1 << 28;

pub type Row = Map<String, Value>;

/// A row and where it stands: a line of the file, or a row's number.
pub struct Placed {
    pub row: Row,
    pub place: String,
}

/// All rows of a file. Errors name the file and the line.
pub fn read(path: &Path) -> Result<Vec<Placed>> {
    let found = bytes(path).and_then(|bytes| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        match name.rsplit('.').next() {
            Some("parquet") => numbered("row", text::parquet_rows(bytes)?),
            Some("json") if !lines(&bytes) => list(&bytes),
            _ => json_lines(bytes),
        }
    });
    let found = found.at(|| path.display().to_string())?;
    if found.is_empty() {
        return Err(Error::input("it has no rows").at(path.display().to_string()));
    }
    Ok(found)
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::request("not a regular file").help("name a file of rows: .jsonl, .json or .parquet"));
    }
    let mut out = Vec::new();
    match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) {
        true => flate2::read::MultiGzDecoder::new(file).take(MAX_BYTES + 1).read_to_end(&mut out)?,
        false => file.take(MAX_BYTES + 1).read_to_end(&mut out)?,
    };
    match out.len() as u64 > MAX_BYTES {
        true => Err(Error::limits(format!("more than {} MiB of rows", MAX_BYTES >> 20)).help("give a part of it")),
        false => Ok(out),
    }
}

/// Some sets call JSON lines `.json`.
fn lines(bytes: &[u8]) -> bool {
    bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
}

fn list(bytes: &[u8]) -> Result<Vec<Placed>> {
    let all: Vec<Value> = serde_json::from_slice(bytes).map_err(|e| {
        Error::input(format!("not a list in JSON: {e}")).help("put one JSON object on each line (.jsonl)")
    })?;
    numbered("row", all)
}

fn numbered(what: &str, all: Vec<Value>) -> Result<Vec<Placed>> {
    all.into_iter().enumerate().map(|(i, value)| placed(value, format!("{what} {}", i + 1))).collect()
}

pub(super) fn json_lines(bytes: Vec<u8>) -> Result<Vec<Placed>> {
    let whole = text::utf8(bytes)?;
    let rows = whole.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let row = |(index, line): (usize, &str)| {
        let place = format!("line {}", index + 1);
        placed(text::json(line).at(|| place.clone())?, place)
    };
    rows.map(row).collect()
}

fn placed(value: Value, place: String) -> Result<Placed> {
    match value {
        Value::Object(row) => Ok(Placed { row, place }),
        other => Err(Error::input(format!("{}, not a JSON object", text::kind(&other))).at(place)),
    }
}

//! Texts out of a Parquet file: one column of strings, or what rows are made into.

use ::parquet::column::reader::ColumnReader;
use ::parquet::data_type::ByteArray;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use bytes::Bytes;
use serde_json::Value;

use super::{listed, schema, too_large};
use crate::error::{At, Error, Result, caught};

/// Values decoded at a time.
const BATCH: usize = 1024;
/// Groups within groups; the library recurses over them.
const MAX_DEPTH: usize = 64;

/// What a row is made into.
pub type Document<'a> = &'a dyn Fn(&Value) -> Result<String>;

/// The strings of the top-level column `text`; of a file without one that has another of `instead`, what `document` makes of every
/// row. In order; at most `room` bytes of them. Errors name the row (from 1).
pub fn documents(file: Vec<u8>, instead: &[&str], document: Document<'_>, room: u64) -> Result<Vec<String>> {
    guarded(|| {
        let file = Bytes::from(file);
        let reader = open(file.clone())?;
        let schema = reader.metadata().file_metadata().schema_descr().root_schema();
        let has = |names: &[&str]| schema.get_fields().iter().any(|f| names.contains(&f.name()));
        match !has(&["text"]) && has(instead) {
            true => made(&reader, document, room),
            false => strings(&reader, "text", room),
        }
    })
}

/// All rows as JSON objects.
pub fn rows(file: Vec<u8>) -> Result<Vec<Value>> {
    guarded(|| {
        let reader = open(Bytes::from(file))?;
        let rows = reader.get_row_iter(None).map_err(damaged)?;
        rows.map(|row| row.map(|row| row.to_json_value()).map_err(damaged)).collect()
    })
}

/// The file is untrusted; the library should not panic, this makes it certain.
fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    match caught(read) {
        Some(done) => done,
        None => Err(Error::input("the file breaks the Parquet library").help("the file is damaged: fetch it again")),
    }
}

fn made(reader: &SerializedFileReader<Bytes>, document: Document<'_>, room: u64) -> Result<Vec<String>> {
    let mut found = Rows { texts: Vec::new(), room, name: "" };
    for row in reader.get_row_iter(None).map_err(damaged)? {
        let row = row.map_err(damaged)?.to_json_value();
        let place = || format!("row {}", found.texts.len() + 1);
        let text = document(&row).at(place)?;
        found.add(text)?;
    }
    Ok(found.texts)
}

fn open(file: Bytes) -> Result<SerializedFileReader<Bytes>> {
    match schema::depth(&file) {
        Some(0..=MAX_DEPTH) => {}
        Some(depth) => return Err(Error::limits(format!("the schema nests {depth} levels deep"))),
        None => return Err(Error::input("the footer is damaged").help("fetch the file again")),
    }
    SerializedFileReader::new(file).map_err(damaged)
}

fn strings(reader: &SerializedFileReader<Bytes>, name: &str, room: u64) -> Result<Vec<String>> {
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr();
    let place = schema.columns().iter().position(|c| c.path().parts() == [name]);
    let Some(place) = place else {
        let names = schema.root_schema().get_fields().iter().map(|f| f.name());
        return Err(Error::input(format!("no column `{name}`; it has {}", listed(names)))
            .help(format!("rename the column of text to `{name}`, or export the rows as .jsonl")));
    };
    if schema.column(place).max_rep_level() != 0 {
        return Err(Error::input(format!("column `{name}` holds lists, not strings")));
    }
    let nullable = schema.column(place).max_def_level() > 0;
    let mut found = Rows { texts: Vec::new(), room, name };
    for group in 0..metadata.num_row_groups() {
        let group = reader.get_row_group(group).map_err(damaged)?;
        let ColumnReader::ByteArrayColumnReader(mut column) = group.get_column_reader(place).map_err(damaged)? else {
            return Err(Error::input(format!("column `{name}` holds no strings")));
        };
        loop {
            let (mut values, mut levels) = (Vec::new(), Vec::new());
            let levels_wanted = nullable.then_some(&mut levels);
            let (rows, _, _) = column.read_records(BATCH, levels_wanted, None, &mut values).map_err(damaged)?;
            if rows == 0 {
                break;
            }
            // Absent values take a level but no value.
            let row = found.texts.len() + levels.iter().position(|&l| l == 0).unwrap_or(values.len());
            if nullable && values.len() < rows {
                return Err(Error::input(format!("column `{name}` is null"))
                    .at(format!("row {}", row + 1))
                    .help("drop the rows without text"));
            }
            found.push(&values)?;
        }
    }
    Ok(found.texts)
}

struct Rows<'a> {
    texts: Vec<String>,
    room: u64,
    name: &'a str,
}

impl Rows<'_> {
    fn push(&mut self, values: &[ByteArray]) -> Result<()> {
        for value in values {
            let text = value.as_utf8().map_err(|_| {
                let message = format!("column `{}` is not UTF-8", self.name);
                Error::input(message).help("export it as strings")
            });
            self.add(text.at(|| format!("row {}", self.texts.len() + 1))?.to_owned())?;
        }
        Ok(())
    }

    fn add(&mut self, text: String) -> Result<()> {
        // The row's own cost counts, or a small file of empty rows fills the memory.
        let cost = (text.len() + size_of::<String>()) as u64;
        self.room = self.room.checked_sub(cost).ok_or_else(too_large)?;
        self.texts.push(text);
        Ok(())
    }
}

fn damaged(error: ParquetError) -> Error {
    let help = "the file is damaged or of a kind this reader does not know (it knows uncompressed, snappy and zstd): \
                export the rows as .jsonl";
    Error::input(error.to_string()).help(help)
}

//! One column of strings out of a Parquet file.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ::parquet::column::reader::ColumnReader;
use ::parquet::data_type::ByteArray;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use bytes::Bytes;

use super::{listed, schema, too_large};
use crate::error::{At, Error, Result};

/// Values decoded at a time.
const BATCH: usize = 1024;
/// Groups within groups; the library recurses over them.
const MAX_DEPTH: usize = 64;

/// The strings of the top-level column `name`, in order; at most `room` bytes of them. Errors name the row (from 1).
pub fn column(file: Vec<u8>, name: &str, room: u64) -> Result<Vec<String>> {
    // The file is untrusted; the library should not panic, this makes it certain.
    match catch_unwind(AssertUnwindSafe(|| strings(file, name, room))) {
        Ok(done) => done,
        Err(_) => Err(Error::input("the file breaks the Parquet library").help("the file is damaged: fetch it again")),
    }
}

/// All rows as JSON objects.
pub fn rows(file: Vec<u8>) -> Result<Vec<serde_json::Value>> {
    let all = || {
        let reader = open(file)?;
        let rows = reader.get_row_iter(None).map_err(damaged)?;
        rows.map(|row| row.map(|row| row.to_json_value()).map_err(damaged)).collect()
    };
    match catch_unwind(AssertUnwindSafe(all)) {
        Ok(done) => done,
        Err(_) => Err(Error::input("the file breaks the Parquet library").help("the file is damaged: fetch it again")),
    }
}

fn open(file: Vec<u8>) -> Result<SerializedFileReader<Bytes>> {
    match schema::depth(&file) {
        Some(0..=MAX_DEPTH) => {}
        Some(depth) => return Err(Error::limits(format!("the schema nests {depth} levels deep"))),
        None => return Err(Error::input("the footer is damaged").help("fetch the file again")),
    }
    SerializedFileReader::new(Bytes::from(file)).map_err(damaged)
}

fn strings(file: Vec<u8>, name: &str, room: u64) -> Result<Vec<String>> {
    let reader = open(file)?;
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
            // The row's own cost counts, or a small file of empty rows fills the memory.
            let cost = (value.len() + size_of::<String>()) as u64;
            self.room = self.room.checked_sub(cost).ok_or_else(too_large)?;
            let text = value.as_utf8().map_err(|_| {
                let message = format!("column `{}` is not UTF-8", self.name);
                Error::input(message).help("export it as strings")
            });
            self.texts.push(text.at(|| format!("row {}", self.texts.len() + 1))?.to_owned());
        }
        Ok(())
    }
}

fn damaged(error: ParquetError) -> Error {
    let help = "the file is damaged or of a kind this reader does not know (it knows uncompressed, snappy and zstd): \
                export the rows as .jsonl";
    Error::input(error.to_string()).help(help)
}

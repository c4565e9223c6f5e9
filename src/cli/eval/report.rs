//! What an evaluation prints and writes.

use std::borrow::Cow;
use std::path::Path;

use crate::cli::html;
use crate::cli::report::{Reporter, markdown, table};
use crate::container::output::{Output, publish};
use crate::error::Result;

/// What is printed: a table, or the JSON value of the same.
pub struct Report {
    pub header: Vec<Cow<'static, str>>,
    pub cells: Vec<Vec<String>>,
    /// Other tables, for the terminal alone.
    pub more: Vec<String>,
    pub notes: Vec<String>,
    pub json: serde_json::Value,
}

/// Where it is written beside standard output.
pub struct Files<'a> {
    pub markdown: Option<&'a Path>,
    pub save: Option<&'a Path>,
    pub html: Option<&'a Path>,
}

impl Report {
    /// Says where it was computed.
    pub fn ran_on(&mut self, device: &str) {
        self.json["device"] = device.into();
        if device != "cpu" {
            self.notes.push(format!("computed on {device}"));
        }
    }

    /// What took long to measure is shown also where it cannot be written.
    pub fn print(&self, files: &Files<'_>, reporter: &Reporter) -> Result<()> {
        let written = self.write(files);
        self.show(reporter)?;
        written
    }

    fn columns(&self) -> (Vec<&str>, Vec<usize>) {
        (self.header.iter().map(AsRef::as_ref).collect(), (1..self.header.len()).collect())
    }

    fn write(&self, files: &Files<'_>) -> Result<()> {
        let (header, right) = self.columns();
        if let Some(path) = files.markdown {
            let text = format!("{}\n{}\n", markdown(&header, &right, &self.cells), self.notes.join("  \n"));
            write(path, &text)?;
        }
        if let Some(path) = files.save {
            write(path, &format!("{:#}\n", self.json))?;
        }
        if let Some(path) = files.html {
            html::page(path, &self.json)?;
        }
        Ok(())
    }

    fn show(&self, reporter: &Reporter) -> Result<()> {
        if reporter.json {
            return reporter.value(&self.json);
        }
        let (header, right) = self.columns();
        reporter.text(&table(&header, &right, self.cells.iter().cloned()))?;
        reporter.text("")?;
        for more in &self.more {
            reporter.text(more)?;
            reporter.text("")?;
        }
        self.notes.iter().try_for_each(|note| reporter.text(note))
    }
}

pub fn named(header: &[&'static str]) -> Vec<Cow<'static, str>> {
    header.iter().map(|name| Cow::Borrowed(*name)).collect()
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    let output = Output::create(path)?;
    output.write_at(0, text.as_bytes())?;
    publish(vec![output]).map(drop)
}

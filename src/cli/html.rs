//! `quant report`, and `quant eval --html`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::report::Reporter;
use crate::container::output::{Output, publish, refuse_inputs};
use crate::error::{At, Error, Result};
use crate::eval::report::{Results, html, plots};

#[derive(Args)]
pub struct Report {
    /// What `quant eval --json` printed; results of the same conditions go into the same tables
    #[arg(required = true, value_name = "RESULTS.json")]
    results: Vec<PathBuf>,
    /// The page: one file, without scripts and without anything from a network
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Write each plot as a file too
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
}

impl Report {
    pub fn run(&self, reporter: &Reporter) -> Result<bool> {
        let results = self.results.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
        let mut files = vec![(self.output.clone(), html(&results)?)];
        if let Some(folder) = &self.svg {
            let plots = plots(&results)?.into_iter();
            files.extend(plots.map(|(name, text)| (folder.join(name), text)));
        }
        let paths: Vec<PathBuf> = files.iter().map(|f| f.0.clone()).collect();
        refuse_inputs(&paths, &self.results)?;
        if let Some(folder) = &self.svg {
            fs::create_dir_all(folder).at(|| folder.display().to_string())?;
        }
        write(&files)?;
        match reporter.json {
            true => reporter.value(&json!({"html": self.output, "svg": paths[1..]}))?,
            false => paths.iter().for_each(|path| reporter.note(&format!("wrote {}", path.display()))),
        }
        Ok(true)
    }
}

fn read(path: &Path) -> Result<Results> {
    let at = || path.display().to_string();
    let text = fs::read_to_string(path).at(at)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| {
        Error::input(format!("no JSON: {e}")).at(at()).help("pass what `quant eval ... --json` printed")
    })?;
    Results::parse(&at(), value)
}

/// The page of one evaluation that just ended.
pub fn page(path: &Path, value: &Value) -> Result<()> {
    let results = Results::parse("this evaluation", value.clone())?;
    write(&[(path.to_owned(), html(&[results])?)])
}

fn write(files: &[(PathBuf, String)]) -> Result<()> {
    let mut outputs = Vec::with_capacity(files.len());
    for (path, text) in files {
        let output = Output::create(path)?;
        output.write_at(0, text.as_bytes())?;
        outputs.push(output);
    }
    publish(outputs).map(|_| ())
}

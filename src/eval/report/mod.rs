//! Results of `quant eval` as a page: one HTML file that needs nothing else, neither network nor scripts.
//!
//! JSON in, text out. `merge` puts results of the same conditions together, `quality` and `answers` make tables and sentences,
//! `scatter`, `lines` and `heat` draw, `page.html` sets it all; it escapes whatever came from a file.

mod answers;
mod axis;
mod data;
mod heat;
mod lines;
mod merge;
mod number;
mod page;
mod palette;
mod place;
mod quality;
mod scatter;
pub(super) mod svg;
mod table;
mod terms;

use serde_json::Value;

use crate::error::{At, Result};
use data::Evaluation;

/// One JSON object of `quant eval --json`.
pub struct Results {
    name: String,
    evaluation: Evaluation,
}

impl Results {
    /// `name`: the file's, for messages and provenance. Errors: another schema; they name the key.
    pub fn parse(name: &str, mut value: Value) -> Result<Results> {
        data::clean(&mut value);
        let evaluation = data::parse(&value).at(|| name)?;
        Ok(Results { name: name.to_owned(), evaluation })
    }
}

/// The page. Errors: a part of another shape than `quant eval` writes.
pub fn html(results: &[Results]) -> Result<String> {
    page::render(results)
}

/// Every plot of the page as an SVG file: name and text. Errors: as [`html`].
pub fn plots(results: &[Results]) -> Result<Vec<(String, String)>> {
    page::files(results)
}

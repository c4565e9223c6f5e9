//! The only module that prints: results to stdout, progress and errors to stderr.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Result};

pub struct Reporter {
    pub json: bool,
    quiet: bool,
}

impl Reporter {
    pub fn new(json: bool, quiet: bool) -> Self {
        Reporter { json, quiet }
    }

    /// Results. A closed pipe (`quant list | head`) is the reader's choice, not an error.
    pub fn text(&self, text: &str) -> Result<()> {
        self.stream(text)?;
        self.stream("\n").map(|_| ())
    }

    /// A part of a result that is still being made; shown at once. False: nobody reads any more.
    pub fn stream(&self, part: &str) -> Result<bool> {
        let mut out = std::io::stdout().lock();
        match out.write_all(part.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    pub fn value(&self, value: &serde_json::Value) -> Result<()> {
        self.text(&format!("{value:#}"))
    }

    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    pub fn error(&self, error: &Error) {
        if self.json {
            self.error_object(error);
        }
        eprintln!("error: {error}");
    }

    /// What programs read of an error.
    pub fn error_object(&self, error: &Error) {
        let value = serde_json::json!({"error": {
            "kind": format!("{:?}", error.kind).to_lowercase(), "message": error.message(), "at": error.places(),
            "help": error.advice() }});
        // A reader that is gone misses it; stderr has it too.
        let _ = self.value(&value);
    }

    /// Progress in bytes.
    pub fn progress(&self, what: &str, bytes: u64) -> Progress {
        self.bar(what, bytes, "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}", (1e6, "MB"))
    }

    /// Progress in tokens.
    pub fn tokens(&self, what: &str, tokens: u64) -> Progress {
        self.bar(what, tokens, "{msg} {bar:30} {human_pos}/{human_len} tokens {per_sec} ETA {eta}", (1.0, "tokens"))
    }

    /// Progress in steps.
    pub fn steps(&self, what: &str, steps: u64) -> Progress {
        self.bar(what, steps, "{msg} {bar:30} {human_pos}/{human_len} ETA {eta}", (1.0, "steps"))
    }

    /// A bar on a terminal; elsewhere a plain line every ten seconds.
    fn bar(&self, what: &str, total: u64, template: &str, unit: (f64, &'static str)) -> Progress {
        let bar = ProgressBar::new(total);
        let terminal = std::io::stderr().is_terminal();
        if self.quiet || !terminal {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        let lines = (!self.quiet && !terminal).then(|| Mutex::new(Instant::now()));
        Progress { bar, lines, unit }
    }
}

pub struct Progress {
    bar: ProgressBar,
    lines: Option<Mutex<Instant>>,
    /// What the plain lines count in, and its name.
    unit: (f64, &'static str),
}

impl Progress {
    pub fn advance(&self, done: u64) {
        self.bar.inc(done);
        let Some(lines) = &self.lines else { return };
        let Ok(mut last) = lines.try_lock() else { return };
        if last.elapsed() >= Duration::from_secs(10) {
            *last = Instant::now();
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0).max(1));
            let percent = done as f64 * 100.0 / total as f64;
            let (rate, eta) = (self.bar.per_sec() / self.unit.0, self.bar.eta().as_secs());
            eprintln!("{}: {percent:.0} %, {rate:.0} {}/s, {eta} s left", self.bar.message(), self.unit.1);
        }
    }

    #[cfg(feature = "hub")]
    pub fn set(&self, position: u64) {
        self.advance(position.saturating_sub(self.bar.position()));
    }

    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// An interrupted run leaves no half-drawn bar in front of its error.
impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A plain table; columns named in `right` are aligned right.
pub fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table.add_rows(rows);
    for &i in right {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// The same as a Markdown table.
pub fn markdown(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let mut out = line(&mut header.iter().map(|h| (*h).to_owned()));
    out += &line(&mut (0..header.len()).map(|i| if right.contains(&i) { "---:" } else { "---" }.to_owned()));
    rows.iter().for_each(|row| out += &line(&mut row.iter().map(|cell| cell.replace('|', "\\|"))));
    out
}

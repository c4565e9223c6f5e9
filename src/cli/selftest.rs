//! `quant selftest`: every operation of a device against the CPU's, or the CPU's fast paths against their plain twins.

use clap::Args;
use serde_json::{Value, json};

use super::report::{Reporter, table};
use crate::device::check::{Check, Difference};
use crate::device::cuda::bench::{self, Speed};
use crate::device::cuda::{Card, Runner, selftest};
use crate::device::{Device, Precision, twins};
use crate::error::{Error, Kind, Result};

#[derive(Args)]
pub struct Selftest {
    /// auto, cpu or cuda:N; a card is compared with the CPU, the CPU's fast paths with their plain twins
    #[arg(long, default_value = "cuda:0", value_name = "DEVICE")]
    device: Device,
    /// How a card multiplies beside its kernels: see `quant eval --help`
    #[arg(long, value_name = "HOW")]
    precision: Option<Precision>,
    /// Only operations that begin so
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Measure how fast a card's kernels are, too
    #[arg(long)]
    bench: bool,
    /// Measure on small matrices
    #[arg(long, requires = "bench", hide = true)]
    small: bool,
}

/// A check, and how it went.
struct Row {
    labels: [String; 4],
    allowed: f64,
    found: Result<Difference>,
    passes: bool,
}

impl Selftest {
    pub fn run(&self, reporter: &Reporter) -> Result<bool> {
        let card = self.device.open(self.precision)?;
        let (on, rows) = match &card {
            Some(card) => (describe(card), self.rows(selftest::checks(card.precision()), card as &selftest::On)),
            None => ("the CPU's fast paths, against the plain ones".to_owned(), self.rows(twins::checks(), &())),
        };
        if rows.is_empty() {
            let name = self.only.as_deref().unwrap_or_default();
            return Err(Error::new(Kind::Request, format!("no operation begins with {name:?}")));
        }
        let speeds = match &card {
            Some(card) if self.bench => bench::run(card, self.small)?,
            _ => Vec::new(),
        };
        let failed = rows.iter().filter(|r| !r.passes).count();
        if reporter.json {
            let rows: Vec<Value> = rows.iter().map(Row::json).collect();
            reporter.value(&json!({"device": on, "checks": rows, "failed": failed, "speeds": speeds.iter().map(speed_json).collect::<Vec<_>>()}))?;
        } else {
            let header = ["op", "of", "shape", "numbers", "differ", "worst", "allowed", "", "dtype"];
            reporter.text(&table(&header, &[3, 4, 5, 6], rows.iter().map(Row::cells)))?;
            if let Some(copy) = speeds.first() {
                let header = ["op", "of", "size", "ms", "GB/s", "of a copy", "TFLOP/s"];
                let cells = speeds.iter().map(|s| speed_cells(s, copy));
                reporter.text(&format!("\n{}", table(&header, &[3, 4, 5, 6], cells)))?;
            }
            reporter.text(&format!("\n{on}: {} checks, {failed} failed", rows.len()))?;
        }
        Ok(failed == 0)
    }

    fn rows<On: ?Sized>(&self, checks: Vec<Check<On>>, on: &On) -> Vec<Row> {
        let wanted = |c: &Check<On>| self.only.as_ref().is_none_or(|only| c.op.starts_with(only.as_str()));
        let row = |c: Check<On>| {
            let found = c.run(on);
            let passes = found.as_ref().is_ok_and(|f| c.passes(f));
            Row { labels: [c.op.to_owned(), c.of, c.shape, c.dtype.to_owned()], allowed: c.allowed, found, passes }
        };
        checks.into_iter().filter(wanted).map(row).collect()
    }
}

fn describe(card: &Card) -> String {
    let ((major, minor), nvrtc) = (card.driver_version(), card.nvrtc.version);
    format!(
        "cuda:{}, {} ({}), driver for CUDA {major}.{minor}, NVRTC {}.{}, against the CPU",
        card.info.index, card.info.name, card.arch, nvrtc.0, nvrtc.1
    )
}

fn speed_json(s: &Speed) -> Value {
    json!({"op": s.op, "of": s.of, "shape": s.shape, "seconds": s.seconds, "bytes": s.bytes, "flops": s.flops})
}

fn speed_cells(s: &Speed, copy: &Speed) -> Vec<String> {
    let (rate, most) = (s.bytes / s.seconds, copy.bytes / copy.seconds);
    let flops = if s.flops > 0.0 { format!("{:.2}", s.flops / s.seconds / 1e12) } else { String::new() };
    let share = format!("{:.0} %", 100.0 * rate / most);
    let (ms, rate) = (format!("{:.3}", s.seconds * 1e3), format!("{:.1}", rate / 1e9));
    vec![s.op.to_owned(), s.of.clone(), s.shape.clone(), ms, rate, share, flops]
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let [op, of, shape, dtype] = self.labels.clone();
        let allowed = if self.allowed == 0.0 { "same bits".to_owned() } else { format!("{:.0e}", self.allowed) };
        let (numbers, differ, worst, verdict) = match &self.found {
            Ok(d) => {
                let verdict = if self.passes { "ok" } else { "FAILED" };
                (d.numbers.to_string(), d.differ.to_string(), format!("{:.1e}", d.worst), verdict.to_owned())
            }
            Err(e) => (String::new(), String::new(), String::new(), format!("FAILED: {}", e.message())),
        };
        vec![op, of, shape, numbers, differ, worst, allowed, verdict, dtype]
    }

    fn json(&self) -> Value {
        let [op, of, shape, dtype] = &self.labels;
        let mut out =
            json!({"op": op, "of": of, "shape": shape, "dtype": dtype, "allowed": self.allowed, "passes": self.passes});
        match &self.found {
            Ok(d) => {
                out["numbers"] = d.numbers.into();
                out["differ"] = d.differ.into();
                out["worst"] = d.worst.into();
            }
            Err(e) => out["error"] = e.to_string().into(),
        }
        out
    }
}

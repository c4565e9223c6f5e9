//! `quant gate`, and the gate at the end of `quant eval`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::Exit;
use super::report::{Reporter, markdown, table};
use crate::container::output::{Output, publish, refuse_inputs};
use crate::error::{At, Error, Result};
use crate::eval::gate::{self, Budgets, Judgement, Verdict};

#[derive(Args)]
pub struct Gate {
    /// What `quant eval --json` printed
    report: PathBuf,
    /// Budgets: a TOML file with lines such as "kld.mean" = "<= 0.02" under [budgets], and [since] for --baseline
    #[arg(long, value_name = "FILE", required_unless_present = "max")]
    budgets: Option<PathBuf>,
    #[command(flatten)]
    more: GateArgs,
}

/// What a gate may be told besides its budgets.
#[derive(Args)]
pub struct GateArgs {
    /// A budget without a file: at most so much, as in kld=0.02
    #[arg(long, value_name = "METRIC=NUMBER")]
    max: Vec<String>,
    /// An earlier report (`--json`), which [since] budgets compare with
    #[arg(long, value_name = "REPORT.json")]
    baseline: Option<PathBuf>,
    /// Write the verdicts as JUnit XML too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the verdicts as Markdown too, for a pull request
    #[arg(long, value_name = "FILE")]
    verdicts: Option<PathBuf>,
}

/// Budgets, and what they are compared with: read before anything is evaluated.
pub struct Ready {
    pub budgets: Budgets,
    baseline: Option<Value>,
}

impl Gate {
    pub fn run(&self, reporter: &Reporter) -> Result<Exit> {
        let outputs = self.more.outputs();
        let inputs: Vec<PathBuf> = [Some(&self.report), self.budgets.as_ref()].into_iter().flatten().cloned().collect();
        refuse_inputs(&outputs, &inputs)?;
        let report = read(&self.report)?;
        let Some(ready) = self.more.ready(self.budgets.as_deref())? else {
            return Err(Error::request("there are no budgets").help("pass --budgets FILE or --max kld=0.02"));
        };
        let judgement = self.more.judge(&report, &ready)?;
        match reporter.json {
            true => reporter.value(&json!(judgement))?,
            false => print(&judgement, reporter)?,
        }
        Ok(exit(&judgement))
    }
}

impl GateArgs {
    pub fn outputs(&self) -> Vec<PathBuf> {
        [&self.junit, &self.verdicts].into_iter().flatten().cloned().collect()
    }

    /// `None`: there is no gate. Errors: a budget that cannot be read; a baseline that is no report.
    pub fn ready(&self, budgets: Option<&Path>) -> Result<Option<Ready>> {
        let mut all = Budgets::at_most(&self.max)?;
        if let Some(path) = budgets {
            let place = || path.display().to_string();
            let file = Budgets::parse(&std::fs::read_to_string(path).at(place)?).at(place)?;
            all.budgets.extend(file.budgets);
            all.since.extend(file.since);
        }
        if all.is_empty() {
            return match self.outputs().is_empty() && self.baseline.is_none() {
                true => Ok(None),
                false => {
                    Err(Error::request("there are no budgets to judge by").help("pass --gate FILE or --max kld=0.02"))
                }
            };
        }
        let baseline = self.baseline.as_deref().map(read).transpose()?;
        if baseline.is_none() && !all.since.is_empty() {
            return Err(Error::request("[since] compares with an earlier report").help("pass it with --baseline"));
        }
        Ok(Some(Ready { budgets: all, baseline }))
    }

    /// Judges, and writes what was asked for.
    pub fn judge(&self, report: &Value, ready: &Ready) -> Result<Judgement> {
        let judgement = gate::judge(report, ready.baseline.as_ref(), &ready.budgets);
        let lines = format!("**{}**\n\n{}", judgement.verdict.name(), markdown(HEADER, &[], &cells(&judgement)));
        for (path, text) in [(&self.junit, judgement.junit()), (&self.verdicts, lines)] {
            if let Some(path) = path {
                let output = Output::create(path)?;
                output.write_at(0, text.as_bytes())?;
                publish(vec![output])?;
            }
        }
        Ok(judgement)
    }
}

const HEADER: &[&str] = &["verdict", "artifact", "metric", "limit", "measured (95 %)", ""];

fn cells(judgement: &Judgement) -> Vec<Vec<String>> {
    let cells = |r: &gate::Row| {
        let verdict = r.verdict.name().to_owned();
        vec![verdict, r.artifact.clone(), r.metric.clone(), r.limit.clone(), r.figures(), r.note.clone()]
    };
    judgement.rows.iter().map(cells).collect()
}

pub fn print(judgement: &Judgement, reporter: &Reporter) -> Result<()> {
    reporter.text(&table(HEADER, &[], cells(judgement)))?;
    reporter.text(&format!("\ngate: {}", judgement.verdict.name()))
}

pub fn exit(judgement: &Judgement) -> Exit {
    match judgement.verdict {
        Verdict::Pass => Exit::DONE,
        Verdict::Regression => Exit::GATE_MISSED,
        Verdict::Inconclusive => Exit::INCONCLUSIVE,
        Verdict::Invalid => Exit::FAILED,
    }
}

fn read(path: &Path) -> Result<Value> {
    let place = || path.display().to_string();
    let text = std::fs::read_to_string(path).at(place)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| Error::input(format!("not JSON: {e}"))).at(place)?;
    match value["artifacts"].is_array() {
        true => Ok(value),
        false => Err(Error::input("it has no `artifacts`").help("pass what `quant eval --json` printed").at(place())),
    }
}

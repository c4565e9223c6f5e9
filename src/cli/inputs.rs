//! What is known of the inputs of the weights, as options of several commands.

use std::path::PathBuf;

use clap::Args;

use super::report::Reporter;
use crate::calibrate::imatrix::Imatrix;
use crate::calibrate::method::{self, METHODS, Method, Needs};
use crate::calibrate::stats::Statistics;
use crate::container::Checkpoint;
use crate::convert::Request;
use crate::device::Worker;
use crate::error::{At, Error, Result};

#[derive(Args)]
pub struct InputArgs {
    /// Importance matrix made by llama-imatrix, GGUF or the older .dat
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Statistics made by `quant calibrate`, in place of an importance matrix; with --gram they serve every method
    #[arg(long, value_name = "FILE", conflicts_with = "imatrix")]
    stats: Option<PathBuf>,
    /// How codes are chosen (`quant list methods`); `auto` takes the best that the statistics suffice for
    #[arg(long, value_name = "METHOD", value_parser = std::iter::once("auto").chain(METHODS.iter().map(|m| m.name)).collect::<Vec<_>>(), default_value = "auto")]
    method: String,
    /// Scales and codes exactly as llama.cpp would choose them: no method but `rtn` and `imatrix`
    #[arg(long)]
    exact_llama: bool,
}

/// What is known of the inputs of the weights, and the method that makes use of it.
pub struct Inputs {
    imatrix: Option<(Imatrix, String)>,
    statistics: Option<Statistics>,
    method: &'static Method,
    exact_llama: bool,
}

/// Tokens of calibration text that say too little of any model.
const FEW: u64 = 1024;

impl InputArgs {
    pub fn exact_llama(&self) -> bool {
        self.exact_llama
    }

    /// What the flags name, as far as the method may use it.
    pub fn load(&self, model: &dyn Checkpoint, reporter: &Reporter) -> Result<Inputs> {
        let file = self.stats.as_ref().or(self.imatrix.as_ref());
        let shown = file.map_or_else(String::new, |p| p.display().to_string());
        let statistics = self.stats.as_ref().map(|p| Statistics::open(p)).transpose()?;
        if let Some(statistics) = &statistics {
            statistics.check_model(model).at(|| shown.clone())?;
            let tokens: u64 = statistics.about().runs.iter().map(|r| r.tokens).sum();
            if tokens < FEW {
                reporter.note(&format!(
                    "warning: {shown} is of {tokens} tokens only: what is calibrated on so little may be worse than what is not"
                ));
            }
        }
        let known = match (file, &statistics) {
            (None, _) => Needs::Nothing,
            (_, Some(s)) if s.about().gram && !self.exact_llama => Needs::Gram,
            _ => Needs::MeanSquares,
        };
        let method = METHODS.iter().find(|m| m.name == self.method).unwrap_or_else(|| method::best(known));
        if method.needs > known {
            let needs = format!("--method {} needs {}", method.name, method.needs);
            let gram = if method.needs == Needs::Gram { "--gram " } else { "" };
            let make = format!("make statistics with `quant calibrate MODEL {gram}-o STATS` and pass --stats STATS");
            return Err(match (self.exact_llama && method.needs == Needs::Gram, file) {
                (true, _) => Error::request(format!("llama.cpp has no {}", method.name)).help("drop --exact-llama"),
                (_, Some(_)) => Error::request(format!("{needs}, which {shown} lacks")).help(make),
                (_, None) => Error::request(format!("{needs}, and nothing is known of the inputs")).help(make),
            });
        }
        let imatrix = match (&statistics, &self.imatrix) {
            _ if method.needs == Needs::Nothing => None,
            (Some(statistics), _) => Some((statistics.imatrix(), shown)),
            (None, path) => path.as_ref().map(|p| Imatrix::open(p)).transpose()?.map(|m| (m, shown)),
        };
        if let Some((imatrix, file)) = imatrix.as_ref().filter(|_| statistics.is_none()) {
            strangers(imatrix, model).at(|| file.clone())?.iter().for_each(|warning| reporter.note(warning));
        }
        Ok(Inputs { imatrix, statistics, method, exact_llama: self.exact_llama })
    }
}

/// A warning if entries are of weights that the model lacks.
///
/// Errors: all of them are.
fn strangers(imatrix: &Imatrix, model: &dyn Checkpoint) -> Result<Option<String>> {
    let strange: Vec<&String> = imatrix.entries().filter(|name| model.find(name).is_none()).collect();
    let all = imatrix.entries_count();
    match strange.first() {
        None => Ok(None),
        Some(_) if strange.len() == all => {
            Err(Error::request("no entry of this importance matrix is of a weight of the model")
                .help("collect one on this model: `quant calibrate MODEL -o STATS`"))
        }
        Some(first) => Ok(Some(format!(
            "warning: {} of {all} entries of the importance matrix are of weights that the model does not have ({first} first): \
             was it collected on another model?",
            strange.len()
        ))),
    }
}

impl Inputs {
    /// A conversion of `source` that makes use of them.
    pub fn request<'a>(&'a self, source: &'a dyn Checkpoint) -> Request<'a> {
        Request {
            source,
            imatrix: self.imatrix.as_ref().map(|(m, file)| (m, file.as_str())),
            statistics: self.statistics.as_ref(),
            fold: self.method.folds,
            feedback: self.method.feedback,
            search: self.method.search,
            exact_llama: self.exact_llama,
            allow_requantize: false,
            split_max_bytes: None,
            worker: Worker::Cpu,
        }
    }
}

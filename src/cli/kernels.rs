//! `quant kernels`: what NVRTC is given on a card, printed. Scripts compile it where there is no card.

use clap::Args;
use serde_json::{Value, json};

use super::report::Reporter;
use crate::device::cuda::source;
use crate::error::Result;

#[derive(Args)]
pub struct Kernels {
    /// As NVRTC names architectures
    #[arg(value_name = "sm_NN", required = true)]
    archs: Vec<String>,
}

impl Kernels {
    pub fn run(&self, reporter: &Reporter) -> Result<bool> {
        let units: Vec<Value> = source::units()?
            .iter()
            .map(|unit| {
                let options: serde_json::Map<String, Value> =
                    self.archs.iter().map(|arch| (arch.clone(), json!(unit.options(arch)))).collect();
                json!({"name": unit.name(), "kernels": unit.kernels().collect::<Vec<_>>(), "source": unit.source(), "options": options})
            })
            .collect();
        reporter.value(&json!({"units": units}))?;
        Ok(true)
    }
}

//! `quant devices`: where arithmetic can run here, and why not elsewhere.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::report::{Reporter, table};
use crate::device::cpu;
use crate::device::cuda::{CardInfo, Driver, Nvrtc, libraries};
use crate::error::{Error, Result};

#[derive(Args)]
pub struct Devices {}

/// What of CUDA was found.
struct Cuda {
    driver: (i32, i32),
    cards: Vec<CardInfo>,
    /// Major and minor version and where it lies, or why it cannot be used.
    nvrtc: Result<Nvrtc>,
    /// NVIDIA's products and factors, each where it lies if it loads.
    libraries: [(&'static str, Option<PathBuf>); 2],
}

impl Cuda {
    fn find() -> Result<Cuda> {
        let driver = Driver::open()?;
        let (driver, cards) = (driver.version, driver.cards()?);
        Ok(Cuda { driver, cards, nvrtc: Nvrtc::find(driver), libraries: libraries(driver) })
    }
}

impl Devices {
    pub fn run(&self, reporter: &Reporter) -> Result<bool> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let features = cpu::features();
        let cuda = Cuda::find();
        if reporter.json {
            let cuda = match &cuda {
                Ok(found) => found.json(),
                Err(e) => failure(e),
            };
            let cpu =
                json!({"device": "cpu", "arch": std::env::consts::ARCH, "threads": threads, "features": features});
            reporter.value(&json!({"cpu": cpu, "cuda": cuda}))?;
            return Ok(true);
        }
        let says = if features.is_empty() { "no vector units that it uses".to_owned() } else { features.join(" ") };
        let name = format!("{}, {threads} threads", std::env::consts::ARCH);
        let mut rows = vec![vec!["cpu".to_owned(), name, String::new(), says]];
        if let Ok(found) = &cuda {
            rows.extend(found.cards.iter().map(|c| found.row(c)));
        }
        reporter.text(&table(&["device", "what", "memory", "runs"], &[], rows))?;
        match &cuda {
            Err(e) => reporter.text(&format!("\nno cuda device: {e}"))?,
            Ok(Cuda { nvrtc: Err(e), .. }) => reporter.text(&format!("\nthe cards cannot be used: {e}"))?,
            Ok(Cuda { libraries, .. }) => {
                let rows = libraries.iter().map(|(name, path)| {
                    let path = path.as_ref().map_or_else(|| "not found".to_owned(), |p| p.display().to_string());
                    vec![(*name).to_owned(), path]
                });
                reporter.text(&format!("\n{}", table(&["library", "where"], &[], rows)))?;
                if libraries[0].1.is_none() {
                    let says = "without cuBLAS products are exact and many times as slow: `pip install nvidia-cublas` brings it";
                    reporter.text(&format!("\n{says}"))?;
                }
            }
        }
        Ok(true)
    }
}

fn failure(e: &Error) -> Value {
    json!({"error": e.message(), "help": e.advice()})
}

impl Cuda {
    fn row(&self, card: &CardInfo) -> Vec<String> {
        let (major, minor) = card.capability;
        let runs = match &self.nvrtc {
            Ok(n) => format!("NVRTC {}.{} ({})", n.version.0, n.version.1, n.path().display()),
            Err(_) => "nothing: there is no compiler for its kernels".to_owned(),
        };
        let what = format!(
            "{}, compute capability {major}.{minor}, {} multiprocessors, driver for CUDA {}.{}",
            card.name, card.multiprocessors, self.driver.0, self.driver.1
        );
        vec![format!("cuda:{}", card.index), what, format!("{:.1} GiB", card.memory as f64 / f64::from(1 << 30)), runs]
    }

    fn json(&self) -> Value {
        let cards: Vec<Value> = self
            .cards
            .iter()
            .map(|c| {
                json!({"device": format!("cuda:{}", c.index), "name": c.name, "memory": c.memory,
                    "capability": format!("{}.{}", c.capability.0, c.capability.1), "multiprocessors": c.multiprocessors})
            })
            .collect();
        let nvrtc = match &self.nvrtc {
            Ok(n) => json!({"version": format!("{}.{}", n.version.0, n.version.1), "path": n.path()}),
            Err(e) => failure(e),
        };
        let [(_, cublas), (_, cusolver)] = &self.libraries;
        json!({"driver": format!("{}.{}", self.driver.0, self.driver.1), "nvrtc": nvrtc, "cublas": cublas, "cusolver": cusolver, "cards": cards})
    }
}

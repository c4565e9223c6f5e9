//! Is the text enough? What statistics say about themselves.

use rayon::prelude::*;
use serde::Serialize;

use super::spectrum::{self, Spectrum};
use super::stats::Statistics;

#[derive(Clone, Debug, Serialize)]
pub struct Site {
    pub key: String,
    pub columns: usize,
    pub tokens: u64,
    pub held_out_tokens: u64,
    /// Inputs that were never anything but zero.
    pub dead: usize,
    /// See [`SiteStats::share`](super::stats::SiteStats::share).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    #[serde(flatten)]
    pub spectrum: Option<Spectrum>,
    #[serde(skip)]
    pub starved: bool,
}

impl Site {
    /// Which kind of site it is: `ffn_gate_exps`.
    pub fn kind(&self) -> &str {
        self.key.splitn(3, '.').nth(2).map_or(&self.key, |rest| rest.split('.').next().unwrap_or(rest))
    }

    /// `blk.3`; empty outside the layers.
    pub fn layer(&self) -> &str {
        self.key.match_indices('.').nth(1).map_or("", |(at, _)| &self.key[..at])
    }
}

/// All sites in the file's order. Runs in the caller's rayon pool: a Gram matrix takes its time.
pub fn of(statistics: &Statistics) -> Vec<Site> {
    let shapes = &statistics.about().sites;
    (0..shapes.len())
        .into_par_iter()
        .map(|i| {
            let (shape, stats) = (&shapes[i], statistics.nth(i));
            Site {
                key: shape.key.clone(),
                columns: shape.columns,
                tokens: stats.tokens,
                held_out_tokens: stats.held_out_tokens,
                dead: if stats.tokens == 0 { 0 } else { stats.absmax.iter().filter(|x| **x == 0.0).count() },
                share: stats.share,
                spectrum: stats.gram.as_ref().map(|g| spectrum::of(g, stats.tokens)),
                starved: stats.is_starved(),
            }
        })
        .collect()
}

//! Statistics of several runs as one: sums add up, so the means are weighted with tokens. Equal to one run over all the text but
//! for the rounding of the means to f32.

use std::path::Path;

use super::collect::means;
use super::layout::{Quantity, Split};
use super::stats::{About, Statistics};
use super::write::Writer;
use crate::error::{Error, Result};

/// Writes the statistics of all `files` together.
///
/// Errors: statistics of different models or with different contents; the same run twice.
pub fn merge(files: &[Statistics], output: &Path) -> Result<Statistics> {
    let Some((first, rest)) = files.split_first() else {
        return Err(Error::request("there is nothing to merge"));
    };
    let mut about = first.about().clone();
    for file in rest {
        check(&about, file.about())?;
        about.runs.extend(file.about().runs.iter().cloned());
    }
    let writer = Writer::open(output, about)?;
    writer.clear(output)?;
    for site in 0..first.about().sites.len() {
        for split in Split::ALL {
            Quantity::ALL.into_iter().try_for_each(|quantity| put(files, &writer, site, split, quantity))?;
        }
    }
    writer.finish()?;
    Statistics::open(output)
}

fn check(ours: &About, theirs: &About) -> Result<()> {
    let model = |a: &About| (a.arch.clone(), a.model_hash.clone(), a.tokenizer_hash.clone());
    if model(ours) != model(theirs) {
        return Err(Error::request(format!(
            "the statistics are of different models: {} and {}",
            ours.model, theirs.model
        ))
        .help("merge files that were made of one model"));
    }
    if ours.gram != theirs.gram || ours.sites != theirs.sites || ours.weights != theirs.weights {
        return Err(Error::request(
            "the files do not hold the same statistics: one has Gram matrices or sites that another lacks",
        )
        .help("make all of them with --gram, or none"));
    }
    let known = |hash: &String| ours.runs.iter().any(|r| r.tokens_hash == *hash);
    if theirs.runs.iter().any(|r| known(&r.tokens_hash)) {
        return Err(Error::request("the same text would count twice: two files hold the same run")
            .help("give every part its own --shard, --seed or --data"));
    }
    Ok(())
}

fn put(files: &[Statistics], writer: &Writer, site: usize, split: Split, quantity: Quantity) -> Result<()> {
    let count = |file: &Statistics| match quantity {
        Quantity::Gram | Quantity::WeightedMeanSquare => file.weight(site, split),
        _ => file.tokens(site, split) as f64,
    };
    let part = |file: &Statistics| file.part(site, (split, quantity)).map(|p| p.into_owned());
    writer.put(site, (split, quantity), &|out| match quantity {
        Quantity::Tokens => out(&files.iter().map(|f| f.tokens(site, split)).sum::<u64>().to_le_bytes()),
        Quantity::Weight => out(&files.iter().map(|f| f.weight(site, split)).sum::<f64>().to_le_bytes()),
        Quantity::AbsMax => {
            let mut most: Vec<f32> = Vec::new();
            for values in files.iter().filter_map(part) {
                most.resize(values.len(), 0.0);
                most.iter_mut().zip(values).for_each(|(m, v)| *m = m.max(v));
            }
            out(&most.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
        }
        _ => {
            let mut sums: Vec<f64> = Vec::new();
            for file in files {
                let (Some(values), count) = (file.part(site, (split, quantity)), count(file)) else { continue };
                sums.resize(values.len(), 0.0);
                sums.iter_mut().zip(values.iter()).for_each(|(sum, v)| *sum += f64::from(*v) * count);
            }
            means(&sums, files.iter().map(count).sum(), out)
        }
    })
}

//! `--kv`: cache types in place of files.

use std::borrow::Cow;

use super::report::Report;
use super::{Artifact, Eval, Source, same_tokenizers, tokens};
use crate::cli::Common;
use crate::cli::kv::Matrix;
use crate::cli::quality;
use crate::cli::report::Reporter;
use crate::codec::kv::KvPolicy;
use crate::device::Worker;
use crate::error::{At, Error, Result};
use crate::eval;
use crate::eval::reference::Conditions;

impl Eval {
    /// Cache types, artifact by artifact.
    pub(super) fn caches(
        &self,
        artifacts: &[Artifact],
        source: Option<&Source>,
        policies: &[KvPolicy],
        common: &Common,
        reporter: &Reporter,
    ) -> Result<Report> {
        let prepared = source.map(|source| source.prepare(&self.text, reporter)).transpose()?;
        if let Some((_, conditions, _)) = &prepared {
            same_tokenizers(artifacts, &conditions.tokenizer_hash, "the reference's")?;
        }
        // Beside a reference the weights' own loss comes first.
        let own = (source.is_some() && !policies.iter().any(KvPolicy::is_full)).then(KvPolicy::default);
        let policies: Vec<KvPolicy> = own.into_iter().chain(policies.iter().cloned()).collect();
        let mut found = Vec::new();
        for artifact in artifacts {
            let (windows, conditions) = match &prepared {
                Some((windows, conditions, _)) => (Cow::Borrowed(windows), conditions.clone()),
                None => {
                    let (windows, conditions) = self.text.prepare(artifact.1.checkpoint.as_ref(), reporter)?;
                    (Cow::Owned(windows), conditions)
                }
            };
            let bar = reporter.tokens("evaluate", tokens(&windows) * (policies.len() as u64 + 1));
            let positions = eval::longest(&windows);
            let engine = || self.engine(artifact.1.checkpoint.as_ref(), positions);
            let reference = source.map(|source| source.ready(positions, Worker::Cpu)).transpose()?;
            let reference = reference.zip(prepared.as_ref().map(|(_, _, facts)| facts.clone()));
            let progress = |n| bar.advance(n);
            let (check, threads) = (self.check_decode, common.threads());
            let matrix = Matrix::measure(&engine, reference, &policies, &windows, check, threads, &progress)
                .at(|| artifact.0.clone())?;
            bar.finish();
            found.push((artifact, self.judged(conditions), matrix));
        }
        let jsons: Vec<_> =
            found.iter().map(|((path, m), _, x)| x.json(path, &m.name, m.checkpoint.as_ref())).collect();
        let Some((_, conditions, first)) = found.first() else { return Err(Error::request("there is no artifact")) };
        let prefix = |path: &str| if found.len() > 1 { format!("{path}: ") } else { String::new() };
        let named = |((path, _), _, matrix): &(&Artifact, Conditions, Matrix)| {
            let name = |mut cells: Vec<String>| {
                cells[0] = format!("{}{}", prefix(path), cells[0]);
                cells
            };
            matrix.cells().into_iter().map(name).collect::<Vec<_>>()
        };
        let (scored, perplexity) = first.rows.first().map(|r| (r.whole.tokens, r.whole.reference_perplexity)).unzip();
        let path = self.reference.as_deref().unwrap_or_default();
        let reference = prepared.as_ref().map(|(_, _, facts)| quality::to_json_reference(path, facts, perplexity));
        let mut notes = first.notes(conditions);
        let scales = |((path, _), _, matrix): &(&Artifact, Conditions, Matrix)| {
            matrix.scales().map(|scales| format!("{}{scales}", prefix(path)))
        };
        notes.extend(found.iter().filter_map(scales));
        notes.extend(found.iter().flat_map(|(_, _, matrix)| matrix.warnings()));
        Ok(Report {
            header: first.header().into_iter().map(Cow::Owned).collect(),
            cells: found.iter().flat_map(named).collect(),
            more: found.iter().map(|(_, _, matrix)| matrix.sizes()).collect(),
            notes,
            json: serde_json::json!({"protocol": conditions.protocol, "tokens": scored, "conditions": conditions,
                "reference": reference, "artifacts": jsons}),
        })
    }
}

//! What does the model write? Greedily, many items side by side.

use super::{Found, Kind, Outcome, Prepared, Question, Subject};
use crate::engine::generate::{Ask, greedy};
use crate::engine::utf8::Utf8;
use crate::error::Result;

pub const KIND: Kind = Kind {
    name: "generate",
    about: "whether what greedy decoding writes is right, by a check",
    metrics: &["acc"],
    run,
};

/// What was written so far.
#[derive(Default)]
struct Said {
    bytes: Utf8,
    text: String,
    tokens: Vec<u32>,
}

fn run(subject: &Subject<'_>, items: &[Prepared<'_>], progress: &dyn Fn(u64)) -> Result<Vec<Outcome>> {
    let words = subject.words;
    let asks: Vec<Ask<'_>> = items
        .iter()
        .filter_map(|p| match &p.item.question {
            Question::Generate { limit, .. } => Some(Ask { prompt: &p.windows.first()?.tokens, limit: *limit }),
            _ => None,
        })
        .collect();
    let mut said: Vec<Said> = asks.iter().map(|_| Said::default()).collect();
    let mut each = |index: usize, token: u32| {
        let Said { bytes, text, tokens } = &mut said[index];
        tokens.push(token);
        text.push_str(&bytes.push(&words.tokenizer.piece(token)));
        Ok(stops(&items[index].item.question).iter().all(|stop| !text.contains(stop.as_str())))
    };
    greedy(&subject.candidate.engine, &asks, &words.ends, &mut each, progress)?;
    items.iter().zip(said).map(|(p, said)| outcome(&p.item.question, said)).collect()
}

fn stops(question: &Question) -> &[String] {
    match question {
        Question::Generate { stop, .. } => stop,
        _ => &[],
    }
}

fn outcome(question: &Question, mut said: Said) -> Result<Outcome> {
    said.text.push_str(said.bytes.finish());
    let end = stops(question).iter().filter_map(|stop| said.text.find(stop.as_str())).min();
    let text = said.text[..end.unwrap_or(said.text.len())].to_owned();
    let right = match question {
        Question::Generate { judge, .. } => judge(&text)?,
        _ => false,
    };
    Ok(Outcome { marks: vec![right], said: text, found: Found::Tokens(said.tokens) })
}

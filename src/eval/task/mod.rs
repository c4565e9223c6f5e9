//! Tasks: what a model is asked about rows of data, and when it is right. One TOML file a task, in `evals/tasks` or the user's
//! own; one file a kind of question, one a kind of check.

mod branch;
pub mod check;
mod choice;
pub mod file;
mod generate;
mod predict;
pub mod presets;
mod rows;
mod template;

use std::ops::Range;

use check::Judge;
pub use file::{File, Wishes, load};

use super::Candidate;
use super::protocol::Window;
use crate::container::Checkpoint;
use crate::container::tokenizer::{self, Tokenizer};
use crate::engine::chat::{self, Message};
use crate::engine::sample::Random;
use crate::error::{At, Error, Result};
use crate::metadata::Metadata;

/// Items, ready to be put to any model.
pub struct Task {
    pub name: String,
    pub about: String,
    pub kind: &'static Kind,
    /// A row of [`check::CHECKS`], where what is written is judged.
    pub check: Option<String>,
    pub items: Vec<Item>,
}

pub struct Item {
    /// As the rows name it.
    pub id: String,
    pub question: Question,
    /// What it is counted by, besides all together.
    pub group: Option<String>,
}

pub enum Question {
    /// Which continuation of its prompt is the most likely one?
    Choice { prompts: Vec<String>, choices: Vec<String>, gold: usize },
    /// Would greedy decoding write this?
    Predict { prompt: String, answer: String },
    /// Is what greedy decoding writes right?
    Generate { prompt: String, chat: bool, stop: Vec<String>, limit: usize, expected: String, judge: Judge },
}

type Run = fn(&Subject<'_>, &[Prepared<'_>], &dyn Fn(u64)) -> Result<Vec<Outcome>>;

/// A kind of question.
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    /// The marks that an item gets, the most usual first.
    pub metrics: &'static [&'static str],
    /// Outcomes of items, in order.
    run: Run,
}

pub static KINDS: &[Kind] = &[choice::KIND, predict::KIND, generate::KIND];

/// How a model did on one item.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// One for each of the kind's metrics.
    pub marks: Vec<bool>,
    /// Its answer, for people.
    pub said: String,
    /// What it was judged by.
    pub found: Found,
}

/// What a model made of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// Log-likelihoods of the choices, or of the one answer.
    Likelihoods(Vec<f64>),
    /// What it wrote, without the token that ended it.
    Tokens(Vec<u32>),
}

/// What becomes of items that are longer than the model's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlong {
    Error,
    /// Left out, and counted.
    Skip,
    /// Its beginning is cut off, and that is counted.
    LeftTruncate,
}

/// An item as tokens.
struct Prepared<'a> {
    item: &'a Item,
    /// Texts whose scored positions are judged; for `generate` one, a prompt without any.
    windows: Vec<Window>,
}

/// A task under a tokenizer.
pub struct Exam<'a> {
    pub task: &'a Task,
    prepared: Vec<Prepared<'a>>,
    pub skipped: usize,
    pub truncated: usize,
    /// Positions that an engine needs.
    pub positions: usize,
    /// Tokens that a model reads, at most.
    pub tokens: u64,
}

/// A model that is asked.
pub struct Subject<'a> {
    pub candidate: &'a Candidate<'a>,
    pub words: &'a Words,
}

/// How a model's texts become tokens, and back.
pub struct Words {
    metadata: Metadata,
    tokenizer: Tokenizer,
    bos: Option<u32>,
    ends: Vec<u32>,
    /// The longest text that the model is made for.
    context: usize,
}

impl Words {
    pub fn of(checkpoint: &dyn Checkpoint) -> Result<Words> {
        let (metadata, tokenizer) = (checkpoint.metadata()?, checkpoint.tokenizer()?);
        let bos = tokenizer::leading_bos(&metadata, &tokenizer)?;
        let ends = tokenizer::end_tokens(&metadata)?;
        let context = checkpoint.family().and_then(|(_, spec)| spec.context).map_or(usize::MAX, |n| n as usize);
        Ok(Words { metadata, tokenizer, bos, ends, context })
    }

    /// `text` and what follows it, the way lm-evaluation-harness divides them: spaces at the end of the text belong to what
    /// follows, whose tokens are those of both together behind as many as the text alone has.
    fn pair(&self, text: &str, continuation: &str) -> Result<Window> {
        let kept = text.trim_end_matches(char::is_whitespace);
        // With nothing else in front, the text is all there is to predict from.
        let (text, moved) = if kept.is_empty() { (text, "") } else { text.split_at(kept.len()) };
        let encode = |s: &str| self.tokenizer.encode(s, false, false);
        let (front, whole) = (encode(text)?, encode(&format!("{text}{moved}{continuation}"))?);
        let tokens: Vec<u32> = self.bos.into_iter().chain(whole).collect();
        // Without BOS, nothing predicts a first token.
        let known = (front.len() + usize::from(self.bos.is_some())).max(1);
        if known >= tokens.len() {
            return Err(Error::input(format!("{continuation:?} has no tokens of its own")));
        }
        Ok(Window { scored: known - 1..tokens.len() - 1, tokens })
    }

    fn prompt(&self, text: &str, chat: bool) -> Result<Vec<u32>> {
        match chat {
            true => {
                let message = [Message { role: "user", content: text }];
                chat::tokens(&self.metadata, &self.tokenizer, &chat::prompt(&self.metadata, &self.tokenizer, &message)?)
            }
            false => {
                let tokens: Vec<u32> = self.bos.into_iter().chain(self.tokenizer.encode(text, false, false)?).collect();
                match tokens.is_empty() {
                    true => Err(Error::input("the prompt has no tokens")),
                    false => Ok(tokens),
                }
            }
        }
    }
}

impl<'a> Exam<'a> {
    /// Errors: a question without tokens; one beyond the context, if that is how they are to be treated.
    pub fn new(task: &'a Task, words: &Words, overlong: Overlong) -> Result<Exam<'a>> {
        let mut exam = Exam { task, prepared: Vec::new(), skipped: 0, truncated: 0, positions: 0, tokens: 0 };
        for item in &task.items {
            let place = || format!("item {} of {}", item.id, task.name);
            let (mut windows, room) = item.question.windows(words).at(place)?;
            let longest = windows.iter().map(|w| w.tokens.len()).max().unwrap_or(0);
            let over = (longest + room).saturating_sub(words.context);
            if over > 0 {
                match overlong {
                    Overlong::Error => {
                        return Err(Error::request(format!(
                            "{longest} tokens and room for {room} are {over} more than the model's context of {}",
                            words.context
                        ))
                        .at(place())
                        .help("pass --overlong skip, or --overlong left-truncate; the table counts them"));
                    }
                    Overlong::Skip => {
                        exam.skipped += 1;
                        continue;
                    }
                    Overlong::LeftTruncate => {
                        windows
                            .iter_mut()
                            .try_for_each(|w| cut(w, words.context - room.min(words.context)))
                            .at(place)?;
                        exam.truncated += 1;
                    }
                }
            }
            let most = windows.iter().map(|w| w.tokens.len()).max().unwrap_or(0);
            exam.positions = exam.positions.max(most + room);
            exam.tokens += windows.iter().map(|w| w.tokens.len() as u64).sum::<u64>() + room as u64;
            exam.prepared.push(Prepared { item, windows });
        }
        if exam.prepared.is_empty() {
            return Err(Error::request(format!("all {} items are longer than the model's context", exam.skipped))
                .at(task.name.clone()));
        }
        Ok(exam)
    }

    /// BLAKE3 of every question as it is put, and of what is right: 16 hex digits.
    pub fn hash(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for p in &self.prepared {
            for w in &p.windows {
                hash.update(&(w.tokens.len() as u64).to_le_bytes());
                for token in &w.tokens {
                    hash.update(&token.to_le_bytes());
                }
            }
            hash.update(p.item.question.expected().as_bytes()).update(&[0]);
        }
        hash.finalize().to_hex()[..16].to_owned()
    }

    pub fn len(&self) -> usize {
        self.prepared.len()
    }

    pub fn is_empty(&self) -> bool {
        self.prepared.is_empty()
    }

    /// Puts the items in random order, always the same.
    pub fn shuffle(&mut self) {
        let mut random = Random::new(0);
        for i in (1..self.prepared.len()).rev() {
            self.prepared.swap(i, ((i + 1) as f64 * random.uniform()) as usize);
        }
    }

    /// Leaves the first items.
    pub fn truncate(&mut self, count: usize) {
        self.prepared.truncate(count);
    }

    /// Items that are asked.
    pub fn items(&self) -> impl Iterator<Item = &'a Item> + '_ {
        self.prepared.iter().map(|p| p.item)
    }

    /// The model's outcomes for some of the items, in the order of [`Exam::items`]. `progress` is called with tokens; of those
    /// that were counted for items which end early, all are told. Runs in the caller's rayon pool.
    pub fn ask(&self, subject: &Subject<'_>, items: Range<usize>, progress: &dyn Fn(u64)) -> Result<Vec<Outcome>> {
        let items = self.prepared.get(items).unwrap_or_default();
        (self.task.kind.run)(subject, items, progress).at(|| subject.candidate.name.clone())
    }
}

impl Question {
    /// Texts that are run, and positions that are needed behind them.
    fn windows(&self, words: &Words) -> Result<(Vec<Window>, usize)> {
        Ok(match self {
            Question::Choice { prompts, choices, .. } => {
                let pairs = prompts.iter().zip(choices).map(|(p, c)| words.pair(p, c));
                (pairs.collect::<Result<_>>()?, 0)
            }
            Question::Predict { prompt, answer } => (vec![words.pair(prompt, answer)?], 0),
            Question::Generate { prompt, chat, limit, .. } => {
                (vec![Window { tokens: words.prompt(prompt, *chat)?, scored: 0..0 }], *limit)
            }
        })
    }

    /// What is put to the model, for people.
    pub fn asked(&self) -> &str {
        match self {
            Question::Choice { prompts, .. } => prompts.first().map_or("", String::as_str),
            Question::Predict { prompt, .. } | Question::Generate { prompt, .. } => prompt,
        }
    }

    /// What is right, for people.
    pub fn expected(&self) -> &str {
        match self {
            Question::Choice { choices, gold, .. } => choices.get(*gold).map_or("", |c| c.trim()),
            Question::Predict { answer, .. } => answer,
            Question::Generate { expected, .. } => expected,
        }
    }
}

/// Leaves the last `most` tokens.
fn cut(window: &mut Window, most: usize) -> Result<()> {
    let gone = window.tokens.len().saturating_sub(most);
    // Of what is to be written nothing is judged yet.
    let judged = !window.scored.is_empty();
    if most == 0 || judged && window.scored.start < gone {
        return Err(Error::request("what is judged is itself longer than the model's context"));
    }
    window.tokens.drain(..gone);
    if judged {
        window.scored = window.scored.start - gone..window.scored.end - gone;
    }
    Ok(())
}

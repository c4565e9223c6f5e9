//! `quant generate`: what a model says, to see with one's own eyes that an artifact works.

use clap::Args;
use serde_json::json;

use super::report::Reporter;
use super::{Common, model};
use crate::codec::kv::KvPolicy;
use crate::container::{Checkpoint, OpenOptions, tokenizer};
use crate::device::cpu;
use crate::engine::chat::{self, Message};
use crate::engine::generate::{Generated, Stopped, generate};
use crate::engine::sample::{Sampler, Sampling};
use crate::engine::{Engine, utf8::Utf8};
use crate::error::{Error, Result};

/// More positions than any model is trained on; below, no table made from them is large.
const MOST: i64 = 1 << 20;

#[derive(Args)]
pub struct Generate {
    /// A GGUF file, a Hugging Face folder or hf:org/name[@revision]
    artifact: String,
    /// What the model continues, or with --chat answers
    #[arg(long, short)]
    prompt: String,
    /// Put the prompt into the model's own chat template
    #[arg(long)]
    chat: bool,
    /// The system message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    tokens: u32,
    /// Positions of prompt and answer together [default: as needed, at most the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    context: Option<u32>,
    /// Randomness; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Choose among the K most likely tokens [default: all]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
    /// Choose among the most likely tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Choose among tokens at least P times as likely as the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// The same seed makes the same choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How keys and values are kept: a type of `quant list kv`, or KEYS/VALUES, and what stays in f16, as in
    /// `q4h/q8_0+sink4` [default: f32]
    #[arg(long, value_name = "TYPE")]
    kv: Option<String>,
    /// llama.cpp's name of the pre-tokenizer, where quant cannot recognise it
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
}

/// How many positions there are, and how many of them are left for the answer.
struct Room {
    positions: usize,
    tokens: usize,
}

impl Generate {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let kv: KvPolicy = self.kv.as_ref().map(|kv| kv.parse()).transpose()?.unwrap_or_default();
        let mut sampler = Sampler::new(Sampling {
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(0) as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
        })?;
        let model = model::open(&self.artifact, &OpenOptions { pre: self.pre.clone() }, reporter)?;
        let checkpoint = model.checkpoint.as_ref();
        let (metadata, tokenizer) = (checkpoint.metadata()?, checkpoint.tokenizer()?);
        let text = if self.chat {
            let system = self.system.iter().map(|content| Message { role: "system", content });
            let messages: Vec<_> = system.chain([Message { role: "user", content: &self.prompt }]).collect();
            chat::prompt(&metadata, &tokenizer, &messages)?
        } else {
            self.prompt.clone()
        };
        let prompt = chat::tokens(&metadata, &tokenizer, &text)?;
        let ends = tokenizer::end_tokens(&metadata)?;
        let room = self.room(checkpoint, prompt.len())?;
        let (mut utf8, mut text) = (Utf8::default(), String::new());
        let mut write = |part: &str| {
            text.push_str(part);
            if reporter.json { Ok(true) } else { reporter.stream(part) }
        };
        let generated = cpu::pool(common.threads())?.install(|| {
            let engine = Engine::new(checkpoint, room.positions)?.with_kv(kv)?;
            let mut each = |token| write(&utf8.push(&tokenizer.piece(token)));
            generate(&engine, &prompt, room.tokens, &ends, &mut sampler, &mut each)
        })?;
        write(utf8.finish())?;
        self.report(reporter, prompt.len(), &room, &generated, &text)?;
        Ok(true)
    }

    /// Errors: a prompt that leaves no room for a token.
    fn room(&self, checkpoint: &dyn Checkpoint, prompt: usize) -> Result<Room> {
        let own = checkpoint.family().and_then(|(_, spec)| spec.context).map_or(usize::MAX, |c| c as usize);
        let given = self.context.map(|c| c as usize);
        if let Some(given) = given.filter(|given| *given > own) {
            let over = given - own;
            return Err(Error::request(format!("a context of {given} is {over} more than the model's {own}")));
        }
        let tokens = self.tokens as usize;
        let positions = given.unwrap_or(own.min(prompt.saturating_add(tokens)));
        if prompt >= positions {
            let over = prompt + 1 - positions;
            let error = Error::request(format!(
                "the prompt has {prompt} tokens: with one to generate, {over} more than the context of {positions}"
            ));
            return Err(match given {
                Some(given) if given < own => error.help("shorten the prompt or raise --context"),
                _ => error.help("shorten the prompt: the model has no larger context"),
            });
        }
        Ok(Room { positions, tokens: tokens.min(positions - prompt) })
    }

    fn report(&self, reporter: &Reporter, prompt: usize, room: &Room, done: &Generated, text: &str) -> Result<()> {
        let (seconds, n) = (done.time.as_secs_f64(), done.tokens.len());
        let prompt_seconds = done.prompt_time.as_secs_f64();
        let rate = |n: usize, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        if reporter.json {
            let stopped = if done.stopped == Stopped::End { "eos" } else { "length" };
            return reporter.value(&json!({"prompt_tokens": prompt, "generated_tokens": n, "text": text,
                "tokens": done.tokens, "stopped": stopped, "context": room.positions,
                "prompt_seconds": prompt_seconds, "seconds": seconds,
                "prompt_tokens_per_second": rate(prompt, prompt_seconds), "tokens_per_second": rate(n, seconds)}));
        }
        reporter.text("")?;
        if done.stopped == Stopped::Length && room.tokens < self.tokens as usize {
            reporter.note(&format!("the context of {} is full", room.positions));
        }
        reporter.note(&format!(
            "{prompt} prompt tokens, {:.1} tokens/s; {n} generated, {:.1} tokens/s",
            rate(prompt, prompt_seconds),
            rate(n, seconds)
        ));
        Ok(())
    }
}

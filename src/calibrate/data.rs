//! Text to run a model on: from documents of several sources to sequences of tokens.

use std::cell::Cell;
use std::path::Path;

use super::layout::Split;
use super::random::Random;
use super::stats::Corpus;
use crate::container::Checkpoint;
use crate::container::tokenizer::{self, Tokenizer};
use crate::engine::chat;
use crate::error::{At, Error, Result};
use crate::eval::text;
use crate::metadata::Metadata;

/// Documents, and their part of the tokens.
pub struct Source {
    pub name: String,
    pub hash: String,
    pub weight: f64,
    pub documents: Vec<String>,
    /// Documents are conversations in the model's own template, whose special tokens are read as such.
    pub chat: bool,
}

/// A model's tokenizer, and what it puts where.
pub struct Tokens {
    tokenizer: Tokenizer,
    metadata: Metadata,
    bos: Option<u32>,
    /// Between packed documents, for a model without BOS.
    end: Option<u32>,
}

#[derive(Clone, Debug)]
pub struct Sequence {
    pub tokens: Vec<u32>,
    pub split: Split,
}

/// How much text, and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// As many tokens as `rows` of `length`; no sequence is longer than `length`.
    pub rows: usize,
    pub length: usize,
    pub seed: u64,
    /// Part of the sequences that is kept apart.
    pub held_out: f64,
    /// Sequences go on across the ends of documents.
    pub pack: bool,
    /// Which part (from 1) of how many.
    pub shard: (usize, usize),
}

pub struct Draw {
    /// Those to fit on, then the held-out ones.
    pub sequences: Vec<Sequence>,
    pub corpora: Vec<Corpus>,
}

impl Source {
    /// A file as [`text::Corpus::load`] reads it.
    pub fn file(path: &Path, weight: f64, tokens: &Tokens) -> Result<Source> {
        let rendered = Cell::new(false);
        let corpus = text::Corpus::load(&[path.to_owned()], &|row| {
            rendered.set(true);
            chat::render(&tokens.metadata, &tokens.tokenizer, row)
        })?;
        Ok(Source { name: corpus.name, hash: corpus.hash, weight, documents: corpus.documents, chat: rendered.get() })
    }
}

impl Tokens {
    pub fn of(checkpoint: &dyn Checkpoint) -> Result<Tokens> {
        let (tokenizer, metadata) = (checkpoint.tokenizer()?, checkpoint.metadata()?);
        let bos = tokenizer::leading_bos(&metadata, &tokenizer)?;
        let end = tokenizer::special_id(&metadata, "eos");
        Ok(Tokens { tokenizer, metadata, bos, end })
    }

    /// For [`Source`]s whose conversations are to be rendered.
    pub fn render(&self, conversation: &serde_json::Value) -> Result<String> {
        chat::render(&self.metadata, &self.tokenizer, conversation)
    }

    pub fn has_template(&self) -> bool {
        tokenizer::templates(&self.metadata).iter().any(|(name, _)| *name == "default")
    }

    /// What is done about special tokens, in words.
    pub fn policy(&self, pack: bool) -> String {
        let name = |id: u32| self.tokenizer.token(id).unwrap_or_else(|| id.to_string());
        let start = match self.bos {
            Some(bos) => format!("{} in front of every sequence", name(bos)),
            None => "nothing in front of a sequence, for the model wants no BOS".into(),
        };
        let between = match (pack, self.bos.or(self.end)) {
            (false, _) => String::new(),
            (true, Some(id)) => format!("; {} between documents", name(id)),
            (true, None) => "; nothing between documents".into(),
        };
        format!("{start}{between}; special tokens are read in conversations, elsewhere their text is plain text")
    }

    /// A text on its own, without special tokens.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, false)
    }

    /// Without BOS.
    fn encode(&self, text: &str, chat: bool) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text, false, chat)?;
        if self.bos.is_some() && ids.first() == self.bos.as_ref() {
            ids.remove(0);
        }
        Ok(ids)
    }
}

/// Draws sequences: documents in random order, first one sequence of each, then a second of those that are longer, until the
/// source's share of the tokens is reached. The same seed draws the same.
///
/// Errors: no tokens at all.
pub fn draw(sources: &[Source], tokens: &Tokens, amount: &Amount) -> Result<Draw> {
    let total: f64 = sources.iter().map(|s| s.weight).sum();
    let budget = amount.rows.saturating_mul(amount.length);
    let (mut sequences, mut corpora) = (Vec::new(), Vec::new());
    for (i, source) in sources.iter().enumerate() {
        let share = (budget as f64 * source.weight / total).round() as usize;
        let random = Random::new(amount.seed, &format!("{i} {}", source.hash));
        let (drawn, documents) = take(source, tokens, amount, share, random).at(|| source.name.clone())?;
        corpora.push(Corpus {
            name: source.name.clone(),
            hash: source.hash.clone(),
            weight: source.weight,
            documents,
            tokens: drawn.iter().map(|s| s.len() as u64).sum(),
        });
        sequences.extend(drawn.into_iter().map(|tokens| (i, tokens)));
    }
    if sequences.is_empty() {
        return Err(Error::input("the text has no tokens").help("give more text, or a larger --rows"));
    }
    Random::new(amount.seed, "order").shuffle(&mut sequences);
    let held_out = held_out(sequences.len(), amount.held_out);
    let (shard, shards) = amount.shard;
    if shards > 1 {
        corpora.iter_mut().for_each(|c| c.tokens = 0);
    }
    let mut parts = [Vec::new(), Vec::new()];
    for (i, (source, tokens)) in sequences.into_iter().enumerate() {
        if i % shards != shard - 1 {
            continue;
        }
        if shards > 1 {
            corpora[source].tokens += tokens.len() as u64;
        }
        let split = if i < held_out { Split::HeldOut } else { Split::Fit };
        parts[usize::from(i < held_out)].push(Sequence { tokens, split });
    }
    let [mut sequences, rest] = parts;
    sequences.extend(rest);
    if sequences.is_empty() {
        return Err(
            Error::request(format!("no sequences are left for shard {shard} of {shards}")).help("use fewer shards")
        );
    }
    Ok(Draw { sequences, corpora })
}

/// Of `n` sequences: the part asked for, but at least one where there are a few.
fn held_out(n: usize, share: f64) -> usize {
    let wanted = (n as f64 * share).round() as usize;
    if share > 0.0 && n >= 4 { wanted.max(1) } else { wanted }
}

/// Sequences of one source, and the number of documents they come from.
fn take(
    source: &Source,
    tokens: &Tokens,
    amount: &Amount,
    budget: usize,
    mut random: Random,
) -> Result<(Vec<Vec<u32>>, usize)> {
    let mut pieces: Vec<&str> = source.documents.iter().flat_map(|d| pieces(d)).collect();
    random.shuffle(&mut pieces);
    if amount.pack {
        return packed(&pieces, source.chat, tokens, amount.length, budget);
    }
    let mut left = budget;
    let mut out = Vec::new();
    let mut encoded: Vec<Vec<Vec<u32>>> = Vec::new();
    let mut documents = 0;
    for round in 0.. {
        let before = out.len();
        for (i, piece) in pieces.iter().enumerate() {
            if left == 0 {
                return Ok((out, documents));
            }
            if round == 0 {
                let mut parts = cut(&tokens.encode(piece, source.chat)?, tokens.bos, amount.length);
                random.shuffle(&mut parts);
                encoded.push(parts);
            }
            if let Some(mut sequence) = encoded[i].pop() {
                sequence.truncate(left);
                left -= sequence.len();
                out.push(sequence);
                documents += usize::from(round == 0);
            }
        }
        if out.len() == before {
            break;
        }
    }
    Ok((out, documents))
}

/// A shorter rest of a longer document has too little context to be typical.
const SHORTEST_REST: usize = 32;

/// At most `length` tokens each, BOS included.
fn cut(document: &[u32], bos: Option<u32>, length: usize) -> Vec<Vec<u32>> {
    let parts = document.chunks(length.saturating_sub(usize::from(bos.is_some())).max(1)).enumerate();
    let kept = parts.filter(|(i, part)| *i == 0 || part.len() >= SHORTEST_REST.min(length / 2));
    kept.map(|(_, part)| bos.iter().chain(part).copied().collect()).collect()
}

fn packed(
    pieces: &[&str],
    chat: bool,
    tokens: &Tokens,
    length: usize,
    budget: usize,
) -> Result<(Vec<Vec<u32>>, usize)> {
    let mut stream = Vec::new();
    let mut documents = 0;
    for piece in pieces.iter() {
        if stream.len() >= budget {
            break;
        }
        stream.extend(tokens.bos);
        stream.extend(tokens.encode(piece, chat)?);
        stream.extend(tokens.end.filter(|_| tokens.bos.is_none()));
        documents += 1;
    }
    stream.truncate(budget);
    Ok((stream.chunks(length).map(<[u32]>::to_vec).collect(), documents))
}

/// A long text is drawn from in parts, so that little of it needs to be tokenized.
const LONG: usize = 256 << 10;
const PIECE: usize = 64 << 10;

/// The document, or parts of a long one that end with a line where they can.
fn pieces(document: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = document;
    while rest.len() > LONG || (!out.is_empty() && rest.len() > PIECE) {
        let mut end = PIECE;
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let end = rest[..end].rfind('\n').map_or(end, |line| line + 1);
        let (piece, after) = rest.split_at(end);
        out.push(piece);
        rest = after;
    }
    out.push(rest);
    out
}

/// BLAKE3 of the sequences.
pub fn hash(sequences: &[Sequence]) -> String {
    let mut hasher = blake3::Hasher::new();
    for s in sequences {
        hasher.update(&[s.split as u8]);
        hasher.update(&(s.tokens.len() as u64).to_le_bytes());
        s.tokens.iter().for_each(|t| {
            hasher.update(&t.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_to_length_and_short_rests_dropped() {
        let document: Vec<u32> = (0..250).collect();
        let parts = cut(&document, Some(999), 100);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 53]);
        assert!(parts.iter().all(|p| p[0] == 999));
        assert_eq!(cut(&document[..210], None, 100).len(), 2);
        assert_eq!(cut(&document[..3], None, 100), [vec![0, 1, 2]]);
        assert!(cut(&[], None, 100).is_empty());
    }

    #[test]
    fn long_texts_fall_into_pieces_and_lose_nothing() {
        let text = "a line of some text, é\n".repeat(20_000);
        let found = pieces(&text);
        assert!(found.len() > 5 && found.iter().all(|p| p.len() <= PIECE && p.ends_with('\n')));
        assert_eq!(found.concat(), text);
        let unbroken = "é".repeat(300 << 10);
        assert_eq!(pieces(&unbroken).concat(), unbroken);
        assert_eq!(pieces("short"), ["short"]);
    }

    #[test]
    fn a_part_is_held_out() {
        assert_eq!([0, 1, 3, 4, 14, 100].map(|n| held_out(n, 0.1)), [0, 0, 0, 1, 1, 10]);
        assert_eq!(held_out(100, 0.0), 0);
    }
}

//! Both ways in which llama.cpp merges letters into tokens. Source: llama.cpp `src/llama-vocab.cpp`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tokenizers::utils::SysRegex;

use super::bytes;
use super::pres::Pre;
use crate::error::{Error, Result};

/// A run of the text that is one symbol so far. Merged-away symbols have length 0.
#[derive(Clone, Copy)]
struct Symbol<S> {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
    is: S,
}

/// Merges neighbours, best first and leftmost among equals, until `join` knows no more pairs.
/// `join` gives the priority of a pair and what it becomes.
fn merge_all<S: Copy, P: Ord>(symbols: &mut [Symbol<S>], join: impl Fn(&Symbol<S>, &Symbol<S>) -> Option<(P, S)>) {
    let mut queue = BinaryHeap::new();
    let candidate = |symbols: &[Symbol<S>], left: usize, right: usize| {
        let (priority, _) = join(&symbols[left], &symbols[right])?;
        Some((priority, Reverse(left), right, symbols[left].len + symbols[right].len))
    };
    for right in 1..symbols.len() {
        queue.extend(candidate(symbols, right - 1, right));
    }
    while let Some((_, Reverse(left), right, len)) = queue.pop() {
        let (a, b) = (symbols[left], symbols[right]);
        // Stale when either side has been merged elsewhere since.
        if a.len == 0 || b.len == 0 || a.len + b.len != len {
            continue;
        }
        let Some((_, is)) = join(&a, &b) else { continue };
        symbols[left] = Symbol { len, next: b.next, is, ..a };
        symbols[right].len = 0;
        if let Some(next) = b.next {
            symbols[next].prev = Some(left);
            queue.extend(candidate(symbols, left, next));
        }
        if let Some(prev) = a.prev {
            queue.extend(candidate(symbols, prev, left));
        }
    }
}

fn symbols<S>(text: &str, is: impl Fn(&str) -> S) -> Vec<Symbol<S>> {
    let count = text.chars().count();
    let symbol = |(i, (start, c)): (usize, (usize, char))| Symbol {
        start,
        len: c.len_utf8(),
        prev: i.checked_sub(1),
        next: (i + 1 < count).then_some(i + 1),
        is: is(&text[start..start + c.len_utf8()]),
    };
    text.char_indices().enumerate().map(symbol).collect()
}

/// `gpt2`: a pre-tokenizer cuts words, pairs merge by rank.
pub struct Merges {
    pre: &'static Pre,
    splits: Vec<SysRegex>,
    /// Every text that is a token or takes part in a merge; tokens come first.
    texts: HashMap<String, u32>,
    tokens: u32,
    /// Pair to rank and result.
    ranks: HashMap<(u32, u32), (u32, u32)>,
}

impl Merges {
    pub fn new(pre: &'static Pre, merges: &[String], ids: &HashMap<String, u32>) -> Result<Merges> {
        let mut texts = ids.clone();
        let mut intern = |text: &str| match texts.get(text) {
            Some(&id) => id,
            None => {
                let id = texts.len() as u32;
                texts.insert(text.to_owned(), id);
                id
            }
        };
        let mut ranks = HashMap::with_capacity(merges.len());
        for (rank, merge) in merges.iter().enumerate() {
            // The first letter may itself be a space.
            let cut = merge.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(i, _)| i);
            let Some((left, right)) = cut.map(|i| (&merge[..i], &merge[i + 1..])) else {
                return Err(Error::input(format!("merge {rank} is {merge:?}, not two symbols")));
            };
            let pair = (intern(left), intern(right));
            let joined = intern(&format!("{left}{right}"));
            ranks.entry(pair).or_insert((rank as u32, joined));
        }
        let splits = pre.splits.iter().map(|r| SysRegex::new(r)).collect::<Result<_, _>>();
        let splits = splits.map_err(|e| Error::unsupported(format!("pre-tokenizer {}: {e}", pre.names[0])))?;
        Ok(Merges { pre, splits, texts, tokens: ids.len() as u32, ranks })
    }

    pub fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut seen: HashMap<&str, std::ops::Range<usize>> = HashMap::new();
        for word in self.pieces(text) {
            if let Some(range) = seen.get(word) {
                out.extend_from_within(range.clone());
                continue;
            }
            let start = out.len();
            if self.pre.byte_level {
                self.encode_word(&bytes::encode(word), out);
            } else {
                self.encode_word(word, out);
            }
            seen.insert(word, start..out.len());
        }
        Ok(())
    }

    /// The words that are merged each on its own.
    pub fn pieces<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut pieces = vec![text];
        for split in &self.splits {
            pieces = pieces.into_iter().flat_map(|p| isolate(split, p)).collect();
        }
        pieces
    }

    /// Whether merging the letters of a token gives that token.
    pub fn reaches(&self, token: &str) -> bool {
        let mut out = Vec::new();
        self.merge_word(token, &mut out);
        matches!(out[..], [id] if self.texts.get(token) == Some(&id))
    }

    fn encode_word(&self, word: &str, out: &mut Vec<u32>) {
        // Without the byte alphabet newlines are cut off into runs, and a run may be a token of its own.
        let whole = self.pre.ignore_merges || !self.pre.byte_level && word.bytes().all(|b| b == b'\n');
        match self.texts.get(word) {
            Some(&id) if whole && id < self.tokens => out.push(id),
            _ => self.merge_word(word, out),
        }
    }

    fn merge_word(&self, word: &str, out: &mut Vec<u32>) {
        let mut symbols = symbols(word, |letter| self.texts.get(letter).copied());
        merge_all(&mut symbols, |a, b| {
            let &(rank, joined) = self.ranks.get(&(a.is?, b.is?))?;
            Some((Reverse(rank), Some(joined)))
        });
        for symbol in symbols.iter().filter(|s| s.len > 0) {
            match symbol.is.filter(|&id| id < self.tokens) {
                Some(id) => out.push(id),
                None => out.extend(self.fall_back(&word[symbol.start..symbol.start + symbol.len])),
            }
        }
    }

    /// Symbols that are no token become bytes, as far as those are tokens.
    fn fall_back(&self, text: &str) -> Vec<u32> {
        let name = |byte: u8| if self.pre.byte_level { (byte as char).to_string() } else { format!("<0x{byte:02X}>") };
        let ascii = |byte: &u8| !self.pre.byte_level || byte.is_ascii();
        let id = |byte| self.texts.get(&name(byte)).copied().filter(|&id| id < self.tokens);
        text.bytes().filter(ascii).filter_map(id).collect()
    }
}

/// The matches of a pattern and what lies between them.
fn isolate<'a>(pattern: &SysRegex, text: &'a str) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    let mut end = 0;
    for (from, to) in pattern.find_iter(text) {
        pieces.push(&text[end..from]);
        pieces.push(&text[from..to]);
        end = to;
    }
    pieces.push(&text[end..]);
    pieces.retain(|p| !p.is_empty());
    pieces
}

/// `llama`: pairs merge by the score of the token they make.
pub struct Scored {
    scores: Vec<f32>,
    ids: HashMap<String, u32>,
    unknown: Option<u32>,
}

/// Higher is better. -0.0 has to be made 0.0 first: SentencePiece writes it, and C++ sees no difference.
#[derive(PartialEq)]
struct Score(f32);
impl Eq for Score {}
impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Scored {
    pub fn new(scores: Vec<f32>, ids: &HashMap<String, u32>, unknown: Option<u32>) -> Scored {
        Scored { scores, ids: ids.clone(), unknown }
    }

    pub fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut symbols = symbols(text, |_| ());
        merge_all(&mut symbols, |a, b| {
            let id = *self.ids.get(&text[a.start..b.start + b.len])?;
            Some((Score(self.scores[id as usize] + 0.0), ()))
        });
        let mut after_unknown = false;
        for symbol in symbols.iter().filter(|s| s.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            let bytes = || piece.bytes().map(|byte| self.byte(byte)).collect::<Option<Vec<u32>>>();
            let found = self.ids.get(piece).map(|&id| vec![id]).or_else(bytes);
            let unknown = found.is_none();
            match (found, self.unknown) {
                (Some(ids), _) => out.extend(ids),
                (None, Some(_)) if after_unknown => {}
                (None, Some(id)) => out.push(id),
                (None, None) => {
                    return Err(Error::input(format!("the vocabulary has neither {piece:?} nor an unknown token")));
                }
            }
            after_unknown = unknown;
        }
        Ok(())
    }

    /// A vocabulary without all bytes is one that llama.cpp stops at; here a run of such text is one unknown token, as
    /// SentencePiece has it.
    fn byte(&self, byte: u8) -> Option<u32> {
        let letter = byte.is_ascii().then(|| (byte as char).to_string());
        self.ids.get(&format!("<0x{byte:02X}>")).or_else(|| self.ids.get(&letter?)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_merge_from_the_left() {
        let ids: HashMap<String, u32> = ["a", "b", "ab", "ba"].into_iter().map(str::to_owned).zip(0..).collect();
        for (ab, ba) in [(0.0, -0.0), (-0.0, 0.0), (1.0, 1.0)] {
            let mut out = Vec::new();
            Scored::new(vec![0.0, 0.0, ab, ba], &ids, None).encode("aba", &mut out).unwrap();
            assert_eq!(out, [2, 0], "{ab} {ba}");
        }
    }

    #[test]
    fn text_without_tokens_is_unknown_once() {
        let ids: HashMap<String, u32> = ["?", "a"].into_iter().map(str::to_owned).zip(0..).collect();
        let mut out = Vec::new();
        Scored::new(vec![0.0; 2], &ids, Some(0)).encode("xya字", &mut out).unwrap();
        assert_eq!(out, [0, 1, 0]);
        assert!(Scored::new(vec![0.0; 2], &ids, None).encode("x", &mut out).is_err());
    }
}

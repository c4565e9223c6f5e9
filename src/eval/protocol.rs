//! Perplexity protocols: which windows of a text a model sees, and which of its predictions count. Figures of different
//! protocols cannot be compared, so each has a name that goes with its numbers.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{Error, Result};

/// One forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What the model reads, from position 0; never more than the context.
    pub tokens: Vec<u32>,
    /// Positions `i` whose hidden state predicts `tokens[i + 1]`, a prediction that counts. Not empty; ends before the
    /// last token.
    pub scored: Range<usize>,
}

impl Window {
    /// (position, the token it has to predict).
    pub fn targets(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.scored.clone().zip(self.tokens.iter().skip(self.scored.start + 1).copied())
    }
}

/// A named protocol. Several documents are joined by an empty line in all of them.
pub struct Protocol {
    pub name: &'static str,
    pub about: &'static str,
    pub source: &'static str,
    /// Tokens of a window unless the user asks for another context.
    pub context: usize,
    /// The smallest context in which a token is scored.
    least_context: usize,
    /// llama.cpp's `-f` drops one newline at the end of a text.
    drops_last_newline: bool,
    /// Tokens that make the first window, of the context.
    least_tokens: fn(usize) -> usize,
    cut: fn(&[u32], Option<u32>, usize) -> Vec<Window>,
}

pub static PROTOCOLS: &[Protocol] = &[
    Protocol {
        name: "llamacpp-512",
        about: "disjoint windows of 512 tokens, each with BOS in its first place if the tokenizer adds one; \
                the second half of a window is scored (255 tokens)",
        source: "llama.cpp tools/perplexity",
        context: 512,
        least_context: 3,
        drops_last_newline: true,
        least_tokens: |context| context,
        cut: second_halves,
    },
    Protocol {
        name: "gptq-2048",
        about: "disjoint windows of 2048 tokens, BOS only where the tokenizer puts it; \
                all tokens but a window's first are scored (2047)",
        source: "GPTQ (Frantar et al. 2022) and the evaluation published with it",
        context: 2048,
        least_context: 2,
        drops_last_newline: false,
        least_tokens: |context| context,
        cut: whole,
    },
    Protocol {
        name: "strided",
        about: "windows of 1024 tokens that advance by 512; every token but the first is scored once, \
                with at least 512 tokens before it where the text has them",
        source: "Hugging Face transformers, \"Perplexity of fixed-length models\"",
        context: 1024,
        least_context: 2,
        drops_last_newline: false,
        least_tokens: |_| 2,
        cut: strided,
    },
];

const STRIDE: usize = 512;

impl Protocol {
    /// The row of [`PROTOCOLS`] with this name.
    pub fn find(name: &str) -> Result<&'static Protocol> {
        PROTOCOLS.iter().find(|p| p.name == name).ok_or_else(|| {
            let names: Vec<_> = PROTOCOLS.iter().map(|p| p.name).collect();
            Error::request(format!("no evaluation protocol is called `{name}`"))
                .help(format!("choose one of {}", names.join(", ")))
        })
    }

    /// The text to tokenize, whole, with the special tokens that the tokenizer adds by itself and without reading special
    /// tokens out of the text.
    pub fn text<'a>(&self, documents: &'a [String]) -> Cow<'a, str> {
        let mut text = match documents {
            [one] => Cow::Borrowed(one.as_str()),
            several => Cow::Owned(several.join("\n\n")),
        };
        if self.drops_last_newline && text.ends_with('\n') {
            match &mut text {
                Cow::Borrowed(text) => *text = &text[..text.len() - 1],
                Cow::Owned(text) => drop(text.pop()),
            }
        }
        text
    }

    /// The windows of a tokenized [`text`](Self::text), in order; tokens left at the end that fill no window are not used
    /// (`strided` uses all). `bos`: the token that the tokenizer puts first, `None` if it puts none (even if it knows one).
    /// `context`: tokens of a window, `None` for the protocol's own. `chunks`: at most so many windows. llama.cpp wants
    /// text for two windows, here one is enough.
    pub fn windows(
        &self,
        tokens: &[u32],
        bos: Option<u32>,
        context: Option<usize>,
        chunks: Option<usize>,
    ) -> Result<Vec<Window>> {
        let context = context.unwrap_or(self.context);
        if context < self.least_context {
            return Err(Error::request(format!("a context of {context} tokens leaves nothing to predict"))
                .help(format!("{} needs at least {} tokens", self.name, self.least_context)));
        }
        let needed = (self.least_tokens)(context);
        if tokens.len() < needed {
            return Err(Error::request(format!(
                "the text has {} tokens, {} with a context of {context} needs at least {needed}",
                tokens.len(),
                self.name
            ))
            .help("give more text, or ask for a smaller context"));
        }
        let Some(chunks) = chunks else { return Ok((self.cut)(tokens, bos, context)) };
        if chunks == 0 {
            return Err(Error::request("0 chunks leave nothing to evaluate").help("ask for at least 1"));
        }
        // Windows start at multiples of at most the context, so this prefix holds the first `chunks` of them.
        let prefix = chunks.saturating_mul(context).min(tokens.len());
        let mut windows = (self.cut)(&tokens[..prefix], bos, context);
        windows.truncate(chunks);
        Ok(windows)
    }
}

fn second_halves(tokens: &[u32], bos: Option<u32>, context: usize) -> Vec<Window> {
    let mut windows = whole(tokens, bos, context);
    for window in &mut windows {
        window.scored.start = context / 2;
        if let Some(bos) = bos {
            window.tokens[0] = bos;
        }
    }
    windows
}

fn whole(tokens: &[u32], _: Option<u32>, context: usize) -> Vec<Window> {
    tokens.chunks_exact(context).map(|part| Window { tokens: part.to_vec(), scored: 0..context - 1 }).collect()
}

fn strided(tokens: &[u32], _: Option<u32>, context: usize) -> Vec<Window> {
    // One less than the context: the first new token needs a position before it that predicts it.
    let stride = STRIDE.min(context - 1);
    let mut windows = Vec::new();
    let (mut start, mut done) = (0_usize, 1);
    while done < tokens.len() {
        let end = start.saturating_add(context).min(tokens.len());
        windows.push(Window { tokens: tokens[start..end].to_vec(), scored: done - 1 - start..end - 1 - start });
        (start, done) = (start + stride, end);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOS: u32 = 9999;

    fn ids(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    fn windows(name: &str, n: u32, context: usize) -> Vec<Window> {
        Protocol::find(name).unwrap().windows(&ids(n), Some(BOS), Some(context), None).unwrap()
    }

    #[test]
    fn llamacpp_scores_second_halves_after_bos() {
        let found = windows("llamacpp-512", 11, 5);
        assert_eq!(found.len(), 2, "the 11th token fills no window");
        assert_eq!(found[0], Window { tokens: vec![BOS, 1, 2, 3, 4], scored: 2..4 });
        assert_eq!(found[1], Window { tokens: vec![BOS, 6, 7, 8, 9], scored: 2..4 });
        assert_eq!(found[1].targets().collect::<Vec<_>>(), [(2, 8), (3, 9)]);
    }

    #[test]
    fn llamacpp_defaults_score_255_tokens_a_window() {
        let protocol = Protocol::find("llamacpp-512").unwrap();
        let found = protocol.windows(&ids(1100), None, None, None).unwrap();
        assert_eq!(found.len(), 2);
        for (at, window) in (0u32..).zip(&found) {
            let targets: Vec<_> = window.targets().collect();
            assert_eq!(targets.len(), 255);
            assert_eq!(targets[0], (256, at * 512 + 257));
            assert_eq!(targets[254], (510, at * 512 + 511));
            assert_eq!(window.tokens[0], at * 512, "a tokenizer that adds no BOS gets none");
        }
    }

    #[test]
    fn gptq_scores_all_but_the_first() {
        let found = Protocol::find("gptq-2048").unwrap().windows(&ids(4095), Some(BOS), None, None).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].tokens, ids(2048), "no BOS beyond the tokenizer's");
        assert_eq!(found[0].scored, 0..2047);
        assert_eq!(windows("gptq-2048", 4096, 2048)[1].targets().next(), Some((0, 2049)));
    }

    #[test]
    fn strided_scores_each_token_once() {
        for (n, context) in [(2, 1024), (1023, 1024), (1024, 1024), (1025, 1024), (1536, 1024), (5000, 1024), (40, 7)] {
            let found = windows("strided", n, context);
            let targets: Vec<u32> = found.iter().flat_map(|w| w.targets().map(|(_, token)| token)).collect();
            assert_eq!(targets, (1..n).collect::<Vec<_>>(), "{n} tokens, context {context}");
        }
    }

    #[test]
    fn strided_windows_as_transformers_cuts_them() {
        let found = windows("strided", 2000, 1024);
        let shape: Vec<_> = found.iter().map(|w| (w.tokens[0], w.tokens.len(), w.scored.clone())).collect();
        assert_eq!(shape, [(0, 1024, 0..1023), (512, 1024, 511..1023), (1024, 976, 511..975)]);
    }

    #[test]
    fn a_prefix_gives_the_same_first_windows() {
        for protocol in PROTOCOLS {
            let all = protocol.windows(&ids(9000), Some(BOS), None, None).unwrap();
            for chunks in [1, 2, 3, 100, usize::MAX] {
                let some = protocol.windows(&ids(9000), Some(BOS), None, Some(chunks)).unwrap();
                assert_eq!(some, all[..chunks.min(all.len())], "{} {chunks}", protocol.name);
            }
        }
    }

    #[test]
    fn every_scored_position_predicts_a_token_of_its_window() {
        for protocol in PROTOCOLS {
            for context in [3, 4, 5, 64, 511, 512, 513, 2048] {
                for window in protocol.windows(&ids(4100), Some(BOS), Some(context), None).unwrap() {
                    assert!(window.tokens.len() <= context && !window.scored.is_empty());
                    assert!(window.scored.end < window.tokens.len(), "{} {context}", protocol.name);
                    assert_eq!(window.targets().count(), window.scored.len());
                    assert!(window.targets().all(|(at, token)| window.tokens[at + 1] == token && token != BOS));
                }
            }
        }
    }

    #[test]
    fn too_little_text_says_how_much_is_needed() {
        let error = Protocol::find("llamacpp-512").unwrap().windows(&ids(511), None, None, None).unwrap_err();
        assert!(error.message().contains("511 tokens") && error.message().contains("at least 512"), "{error}");
        for protocol in PROTOCOLS {
            for n in [0, 1] {
                assert!(protocol.windows(&ids(n), None, None, None).is_err(), "{} {n}", protocol.name);
            }
        }
    }

    #[test]
    fn impossible_requests_are_errors() {
        for protocol in PROTOCOLS {
            for context in [0, 1, usize::MAX] {
                let windows = protocol.windows(&ids(9000), None, Some(context), None);
                assert_eq!(windows.is_err(), context < 2 || protocol.name != "strided", "{} {context}", protocol.name);
            }
            assert!(protocol.windows(&ids(9000), None, None, Some(0)).is_err());
        }
        assert!(Protocol::find("llamacpp-512").unwrap().windows(&ids(9), None, Some(2), None).is_err());
        assert!(Protocol::find("wikitext").err().unwrap().advice().unwrap().contains("gptq-2048"));
    }

    #[test]
    fn documents_are_joined_by_an_empty_line() {
        let (llama, gptq) = (Protocol::find("llamacpp-512").unwrap(), Protocol::find("gptq-2048").unwrap());
        let texts = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let wiki = texts(&["", " = A = \n", "b\n"]);
        assert_eq!(gptq.text(&wiki), "\n\n = A = \n\n\nb\n");
        assert_eq!(llama.text(&wiki), "\n\n = A = \n\n\nb");
        assert_eq!(llama.text(&texts(&["a\n\n"])), "a\n", "only one newline goes");
        assert_eq!(gptq.text(&texts(&["a\n\n"])), "a\n\n");
        assert_eq!(llama.text(&[]), "");
    }
}

//! The pre-tokenizers that llama.cpp knows, each by what it does. Sources: llama.cpp `src/llama-vocab.cpp`, `src/unicode.cpp`;
//! `source` spellings: the `tokenizer.json` files of the families named.

/// What a value of `tokenizer.ggml.pre` makes llama.cpp do.
#[derive(Debug)]
pub struct Pre {
    /// Every name with this behaviour; the first one is written when nothing tells them apart.
    pub names: &'static [&'static str],
    /// Applied in turn to every piece of text: matches and what lies between them become pieces.
    pub splits: &'static [&'static str],
    /// The steps of the `tokenizer.json` files that this stands for, where they are not `splits` themselves.
    pub sources: &'static [&'static [&'static str]],
    /// A word that is a token is not merged up from its letters.
    pub ignore_merges: bool,
    /// llama.cpp adds BOS unless `add_bos_token` says otherwise.
    pub add_bos: bool,
    /// Bytes are spelt with the byte-level alphabet; else spaces become `▁` and text stays as it is.
    pub byte_level: bool,
}

const fn pre(names: &'static [&'static str], splits: &'static [&'static str]) -> Pre {
    Pre { names, splits, sources: &[], ignore_merges: false, add_bos: false, byte_level: true }
}

impl Pre {
    const fn sources(mut self, sources: &'static [&'static [&'static str]]) -> Pre {
        self.sources = sources;
        self
    }
    const fn ignoring_merges(mut self) -> Pre {
        self.ignore_merges = true;
        self
    }
    const fn adding_bos(mut self) -> Pre {
        self.add_bos = true;
        self
    }
    const fn raw(mut self) -> Pre {
        self.byte_level = false;
        self
    }
}

macro_rules! contraction {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}
macro_rules! tail {
    () => {
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}
/// GPT-4's pattern with its digit rule left open.
macro_rules! cl100k {
    ($digits:literal) => {
        concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|", $digits, r"| ?[^\s\p{L}\p{N}]+[\r\n]*", tail!())
    };
}
/// GPT-4o's pattern as its own files spell it.
macro_rules! o200k {
    ($suffix:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
            tail!()
        )
    };
}
/// The same as llama.cpp runs it: every letter beyond ASCII counts as upper and lower case, marks stay alone (or not: `$letter`).
macro_rules! o200k_ascii {
    ($letter:literal, $suffix:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[",
            $letter,
            "&&[^a-z]]*[",
            $letter,
            "&&[^A-Z]]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[",
            $letter,
            "&&[^a-z]]+[",
            $letter,
            "&&[^A-Z]]*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
            tail!()
        )
    };
}
macro_rules! maybe_contraction {
    () => {
        concat!(contraction!(), "?")
    };
}
macro_rules! ascii_word {
    () => {
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##
    };
}
/// Groups of three digits counted from the right; llama.cpp leaves the text before a number on its first group.
macro_rules! digit_groups {
    () => {
        r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
    };
}

pub const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// `Digits` with individual digits, and without.
pub const DIGIT: &str = r"\p{N}";
pub const DIGITS: &str = r"\p{N}+";
/// `Punctuation`: Unicode's and ASCII's.
pub const PUNCTUATION_RUN: &str = r"[\p{P}$+<=>^~|`]+";
pub const PUNCTUATION: &str = r"[\p{P}!-/:-@\[-`{-~]";

const DIGIT_TRIPLE: &str = r"\p{N}{1,3}";
const CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
const CJK_OLD: &str = "[一-龥ࠀ-一가-퟿]+";
/// llama.cpp hides white space beyond ASCII from ranges.
const CJK_OLD_NO_SPACE: &str = r"[[一-龥ࠀ-一가-퟿]&&\S]+";
const NEWLINES: &str = r"[^\n]+|\n+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const BLOOM_SOURCE: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";
const DEEPSEEK3: &str = concat!(ascii_word!(), r"| ?[\p{P}\p{S}]+[\r\n]*", tail!());
/// Cased letters, as escapes because some of them do not survive Unicode normalization.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    r"A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}",
    r"\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}",
    r"\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}",
    r"\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}",
    r"\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}",
    r"\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}",
    r"\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}",
    r"\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}",
    r"\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
    r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}",
    r"\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}",
    r"\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}",
    r"\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}",
    "]+"
);
macro_rules! han {
    () => {
        concat!(
            r"\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}\u{2B740}-\u{2B81F}",
            r"\u{2B820}-\u{2CEAF}\u{2CEB0}-\u{2EBEF}\u{F900}-\u{FAFF}\u{2F800}-\u{2FA1F}"
        )
    };
}
const KIMI: &str = concat!(
    "[",
    han!(),
    r"]+|[^\r\n\p{L}\p{N}]?[\p{L}--[",
    han!(),
    "]]+",
    maybe_contraction!(),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    tail!()
);
const KIMI_SOURCE: &str = concat!(
    r"[\p{Han}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    maybe_contraction!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    maybe_contraction!(),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    tail!()
);
const WHITESPACE_CASCADE: &str = concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)",
    r"|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
);

/// One row per behaviour, the more usual family first where several share one. Where a row has `sources`,
/// llama.cpp only comes close to them on text beyond ASCII.
pub static PRES: &[Pre] = &[
    pre(
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        &[cl100k!(r"\p{N}{1,3}")],
    )
    .ignoring_merges()
    .adding_bos(),
    pre(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[cl100k!(r"\p{N}{1,3}")]),
    pre(&["glm4", "glm5"], &[cl100k!(r"\p{N}{1,3}")]).ignoring_merges(),
    pre(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
        ],
        &[cl100k!(r"\p{N}")],
    ),
    pre(
        &["qwen35"],
        &[concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", tail!())],
    ),
    pre(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
        ],
        &[GPT2],
    ),
    pre(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    pre(&["falcon"], &[PUNCTUATION_RUN, GPT2, "[0-9][0-9][0-9]"]),
    pre(&["default"], &[r"[\p{P}$+<=>^~|]+", GPT2, DIGITS, "[0-9][0-9][0-9]"]),
    pre(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[DIGIT_TRIPLE, CJK, DEEPSEEK3]),
    pre(
        &["deepseek-llm"],
        &[r"[\r\n]", DEEPSEEK_LETTERS, r"\s?[[!-/:-~！-／：-～‘-‟　-。]&&\S]+", r"\s+$", CJK_OLD_NO_SPACE, DIGITS],
    )
    .sources(&[&[r"[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK_OLD, DIGIT]]),
    pre(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_OLD_NO_SPACE, DIGIT]).sources(&[&[
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        CJK_OLD,
        DIGIT,
    ]]),
    pre(&["spark2_5"], &[DIGIT_TRIPLE, CJK, concat!(ascii_word!(), r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"), DIGIT]),
    pre(&["tekken"], &[o200k_ascii!(r"\p{L}", "", r"\p{N}")])
        .sources(&[&[o200k!("", r"\p{N}")]])
        .ignoring_merges()
        .adding_bos(),
    pre(
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        &[o200k_ascii!(r"\p{L}", maybe_contraction!(), r"\p{N}{1,3}")],
    )
    .sources(&[&[o200k!(maybe_contraction!(), r"\p{N}{1,3}")]]),
    pre(&["granite-embed-multi-97m"], &[o200k_ascii!(r"\p{L}\p{M}", maybe_contraction!(), r"\p{N}{1,3}")])
        .sources(&[&[o200k!(maybe_contraction!(), r"\p{N}{1,3}")]])
        .ignoring_merges(),
    pre(
        &["tiny_aya", "cohere2moe"],
        &[
            digit_groups!(),
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                maybe_contraction!(),
                r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*",
                tail!()
            ),
        ],
    )
    .sources(&[&[r"\d{1,3}(?=(?:\d{3})*\b)", o200k!(maybe_contraction!(), r"\p{N}{1,3}")]]),
    pre(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]).sources(&[&[BLOOM_SOURCE]]),
    pre(&["viking"], &[BLOOM, DIGIT]).sources(&[&[BLOOM_SOURCE, DIGIT]]),
    pre(&["kimi-k2"], &[KIMI]).sources(&[&[KIMI_SOURCE]]),
    pre(&["superbpe"], &[DIGITS, "(?=(?:[0-9]{3})+(?![0-9]))"]).sources(&[&[DIGITS, r"(?=(\d{3})+(?!\d))"]]),
    pre(
        &["seed-coder"],
        &[concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+", tail!())],
    ),
    pre(&["ufakzeka"], &[concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*", tail!())]),
    pre(&["jais-2"], &[WHITESPACE_CASCADE]),
    pre(
        &["exaone-moe"],
        &[concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    pre(
        &["afmoe"],
        &[
            digit_groups!(),
            "[一-鿿㐀-䶿\u{8C48}-\u{FAFF}぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
            concat!(ascii_word!(), r"| ?[\p{P}\p{S}]+[\r\n]*", tail!()),
        ],
    ),
    pre(
        &["youtu"],
        &[
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                maybe_contraction!(),
                r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*",
                tail!()
            ),
        ],
    )
    .sources(&[&[
        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
        o200k!(maybe_contraction!(), r"\p{N}"),
    ]])
    .ignoring_merges(),
    pre(&["minicpm5"], &[DIGIT_TRIPLE, cl100k!(r"\p{N}+")]).ignoring_merges(),
    pre(&["laguna"], &[NEWLINES, cl100k!(r"\p{N}")]),
    pre(
        &["chameleon"],
        &["<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", DIGIT, PUNCTUATION, GPT2],
    )
    .adding_bos(),
    pre(&["gemma4", "granite-embed-multi-311m"], &[NEWLINES]).raw(),
];

pub fn find(name: &str) -> Option<&'static Pre> {
    PRES.iter().find(|p| p.names.contains(&name))
}

/// Every name, for messages.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRES.iter().flat_map(|p| p.names).copied()
}

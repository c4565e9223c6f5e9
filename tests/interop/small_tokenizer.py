"""Tokenizers of a few hundred entries in the layouts that the large ones have on Hugging Face.

    llama3, qwen2   byte-level BPE: tokenizer.json
    o200k           the same, with the words of GPT-4o
    spm, gemma      SentencePiece BPE with bytes to fall back on: tokenizer.model and its tokenizer.json
    phi             spm, and tokens added behind the end of tokenizer.model
"""
import collections
import json
import re
import struct

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"))
SPLITS = {"llama3": WORDS % "{1,3}", "qwen2": WORDS % "", "o200k": O200K}
TEXT = """The model reads a line of text and predicts the next token from the tokens before it. There are many ways to
store the weights of a network in fewer bits; each trades some accuracy for speed. A block of weights shares one scale,
and the scale is chosen so that the error of the block is small. It's what they've said, isn't it? We'll see: 3.14, 1024,
    def quantize(weights, bits, group):
        return [round(w / scale) for w in weights if scale != 0]
for (int i = 0; i < count; i++) { total += values[i]; } // the sum of the squares of the differences
Straße, naïve façade, Ångström; Привет, мир! 你好，世界。 こんにちは 🦙🚀
"""
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
# kind -> (text of each special token, its roles)
SPECIAL = {
    "llama3": (["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"], {"bos": 0, "eos": 3, "pad": 1}),
    "qwen2": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], {"eos": 2, "pad": 0}),
    "o200k": (["<|startoftext|>", "<|endoftext|>", "<|return|>"], {"bos": 0, "eos": 2, "pad": 1}),
    "spm": (["<unk>", "<s>", "</s>"], {"bos": 1, "eos": 2, "unk": 0}),
    "phi": (["<unk>", "<s>", "</s>"], {"bos": 1, "eos": 2, "unk": 0}),
    "gemma": (["<pad>", "<eos>", "<bos>", "<unk>"], {"bos": 2, "eos": 1, "pad": 0, "unk": 3}),
}
ADDED = {"phi": ["<|endoftext|>", "<|end|>"]}  # llama.cpp wants the first in every model called phi3
CLASSES = {"llama3": "PreTrainedTokenizerFast", "qwen2": "Qwen2Tokenizer",
           "o200k": "PreTrainedTokenizerFast", "spm": "LlamaTokenizer",
           "phi": "LlamaTokenizer", "gemma": "GemmaTokenizer"}


def byte_letters():
    """The printable character that stands for each byte in byte-level BPE."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(spare)) for b in range(256)]


def learn(words, limit):
    """Up to `limit` merges (left, right), the most frequent pair first, of words given as lists of symbols."""
    merges = []
    while len(merges) < limit:
        pairs = collections.Counter(p for w in words for p in zip(w, w[1:]))
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == best:
                    w[i:i + 2] = ["".join(best)]
                i += 1
    return merges


def _added(texts, first=0):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": first + i, "content": t, **flags} for i, t in enumerate(texts)]


def _json(model, added, normalizer=None, pre=None, decoder=None, bos=None):
    """tokenizer.json; `bos` is the (text, id) put in front of every text."""
    post = None
    if bos:
        text, number = bos
        post = {"type": "TemplateProcessing", "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
                "single": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                         {"SpecialToken": {"id": text, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": decoder,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **model}}


def byte_level(kind, size):
    """(tokenizer.json, number of its first special token) of a byte-level BPE."""
    letters, special = byte_letters(), SPECIAL[kind][0]
    words = [[letters[b] for b in w.encode()] for w in re.findall(r" ?\w+| ?[^\s\w]+|\s+", TEXT)]
    merges = learn(words, size - 256 - len(special) - 40)  # the last rows of the embedding belong to no token
    vocab = {t: i for i, t in enumerate(dict.fromkeys(letters + [a + b for a, b in merges]))}
    split = {"type": "Split", "pattern": {"Regex": SPLITS[kind]},
             "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"vocab": vocab, "merges": [list(m) for m in merges], "ignore_merges": kind == "llama3"}
    bos = (special[0], len(vocab)) if kind == "llama3" else None
    return _json(model, _added(special, len(vocab)), {"type": "NFC"} if kind == "qwen2" else None,
                 {"type": "Sequence", "pretokenizers": [split, level]}, level, bos), len(vocab)


def sentencepiece(kind, size):
    """(tokenizer.json, bytes of tokenizer.model): exactly `size` tokens."""
    special, behind = SPECIAL[kind][0], ADDED.get(kind, [])
    size -= len(behind)
    fixed = special + [f"<0x{b:02X}>" for b in range(256)]
    words = [["▁", *w] if w.strip() else list(w) for w in re.findall(r"[^\s]+|\n+ *", TEXT)]
    letters = sorted({s for w in words for s in w if s.isalnum() and s < "\u0250" or s in "▁.,;:!?'\"()[]{}/*+-=<>\n"})
    words = [[s for s in w if s in letters] for w in words]
    merged = list(dict.fromkeys(a + b for a, b in learn(words, size)))[:size - len(fixed) - len(letters)]
    pieces = fixed + merged + letters
    if len(pieces) != size:
        raise ValueError(f"{len(pieces)} pieces learnt, {size} wanted")
    vocab = {p: i for i, p in enumerate(pieces)}
    merges = [[p[:i], p[i:]] for p in merged for i in range(1, len(p)) if p[:i] in vocab and p[i:] in vocab]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]}
    decoder = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
        + ([] if kind == "gemma" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}])}
    bos = SPECIAL[kind][1]["bos"]
    model = {"vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    return (_json(model, _added(special) + _added(behind, size), spaces if kind == "gemma" else prepend, None, decoder, (special[bos], bos)),
            _model_proto(pieces, special, len(merged), kind))


def _field(number, value):
    """One protobuf field: bytes, float or int by the type of the value."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(n):
    n &= (1 << 64) - 1
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def _model_proto(pieces, special, merged, kind):
    """tokenizer.model: the sentencepiece.ModelProto message."""
    normal, unknown, control, byte = 1, 2, 3, 6
    out, first = b"", len(special) + 256
    for i, piece in enumerate(pieces):
        score, sort = -float(i - first), normal  # earlier merges score higher, single letters last
        if i < first:
            score, sort = 0.0, byte if i >= len(special) else unknown if piece == "<unk>" else control
        out += _field(1, _field(1, piece.encode()) + _field(2, score) + _field(3, sort))
    roles = SPECIAL[kind][1]
    trainer = _field(3, 2) + _field(4, len(pieces)) + _field(35, 1)  # BPE, size, byte fallback
    trainer += b"".join(_field(n, roles.get(r, -1)) for n, r in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")))
    normalizer = _field(1, b"identity") + _field(3, int(kind != "gemma")) + _field(4, 0) + _field(5, 1)
    return out + _field(2, trainer) + _field(3, normalizer)


def write(folder, kind, size):
    """Writes the tokenizer files; returns {"bos_token_id": ...} for config.json."""
    special, roles = SPECIAL[kind]
    first = 0
    if kind in ("spm", "phi", "gemma"):
        content, proto = sentencepiece(kind, size)
        (folder / "tokenizer.model").write_bytes(proto)
    else:
        content, first = byte_level(kind, size)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {"tokenizer_class": CLASSES[kind], "chat_template": CHATML, "model_max_length": 2048,
                "add_bos_token": "bos" in roles and kind != "o200k", "add_eos_token": False, "clean_up_tokenization_spaces": False,
                **{f"{role}_token": special[i] for role, i in roles.items()},
                "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in content["added_tokens"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    return {f"{role}_token_id": first + i for role, i in roles.items()}

#!/usr/bin/env python3
"""Rewrites tests/golden/tokenizer: small tokenizers of our own, what llama.cpp's converter writes for them, and the ids
that llama.cpp gives the strings of src/container/tokenizer/awkward.txt.

    python tokenizer_golden.py LLAMA_CPP_SOURCE

Made with llama.cpp as vendored in llama-cpp-python 0.3.36 (converter and runtime), tokenizers 0.22.2, transformers 4.57.6,
sentencepiece 0.2.3, gguf 0.19.0. Ids are kept as 16-bit checksums, four hexadecimal digits a string.
"""
import contextlib
import io
import json
import re
import struct
import sys
import tempfile
import types
from pathlib import Path
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/golden/tokenizer"
SOURCES = ROOT / "src/container/tokenizer"
LLAMA = Path(sys.argv[1])
sys.dont_write_bytecode = True
sys.path[:0] = [str(LLAMA), str(LLAMA / "gguf-py")]

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer  # noqa: F401  before the stub, so that it sees no torch

STRINGS = [json.loads(line) for line in (SOURCES / "awkward.txt").read_text("utf-8").splitlines()]
# (add_special, parse_special)
MODES = [(False, True), (True, True), (False, False)]
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


# A token that no merges make, to tell the pre-tokenizers that take words whole
UNMERGED = "Ġjumps"


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n", "ascii")


def added(id, content, special=True, normalized=False):
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": id, "content": content, **flags, "normalized": normalized, "special": special}


def byte_level():
    """BPE whose merges ignore word boundaries, so that its ids show where a pre-tokenizer cuts."""
    folder = HERE / "byte-level"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.train_from_iterator(STRINGS, trainers.BpeTrainer(
        vocab_size=1200, min_frequency=1, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False, max_token_length=12))
    j = json.loads(tokenizer.to_str())
    j["model"]["vocab"][UNMERGED] = len(j["model"]["vocab"])
    n = len(j["model"]["vocab"])
    tokens = [added(n, "<|endoftext|>"), added(n + 1, "<|im_start|>"), added(n + 2, "<|im_end|>"),
              added(n + 3, "<think>", special=False), added(n + 4, "<pad>", special=False),
              added(n + 5, "<▁tag▁>", special=False), added(n + 6, "<tool_call>", special=False, normalized=True)]
    j["added_tokens"] = tokens
    j["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]}
    j["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    special = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    j["post_processor"] = {"type": "TemplateProcessing", "single": [special, a], "pair": [special, a, special, b],
                           "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [n + 1], "tokens": ["<|im_start|>"]}}}
    write_json(folder / "tokenizer.json", j)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", **added(n + 2, "<|im_end|>")},
        "pad_token": "<|endoftext|>", "add_prefix_space": False, "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tool use", "template": "{{ tools }}"}]})
    write_json(folder / "config.json", {"architectures": ["LlamaForCausalLM"], "vocab_size": n + 16,
                                        "bos_token_id": n, "eos_token_id": [n, n + 2], "unk_token_id": n})
    return folder


def sentence_piece():
    """The same with a tokenizer.model, tokens from three files and a template of its own."""
    folder = HERE / "sentencepiece"
    folder.mkdir(exist_ok=True)
    model = io.BytesIO()
    texts = [s.replace("\0", "") for s in STRINGS if s.strip() and max(s) < "\u0500"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3), model_writer=model, model_type="bpe", vocab_size=700, byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<sep>"], split_digits=True, max_sentence_length=20000, num_threads=1)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    n = 700
    write_json(folder / "added_tokens.json", {"<|extra|>": n, "<more>": n + 1})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "added_tokens_decoder": {
            "0": added(0, "<unk>"), "1": added(1, "<s>"), "2": added(2, "</s>"),
            str(n + 1): added(n + 1, "▁<more>▁", special=False), str(n + 2): added(n + 2, "<unused0>", special=False)}})
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    write_json(folder / "config.json", {"architectures": ["LlamaForCausalLM"], "vocab_size": n + 6,
                                        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    return folder


def raw_bpe(source):
    """The SentencePiece vocabulary as a tokenizer.json alone: no scores."""
    folder = HERE / "raw-bpe"
    sp = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    vocab = {sp.IdToPiece(i): i for i in range(sp.vocab_size()) if sp.IdToPiece(i) != "<sep>"}
    vocab = {piece: i for i, piece in enumerate(vocab)}
    fixed = {sp.IdToPiece(i) for i in range(sp.vocab_size()) if sp.IsByte(i) or sp.IsControl(i) or sp.IsUnknown(i)}
    score = {sp.IdToPiece(i): sp.GetScore(i) for i in range(sp.vocab_size())}
    merges = [(piece[:i], piece[i:]) for piece in vocab for i in range(1, len(piece))
              if piece[:i] in vocab and piece[i:] in vocab and piece not in fixed]
    merges.sort(key=lambda m: (-score[m[0] + m[1]], vocab[m[0]], vocab[m[1]]))
    n = len(vocab)
    tokens = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(n, "<|extra|>"), added(n + 1, "<more>", special=False)]
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [special, a], "pair": [special, a, special, b],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                  "merges": [f"{l} {r}" for l, r in merges]}})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "additional_special_tokens": ["<|extra|>"]})
    write_json(folder / "config.json", {"architectures": ["LlamaForCausalLM"], "vocab_size": n + 2,
                                        "bos_token_id": 1, "eos_token_id": 2})
    return folder


def converter():
    """llama.cpp's converter class for Llama, without torch."""
    class Stub(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            value = type(name, (), {}) if name[:1].isupper() else MagicMock(name=name)
            setattr(self, name, value)
            return value
    stub = Stub("torch")
    stub.__path__, stub.__spec__ = [], None
    sys.modules["torch"] = stub
    import conversion
    cls = conversion.get_model_class("LlamaForCausalLM")
    del sys.modules["torch"]
    return cls


def expected(folder, cls, pre=None):
    """Key-values that the converter writes, in its order: [key, type, value]."""
    import gguf
    model = cls.__new__(cls)
    model.dir_model, model.hparams = folder, json.loads((folder / "config.json").read_text())
    model.origin_hf_arch, model.is_mistral_format, model.target_model_dir = "LlamaForCausalLM", False, None
    model.gguf_writer = gguf.GGUFWriter(None, "llama")
    if pre:
        model.get_vocab_base_pre = lambda _: pre
    model.set_vocab()
    text = lambda v: v.decode() if isinstance(v, bytes) else v if isinstance(v, (str, float)) else int(v)
    rows = [[k, v.type.name, [text(x) for x in v.value] if isinstance(v.value, list) else v.value]
            for k, v in model.gguf_writer.kv_data[0].items() if k.startswith("tokenizer.")]
    write_json(folder / "expected.json", rows)
    return rows


def load(rows):
    """The vocabulary in the real llama.cpp; None if it refuses. A list may be empty, which gguf's writer does not do."""
    import gguf
    from llama_cpp import Llama
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, "add_" + key)(8)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, kind, value in rows:
        writer.add_key_value(key, value if value != [] else [""], gguf.GGUFValueType[kind])
    writer.add_vocab_size(len(next(v for k, _, v in rows if k == "tokenizer.ggml.tokens")))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    content = path.read_bytes()
    for key in (key.encode() for key, _, value in rows if value == []):
        head = struct.pack("<II", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
        content = content.replace(key + head + struct.pack("<QQ", 1, 0), key + head + struct.pack("<Q", 0))
    path.write_bytes(content)
    with folder, contextlib.suppress(ValueError):
        return Llama(str(path), vocab_only=True, verbose=False)


def checksum(ids):
    """FNV-1a over the ids, folded to 16 bits."""
    h = 0x811C9DC5
    for i in ids:
        for byte in i.to_bytes(4, "little"):
            h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{h >> 16 ^ h & 0xFFFF:04x}"


def ids(model, add, parse):
    return "".join(checksum(model.tokenize(s.encode(), add_bos=add, special=parse)) for s in STRINGS)


def main():
    cls = converter()
    plain = byte_level()
    pieces = sentence_piece()
    raw = raw_bpe(pieces)
    for folder, pre in ((plain, "qwen2"), (pieces, None), (raw, None)):
        rows = expected(folder, cls, pre)
        model = load(rows)
        lines = [f"{int(a)}{int(p)} {ids(model, a, p)}\n" for a, p in MODES]
        (folder / "ids.txt").write_text("".join(lines))
    rows = json.loads((plain / "expected.json").read_text())
    pre_tokenizers_of_llama(rows)
    no_merges(rows)


def pre_tokenizers_of_llama(rows):
    """One line for each row of the table; all names of a row must do the same."""
    def ids_with(name):
        own = [[k, t, name if k == "tokenizer.ggml.pre" else v] for k, t, v in rows if k != "tokenizer.ggml.add_bos_token"]
        return ids(load(own), True, True)
    source = (SOURCES / "pres.rs").read_text("utf-8")
    table = [re.findall(r'"([^"]+)"', row) for row in re.findall(r"pre\(\s*&\[(.*?)\]", source, re.S)]
    seen = {}
    with open(HERE / "pres.txt", "w") as out:
        for names in table:
            expected, *others = map(ids_with, names)
            wrong = [name for name, other in zip(names[1:], others) if other != expected]
            if wrong or expected in seen:
                print(f"{names[0]}: not the same: {wrong}; the same as {seen.get(expected)}")
            seen[expected] = names[0]
            out.write(f"{names[0]} {expected}\n")
    print(f"{len(table)} rows, {sum(map(len, table))} names, {len(STRINGS)} strings")


def no_merges(rows):
    """An empty list of merges loads, a missing one does not."""
    key = "tokenizer.ggml.merges"
    assert load([row for row in rows if row[0] != key]) is None
    model = load([[k, t, [] if k == key else v] for k, t, v in rows])
    (HERE / "no-merges.txt").write_text(ids(model, False, True) + "\n")


main()

"""Tokenization held against the `tokenizers` package, on text that tokenizers get wrong."""
import json
import unicodedata
from pathlib import Path

AWKWARD = [
    "", " ", "  ", "\n", "\t", "\r\n", " \n ", "   x", "x   ", "a\n\n\nb", "a \n b\t\tc", "    indent\n        more",
    "Hello, world!", "hello  world", "HELLO WORLD", "I'm you're he'll they've I'D 'S", "don't DON'T it's IT'S ''", "a'b''c",
    "0", "12", "123", "1234", "12345678901", "3.14159", "1,000,000", "1e-10", "0x1F", "v1.2.3", "２０２４", "٣٤٥", "½ ² ₃",
    "naïve façade", "e\u0301 é", "Ångström", "Straße", "ﬁ ligature", "Привет, мир!", "你好，世界。", "こんにちは世界", "안녕하세요",
    "שלום עולם", "مرحبا بالعالم", "नमस्ते", "ไทย", "កម្ពុជា", "🦙", "🚀🚀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "😀 😃", "❤️", "a\u200bb", "a\u00a0b",
    "\ufeffx", "\u2028x", "\u3000x", "x\u0085y", "zero\x00byte", "\x07\x1b[0m", "\U0010ffff", "a\u0308\u0301", "ＡＢＣ",
    "!!!", "...", "?!?!", "---", "==>", "<-", "/* c */", "// x", "#include <a.h>", "a=b;c+=1", "{'k': [1, 2]}", "f(x)[0]",
    "$x^2$", "a_b__c", "CamelCaseWord", "snake_case_word", "http://a.b/c?d=e&f=g#h", "me@example.com", "C:\\dir\\f.txt",
    "\"quoted\"", "`code`", "```py\nx\n```", "<b>bold</b>", "< s >", "[INST]", "the end.", "The weights of a block",
    "  for (int i = 0; i < count; i++) {\n    total += values[i];\n  }", "    def quantize(weights, bits):\n\treturn 1\n",
    "supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaaaaaaaaaa", "ababababababab", "x" * 70, "- a\n- b\n\n1. c\n", "\n \n  \n",
]


def compare(model, folder):
    """(number of strings, [(text, expected, got)]): a loaded llama.cpp model against the folder's tokenizer.json."""
    from tokenizers import Tokenizer

    expert = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    special = [t.content for t in expert.get_added_tokens_decoder().values() if t.special]
    texts = AWKWARD + [f"{t}Hello" for t in special[-1:] if "▁the" not in expert.get_vocab()]  # SentencePiece pads after it
    if "NFC" in json.dumps(json.loads(expert.to_str())["normalizer"]):  # llama.cpp never normalizes
        texts = [t for t in texts if unicodedata.normalize("NFC", t) == t]
    wrong = []
    for text in texts:
        expected = expert.encode(text, add_special_tokens=False).ids
        got = model.tokenize(text.encode(), add_bos=False, special=True)
        if expected != got:
            wrong.append((text, expected, got))
    return len(texts), wrong

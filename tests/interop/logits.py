#!/usr/bin/env python3
"""Do real models still say the same? `quant convert FOLDER --to f16` against the GGUF file that the folder was made from,
both run by llama.cpp on 512 tokens of real text: same tokens, and logits within a divergence of 1e-4 nats.

    QUANT_MODELS=DIR logits.py         every DIR/NAME/config.json that has a DIR/NAME.gguf beside it
    logits.py FOLDER...                these; without a GGUF beside, an F32 conversion against forward.py
                                       [--tokens 512] [--max-kld 1e-4]

The text is the file in $QUANT_TEXT, else this repository's README. A GGUF that is quantized itself is first decoded to
F16 by llama.cpp: its own products would round the activations too, and that is no fault of the conversion.
"""
import argparse
import os
import tempfile
from pathlib import Path

import gguf
import numpy as np

import forward
import ggufdiff
import peer
import tokens as tokenization
from common import ROOT, QuantError, Report, cannot, convert, main


def ids_of(path, text, limit):
    return peer.load(path, vocab_only=True).tokenize(text.encode(), add_bos=True, special=False)[:limit]


def max_kld(expected, got, step=64):
    """Largest divergence and largest difference of logits; `step` positions at a time, vocabularies are large."""
    parts = [slice(i, i + step) for i in range(0, len(expected), step)]
    return (max(forward.kld(expected[s], got[s]).max() for s in parts),
            max(np.abs(expected[s] - got[s]).max() for s in parts))


def tie(path):
    """Gives an F16 file the embedding that its head has: a quantized GGUF may hold one shared matrix twice, in two types,
    and its folder has only the head's."""
    tensors = {t.name: t for t in gguf.GGUFReader(path, "r+").tensors}
    if "output.weight" in tensors:
        tensors["token_embd.weight"].data[:] = tensors["output.weight"].data
        tensors["token_embd.weight"].data.flush()


def against_gguf(folder, original, text, a, work):
    """Figures of the F16 conversion against the published file; what is wrong, if anything."""
    ours = convert(folder, "f16", work / "ours.gguf")
    theirs = peer.quantize(original, work / "theirs.gguf", "f16")
    if forward.read_config(folder).get("tie_word_embeddings"):
        tie(theirs)
    found = ggufdiff.compare(ours, theirs)
    ids = ids_of(ours, text, a.tokens)
    wrong = [] if ids == ids_of(theirs, text, a.tokens) else ["the text has other tokens in the GGUF it came from"]
    kld = max_kld(peer.logits(theirs, ids), peer.logits(ours, ids))
    return ours, ids, kld, f"llama.cpp, {found.equal}/{found.tensors} tensors equal", wrong


def against_forward(folder, _, text, a, work):
    """The same for a folder without a GGUF: an F32 conversion against the definition of the model."""
    ours = convert(folder, "f32", work / "ours.gguf")
    model = forward.Model(folder)
    ids = ids_of(ours, text, min(a.tokens, model.c["max_position_embeddings"]))
    theirs = peer.logits(ours, ids)
    return ours, ids, max_kld(model.logits(ids)[:, :theirs.shape[1]], theirs), "forward.py", []


def check(report, folder, text, a):
    original = folder.with_name(folder.name + ".gguf")
    judge = against_gguf if original.exists() else against_forward
    with tempfile.TemporaryDirectory() as work:
        try:
            ours, ids, (kld, difference), reference, wrong = judge(folder, original, text, a, Path(work))
            strings, failed = 0, []
            if (folder / "tokenizer.json").exists():
                strings, failed = tokenization.compare(peer.load(ours, vocab_only=True), folder)
        except (QuantError, peer.PeerError) as error:
            report.row("FAIL", folder.name, "-", "-", "-", "-", "-", error)
            return
    wrong += [f"{text!r}: expected {expected[:12]}, got {got[:12]}" for text, expected, got in failed]
    report.row("FAIL" if wrong or not kld <= a.max_kld else "ok", folder.name, reference, len(ids),
               f"{kld:.1e}", f"{difference:.1e}", f"{strings - len(failed)}/{strings}", "; ".join(wrong[:3]))


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("--max-kld", type=float, default=1e-4, help="of the worst position, in nats (default 1e-4)")
    a = p.parse_args()
    models = os.environ.get("QUANT_MODELS")
    if not a.folders and not models:
        cannot("no real models; name folders or set QUANT_MODELS")
    folders = a.folders or [f.parent for f in sorted(Path(models).glob("*/config.json"))
                            if f.parent.with_name(f.parent.name + ".gguf").exists()]
    text = Path(os.environ.get("QUANT_TEXT") or ROOT / "README.md").read_text(encoding="utf-8")
    report = Report("logits", "model", "against", "tokens", "max KLD", "max difference", "strings alike", "differences")
    for folder in folders:
        check(report, folder.absolute(), text, a)
    return report.finish()


if __name__ == "__main__":
    main(run)

#!/usr/bin/env python3
"""Does a converted model still say the same? For every family: `quant` converts a random Hugging Face folder to an F32
GGUF, real llama.cpp runs that, and forward.py computes the same logits from the folder. Rows of q and k in the wrong
order, a metadata key lost or misread, a norm without its one: each shows as a divergence far above the limit.

    families.py [CASE...] [--tokens 128] [--max-kld 1e-5]   the cases of synthetic.py; logits.py has real models
    families.py --sensitivity                               how far such mistakes move the logits (needs no binary)
    families.py --converted DIR                             takes DIR/CASE-f32.gguf instead of calling quant
"""
import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

import forward
import synthetic
from common import QuantError, Report, cannot, convert, main


def sentence(vocab, count, seed=0):
    """Random tokens; the last ids of a vocabulary may be padding and are left out."""
    return np.random.default_rng(seed).integers(3, int(vocab * 0.75), count)


# ---------------------------------------------------------------- converted against the folder

def check(folder, gguf, tokens):
    """(largest KLD, largest logit difference, number of strings tokenized, those that differ)."""
    import peer
    import tokens as tokenization

    model = forward.Model(folder, dtype=np.float64 if os.path.getsize(gguf) < 2e8 else np.float32)
    ids = sentence(model.c["vocab_size"], tokens)
    theirs = peer.logits(gguf, ids)
    ours = model.logits(ids)[:, :theirs.shape[1]]  # Gemma 3 drops embedding rows behind the last token
    vocabulary = peer.load(gguf, vocab_only=True)
    count, wrong = tokenization.compare(vocabulary, folder)
    return forward.kld(ours, theirs).max(), np.abs(ours - theirs).max(), count, wrong


def run_case(report, name, folder, gguf, a):
    try:
        kld, difference, strings, wrong = check(folder, gguf, a.tokens)
    except Exception as error:  # whatever it is, the file cannot be used
        report.row("FAIL", name, "-", "-", "-", f"llama.cpp or the reference cannot run it: {error}")
        return
    shown = "; ".join(f"{text!r}: expected {e[:12]}, got {g[:12]}" for text, e, g in wrong[:2])
    good = kld <= a.max_kld and not wrong
    report.row("ok" if good else "FAIL", name, f"{kld:.1e}", f"{difference:.1e}", f"{strings - len(wrong)}/{strings}", shown)


def families(a):
    report = Report("families", "case", "max KLD", "max difference", "strings alike", "first differences")
    names = a.cases or list(synthetic.CASES)
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            folder = synthetic.case(Path(work) / name, name, "f32")
            gguf = Path(a.converted or work) / f"{folder.name}-f32.gguf"
            if a.converted and not gguf.exists():
                report.row("skipped", folder.name, "-", "-", "-", f"no {gguf}")
                continue
            try:
                if not a.converted:
                    convert(folder, "f32", gguf)
            except QuantError as error:
                report.row("FAIL", folder.name, "-", "-", "-", f"quant: {error}")
                continue
            run_case(report, folder.name, folder, gguf, a)
            if not a.converted:
                gguf.unlink()
    return report.finish()


# ---------------------------------------------------------------- what a mistake would look like

def _interleaved(name, w, c):
    """Rows of q and k in the order of adjacent pairs, where halves were meant."""
    heads = c["num_attention_heads"] if "q_proj" in name else c["num_key_value_heads"]
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


KEYS = {  # key of config.json -> (what it says after the mistake, what is wrong)
    "rms_norm_eps": (1e-5, "another epsilon"), "rope_theta": (10000.0, "rotary base lost"),
    "rope_scaling": (None, "rope scaling lost"), "rope_local_base_freq": (10000.0, "local rotary base lost"),
    "attn_logit_softcapping": (50.0, "attention cap lost"), "final_logit_softcapping": (30.0, "final cap lost"),
    "sliding_window": (4096, "window lost"), "num_experts_per_tok": (1, "number of experts lost"),
    "query_pre_attn_scalar": (32, "attention scale"), "no_rope_layers": ([1] * 99, "layers without positions lost"),
    "norm_topk_prob": (False, "expert weights not renormalised"),
}
ARRAYS = {  # part of a tensor's name -> (its values after the mistake, what is wrong)
    "q_proj.weight": (_interleaved, "q permuted"), "k_proj.weight": (_interleaved, "k permuted"),
    "q_proj.bias": (_interleaved, "bias of q permuted"), "norm.weight": (lambda n, w, c: w + 1, "norms plus one"),
    "q_norm.weight": (lambda n, w, c: np.ones_like(w), "q norm lost"),
    "v_proj.bias": (lambda n, w, c: 0 * w, "bias of v lost"),
    "qkv_proj.weight": (lambda n, w, c: np.roll(w, 32, 0), "fused parts cut in the wrong place"),
    "gate_up_proj.weight": (lambda n, w, c: np.roll(w, len(w) // 2, 0), "gate and up exchanged"),
    "o_proj.weight": (lambda n, w, c: np.roll(w, 32, 1), "heads in another order"),
    "self_attn.sinks": (lambda n, w, c: w - 99, "sinks lost"), "o_proj.bias": (lambda n, w, c: 0 * w, "bias of o lost"),
    "experts.gate_up_proj": (lambda n, w, c: np.roll(w, 1, 1 if w.ndim == 4 or "scales" in n else -1), "gate and up exchanged"),
    "down_proj_bias": (lambda n, w, c: 0 * w, "biases of experts lost"),
    "router.bias": (lambda n, w, c: 0 * w, "bias of the router lost"),
    "mlp.gate.weight": (lambda n, w, c: w[::-1], "experts in another order"),
    "block_sparse_moe.gate.weight": (lambda n, w, c: w[::-1], "experts in another order"),
}


class Spoilt(forward.Weights):
    """Weights with a mistake in every tensor whose name contains `part`."""

    def spoil(self, part, change, config):
        self.part, self.change, self.config = part, change, config
        return self

    def __getitem__(self, name):
        w = super().__getitem__(name)
        return self.change(name, w, self.config) if self.part in name else w


def mistakes(folder):
    """(what is wrong, model that has it wrong) for all that applies to the folder."""
    config = forward.read_config(folder)
    for key, (value, what) in KEYS.items():
        if config.get(key) is not None and config[key] != value:
            yield what, forward.Model(folder, {**config, key: value})
    names = forward.Weights(folder).where
    for part, (change, what) in ARRAYS.items():
        if any(part in name for name in names):
            model = forward.Model(folder)
            model.w = Spoilt(folder).spoil(part, change, config)
            yield what, model


def sensitivity(a):
    report = Report("sensitivity", "case", "mistake", "max KLD")
    with tempfile.TemporaryDirectory() as work:
        for name in a.cases or synthetic.CASES:
            folder = synthetic.case(Path(work) / name, name, "f32")
            right = forward.Model(folder)
            ids = sentence(right.c["vocab_size"], a.tokens)
            expected = right.logits(ids)
            for what, model in mistakes(folder):
                kld = forward.kld(expected, model.logits(ids)).max()
                report.row("ok" if kld > 10 * a.max_kld else "FAIL", name, what, f"{kld:.1e}")
    return report.finish()


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cases", nargs="*", metavar="CASE", help="default: all of synthetic.py")
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--max-kld", type=float, default=1e-5, help="of the worst position, in nats (default 1e-5)")
    p.add_argument("--converted", metavar="DIR", help="GGUF files to judge instead of quant's")
    p.add_argument("--sensitivity", action="store_true")
    a = p.parse_args()
    if unknown := [c for c in a.cases if c not in synthetic.CASES]:
        p.error(f"unknown cases {', '.join(unknown)}; there are {', '.join(synthetic.CASES)}")
    if a.converted and not Path(a.converted).is_dir():
        cannot(f"no folder {a.converted}")
    return sensitivity(a) if a.sensitivity else families(a)


if __name__ == "__main__":
    main(run)

#!/usr/bin/env python3
"""Does `quant calibrate` see what llama.cpp sees? The same tokens go through llama.cpp with a callback on every product, as its
imatrix tool listens; the mean squares of every input of every weight must agree within a relative 1e-3. Of the tokens at most one in
a thousand may have gone to another expert, where two scores of a router are nearly equal; such experts are not compared.

    calibrate.py [MODEL...]   F32 GGUF files or Hugging Face folders, which are converted to F32 first;
                              without any, the random models of synthetic.py
                              [--data FILE] [--rows 8] [--length 256] [--tolerance 1e-3]

llama.cpp keeps its cache in F32 here and runs without flash attention, so that it computes what the model says.
"""
import argparse
import ctypes
import json
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np

import imatrix
import peer
import synthetic
from common import ROOT, QuantError, Report, binary, convert, main, quant

TENSOR_DIMS, TENSOR_SRC = 4, 10
F32 = 0
MOVED = 1e-3


class Tensor(ctypes.Structure):
    """ggml_tensor of ggml.h."""


Tensor._fields_ = [("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * TENSOR_DIMS),
                   ("nb", ctypes.c_size_t * TENSOR_DIMS), ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16),
                   ("flags", ctypes.c_int32), ("src", ctypes.POINTER(Tensor) * TENSOR_SRC),
                   ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p),
                   ("name", ctypes.c_char * 64)]


def array(t, dtype):
    """The values of a tensor, outermost dimension first, whatever its strides."""
    shape, strides = list(t.ne)[::-1], list(t.nb)[::-1]
    size = sum((n - 1) * s for n, s in zip(shape, strides)) + np.dtype(dtype).itemsize
    raw = np.frombuffer((ctypes.c_char * size).from_address(t.data), np.uint8)
    return np.lib.stride_tricks.as_strided(raw[:np.dtype(dtype).itemsize].view(dtype), shape, strides)


class Collector:
    """Sums of squares and counts, {weight: [sums [experts, columns], counts [experts]]}."""

    def __init__(self):
        self.sums, self.error = {}, None
        base = ctypes.CDLL(str(next(Path(peer.llama_cpp.__file__).parent.glob("lib/libggml-base.so*"))))
        self.op = base.ggml_op_desc
        self.op.argtypes, self.op.restype = [ctypes.c_void_p], ctypes.c_char_p

    def __call__(self, pointer, ask, _):
        try:
            return self.see(pointer, ask)
        except Exception as error:  # it would be lost in C
            self.error = error
            return False

    def see(self, pointer, ask):
        op = self.op(pointer)
        if op not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return not ask
        t = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
        weight, x = t.src[0].contents, t.src[1].contents
        name = weight.name.decode()
        if not name.startswith("blk.") or not name.endswith(".weight") or x.type != F32:
            return not ask
        if ask:
            return True
        experts = weight.ne[2]
        sums, counts = self.sums.setdefault(name, [np.zeros((experts, x.ne[0])), np.zeros(experts)])
        values = array(x, np.float32)[0].astype(np.float64)
        if op == b"MUL_MAT":
            rows = values.reshape(-1, x.ne[0])
            sums[0] += (rows ** 2).sum(0)
            counts[0] += len(rows)
        else:
            ids = array(t.src[2].contents, np.int32)[0, 0]  # [tokens, used]
            for token, chosen in enumerate(ids):
                for place, expert in enumerate(chosen):
                    sums[expert] += values[token, place % values.shape[1]] ** 2
                    counts[expert] += 1
        return True


def collect(path, sequences, threads=2):
    """What llama.cpp sees of these sequences of tokens, each on its own."""
    c, collector = peer.c, Collector()
    model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
    p = c.llama_context_default_params()
    p.n_ctx = p.n_batch = p.n_ubatch = max(map(len, sequences))
    p.n_threads = p.n_threads_batch = threads
    p.type_k = p.type_v = F32
    p.flash_attn_type = 0
    callback = peer.llama_cpp.ggml_backend_sched_eval_callback(collector)
    p.cb_eval = callback
    context = c.llama_init_from_model(model, p)
    if not context:
        raise QuantError("llama.cpp cannot make a context")
    batch = c.llama_batch_init(p.n_ctx, 0, 1)
    for tokens in sequences:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), i, 1, 0
            batch.logits[i] = 1  # or llama.cpp leaves tokens out of the last layer
        if c.llama_decode(context, batch) or collector.error:
            raise QuantError(f"llama.cpp: {collector.error or 'decoding failed'}")
    c.llama_free(context)
    c.llama_model_free(model)
    return collector.sums


def about(path):
    """The description in a statistics file."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(json.loads(data[8:8 + length])["__metadata__"]["quant.statistics"])


def token_counts(path):
    """How many tokens each expert saw, {weight: [experts]}."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name.removesuffix(".counts"): np.array(t.data).reshape(-1) for t in tensors if t.name.endswith(".counts")}


def elsewhere(counted, theirs):
    """Tokens that another expert saw than in llama.cpp: of two scores that are nearly equal either may come out larger."""
    return max(int(np.abs(counted[name] - counts).sum() / 2) for name, (_, counts) in theirs.items())


def compare(ours, theirs, counted):
    """Entries, and the largest relative difference with where it is; an error if names or shapes differ. Experts that saw other
    tokens are left out."""
    if ours.keys() != theirs.keys():
        raise QuantError(f"other entries: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    worst, place = 0.0, ""
    for name, (sums, counts) in theirs.items():
        same = counted[name] == counts
        mean = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 1)
        got = ours[name].reshape(mean.shape).astype(np.float64)
        # Channels without any signal are noise on both sides.
        floor = 1e-9 * mean.max()
        off = np.where(same[:, None], np.abs(got - mean) / np.maximum(np.maximum(got, mean), floor), 0)
        if off.max() > worst:
            worst, place = off.max(), f"{name} {np.unravel_index(off.argmax(), off.shape)}"
    return len(theirs), worst, place


def check(report, model, a, work):
    try:
        file = model if model.suffix == ".gguf" else convert(model, "f32", work / f"{model.name}.gguf")
        stats, exported = work / "stats.safetensors", work / "exported.gguf"
        quant("calibrate", model, *(x for d in a.data for x in ("--data", d)), "--rows", a.rows, "--length", a.length,
              "--keep-tokens", "-o", stats, "--quiet")
        quant("calibrate", "export", stats, "-o", exported)
        facts = about(stats)
        sequences = facts["runs"][0]["kept"]
        theirs = collect(file, sequences)
        counted = token_counts(exported)
        entries, worst, place = compare(imatrix.load(exported).values, theirs, counted)
        old = work / "exported.dat"
        quant("calibrate", "export", stats, "-o", old)
        _, worst_old, place_old = compare(imatrix.load(old).values, theirs, counted)
        tokens, moved = sum(map(len, sequences)), elsewhere(counted, theirs)
        ok = max(worst, worst_old) <= a.tolerance and moved <= MOVED * tokens
        report.row("ok" if ok else "FAIL", model.name, tokens, moved, entries, f"{worst:.1e}", f"{worst_old:.1e}",
                   "" if ok else place or place_old)
    except (QuantError, peer.PeerError) as error:
        report.row("FAIL", model.name, "-", "-", "-", "-", "-", error)


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    p.add_argument("--data", type=Path, nargs="*", default=[ROOT / "evals/corpus/prose.txt"])
    p.add_argument("--rows", type=int, default=8)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--tolerance", type=float, default=1e-3)
    a = p.parse_args()
    binary()
    report = Report("calibration", "model", "tokens", "with another expert", "entries", "worst relative difference", "the same in .dat", "where")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for model in a.models or (synthetic.case(work / name, name, "f32") for name in synthetic.CASES):
            check(report, model.absolute(), a, work)
    return report.finish()


if __name__ == "__main__":
    main(run)

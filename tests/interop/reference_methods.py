#!/usr/bin/env python3
"""Do our methods lose no more than GPTQ and AWQ as their papers have them? Both are written here in numpy from the papers' equations and
fed with the Gram matrices of one statistics file, which `quant convert` is given too.

    reference_methods.py [--rows 64] [--length 512] [--chunks 40]

GPTQ (Frantar et al. 2022, algorithm 1): scales from the largest weights of each group of 128 ("static groups"), columns in the order of
their activity, 1 % of the mean diagonal added to it. AWQ (Lin et al. 2023, equations 4 and 5): scales x^a, or x^a / w^(1-a), a in steps
of 1/20, folded into what writes the channel; then each group's range is cut where the output's error is least. x is the root of the
mean square, which is what the file has; errors are measured by the Gram matrix, which is the mean over all tokens. Their weights go
into F32 folders, with scales that are not rounded to half precision. The model is evals/probe/model, the texts `quant probe`'s.

A row fails where our mean KLD is above the reference's, all of one `quant eval` run over the same tokens; and where a reference does not
beat rounding to nearest, which would make it none.
"""
import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from common import ROOT, Report, convert, main, quant

MODEL = ROOT / "evals" / "probe" / "model"
BITS, GROUP = 4, 128
TOP = (1 << BITS) - 1
STEPS = 20
# What reads an activation, by the name that the statistics file has for it.
READERS = {
    "attn_q": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn_output": ("self_attn.o_proj",),
    "ffn_gate": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn_down": ("mlp.down_proj",),
}
# What wrote it, if its rows can take a scale back. Heads share values here, so `o_proj` has none.
WRITERS = {"attn_q": "input_layernorm", "ffn_gate": "post_attention_layernorm", "ffn_down": "mlp.up_proj"}
# Products of its outputs amplify what is cut.
NOT_CLIPPED = ("q_proj", "k_proj")
# Ours: target and method -> the references that it must not be worse than.
OURS = {
    ("gptq", "gptq"): ["GPTQ"],
    ("gptq", "auto"): ["GPTQ"],
    ("gptq-asym", "gptq"): ["GPTQ with zeros"],
    ("gptq-asym", "auto"): ["GPTQ with zeros"],
    ("awq", "awq"): ["AWQ", "AWQ, duo"],
    ("awq", "auto"): ["AWQ", "AWQ, duo", "GPTQ with zeros"],
    ("w4a16", "gptq"): ["GPTQ"],
    ("w4a16", "auto"): ["GPTQ"],
}


# ---------------------------------------------------------------- files

def read(path):
    """(tensors in f64, metadata) of a safetensors file of F32, F64, I64 and BF16."""
    raw = Path(path).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, out = json.loads(raw[8:start]), {}
    about = header.pop("__metadata__", {})
    for name, entry in header.items():
        a, b = entry["data_offsets"]
        data = raw[start + a:start + b]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data, {"F32": "<f4", "F64": "<f8", "I64": "<i8"}[entry["dtype"]])
        out[name] = values.reshape(entry["shape"]).astype(np.float64)
    return out, about


def write(folder, tensors):
    """The model with other weights, in F32."""
    shutil.copytree(MODEL, folder)
    config = json.loads((MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    header, data = {}, b""
    for name, values in tensors.items():
        values = values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def gram(statistics, site):
    """The mean of x x^T: the file has its upper triangle, row after row."""
    upper = statistics[f"{site}.gram"]
    n = int((2 * len(upper)) ** 0.5)
    out = np.zeros((n, n))
    out[np.triu_indices(n)] = upper
    return out + np.triu(out, 1).T


# ---------------------------------------------------------------- rounding

def grid(w, symmetric):
    """(scale, zero) of each row of groups [..., GROUP], from its largest weights."""
    low, high = np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = np.where(high > low, (high - low) / TOP, 1.0)
    zero = np.full_like(scale, (TOP + 1) / 2) if symmetric else np.rint(-low / scale)
    return scale[..., None], zero[..., None]


def rounded(w, scale, zero):
    return scale * (np.clip(np.rint(w / scale) + zero, 0, TOP) - zero)


def grouped(w):
    return w.reshape(len(w), -1, GROUP)


def rtn(w, symmetric):
    return rounded(grouped(w), *grid(grouped(w), symmetric)).reshape(w.shape)


# ---------------------------------------------------------------- GPTQ

def gptq(w, h, symmetric):
    w, h = w.copy(), h.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += 0.01 * np.mean(np.diag(h)) * np.eye(len(h))
    scale, zero = (np.repeat(a[..., 0], GROUP, axis=1) for a in grid(grouped(w), symmetric))
    order = np.argsort(-np.diag(h), kind="stable")
    # Upper triangular, U^T U the inverse: its rows are what the inverse's become as columns are done with.
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    out = np.empty_like(w)
    for i, column in enumerate(order):
        out[:, column] = rounded(w[:, column], scale[:, column], zero[:, column])
        error = (w[:, column] - out[:, column]) / upper[i, i]
        w[:, order[i + 1:]] -= np.outer(error, upper[i, i + 1:])
    return out


# ---------------------------------------------------------------- AWQ

def loss(errors, h):
    return np.einsum("ri,ij,rj->", errors, h, errors, optimize=True)


def awq_scale(weights, h, duo):
    """What the columns of all readers of a site are multiplied with."""
    stacked = np.concatenate(weights)
    activity = np.sqrt(np.diag(h))
    groups = grouped(np.abs(stacked))
    magnitude = (groups / np.maximum(groups.max(-1, keepdims=True), 1e-12)).reshape(stacked.shape).mean(0)
    best, chosen = np.inf, np.ones(len(h))
    for alpha in np.arange(STEPS) / STEPS:
        scale = activity**alpha / (magnitude + 1e-4)**(1 - alpha) if duo else activity**alpha
        scale = np.maximum(scale, 1e-4)
        scale /= np.sqrt(scale.max() * scale.min())
        found = sum(loss(w - rtn(w * scale, False) / scale, h) for w in weights)
        if found < best:
            best, chosen = found, scale
    return chosen


def awq_clip(w, h):
    """The range of each group, cut by up to half where its part of the output gains."""
    groups = grouped(w)
    blocks = np.stack([h[i:i + GROUP, i:i + GROUP] for i in range(0, len(h), GROUP)])
    most = np.abs(groups).max(-1, keepdims=True)
    best, chosen = np.full(groups.shape[:2], np.inf), most.copy()
    for step in range(STEPS // 2):
        at = most * (1 - step / STEPS)
        cut = np.clip(groups, -at, at)
        errors = rounded(cut, *grid(cut, False)) - groups
        found = np.einsum("rgi,gij,rgj->rg", errors, blocks, errors, optimize=True)
        better = found < best
        best[better], chosen[better] = found[better], at[better]
    return np.clip(groups, -chosen, chosen).reshape(w.shape)


def awq(tensors, statistics, duo):
    tensors = dict(tensors)
    for layer, site, names, h in sites(tensors, statistics):
        scale = np.ones(len(h))
        if site in WRITERS:
            scale = awq_scale([tensors[n] for n in names], h, duo)
            writer = f"model.layers.{layer}.{WRITERS[site]}.weight"
            # `up` is rounded by now, as what reads the norm; its rows take the inverse without loss, scale by scale.
            tensors[writer] = (tensors[writer].T / scale).T
        for n in names:
            w, scaled = tensors[n] * scale, h / np.outer(scale, scale)
            tensors[n] = rtn(w if n.split(".")[-2] in NOT_CLIPPED else awq_clip(w, scaled), False)
    return tensors


# ---------------------------------------------------------------- the models

def sites(tensors, statistics):
    """(layer, site, names of the weights that read it, its Gram matrix) of all layers."""
    layers = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("model.layers."))
    for layer in range(layers):
        for site, readers in READERS.items():
            names = [f"model.layers.{layer}.{r}.weight" for r in readers]
            yield layer, site, names, gram(statistics, f"blk.{layer}.{site}")


def each(tensors, statistics, method):
    tensors = dict(tensors)
    for _, _, names, h in sites(tensors, statistics):
        tensors |= {n: method(tensors[n], h) for n in names}
    return tensors


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=64)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--chunks", type=int, default=40)
    a = p.parse_args()
    report = Report("methods against their papers", "ours", "KLD mean", "95 %", "reference", "KLD mean", "95 %", "ours over it")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        calibration, test, stats = work / "calibration.txt", work / "test.txt", work / "stats.safetensors"
        calibration.write_text(quant("probe", "--split", "calibration", "--count", 60, "--text"), encoding="utf-8")
        test.write_text(quant("probe", "--split", "test", "--count", 30, "--text"), encoding="utf-8")
        quant("calibrate", MODEL, "--data", calibration, "--rows", a.rows, "--length", a.length, "--gram", "--quiet", "-o", stats)
        tensors, statistics = read(MODEL / "model.safetensors")[0], read(stats)[0]
        references = {
            "rounding": each(tensors, statistics, lambda w, h: rtn(w, True)),
            "rounding with zeros": each(tensors, statistics, lambda w, h: rtn(w, False)),
            "GPTQ": each(tensors, statistics, lambda w, h: gptq(w, h, True)),
            "GPTQ with zeros": each(tensors, statistics, lambda w, h: gptq(w, h, False)),
            "AWQ": awq(tensors, statistics, False),
            "AWQ, duo": awq(tensors, statistics, True),
        }
        folders = {name: write(work / name, made) for name, made in references.items()}
        for target, method in OURS:
            folders[target, method] = convert(MODEL, target, work / f"{target}-{method}", "--stats", stats, "--method", method)
        said = json.loads(quant("eval", *folders.values(), "--reference", MODEL, "--data", test, "--context", a.length,
                                "--chunks", a.chunks, "--json", "--quiet"))
        found = {row["path"]: row["kld"] for row in said["artifacts"]}
        kld = {name: found[str(path)] for name, path in folders.items()}

        def compare(ours, reference, status):
            cells = [(f"{k['mean']:.5f}", f"{k['low']:.5f} - {k['high']:.5f}") for k in (kld[ours], kld[reference])]
            name = ours if isinstance(ours, str) else f"{ours[0]}, --method {ours[1]}"
            report.row(status, name, *cells[0], reference, *cells[1], f"{kld[ours]['mean'] / kld[reference]['mean']:.3f}")

        def judged(ours, reference):
            compare(ours, reference, "ok" if kld[ours]["mean"] <= kld[reference]["mean"] else "FAIL")

        for reference, plain in [("GPTQ", "rounding"), *((n, "rounding with zeros") for n in list(references)[3:])]:
            judged(reference, plain)
        for ours, others in OURS.items():
            for other in others:
                judged(ours, other)
    return report.finish()


if __name__ == "__main__":
    main(run)

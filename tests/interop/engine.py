#!/usr/bin/env python3
"""Does quant's engine compute what llama.cpp computes? Three checks, each with its own limit:

    engine.py [--only logits,models] [CASE...]

logits: every case of synthetic.py, as folder and as F32 GGUF: logits against llama.cpp's of the F32 file. Mean divergence at
        most 1e-5 nats, the same most likely token in at least 99.9 % of positions.
models: every NAME/ in $QUANT_MODELS, on the first windows of $QUANT_TEXT (else of the bundled texts): the same limits;
        perplexity by llamacpp-512 within 0.1 % of what llama.cpp's logits give; and for files that llama.cpp quantized, the
        divergence from F16 within 3 % of llama.cpp's of the same file decoded to F32 (its products with packed weights
        round the activations too). The divergence from a reference file equals that from the model to 1e-6.

quant's logits are computed here from the hidden states and the output matrix of a `quant reference` file.
"""
import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np

import forward
import peer
import synthetic
from common import ROOT, QuantError, Report, convert, main, quant

MEAN_KLD, SAME_TOP, PERPLEXITY, DIVERGENCE, CACHED = 1e-5, 0.999, 1e-3, 0.03, 1e-6
FORMATS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "iq4_xs")
BUNDLED = sorted((ROOT / "evals" / "corpus").glob("*.txt"))


def read_reference(path):
    """(description, windows as (tokens, first scored, end), hidden states, output matrix f32) of a reference file."""
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        start, raw = f.tell(), np.memmap(path, np.uint8, "r")
    about = json.loads(header.pop("__metadata__")["quant.reference"])
    part = lambda name: raw[start + header[name]["data_offsets"][0]:start + header[name]["data_offsets"][1]]
    tokens, windows, at = part("tokens").view("<u4"), [], 0
    for count, first, end in part("windows").view("<u4").reshape(-1, 3):
        windows.append((tokens[at:at + count], int(first), int(end)))
        at += count
    hidden = part("hidden").view("<f4").reshape(-1, about["head_dims"][1])
    parts = [part(name) for name in sorted(header) if name.startswith("head.")]
    return about, windows, hidden, decoded(about["head_codec"], parts, about["head_dims"])


def eights(bytes):
    """What E4M3 stand for."""
    exponent, fraction = bytes >> 3 & 15, (bytes & 7).astype(np.float32)
    size = np.where(exponent, np.exp2(exponent - 7.0) * (1 + fraction / 8), fraction / 512).astype(np.float32)
    return np.where(bytes & 0x80, -size, size)


def decoded(codec, parts, dims):
    """A matrix as f32: of floats, or of MLX's."""
    if codec in ("mlx-nvfp4", "mlx-mxfp4", "mlx-mxfp8"):
        sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
        fours = lambda bytes: np.concatenate([sizes, -sizes])[np.stack([bytes & 15, bytes >> 4], -1)]
        values = eights(parts[0]) if codec == "mlx-mxfp8" else fours(parts[0])
        scales = eights(parts[1]) if codec == "mlx-nvfp4" else np.exp2(parts[1].astype(np.float32) - 127)
        return (values.reshape(len(scales), -1) * scales[:, None]).reshape(dims)
    if codec.startswith("mlx-"):
        _, width, group, *scales = codec.split("-")
        bits, group, scales = int(width[:-3]), int(group[1:]), scales[0] if scales else "bf16"
        stream = np.unpackbits(parts[0], bitorder="little").reshape(-1, bits)
        codes = (stream << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.float32).reshape(-1, group)
        scale, bias = (decoded(scales, [part], (-1, 1)) for part in parts[1:])
        return (codes * scale + bias).reshape(dims)
    values = parts[0].view({"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[codec]).reshape(dims)
    return (values.astype(np.uint32) << 16).view(np.float32) if codec == "bf16" else values.astype(np.float32)


def logits(about, hidden, head):
    x = hidden.astype(np.float64) @ head.T.astype(np.float64)
    return about["softcap"] * np.tanh(x / about["softcap"]) if about["softcap"] else x


def states(model, work, *options):
    path = work / "model.ref"
    quant("reference", model, "-o", path, "--quiet", *options)
    return read_reference(path)


def judge(model, gguf, work, *options):
    """(mean KLD, largest KLD, share of the same top token, perplexity by quant's and by llama.cpp's logits)."""
    about, windows, hidden, head = states(model, work, *options)
    at, klds, same, nll = 0, [], [], np.zeros(2)
    for tokens, first, end in windows:
        theirs = peer.logits(gguf, tokens)[first:end].astype(np.float64)
        ours = logits(about, hidden[at:at + end - first], head)[:, :theirs.shape[1]]
        klds.append(forward.kld(theirs, ours))
        same.append(theirs.argmax(1) == ours.argmax(1))
        targets = tokens[first + 1:end + 1]
        nll += [-np.log(forward.softmax(x)[np.arange(len(x)), targets]).sum() for x in (ours, theirs)]
        at += end - first
    klds, same = np.concatenate(klds), np.concatenate(same)
    return klds.mean(), klds.max(), same.mean(), *np.exp(nll / len(klds))


def check_logits(a):
    report = Report("engine logits", "case", "from", "mean KLD", "max KLD", "same top", "error")
    text = [option for path in BUNDLED for option in ("--data", path)]
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for name in a.cases or synthetic.CASES:
            folder = synthetic.case(work / name, name, "f32")
            try:
                gguf = convert(folder, "f32", work / f"{name}.gguf")
                for model in (folder, gguf):
                    mean, most, same, *_ = judge(model, gguf, work, "--protocol", "gptq-2048", "--context", 200, "--chunks", 2, *text)
                    good = mean <= MEAN_KLD and same >= SAME_TOP
                    kind = "folder" if model == folder else "GGUF"
                    report.row("ok" if good else "FAIL", name, kind, f"{mean:.1e}", f"{most:.1e}", f"{same:.2%}", "")
            except (QuantError, peer.PeerError) as error:
                report.row("FAIL", name, "-", "-", "-", "-", error)
    return report.finish()


def divergence(reference, decoded, windows):
    """Mean KLD by llama.cpp of one F32 file from another, over the scored positions."""
    klds = [forward.kld(*(peer.logits(f, tokens)[first:end].astype(np.float64) for f in (reference, decoded)))
            for tokens, first, end in windows]
    return np.concatenate(klds).mean()


def evaluate(reference, artifacts, *options):
    found = json.loads(quant("eval", *artifacts, "--reference", reference, "--json", "--quiet", *options))
    return found["reference"]["perplexity"], {Path(x["path"]).stem: x["kld"]["mean"] for x in found["artifacts"]}


def check_model(report, folder, text, work):
    gguf, f32 = convert(folder, "f16", work / "f16.gguf"), convert(folder, "f32", work / "f32.gguf")
    options = ("--chunks", 2, *text)
    mean, most, same, ours, theirs = judge(f32, f32, work, *options)
    good = mean <= MEAN_KLD and same >= SAME_TOP
    report.row("ok" if good else "FAIL", folder.name, "logits", f"mean KLD {mean:.1e}, max {most:.1e}", f"same top {same:.2%}")
    printed, _ = evaluate(f32, [f32], *options)
    good = max(abs(printed / theirs - 1), abs(ours / theirs - 1)) <= PERPLEXITY
    report.row("ok" if good else "FAIL", folder.name, "perplexity", f"{printed:.5f}", f"llama.cpp {theirs:.5f}")

    files = [peer.quantize(gguf, work / f"{name}.gguf", name) for name in FORMATS]
    _, live = evaluate(f32, files, *options)
    quant("reference", f32, "-o", work / "cached.ref", "--quiet", *options)
    _, cached = evaluate(work / "cached.ref", files)
    _, windows, _, _ = read_reference(work / "cached.ref")
    for file, name in zip(files, FORMATS):
        decoded = peer.quantize(file, work / "decoded.gguf", "f32")
        expected = divergence(f32, decoded, windows)
        good = abs(live[name] / expected - 1) <= DIVERGENCE and abs(live[name] - cached[name]) <= CACHED
        report.row("ok" if good else "FAIL", folder.name, name, f"KLD {live[name]:.6f}, cached {cached[name]:.6f}", f"llama.cpp {expected:.6f}")


def check_models(_):
    report = Report("engine on models", "model", "what", "quant", "llama.cpp")
    folders = sorted(p.parent for p in Path(os.environ["QUANT_MODELS"]).glob("*/config.json")) if os.environ.get("QUANT_MODELS") else []
    if not folders:
        report.row("skipped", "-", "no $QUANT_MODELS", "-", "-")
    texts = [os.environ["QUANT_TEXT"]] if os.environ.get("QUANT_TEXT") else BUNDLED
    text = [option for path in texts for option in ("--data", path)]
    for folder in folders:
        with tempfile.TemporaryDirectory() as work:
            try:
                check_model(report, folder, text, Path(work))
            except (QuantError, peer.PeerError) as error:
                report.row("FAIL", folder.name, "-", error, "-")
    return report.finish()


CHECKS = {"logits": check_logits, "models": check_models}


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cases", nargs="*", metavar="CASE")
    p.add_argument("--only", default=",".join(CHECKS))
    a = p.parse_args()
    results = [CHECKS[name](a) for name in a.only.split(",")]
    return 1 if 1 in results else max(results) if all(results) else 0


if __name__ == "__main__":
    main(run)

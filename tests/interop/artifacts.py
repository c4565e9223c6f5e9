#!/usr/bin/env python3
"""Do the packages that own the Hugging Face formats load what quant writes, and compute what quant's engine computes from it?

    artifacts.py [--only written,read,values,llama] [PRESET...]

written: every preset that makes a folder of packed weights, for several families: logits of the owner's package (gptqmodel and
         mlx-lm calculate in half precision) against those of quant's engine on the same folder. Cosine at least 0.999, mean
         divergence at most 2e-4 nats, no tensor missing or too many.
read:    folders that bitsandbytes made, and every one in $QUANT_EXAMPLES, artifacts that other tools made: the owner's package
         against quant's decoded copy in transformers, with the same limits. A format that quant does not read is skipped.
values:  MLX folders, ours and those of others: mx.dequantize in single precision against what quant decodes: not one value may differ.
llama:   NVFP4 in GGUF with its scales of matrices: llama.cpp's logits. Its products with packed weights round the activations
         too, so what is allowed is five times the divergence that a Q8_0 of the same model shows.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import bounds
import engine
import forward
import peer
import synthetic
from common import QuantError, Report, cannot, convert, decoded, main, presets, quant

HERE = Path(__file__).resolve().parent
COSINE, KLD, LLAMA = 0.999, 2e-4, 5
# gptqmodel 7.7 looks for other names in phi3 and mixtral than published files have; transformers 5.17 stacks experts, and knows no
# place there for scales of whole matrices, nor 8-bit floats with scales of 32; mlx-lm's gemma2 attends beyond the window.
FAMILIES = {"gpt-oss": ("mxfp4-gpt-oss", "mlx-4bit", "mlx-mxfp4"), "gpt-oss-mxfp4": ("mxfp4-gpt-oss", "mlx-mxfp4"),
            "llama": None, "qwen2": ("w4a16", "gptq", "awq", "nf4", "mlx-4bit"), "qwen3": ("w4a16-asym", "gptq-g32", "awq", "mlx-6bit"),
            "phi3": ("w4a16", "mxfp8", "nvfp4a16", "nf4", "mlx-8bit"), "llama3-rope": ("w8a8", "gptq-8bit", "fp8", "mlx-4bit-g32"),
            "qwen3moe": ("w4a16", "gptq", "awq", "fp8", "mxfp4", "nf4", "mlx-4bit", "mlx-mixed-3-6", "mlx-nvfp4", "mlx-mxfp8"),
            "mixtral": ("w4a16", "mxfp4", "mlx-4bit"), "gemma3": ("mlx-4bit",), "smollm3": ("mlx-5bit",)}

# With scales of the KV cache, which the owner's package makes places for.
CACHE = "fp8+kv"
TEXT = [option for path in engine.BUNDLED for option in ("--data", path)]
OPTIONS = ("--protocol", "gptq-2048", "--context", 100, "--chunks", 1, *TEXT)


def loaders():
    made = subprocess.run([sys.executable, HERE / "loaders.py"], stdout=subprocess.PIPE, text=True)
    return made.stdout.strip() if made.returncode == 0 else cannot("the loaders' environment; the reason is above")


def load(python, folder, tokens, work, *options):
    """(package and version, logits) of a folder; QuantError with the last line it said if it fails."""
    np.save(work / "tokens.npy", tokens)
    command = [python, HERE / "load.py", folder, work / "tokens.npy", work / "logits.npy", *options]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        raise QuantError((done.stderr.strip() or "nothing said").splitlines()[-1])
    return done.stdout.strip(), np.load(work / "logits.npy").astype(np.float64)


def compare(report, cells, theirs, ours, most=KLD, least=COSINE):
    cosine = (theirs * ours).sum() / np.sqrt((theirs**2).sum() * (ours**2).sum())
    kld = forward.kld(theirs, ours).mean()
    report.row("ok" if cosine >= least and kld <= most else "FAIL", *cells, f"{cosine:.7f}", f"{kld:.1e}", "")


def measured(source, preset, work):
    """Statistics, for presets that store how large inputs become, and for scales of the KV cache."""
    if preset not in ("nvfp4", "modelopt-nvfp4", "modelopt-fp8", CACHE):
        return ()
    quant("calibrate", source, *TEXT, "--rows", 8, "--length", 64, "--quiet", "-o", work / "stats.safetensors")
    return ("--stats", work / "stats.safetensors", *["--set", "kv_cache=fp8"] * (preset == CACHE))


def packed():
    """Presets that make folders of packed weights. EXL2's owner needs a GPU: exl2.py reads those."""
    return [name for name in presets("hf") if not name.startswith(("hf-", "exl2")) and name not in bounds.EXCEPT]


def config(folder):
    return json.loads((folder / "config.json").read_text())


def small(folder, family):
    """A case of synthetic.py; its vocabulary may lack the token that transformers pads with by default."""
    source = synthetic.case(folder, family)
    (source / "config.json").write_text(json.dumps({**config(source), "pad_token_id": None}))
    return source


def check_written(python, a):
    report = Report("artifacts written", "model", "preset", "loader", "cosine", "mean KLD", "error")
    for family, some in FAMILIES.items():
        for preset in a.presets or some or [*packed(), CACHE]:
            with tempfile.TemporaryDirectory() as work:
                work = Path(work)
                try:
                    source = small(work / family, family)
                    options = measured(source, preset, work)
                    artifact = convert(source, preset.removesuffix("+kv"), work / "artifact", *options)
                    about, windows, hidden, head = engine.states(artifact, work, *OPTIONS)
                    tokens, first, end = windows[0]
                    ours = engine.logits(about, hidden[:end - first], head)
                    mlx = preset.startswith("awq") and "moe" not in family  # which mlx-lm does not unpack
                    for more in [(), ("--with", "mlx")] if mlx else [()]:
                        loader, theirs = load(python, artifact, tokens, work, *more)
                        compare(report, (family, preset, loader), theirs[first:end], ours)
                except QuantError as error:
                    report.row("FAIL", family, preset, "-", "-", "-", error)
    return report.finish()


def owners(python, work):
    """Folders that the owner of their format makes here."""
    source = small(work / "llama", "llama")
    for kind in "nf4", "fp4":
        out = work / f"bitsandbytes-{kind}"
        done = subprocess.run([python, HERE / "bnb.py", source, out, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise QuantError(done.stderr.strip().splitlines()[-1])
        yield out


def check_read(python, _):
    with tempfile.TemporaryDirectory() as work:
        return read(python, list(owners(python, Path(work))))


def read(python, made):
    report = Report("artifacts read", "model", "format", "loader", "cosine", "mean KLD", "error")
    named = os.environ.get("QUANT_EXAMPLES")
    examples = sorted(p.parent for p in Path(named).glob("*/config.json")) if named else []
    if not examples:
        report.row("skipped", "-", "-", "no $QUANT_EXAMPLES", "-", "-", "")
    for example in made + examples:
        if "quantization_config" not in config(example):
            continue
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            try:
                plain = decoded(example, work)
            except QuantError as error:
                kind = "skipped" if "cannot be read" in str(error) else "FAIL"
                report.row(kind, example.name, "-", "-", "-", "-", error)
                continue
            try:
                listed = json.loads(quant("inspect", example, "--json", "--quiet"))["tensors"]
                codec = next(t["codec"] for t in listed if t["codec"] not in ("f32", "f16", "bf16"))
                tokens = np.random.default_rng(0).integers(0, config(example)["vocab_size"], 64)
                loader, theirs = load(python, example, tokens, work)
                _, ours = load(python, plain, tokens, work)
                compare(report, (example.name, codec, loader), theirs, ours)
            except QuantError as error:
                report.row("FAIL", example.name, "-", "-", "-", "-", error)
    return report.finish()


def check_values(python, a):
    report = Report("values of MLX folders", "folder", "weights", "equal", "error")
    named = os.environ.get("QUANT_EXAMPLES")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        folders = {p.parent.name: p.parent for p in Path(named).glob("mlx*/config.json")} if named else {}
        for family in "llama", "qwen3moe":
            source = small(work / family, family)
            for preset in a.presets or packed():
                if preset.startswith("mlx"):
                    folders[f"{family} {preset}"] = convert(source, preset, work / f"{family}-{preset}")
        for name, folder in folders.items():
            try:
                plain = decoded(folder, work)
                command = [python, HERE / "mlx_values.py", folder, plain]
                done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                if done.returncode:
                    raise QuantError(done.stderr.strip().splitlines()[-1])
                weights, equal = map(int, done.stdout.split())
                report.row("ok" if 0 < weights == equal else "FAIL", name, weights, equal, "")
            except QuantError as error:
                report.row("FAIL", name, "-", "-", error)
    return report.finish()


def check_llama(_, __):
    report = Report("scales of matrices in llama.cpp", "model", "preset", "loader", "cosine", "mean KLD", "error")
    plain = ("--set", "output=f32", "--set", "token_embd=f32")
    for family in ("llama", "qwen2", "qwen3", "gemma3", "qwen3moe"):
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            source = small(work / family, family)
            limit = None
            for preset in ("q8_0", "nvfp4-gguf"):
                file = convert(source, preset, work / "artifact.gguf", *plain)
                about, windows, hidden, head = engine.states(file, work, *OPTIONS)
                tokens, first, end = windows[0]
                ours = engine.logits(about, hidden[:end - first], head)
                theirs = np.asarray(peer.logits(file, tokens.tolist()), np.float64)[first:end]
                limit = limit or max(KLD, LLAMA * forward.kld(theirs, ours).mean())
                compare(report, (family, preset, "llama.cpp"), theirs, ours, limit, 0.99)
    return report.finish()


CHECKS = {"written": check_written, "read": check_read, "values": check_values, "llama": check_llama}


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("presets", nargs="*", metavar="PRESET")
    p.add_argument("--only", default=",".join(CHECKS))
    a = p.parse_args()
    python = loaders()
    results = [CHECKS[name](python, a) for name in a.only.split(",")]
    return 1 if 1 in results else max(results) if all(results) else 0


if __name__ == "__main__":
    main(run)

#!/usr/bin/env python3
"""What every preset loses on the probe model, held against recipes/bounds.toml: no more than its bound, and so much that the bound
means something. Needs neither packages nor a network.

    bounds.py [--write]      # --write measures anew: look at the difference before it is committed
"""
import argparse
import json
import tempfile
import tomllib
from pathlib import Path

from common import FAILED, OK, ROOT, quant

BOUNDS = ROOT / "recipes/bounds.toml"
# Figures are the same on every machine but for how kernels round sums; what loses nothing has only that.
SLACK, NOISE = 1.25, 1e-7
# Presets that the probe cannot be put into.
EXCEPT = {"mxfp4-gpt-oss": "the layout of one family's experts", "gguf": "wants a goal", "packed": "the same"}
HEADER = """# Mean KL divergence (nats a token) from the probe model that a preset may show, calibrated where it can be: tests/interop/bounds.py
"""


def measure(work):
    probe = ROOT / "evals/probe/model"
    for split, count in ("calibration", 24), ("test", 12):
        (work / f"{split}.txt").write_text(quant("probe", "--split", split, "--count", count, "--text"))
    stats = work / "stats.safetensors"
    quant("calibrate", probe, "--data", work / "calibration.txt", "--rows", 64, "--length", 512, "--gram", "-o", stats)
    presets = json.loads(quant("list", "presets", "--json"))["presets"]
    names = [p["preset"] for p in presets if p["written"] and p["preset"] not in EXCEPT]
    out = work / "out"
    out.mkdir()
    quant("convert", probe, "--to", ",".join(names), "--stats", stats, "-o", out)
    report = json.loads(quant("eval", *sorted(out.iterdir()), "--reference", probe, "--data", work / "test.txt",
                              "--chunks", 8, "--json"))
    name = lambda a: Path(a["path"]).name.removeprefix("model-").removesuffix(".gguf")
    return {name(a): a["kld"]["mean"] for a in report["artifacts"]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--write", action="store_true")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(Path(work))
    if a.write:
        lines = [f'"{name}" = {max(kld * SLACK**0.5, NOISE):.2e}' for name, kld in sorted(found.items(), key=lambda f: f[1])]
        BOUNDS.write_text(HEADER + "\n".join(lines) + "\n")
    bounds = tomllib.loads(BOUNDS.read_text())
    wrong = [f"{name}: no such preset" for name in bounds.keys() - found.keys()]
    for name, kld in found.items():
        bound = bounds.get(name)
        if bound is None:
            wrong.append(f"{name} has no bound; it loses {kld:.2e}")
        elif kld > bound:
            wrong.append(f"{name} loses {kld:.2e}, more than {bound:.2e}")
        elif kld * SLACK < bound and bound > NOISE:
            wrong.append(f"{name} loses only {kld:.2e} of {bound:.2e}: lower the bound")
    print("\n".join(wrong) or f"{len(found)} presets, all within their bounds")
    return FAILED if wrong else OK


if __name__ == "__main__":
    raise SystemExit(main())

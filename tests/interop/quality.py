#!/usr/bin/env python3
"""A benchmark, not a test: what files lose that quant makes with its methods, against llama.cpp's of the same size.

    quality.py MODEL --calibrate FILE... --evaluate FILE... [--formats q4_k_m,q3_k_m,q4_0,q2_k,iq4_xs] [--methods gptq,awq+gptq]
               [--rows 64] [--length 512] [--chunks 40] [--work DIR]

One pass of `quant calibrate --gram` over the calibration text gives the statistics; llama.cpp quantizes with the importance matrix
that is exported from them, quant with every method named. Both files hold the same types; their divergence from MODEL is measured
by `quant eval` on each evaluation text, which the statistics have not seen. "ratio" is KLD over llama.cpp's, paired by window; the bar
is what it must not exceed. Work files stay in --work and are used again.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

import peer
from common import Report, convert, main, quant

BARS = {"q4_k_m": 0.75, "q3_k_m": 0.75, "q4_0": 0.75, "q2_k": 0.75, "iq4_xs": 0.90}


def listed(option, paths):
    return [argument for path in paths for argument in (option, path)]


def once(path, make):
    """Makes a file unless it is there, and says how long that took."""
    if not path.exists():
        start = time.time()
        make()
        print(f"{path.name}: {time.time() - start:.0f} s", flush=True)
    return path


def options(doc):
    """Those of every comparison of files: the model, what it is calibrated on and judged by, where work files stay."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--calibrate", nargs="+", type=Path, required=True)
    p.add_argument("--evaluate", nargs="+", type=Path, required=True)
    p.add_argument("--rows", type=int, default=64)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--chunks", type=int, default=40)
    p.add_argument("--work", type=Path)
    return p


def statistics(a, work):
    """Statistics of the model, and the same as an importance matrix."""
    work.mkdir(parents=True, exist_ok=True)
    stats = once(work / "stats.safetensors", lambda: quant(
        "calibrate", a.model, *listed("--data", a.calibrate), "--rows", a.rows, "--length", a.length, "--gram", "--quiet",
        "-o", work / "stats.safetensors"))
    return stats, once(work / "imatrix.gguf", lambda: quant("calibrate", "export", stats, "-o", work / "imatrix.gguf"))


def references(a, work):
    """What the model itself says of every text."""
    return [once(work / f"{i}.ref", lambda: quant(
        "reference", a.model, "-o", work / f"{i}.ref", "--data", text, "--chunks", a.chunks, "--quiet"))
        for i, text in enumerate(a.evaluate)]


def divergences(files, reference):
    """By path: what `quant eval` says of each file, paired by window."""
    said = json.loads(quant("eval", *files, "--reference", reference, "--json", "--quiet"))
    return {Path(r["path"]): r for r in said["artifacts"]}


def run():
    p = options(__doc__)
    p.add_argument("--formats", default=",".join(BARS))
    p.add_argument("--methods", default="auto")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = a.work or Path(scratch)
        stats, imatrix = statistics(a, work)
        source = once(work / "source.gguf", lambda: convert(a.model, "f16", work / "source.gguf"))
        report = Report(f"quality of {a.model.name}", "text", "format", "method", "KLD mean", "95 %", "ratio to llama.cpp", "at most",
                        "perplexity change", "same top", "bytes")
        methods = a.methods.split(",")
        for name in a.formats.split(","):
            files = {"llama.cpp": once(work / f"{name}-llama.gguf", lambda: peer.quantize(
                source, work / f"{name}-llama.gguf", name, imatrix=imatrix))}
            for method in methods:
                file = work / f"{name}-{method}.gguf"
                files[method] = once(file, lambda: convert(a.model, name, file, "--stats", stats, "--method", method))
            sizes = {path.stat().st_size for path in files.values()}
            for text, reference in zip(a.evaluate, references(a, work)):
                by_path = divergences(files.values(), reference)
                base = by_path[files["llama.cpp"]]["kld"]["mean"]
                for method, path in files.items():
                    r = by_path[path]
                    ratio, bar = r["kld"]["mean"] / base, BARS.get(name, 1.0)
                    judged = method == methods[-1]
                    report.row(("ok" if ratio <= bar else "FAIL") if judged else "", text.name, name, method,
                               f"{r['kld']['mean']:.5f}", f"{r['kld']['low']:.5f} - {r['kld']['high']:.5f}", f"{ratio:.3f}",
                               bar if judged else "", f"{100 * (2.718281828 ** r['ln_ppl_ratio']['value'] - 1):+.2f} %",
                               f"{100 * r['same_top']['value']:.2f} %", f"{max(sizes) - min(sizes)} apart")
    return report.finish()


if __name__ == "__main__":
    main(run)

#!/usr/bin/env python3
"""A benchmark, not a test: what floats, EXL2 and formats chosen by measurement lose, beside what they should beat.

    formats_quality.py MODEL --calibrate FILE... --evaluate FILE... --measure FILE [--only floats,exl2,mixes]
                       [--measure-chunks 24] [--rows 64] [--length 512] [--chunks 40] [--work DIR]

Statistics, references and work files are those of quality.py, so both can share a --work. Every row is the divergence of one
artifact from MODEL on one text, over that of the artifact it is compared with, which has the same size or is a baseline. Weights
of mixes are measured on --measure, which neither calibration nor judgement has seen.
"""
import tempfile
from pathlib import Path

import peer
from common import Report, convert, main
from quality import divergences, once, options, references, statistics

# 4-bit columns in groups of 128: 4.16 bits a weight, as quantizers without measurement have it.
UNIFORM = ("exl2", "--set", "blk=exl2-4b-g128")
# Name of an artifact, what it is compared with (or nothing), the ratio that it must not exceed, or with nothing the divergence.
ROWS = {
    "floats": [("nvfp4a16 largest", None, None), ("llama.cpp NVFP4", None, None), ("nvfp4a16 rtn", "nvfp4a16 largest", None),
               ("nvfp4a16 imatrix", "nvfp4a16 largest", None), ("nvfp4a16 gptq", "nvfp4a16 largest", 0.65),
               ("nvfp4a16 awq+gptq", "nvfp4a16 largest", 0.65), ("nvfp4a16 awq+gptq", "llama.cpp NVFP4", 0.60),
               ("mxfp4 largest", None, None), ("mxfp4 awq+gptq", "mxfp4 largest", None), ("fp8 rtn", None, None), ("fp8 awq+gptq", None, 0.003)],
    "exl2": [("exl2 4 bits", None, None), ("exl2 measured", "exl2 4 bits", 0.90)],
    "mixes": [row for name in ("q4_k_m", "q3_k_m", "q2_k") for row in ((name, None, None), (f"size of {name}", name, 0.85))],
}


def size(path):
    return sum(p.stat().st_size for p in path.iterdir()) if path.is_dir() else path.stat().st_size


def run():
    p = options(__doc__)
    p.add_argument("--measure", type=Path, required=True)
    p.add_argument("--measure-chunks", type=int, default=24)
    p.add_argument("--only", default=",".join(ROWS))
    a = p.parse_args()
    rows = [row for name in a.only.split(",") for row in ROWS[name]]
    with tempfile.TemporaryDirectory() as scratch:
        work = a.work or Path(scratch)
        stats, _ = statistics(a, work)
        measured = ("--stats", stats, "--data", a.measure, "--chunks", a.measure_chunks)

        def make(name):
            if name == "llama.cpp NVFP4":
                source = once(work / "source.gguf", lambda: convert(a.model, "f16", work / "source.gguf"))
                types = [("(attn|ffn)_.*weight", "NVFP4"), (".*", "Q8_0")]
                return once(work / "nvfp4-llama.gguf", lambda: peer.quantize(source, work / "nvfp4-llama.gguf", "q8_0", types=types))
            if name == "exl2 4 bits":
                out = work / "exl2-uniform"
                return once(out, lambda: convert(a.model, UNIFORM[0], out, *UNIFORM[1:], "--stats", stats))
            if name == "exl2 measured":
                out, like = work / "exl2-measured", make("exl2 4 bits")
                keep = ("--measurement", work / "measured-exl2.json")
                return once(out, lambda: convert(a.model, "exl2", out, "--target-size", size(like), *measured, *keep))
            if name.startswith("size of "):
                preset = name.removeprefix("size of ")
                out, like = work / f"mix-{preset}.gguf", make(preset)
                keep = ("--measurement", work / "measured-gguf.json")
                return once(out, lambda: convert(a.model, "gguf", out, "--target-size", size(like), *measured, *keep))
            preset, _, method = name.partition(" ")
            out = work / (f"{preset}-{method}" if method else f"{preset}-awq+gptq.gguf")
            return once(out, lambda: convert(a.model, preset, out, "--stats", stats, "--method", method or "auto"))

        files = {name: make(name) for name, _, _ in rows}
        report = Report(f"formats of {a.model.name}", "text", "artifact", "bytes", "KLD mean", "95 %", "compared with", "ratio", "at most")
        for text, reference in zip(a.evaluate, references(a, work)):
            found = divergences(files.values(), reference)
            for name, base, bar in rows:
                kld = found[files[name]]["kld"]
                ratio = kld["mean"] / found[files[base]]["kld"]["mean"] if base else None
                judged = bar is not None and (ratio if base else kld["mean"]) <= bar
                report.row("" if bar is None else "ok" if judged else "FAIL", text.name, name, size(files[name]), f"{kld['mean']:.5f}",
                           f"{kld['low']:.5f} - {kld['high']:.5f}", base or "", f"{ratio:.3f}" if base else "", bar or "")
    return report.finish()


if __name__ == "__main__":
    main(run)

#!/usr/bin/env python3
"""A benchmark, not a test: evaluating perplexity, `quant eval` against llama.cpp, both with 2 threads, alternately.

    eval_speed.py MODEL.gguf [--formats f16,q8_0,q4_k_m] [--chunks 8] [--runs 3] [--threads 2]

Both run windows of 512 tokens of the bundled texts. llama.cpp decodes a window and asks for the logits of its second half,
as its perplexity tool does, in a forked child, so that Python's start does not count; its softmax is not counted at all.
quant's time is the whole command, tokenizing and softmax included. "memory" is the highest RssAnon seen (polled); weights
are mapped by both.
"""
import argparse
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import engine
import peer
from common import Report, binary, main, quant, watch

CONTEXT = 512


def run_quant(file, text, threads):
    process = subprocess.Popen([binary(), "eval", file, *text, "--threads", str(threads), "--json", "--quiet"],
                               stdout=subprocess.DEVNULL)
    return watch(process.pid)


def run_llama(file, windows, threads):
    child = os.fork()
    if child:
        return watch(child)
    c = peer.c
    model = c.llama_model_load_from_file(str(file).encode(), c.llama_model_default_params())
    p = c.llama_context_default_params()
    p.n_ctx = p.n_batch = p.n_ubatch = CONTEXT
    p.n_threads = p.n_threads_batch = threads
    context = c.llama_init_from_model(model, p)
    batch = c.llama_batch_init(CONTEXT, 0, 1)
    for tokens, first, _ in windows:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), i, 1, 0
            batch.logits[i] = i >= first
        if c.llama_decode(context, batch):
            os._exit(1)
        c.llama_get_logits_ith(context, len(tokens) - 1)
    os._exit(0)


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="an F16 or F32 GGUF")
    p.add_argument("--formats", default="f16,q8_0,q4_k_m")
    p.add_argument("--chunks", type=int, default=8)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    bars = {"f16": 1.2}
    print(f"{a.model.name}, {a.threads} threads, {os.cpu_count()} cores, {a.runs} runs, load {os.getloadavg()[0]:.1f} before")
    report = Report("evaluation speed", "format", "tokens/s quant", "tokens/s llama.cpp", "ratio", "at least",
                    "CPU s quant", "CPU s llama.cpp", "MiB quant", "MiB llama.cpp")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        text = ["--chunks", str(a.chunks), *(option for path in engine.BUNDLED for option in ("--data", path))]
        quant("reference", a.model, "-o", work / "model.ref", "--quiet", *text)
        _, windows, _, _ = engine.read_reference(work / "model.ref")
        for name in a.formats.split(","):
            file = peer.quantize(a.model, work / f"{name}.gguf", name, threads=a.threads)
            runs = [(run_quant(file, text, a.threads), run_llama(file, windows, a.threads)) for _ in range(a.runs)]
            median = lambda side, figure: statistics.median(getattr(r[side], figure) for r in runs)
            rates = [sum(len(w[0]) for w in windows) / median(side, "wall") for side in (0, 1)]
            ratio, bar = rates[0] / rates[1], bars.get(name, 1.0)
            report.row("ok" if ratio >= bar else "FAIL", name, *(f"{r:.0f}" for r in rates), f"{ratio:.2f}", bar,
                       *(f"{median(side, 'cpu'):.1f}" for side in (0, 1)), *(f"{median(side, 'anonymous') / 2**20:.0f}" for side in (0, 1)))
    print(f"load {os.getloadavg()[0]:.1f} after; llama.cpp is the build that tests/interop/env.py makes")
    return report.finish()


if __name__ == "__main__":
    main(run)

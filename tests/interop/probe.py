#!/usr/bin/env python3
"""Is the probe model what llama.cpp takes it for? Every folder evals/probe/model*, converted to F32:

- llama.cpp cuts the awkward strings into the tokens of tokenizer.json;
- logits on generated text: mean divergence at most 1e-5 nats, the same most likely token in at least 99.9 % of positions;
- the answers to generated questions, greedily decoded, are the same tokens.
"""
import json
import tempfile
from pathlib import Path

import engine
import peer
import tokens as tokenization
from common import ROOT, QuantError, Report, convert, main, quant

QUESTIONS, LONGEST = 4, 96


def greedy(model, ids, limit, end):
    """Most likely tokens after `ids`, one by one, without the one that ends them."""
    model.reset()
    model.eval(ids)
    out = []
    while len(out) < limit:
        token = int(model.scores[model.n_tokens - 1].argmax())
        if token == end:
            break
        out.append(token)
        model.eval([token])
    return out


def answers(gguf):
    """(questions, those whose answer is the same, examples that are not)"""
    model = peer.load(gguf, context=1024, logits_all=True)
    lines = quant("probe", "--count", QUESTIONS, "--seed", 1).splitlines()
    asked, same, other = 0, 0, []
    for item in map(json.loads, lines):
        ours = json.loads(quant("generate", gguf, "--prompt", item["prompt"], "--tokens", LONGEST, "--json", "--quiet"))
        ids = model.tokenize(item["prompt"].encode(), add_bos=True, special=False)
        theirs = greedy(model, ids, LONGEST, model.token_eos())
        asked += 1
        if ours["tokens"] == theirs and ours["prompt_tokens"] == len(ids):
            same += 1
        else:
            other.append(f"{item['prompt'][-40:]!r}: {ours['text']!r}")
    model.close()
    return asked, same, other


def check(report, folder, work):
    gguf = convert(folder, "f32", work / "f32.gguf")
    strings, failed = tokenization.compare(peer.load(gguf, vocab_only=True), folder)
    report.row("FAIL" if failed else "ok", folder.name, "tokens", f"{strings - len(failed)}/{strings} strings alike")
    text = work / "text.txt"
    text.write_text(quant("probe", "--count", 12, "--text"), encoding="utf-8")
    options = ("--protocol", "gptq-2048", "--context", 512, "--chunks", 4, "--data", text)
    mean, most, same, ours, theirs = engine.judge(folder, gguf, work, *options)
    good = mean <= engine.MEAN_KLD and same >= engine.SAME_TOP and abs(ours / theirs - 1) <= engine.PERPLEXITY
    report.row("ok" if good else "FAIL", folder.name, "logits",
               f"mean KLD {mean:.1e}, max {most:.1e}, same top {same:.2%}, perplexity {ours:.4f} and {theirs:.4f}")
    asked, same, other = answers(gguf)
    report.row("ok" if same == asked else "FAIL", folder.name, "greedy", f"{same}/{asked} alike; {'; '.join(other[:3])}")


def run():
    report = Report("probe model", "model", "what", "found")
    for folder in sorted(p.parent for p in (ROOT / "evals" / "probe").glob("model*/config.json")):
        with tempfile.TemporaryDirectory() as work:
            try:
                check(report, folder, Path(work))
            except (QuantError, peer.PeerError) as error:
                report.row("FAIL", folder.name, "-", error)
    return report.finish()


if __name__ == "__main__":
    main(run)

#!/usr/bin/env python3
"""Does `quant eval --suite` mark items as one would from llama.cpp's logits? Each item by itself, with lm-evaluation-harness's rules written
here again: how texts are divided into tokens, sums of log-likelihoods, characters of choices.

    tasks.py [MODEL ROWS.jsonl... [--items 200]]

ROWS: `context` (or `contexts`), `choices`, `gold`; or `text`, whose last word is to be predicted; or `prompt`, `answer`, which greedy
decoding is to write. At least 99 % of marks must be the same. Without arguments: the bundled model, and rows made by `quant probe`.
"""
import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

import forward
import peer
from common import ROOT, Report, convert, main, quant

AGREE = 0.99
PROBE = ROOT / "evals" / "probe" / "model"


def probed(folder):
    """Rows from generated items: the last word among others of an invented language; of stories; sums to be written."""
    made = lambda skill, count: [json.loads(line) for line in quant(
        "probe", "--skill", skill, "--split", "test", "--count", count).splitlines()]
    sums, stories = made("arithmetic", 20), made("story", 60)
    texts = [item["answer"].strip().rsplit(" ", 1) for item in made("language", 60)]
    choices = []
    for i, (context, word) in enumerate(texts):
        wrong = [" " + texts[(i + k) % len(texts)][1] for k in (1, 2, 3)]
        gold = i % 4
        choices.append({"context": context, "choices": [*wrong[:gold], " " + word, *wrong[gold:]], "gold": gold})
    rows = {"choices": choices, "words": [{"text": s["answer"].strip()} for s in stories],
            "written": [{"prompt": s["prompt"], "answer": s["answer"]} for s in sums]}
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return [folder / f"{name}.jsonl" for name in rows]


class Model:
    """llama.cpp's tokens and logits."""

    def __init__(self, gguf):
        self.gguf = gguf
        self.words = peer.load(gguf, vocab_only=True)

    def tokens(self, text, bos=False):
        return self.words.tokenize(text.encode(), add_bos=bos, special=False)

    def pair(self, context, continuation):
        """(all tokens, how many of them are given)."""
        spaces = len(context) - len(context.rstrip())
        if spaces and context.strip():
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        bos = self.tokens("", bos=True)[:1]
        return bos + self.tokens(context + continuation), max(1, len(bos) + len(self.tokens(context)))

    def continuation(self, context, continuation):
        """(log-likelihood of the continuation, whether it is what greedy decoding would write)."""
        tokens, known = self.pair(context, continuation)
        logits = peer.logits(self.gguf, tokens)[known - 1:-1].astype(np.float64)
        probabilities = forward.softmax(logits)[np.arange(len(logits)), tokens[known:]]
        return np.log(probabilities).sum(), bool((logits.argmax(1) == tokens[known:]).all())

    def greedy(self, prompt, stop, limit):
        model = peer.load(self.gguf, context=2048)
        said = model.create_completion(self.tokens("", bos=True)[:1] + self.tokens(prompt), max_tokens=limit, temperature=0, stop=stop)
        model.close()
        return said["choices"][0]["text"]


def marks(model, row):
    if "choices" in row:
        contexts = row.get("contexts") or [row["context"]] * len(row["choices"])
        sums = np.array([model.continuation(c, x)[0] for c, x in zip(contexts, row["choices"])])
        lengths = np.array([len(x.removeprefix(" ")) for x in row["choices"]])
        return [int(sums.argmax()) == row["gold"], int((sums / lengths).argmax()) == row["gold"]]
    if "text" in row:
        context, word = row["text"].rsplit(" ", 1)
        return [model.continuation(context, " " + word)[1]]
    return [model.greedy(row["prompt"], ["\n"], 40).strip() == row["answer"]]


WRITTEN = """about = "what is written"
kind = "generate"
data = "{rows}"
prompt = "{{{{ prompt }}}}"
stop = ["\\n"]
limit = 40
[check]
kind = "exact"
answer = "answer"
"""


def argument(rows, first, work):
    """What `--suite` is told of these rows."""
    if "choices" in first:
        return rows
    if "text" in first:
        return f"lambada={rows}"
    task = work / f"{rows.stem}.toml"
    task.write_text(WRITTEN.format(rows=rows.resolve()))
    return task


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", type=Path, default=PROBE)
    p.add_argument("rows", nargs="*", type=Path)
    p.add_argument("--items", type=int, default=200)
    a = p.parse_args()
    report = Report("tasks", "rows", "metric", "items", "same marks", "quant", "llama.cpp", "error")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        gguf = convert(a.model, "f32", work / "model.gguf")
        model = Model(gguf)
        for path in a.rows or probed(work):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            count = min(a.items, len(rows))
            chosen = [rows[i * len(rows) // count] for i in range(count)]
            said = json.loads(quant("eval", gguf, "--no-text", "--json", "--quiet", "--suite", argument(path, rows[0], work), "--items", count))
            ours = said["artifacts"][0]["tasks"][0]["marks"]
            theirs = np.array([marks(model, row) for row in chosen])
            for i, (metric, bits) in enumerate(ours.items()):
                ours_here = np.array([bit == "1" for bit in bits])
                same = (ours_here == theirs[:, i]).mean()
                report.row("ok" if same >= AGREE else "FAIL", path.stem, metric, count, f"{same:.1%}", f"{ours_here.mean():.1%}",
                           f"{theirs[:, i].mean():.1%}", "")
    return report.finish()


if __name__ == "__main__":
    main(run)

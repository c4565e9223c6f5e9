#!/usr/bin/env python3
"""Does `quant eval --suite` mark items as one would from llama.cpp's logits? Item by item, with lm-evaluation-harness's rules written
here again: how texts are divided into tokens, sums of log-likelihoods, characters of choices, chat templates.

    tasks.py [MODEL TASK... [--items 200] [--limit 128] [--type f32] [--threads 2] [--allow-exec]]

TASK is what `--suite` is told: ROWS.jsonl or NAME=ROWS.jsonl. At least 99 % of marks must be the same. What is to be written is not
decoded again: llama.cpp reads prompt and answer at once, and where each of its likeliest tokens is the one that quant chose, its
answer and its mark are quant's. Where one is not, it goes on from there, and another text counts as another mark, unless the
answers' numbers tell. Without arguments: the bundled model, and rows made by `quant probe`.
"""
import argparse
import json
import re
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np

import peer
from common import ROOT, Report, convert, main, quant
from llama_cpp import llama_cpp as c
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

AGREE = 0.99
PROBE = ROOT / "evals" / "probe" / "model"
WRITTEN = """about = "what is written"
kind = "generate"
data = "written.jsonl"
prompt = "{{ prompt }}"
stop = ["\\n"]
limit = 40
[check]
kind = "exact"
answer = "answer"
"""


def probed(folder):
    """Tasks of generated items: the last word among others of an invented language; of stories; lists to be sorted."""
    made = lambda skill, count: [json.loads(line) for line in quant(
        "probe", "--skill", skill, "--split", "test", "--count", count).splitlines()]
    lists, stories = made("sort", 20), made("story", 60)
    texts = [item["answer"].strip().rsplit(" ", 1) for item in made("language", 60)]
    choices = []
    for i, (context, word) in enumerate(texts):
        wrong = [" " + texts[(i + k) % len(texts)][1] for k in (1, 2, 3)]
        gold = i % 4
        choices.append({"context": context, "choices": [*wrong[:gold], " " + word, *wrong[gold:]], "gold": gold})
    rows = {"choices": choices, "words": [{"text": s["answer"].strip()} for s in stories],
            "written": [{"prompt": s["prompt"], "answer": s["answer"]} for s in lists]}
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "written.toml").write_text(WRITTEN)
    return [folder / "choices.jsonl", f"lambada={folder / 'words.jsonl'}", folder / "written.toml"]


class Model:
    """llama.cpp: its tokens, and its logits by one context whose cache keeps what a text has in common with the one before it."""

    def __init__(self, gguf, threads, positions=4096):
        self.llama = peer.load(gguf, context=positions, threads=threads)
        self.memory = c.llama_get_memory(self.llama.ctx)
        self.batch = c.llama_batch_init(positions, 0, 1)
        self.held = []
        self.vocab = c.llama_model_get_vocab(self.llama.model)
        self.words = c.llama_vocab_n_tokens(self.vocab)

    def tokens(self, text, special=False):
        return self.llama.tokenize(text.encode(), add_bos=False, special=special)

    def bos(self):
        return self.llama.tokenize(b"", add_bos=True)[:1]

    def pair(self, context, continuation):
        """(all tokens, how many of them are given)."""
        spaces = len(context) - len(context.rstrip())
        if spaces and context.strip():
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        return self.bos() + self.tokens(context + continuation), max(1, len(self.bos()) + len(self.tokens(context)))

    def prompt(self, text, chat):
        if not chat:
            return self.bos() + self.tokens(text)
        named = lambda token: self.llama.detokenize([token], special=True).decode() if token >= 0 else ""
        template = Jinja2ChatFormatter(self.llama.metadata["tokenizer.chat_template"], eos_token=named(self.llama.token_eos()),
                                       bos_token=named(self.llama.token_bos()))
        return self.tokens(template(messages=[{"role": "user", "content": text}]).prompt, special=True)

    def logits(self, tokens, first):
        """Logits [tokens - first, vocabulary] from position `first` on."""
        same = next((i for i, (a, b) in enumerate(zip(self.held, tokens)) if a != b), min(len(self.held), len(tokens)))
        keep = min(same, first)
        c.llama_memory_seq_rm(self.memory, 0, keep, -1)
        self.batch.n_tokens = len(tokens) - keep
        for i, token in enumerate(tokens[keep:]):
            self.batch.token[i], self.batch.pos[i] = token, keep + i
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
            self.batch.logits[i] = keep + i >= first
        if code := c.llama_decode(self.llama.ctx, self.batch):
            raise peer.PeerError(f"llama_decode of {len(tokens)} tokens: {code}")
        self.held = list(tokens)
        rows = c.llama_get_logits(self.llama.ctx)
        return np.ctypeslib.as_array(rows, (len(tokens) - first, self.words)).copy()

    def continuation(self, context, continuation):
        """(log-likelihood of the continuation, whether it is what greedy decoding would write)."""
        tokens, known = self.pair(context, continuation)
        rows = self.logits(tokens, known - 1)[:-1].astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        chosen = rows[np.arange(len(rows)), tokens[known:]] - np.log(np.exp(rows).sum(1))
        return chosen.sum(), bool((rows.argmax(1) == tokens[known:]).all())

    def text(self, tokens):
        return self.llama.detokenize(tokens, special=False).decode(errors="replace")

    def written(self, prompt, ours, limit, stops):
        """The tokens of greedy decoding up to one that ends; `ours` are what they are thought to be, and read at once."""
        best = [int(t) for t in self.logits(prompt + ours, len(prompt) - 1).argmax(1)]
        same = next((i for i, (a, b) in enumerate(zip(ours, best)) if a != b), len(ours))
        out, following = ours[:same], best[same]
        ends = c.llama_vocab_is_eog
        while len(out) < limit and not any(stop in self.text(out) for stop in stops) and not ends(self.vocab, following):
            out.append(following)
            following = int(self.logits(prompt + out, len(prompt) + len(out) - 1)[0].argmax())
        return out


def number(text):
    """GSM8K's: behind the last ####, else the last."""
    found = re.findall(r"-?\d[\d,]*\.?\d*", text.rpartition("####")[2])
    return float(found[-1].replace(",", "")) if found else None


def marks(model, task, line):
    """The marks by llama.cpp. Where its text is another and what that is worth is not known here, the mark is None."""
    if "choices" in line:
        contexts = line.get("prompts") or [line["prompt"]] * len(line["choices"])
        sums = np.array([model.continuation(p, x)[0] for p, x in zip(contexts, line["choices"])])
        lengths = np.array([len(x.removeprefix(" ")) for x in line["choices"]])
        return [int(sums.argmax()) == line["gold"], int((sums / lengths).argmax()) == line["gold"]]
    if "tokens" not in line:
        return [model.continuation(line["prompt"], line["expected"])[1]]
    prompt, stops = model.prompt(line["prompt"], task.get("chat", False)), task.get("stop", [])
    theirs = model.written(prompt, line["tokens"], task["limit"], stops)
    if theirs == line["tokens"]:
        return [line["marks"]["acc"]]
    text = min((model.text(theirs).split(stop)[0] for stop in stops), key=len, default=model.text(theirs))
    return [number(text) == number(line["expected"]) if task["check"]["kind"] == "number" else None]


def asked(argument, work, limit):
    """(name, its task file where there is one, what `--suite` is told): what is written gets `limit` tokens."""
    name, _, rows = str(argument).rpartition("=")
    if not name:
        own = Path(rows).suffix == ".toml"
        return Path(rows).stem, tomllib.loads(Path(rows).read_text()) if own else {}, rows
    text = (ROOT / "evals" / "tasks" / f"{name}.toml").read_text()
    task = tomllib.loads(text)
    if task["kind"] != "generate":
        return name, task, argument
    task["limit"] = min(limit, task.get("limit", 256))
    kept = [line for line in text.splitlines() if not re.match(r"(limit|data) *=", line)]
    file = work / f"{name}.toml"
    file.write_text("\n".join([f"limit = {task['limit']}", f"data = {json.dumps(str(Path(rows).resolve()))}", *kept]))
    return name, task, file


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", type=Path, default=PROBE)
    p.add_argument("tasks", nargs="*", metavar="TASK")
    p.add_argument("--items", type=int, default=200)
    p.add_argument("--limit", type=int, default=128, help="tokens that are written at most")
    p.add_argument("--type", default="f32", help="of the GGUF file that both read")
    p.add_argument("--threads", type=int, default=2, help="of llama.cpp, which wait for each other busily: 1 on a machine that is in use")
    p.add_argument("--allow-exec", action="store_true", help="as quant's own")
    a = p.parse_args()
    report = Report("tasks", "task", "metric", "items", "same marks", "quant", "llama.cpp", "minutes: quant", "llama.cpp")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        gguf = convert(a.model, a.type, work / "model.gguf")
        model = Model(gguf, a.threads)
        for argument in a.tasks or probed(work):
            name, task, suite = asked(argument, work, a.limit)
            start = time.perf_counter()
            exec_ = ["--allow-exec"] if a.allow_exec else []
            quant("eval", gguf, "--no-text", "--json", "--quiet", "--suite", suite, "--items", a.items, *exec_, "--answers",
                  work / "answers.jsonl")
            ours = [json.loads(line) for line in (work / "answers.jsonl").read_text().splitlines()]
            middle = time.perf_counter()
            theirs = [marks(model, task, line) for line in ours]
            minutes = [f"{t / 60:.1f}" for t in (middle - start, time.perf_counter() - middle)]
            for i, metric in enumerate(ours[0]["marks"]):
                mine = np.array([line["marks"][metric] for line in ours])
                other = [row[i] for row in theirs]
                same = np.mean([a == b for a, b in zip(mine, other)])
                right = np.mean([bool(mark) for mark in other])
                report.row("ok" if same >= AGREE else "FAIL", name, metric, len(ours), f"{same:.1%}", f"{mine.mean():.1%}", f"{right:.1%}",
                           *minutes)
    return report.finish()


if __name__ == "__main__":
    main(run)

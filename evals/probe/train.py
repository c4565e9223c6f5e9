#!/usr/bin/env python3
"""Trains the probe models: small Llama and Mixtral models that can do what `quant probe` asks.

    train.py --quant target/release/quant --out evals/probe/model
    train.py --quant target/release/quant --out evals/probe/model-moe --moe

Everything follows from the seed: texts (made by `quant probe`), tokenizer, order, initial weights. Another number of threads or
another processor may round sums differently, and then the last digits of the weights differ. A run that was stopped goes on
from its last checkpoint in --work.
"""
import argparse
import csv
import json
import math
import random
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

END = "<|endoftext|>"
TEMPLATE = "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"


@dataclass
class Config:
    vocab: int = 1280
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 512
    context: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5
    experts: int = 0  # 0: dense
    used: int = 2


# Model

def attend(q, k, v):
    """Causal attention; on a CPU the plain form is twice as fast for short rows."""
    t = q.shape[2]
    if t > 512:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores + torch.full((t, t), -math.inf, dtype=scores.dtype).triu(1)).softmax(-1) @ v


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.size = c, c.hidden // c.heads
        self.q_proj = nn.Linear(c.hidden, c.hidden, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(c.hidden, c.hidden, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        split = lambda y: y.view(b, t, -1, self.size).transpose(1, 2)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        turn = lambda y: y * cos + torch.cat([-y[..., self.size // 2:], y[..., :self.size // 2]], -1) * sin
        groups = self.c.heads // self.c.kv_heads
        wide = lambda y: y[:, :, None].expand(-1, -1, groups, -1, -1).reshape(b, self.c.heads, t, self.size)
        y = attend(turn(q), wide(turn(k)), wide(v))
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Gated(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.ffn, bias=False)
        self.down_proj = nn.Linear(c.ffn, c.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)), 0.0


class Experts(nn.Module):
    """The softmax over all experts is cut to the best ones and normed again, as Mixtral does it."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.gate = nn.Linear(c.hidden, c.experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(c.experts, c.ffn, c.hidden))
        self.w2 = nn.Parameter(torch.empty(c.experts, c.hidden, c.ffn))
        self.w3 = nn.Parameter(torch.empty(c.experts, c.ffn, c.hidden))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        p = self.gate(flat).float().softmax(-1)
        top, chosen = p.topk(self.c.used, -1)
        top = (top / top.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(flat)
        for e in range(self.c.experts):
            rows, place = (chosen == e).nonzero(as_tuple=True)
            y = flat[rows]
            y = F.linear(F.silu(F.linear(y, self.w1[e])) * F.linear(y, self.w3[e]), self.w2[e])
            out = out.index_add(0, rows, (y * top[rows, place, None]).to(out.dtype))
        share = F.one_hot(chosen, self.c.experts).float().sum(1).mean(0)
        return out.view_as(x), self.c.experts / self.c.used * (share * p.mean(0)).sum()


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden, c.eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden, c.eps)
        self.mlp = Experts(c) if c.experts else Gated(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y, balance = self.mlp(self.post_attention_layernorm(x))
        return x + y, balance


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, c.eps)
        size = c.hidden // c.heads
        angles = torch.outer(torch.arange(c.context), c.theta ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                out = "o_proj" in name or "down_proj" in name or name.endswith("w2")
                nn.init.normal_(p, std=0.04 / (math.sqrt(2 * c.layers) if out else 1))

    def forward(self, tokens):
        x = self.embed_tokens(tokens)
        cos, sin = (a[:tokens.shape[1]].to(torch.bfloat16) for a in (self.cos, self.sin))
        balance = 0.0
        for layer in self.layers:
            x, b = layer(x, cos, sin)
            balance = balance + b
        return F.linear(self.norm(x), self.embed_tokens.weight), balance / self.c.layers


def loss_of(model, x, y, weight):
    with torch.autocast("cpu", torch.bfloat16):
        logits, balance = model(x)
    loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="none")
    return (loss * weight.flatten()).sum() / weight.sum() + 0.01 * balance


# Optimizer

def orthogonal(g):
    """The nearest matrix with singular values near 1, by five Newton-Schulz steps. Source: Jordan, Muon (2024)."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, decay=0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                shapes.setdefault(p.shape[-2:], []).append((p, p.grad.lerp(m, group["momentum"])))
            for (rows, cols), items in shapes.items():
                together = torch.cat([g.reshape(-1, rows, cols) for _, g in items])
                turned = torch.zeros_like(together, dtype=torch.bfloat16)
                own = slice(dist.get_rank(), None, dist.get_world_size())  # each process does its share
                turned[own] = orthogonal(together[own])
                dist.all_reduce(turned)
                for (p, _), u in zip(items, turned.split([p.numel() // (rows * cols) for p, _ in items])):
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.add_(u.view_as(p).to(p.dtype), alpha=-group["lr"] * max(1, rows / cols) ** 0.5)


# Texts

def probe(quant, skill, count, seed, split="train", length=None):
    command = [quant, "probe", "--skill", skill, "--split", split, "--count", str(count), "--seed", str(seed)]
    out = subprocess.run(command + (["--length", str(length)] if length else []), check=True, capture_output=True, text=True)
    return [json.loads(line) for line in out.stdout.splitlines()]


# The lengths (characters) that a skill is trained at, those that fit the rows of a stage; and its shares of tokens, mix by mix.
MIX = {
    "story": ([None], 0.12, 0.09, 0.06),
    "language": ([None], 0.10, 0.05, 0.03),
    "arithmetic": ([None], 0.16, 0.14, 0.10),
    "json": ([None], 0.12, 0.13, 0.13),
    "recall": ([80, 200, 350, 700, 1400, 2800], 0.14, 0.16, 0.24),
    "multirecall": ([120, 350, 700, 1400, 2800], 0.08, 0.10, 0.10),
    "variables": ([None], 0.10, 0.09, 0.12),
    "copy": ([None, None, 400, 800], 0.06, 0.05, 0.06),
    "sort": ([None], 0.06, 0.08, 0.06),
    "function": ([None], 0.06, 0.11, 0.10),
}
FURTHER = 2  # the mix from which on an item is followed by further questions about it: more to learn from every token
TOKENS_PER_CHAR = 0.62  # at most, of skills that stretch
PROMPT_WEIGHT = 0.2  # questions are mostly random: little can be learned from predicting them


def make_tokenizer(quant, folder, vocab):
    texts = [i["prompt"] + i["answer"] + "\n" for s in MIX for i in probe(quant, s, 3000, 1)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, tokenizer.token_to_id(END))])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def encode(tokenizer, items):
    """Token ids of every item and the weight of each token; the end-of-text is part of the answer."""
    end = [tokenizer.token_to_id(END)]
    pairs = [[(i["prompt"], i["answer"] + "\n"), *i.get("further", [])] for i in items]
    cut = tokenizer.encode_batch([text for item in pairs for pair in item for text in pair], add_special_tokens=False)
    rest, out = iter(cut), []
    for item in pairs:
        ids, weights = [], []
        for _ in item:
            asked, answer = next(rest).ids, next(rest).ids
            ids += asked + answer
            weights += [PROMPT_WEIGHT] * len(asked) + [1.0] * len(answer)
        out.append((np.array(ids + end, np.int64), np.array(weights + [1.0], np.float32)))
    return out


def calls(functions, rng):
    """A call of two functions and its work, as `quant probe` puts it; None below zero."""
    (f, f_op, f_c), (g, g_op, g_c) = rng.sample(functions, 2)
    apply = lambda x, op, c: {"+": x + c, "-": x - c, "*": x * c}[op]
    x = rng.randint(1, 12)
    y = apply(x, f_op, f_c)
    z = apply(y, g_op, g_c)
    work = f"{f}({x}) = {x} {f_op} {f_c} = {y}\n{g}({y}) = {y} {g_op} {g_c} = {z}\n"
    return (f"What is {g}({f}({x}))?\n", work) if y >= 0 <= z else None


def further(item, rng):
    """Other questions about the same facts, variables or functions, with their answers."""
    *lines, question = item["prompt"].splitlines() or [""]
    if item["skill"] in ("recall", "multirecall"):
        every = [(f"What is {line[4:].split(' is ')[0]}?\n".replace("is code", "is the code"), line + "\n") for line in lines]
    elif item["skill"] == "variables":
        chain, every = {}, []
        for name, value in (line[4:].split(" = ") for line in lines):
            chain[name] = f"{name} = {chain.get(value, value)}"
            every.append((f"What is {name}?\n", chain[name] + "\n"))
    elif item["skill"] == "function":
        functions = [(line[3:].split("(")[0], line.split()[-2], int(line.split()[-1])) for line in lines]
        every = [c for c in (calls(functions, rng) for _ in range(4)) if c]
    else:
        return []
    every = [pair for pair in every if pair[0] != question + "\n"]
    return rng.sample(every, min(rng.choice((0, 4, 8)), len(every)))


def rows_of(quant, tokenizer, length, count, mix, seed):
    """Rows of `length` + 1 tokens: whole documents behind each other, the last one cut off."""
    documents, rng = [], random.Random(seed + 1)
    for skill, (lengths, *shares) in MIX.items():
        share = shares[mix]
        fitting = [l for l in lengths if (l or 0) * TOKENS_PER_CHAR < 0.9 * length]
        for i, chars in enumerate(fitting):
            want, part = share / len(fitting) * length * count * 1.6, 0  # some are cut off
            while want > 0:
                items = probe(quant, skill, 500, seed * 1000 + i * 100 + part, length=chars)
                part += 1
                if mix >= FURTHER:
                    items = [i | {"further": further(i, rng)} for i in items]
                made = encode(tokenizer, items)
                for d in made:
                    want -= len(d[0])
                    documents.append(d)
                    if want <= 0:
                        break
    random.Random(seed).shuffle(documents)
    end = tokenizer.token_to_id(END)
    tokens, weights = np.full((count, length + 1), end, np.int64), np.zeros((count, length + 1), np.float32)
    rest = iter(documents)
    for t, w in zip(tokens, weights):
        at = 1
        while at <= length:
            ids, weight = next(rest)
            n = min(len(ids), length + 1 - at)
            t[at:at + n], w[at:at + n] = ids[:n], weight[:n]
            at += n
    return torch.from_numpy(tokens), torch.from_numpy(weights)


# Measuring

@torch.no_grad()
def measure(model, tokenizer, quant, count=40):
    """Of every skill on the test split: share of answers that are right token by token, and nats a token against those of the generator."""
    end, out = tokenizer.token_to_id(END), {}
    for skill in MIX:
        items = probe(quant, skill, count, 7, "test")
        encoded = encode(tokenizer, items)
        right = loss = tokens = 0
        for (ids, weight), item in zip(encoded, items):
            x = torch.from_numpy(np.concatenate([[end], ids]))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x[None, :-1])[0][0].float()
            asked = torch.from_numpy(weight == 1.0)
            asked[-2:] = False  # line break and end
            right += bool((logits.argmax(-1) == x[1:])[asked].all())
            loss += F.cross_entropy(logits, x[1:], reduction="sum").item()
            tokens += len(ids)
        out[skill] = (right / count, loss / tokens, sum(i["nats"] for i in items) / tokens)
    return out


# Files

def export(model, tokenizer, folder):
    c, state = model.c, {}
    for name, p in model.state_dict().items():
        p = p.detach().to(torch.bfloat16)
        if c.experts and ".mlp." in name:
            name = name.replace("mlp", "block_sparse_moe")
            if name.endswith(("w1", "w2", "w3")):
                stem, which = name.rsplit(".", 1)
                state.update({f"model.{stem}.experts.{e}.{which}.weight": p[e].clone() for e in range(c.experts)})
                continue
        state[f"model.{name}"] = p.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["MixtralForCausalLM" if c.experts else "LlamaForCausalLM"],
        "model_type": "mixtral" if c.experts else "llama", "vocab_size": c.vocab, "hidden_size": c.hidden,
        "intermediate_size": c.ffn, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads, "head_dim": c.hidden // c.heads, "hidden_act": "silu",
        "max_position_embeddings": c.context, "rms_norm_eps": c.eps, "rope_theta": c.theta, "initializer_range": 0.04,
        "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True, "use_cache": True,
        "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16"}
    if c.experts:
        config.update(num_local_experts=c.experts, num_experts_per_tok=c.used, sliding_window=None)
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "add_bos_token": True,
            "add_eos_token": False, "model_max_length": c.context, "chat_template": TEMPLATE,
            "added_tokens_decoder": {"0": {"content": END, "special": True, "lstrip": False, "rstrip": False,
                                           "normalized": False, "single_word": False}}},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))


# Run

def rate_at(knots, step):
    """Share of the learning rate, linear between (step, share)."""
    return float(np.interp(step, *zip(*knots)))


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quant", required=True, help="the binary that makes the texts")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--work", type=Path, default=Path("probe-work"), help="folder of tokenizer, checkpoint and curve")
    p.add_argument("--moe", action="store_true")
    p.add_argument("--stages", default="256:600:0,512:170:1:220,512:370:2:400,1024:60:1",
                   help="row length : steps : mix [: steps that rows are made for, if more], ...")
    p.add_argument("--rates", default="0:0.025,39:1,620:1,770:0.667,920:0.4495,1200:0", help="step : share of the learning rates, ...")
    p.add_argument("--batch", type=int, default=8192, help="tokens of a step")
    p.add_argument("--lr", type=float, default=0.02, help="of matrices (Muon)")
    p.add_argument("--lr-embed", type=float, default=0.003, help="of embeddings and norms (AdamW)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--processes", type=int, default=2, help="of one thread each")
    p.add_argument("--every", type=int, default=150, help="steps between measurements")
    return p.parse_args()


def all_reduce_gradients(params):
    flat = torch.cat([p.grad.flatten() for p in params]).div_(dist.get_world_size())
    dist.all_reduce(flat)
    for p, g in zip(params, flat.split([p.numel() for p in params])):
        p.grad.copy_(g.view_as(p))


def rows_shared(a, tokenizer, length, count, mix, seed):
    """Made by the first process, read by all."""
    path = a.work / f"rows-{length}-{count}-{seed}.pt"
    if dist.get_rank() == 0 and not path.exists():
        torch.save(rows_of(a.quant, tokenizer, length, count, mix, seed), path)
    dist.barrier()
    return torch.load(path, weights_only=True, mmap=True)


def worker(rank, a):
    dist.init_process_group("gloo", f"file://{a.work.absolute()}/rendezvous", rank=rank, world_size=a.processes)
    torch.manual_seed(a.seed)
    torch.set_num_threads(1)
    say = (lambda *x: print(*x, flush=True)) if rank == 0 else (lambda *x: None)
    tokenizer = Tokenizer.from_file(str(a.work / "tokenizer.json"))
    extra = dict(layers=2, experts=8, ffn=256) if a.moe else {}
    model = Model(Config(vocab=tokenizer.get_vocab_size(), **extra))
    say(asdict(model.c), f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    params, small = list(model.parameters()), ("embed", "norm", "mlp.gate.weight")
    others = [p for n, p in model.named_parameters() if any(s in n for s in small)]
    matrices = [p for n, p in model.named_parameters() if not any(s in n for s in small)]
    optimizers = [Muon(matrices, a.lr), torch.optim.AdamW(others, a.lr_embed, (0.9, 0.95), weight_decay=0.0)]
    rates = [a.lr, a.lr_embed]
    stages = [tuple(map(int, s.split(":"))) for s in a.stages.split(",")]
    knots = [tuple(map(float, k.split(":"))) for k in a.rates.split(",")]
    steps, step, tokens, seconds = sum(stage[1] for stage in stages), 0, 0, 0.0
    saved, curve = a.work / "checkpoint.pt", a.work / "curve.csv"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        step, tokens, seconds = state["step"], state["tokens"], state["seconds"]
        model.load_state_dict(state["model"])
        [o.load_state_dict(s) for o, s in zip(optimizers, state["optimizers"])]
        say(f"going on at step {step}")
    elif rank == 0:
        curve.write_text("step,row,tokens,seconds,loss," + ",".join(f"{s}_{x}" for s in MIX for x in ("exact", "nats")) + "\n")

    def keep(length, losses):
        found = measure(model, tokenizer, a.quant)
        say("  " + ", ".join(f"{s} {e:.0%} {n:.3f}/{g:.3f}" for s, (e, n, g) in found.items()))
        with curve.open("a") as f:
            figures = [f"{x:.4f}" for e, n, _ in found.values() for x in (e, n)]
            csv.writer(f, lineterminator="\n").writerow([step, length, tokens, round(seconds), f"{np.mean(losses[-50:]):.4f}", *figures])
        torch.save({"step": step, "tokens": tokens, "seconds": seconds, "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers]}, saved.with_suffix(".new"))
        saved.with_suffix(".new").rename(saved)
        export(model, tokenizer, a.out)

    first, losses = 0, []
    for number, (length, count, mix, *made) in enumerate(stages):
        last = first + count
        if step < last:
            batch = a.batch // length
            rows, weights = rows_shared(a, tokenizer, length, (made or [count])[0] * batch, mix, a.seed * 100 + number + 1)
        while step < last:
            start = time.time()
            part = slice((step - first) * batch + rank, (step - first + 1) * batch, a.processes)
            x, w = rows[part], weights[part]
            loss = loss_of(model, x[:, :-1], x[:, 1:], w[:, 1:])
            loss.backward()
            all_reduce_gradients(params)
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            for o, rate in zip(optimizers, rates):
                o.param_groups[0]["lr"] = rate * rate_at(knots, step)
                o.step()
                o.zero_grad(set_to_none=True)
            losses.append(loss.item())
            step, tokens, seconds = step + 1, tokens + batch * length, seconds + time.time() - start
            if step % 20 == 0:
                say(f"{step}/{steps} loss {np.mean(losses[-20:]):.4f} {tokens / seconds:.0f} tokens/s {seconds:.0f} s")
            if rank == 0 and (step % a.every == 0 or step == steps):
                keep(length, losses)
        first = last
    dist.barrier()


def main():
    a = arguments()
    a.work.mkdir(parents=True, exist_ok=True)
    (a.work / "rendezvous").unlink(missing_ok=True)
    if not (a.work / "tokenizer.json").exists():
        make_tokenizer(a.quant, a.work, Config.vocab)
    torch.multiprocessing.spawn(worker, (a,), a.processes)


if __name__ == "__main__":
    main()

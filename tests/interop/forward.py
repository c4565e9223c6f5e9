#!/usr/bin/env python3
"""A second opinion: the logits of a Hugging Face folder, computed here in numpy as its config.json defines the model.

    python forward.py FOLDER [--tokens 64] [--seed 0]

It reads nothing but config.json and the safetensors files, knows nothing of GGUF, and keeps to the half-rotation
order of rotary embeddings in which Hugging Face stores q and k. Families: llama, mistral, mixtral, qwen2, qwen3,
qwen3_moe, gemma2, gemma3_text, phi3, smollm3, gpt_oss.
"""
import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np

NORMS_WITH_ONE_ADDED = ("gemma2", "gemma3_text")


class Weights:
    """Tensors of a folder by name, as float arrays of the given type; a view of the files until read."""

    TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}

    def __init__(self, folder, dtype=np.float64):
        self.dtype, self.where = dtype, {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            with open(path, "rb") as f:
                (length,) = struct.unpack("<Q", f.read(8))
                header = json.loads(f.read(length))
            data = np.memmap(path, np.uint8, "r", 8 + length)
            self.where.update((n, (data, e)) for n, e in header.items() if n != "__metadata__")

    def __contains__(self, name):
        return name in self.where

    def __getitem__(self, name):
        data, entry = self.where[name]
        raw = data[slice(*entry["data_offsets"])].view(self.TYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(self.dtype)


def read_config(folder):
    return json.loads((Path(folder) / "config.json").read_text())


def inverse_frequencies(config, theta, dim, length, scaling):
    """Rotary frequencies [dim/2] and the factor on cos and sin, after `scaling` (rope_scaling of config.json)."""
    freq = 1.0 / theta ** (np.arange(0, dim, 2) / dim)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind in ("default", "mrope"):  # the three positions of an image are one in a text
        return freq, 1.0
    if kind == "linear":
        return freq / scaling["factor"], 1.0
    trained = scaling.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if kind == "llama3":
        turns = trained * freq / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return freq * (keep + (1 - keep) / scaling["factor"]), 1.0
    if kind == "yarn":
        fast, slow, factor = scaling.get("beta_fast", 32), scaling.get("beta_slow", 1), scaling["factor"]
        border = [dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)]
        low, high = max(math.floor(border[0]), 0), min(math.ceil(border[1]), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
        return freq * (1 - ramp) + freq / factor * ramp, scaling.get("attention_factor") or 0.1 * math.log(factor) + 1
    if kind == "longrope":
        factors = np.array(scaling["long_factor" if length > trained else "short_factor"])
        scale = config["max_position_embeddings"] / trained
        return freq / factors, math.sqrt(1 + math.log(scale) / math.log(trained)) if scale > 1 else 1.0
    raise NotImplementedError(f"rope scaling {kind!r}")


def rotate(x, freq, factor):
    """Rotary embedding of x [tokens, heads, dim]: channel i turns with channel i + half, the rest stays."""
    half = freq.size
    angle = np.arange(len(x))[:, None, None] * freq
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    a, b = x[..., :half], x[..., half:2 * half]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half:]], -1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class Model:
    """One transformer, switched by its config."""

    def __init__(self, folder, config=None, dtype=np.float64):
        self.w, self.c = Weights(folder, dtype), config or read_config(folder)
        c = self.c
        self.family = c["model_type"]
        self.layers, self.heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.gemma = self.family in NORMS_WITH_ONE_ADDED
        self.activation = gelu_tanh if self.gemma else silu
        self.scale = (c["query_pre_attn_scalar"] if self.gemma else self.head_dim) ** -0.5

    def norm(self, x, name):
        gain = self.w[name + ".weight"] + (1 if self.gemma else 0)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * gain

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def slides(self, i):
        """Whether layer i attends within the sliding window only."""
        if not self.c.get("sliding_window") or self.family in ("qwen2", "qwen2_5_vl", "qwen3", "qwen3_vl", "qwen3_moe") and not self.c.get("use_sliding_window"):
            return False
        if self.c.get("layer_types"):
            return self.c["layer_types"][i] == "sliding_attention"
        every = {"gemma2": 2, "gpt_oss": 2, "gemma3_text": self.c.get("sliding_window_pattern", 6)}.get(self.family)
        return every is None or (i + 1) % every != 0

    def rotary(self, i, length):
        """(frequencies, factor) of layer i, or None where it has no positions."""
        if self.family == "smollm3" and not self.c["no_rope_layers"][i]:
            return None
        theta, scaling = self.c["rope_theta"], self.c.get("rope_scaling")
        if self.family == "gemma3_text" and self.slides(i):
            theta, scaling = self.c["rope_local_base_freq"], None
        dim = int(self.head_dim * self.c.get("partial_rotary_factor", 1.0))
        return inverse_frequencies(self.c, theta, dim, length, scaling)

    def attention(self, x, i):
        p, n, d = f"model.layers.{i}.self_attn.", len(x), self.head_dim
        if self.family == "phi3":
            cuts = self.heads * d, (self.heads + self.kv_heads) * d
            q, k, v = np.split(self.linear(x, p + "qkv_proj"), cuts, -1)
        else:
            q, k, v = (self.linear(x, f"{p}{part}_proj") for part in "qkv")
        q, k, v = q.reshape(n, -1, d), k.reshape(n, -1, d), v.reshape(n, -1, d)
        if p + "q_norm.weight" in self.w:
            q, k = self.norm(q, p + "q_norm"), self.norm(k, p + "k_norm")
        turn = self.rotary(i, n)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        back = np.arange(n)[:, None] - np.arange(n)  # how far behind the query a key is
        seen = (back >= 0) & (back < (self.c["sliding_window"] if self.slides(i) else n))
        out = np.empty_like(q)
        for h in range(self.heads):
            shared = h // (self.heads // self.kv_heads)
            score = q[:, h] @ k[:, shared].T * self.scale
            if cap := self.c.get("attn_logit_softcapping"):
                score = cap * np.tanh(score / cap)
            score = np.where(seen, score, -np.inf)
            if p + "sinks" in self.w:  # one more score, without a value
                score = np.pad(score, ((0, 0), (0, 1)), constant_values=self.w[p + "sinks"][h])
            out[:, h] = softmax(score)[:, :n] @ v[:, shared]
        return self.linear(out.reshape(n, -1), p + "o_proj")

    def gated(self, x, gate, up, down):
        return self.linear(self.activation(self.linear(x, gate)) * self.linear(x, up), down)

    def feed_forward(self, x, i):
        p = f"model.layers.{i}.mlp."
        if self.family == "phi3":
            gate, up = np.split(self.linear(x, p + "gate_up_proj"), 2, -1)
            return self.linear(self.activation(gate) * up, p + "down_proj")
        if self.family == "mixtral":
            return self.experts(x, f"model.layers.{i}.block_sparse_moe.", ("w1", "w3", "w2"), self.c["num_local_experts"])
        if self.family == "gpt_oss":
            return self.clamped_experts(x, p)
        names = ("gate_proj", "up_proj", "down_proj")
        if self.family == "qwen3_moe":
            return self.experts(x, p, names, self.c["num_experts"])
        return self.gated(x, *(p + name for name in names))

    def experts(self, x, p, names, count):
        """Each token goes to its best experts, weighted by their renormalised probabilities."""
        weight = softmax(self.linear(x, p + "gate"))
        best = np.argsort(-weight, -1, kind="stable")[:, :self.c["num_experts_per_tok"]]
        weight = np.where((np.arange(count) == best[..., None]).any(1), weight, 0)
        if self.family == "mixtral" or self.c.get("norm_topk_prob"):
            weight /= weight.sum(-1, keepdims=True)
        out = np.zeros_like(x)
        for e in range(count):
            rows = np.flatnonzero(weight[:, e])
            out[rows] += weight[rows, e, None] * self.gated(x[rows], *(f"{p}experts.{e}.{name}" for name in names))
        return out

    def stacked(self, name):
        """Experts [expert, outputs, inputs]: of floats, which lie transposed, or of MXFP4 blocks."""
        if name in self.w:
            return self.w[name].swapaxes(1, 2)
        blocks, scales = self.w[name + "_blocks"].astype(np.uint8), self.w[name + "_scales"]
        sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        values = np.concatenate([sizes, -sizes])[np.stack([blocks & 15, blocks >> 4], -1)].reshape(*scales.shape, 32)
        return (values * np.exp2(scales - 127)[..., None]).reshape(*scales.shape[:2], -1)

    def clamped_experts(self, x, p):
        """gpt-oss: the best scores make the weights, gate and up take turns, both are bounded."""
        score = self.linear(x, p + "router")
        best = np.argsort(-score, -1, kind="stable")[:, :self.c["num_experts_per_tok"]]
        p, limit, out = p + "experts.", self.c["swiglu_limit"], np.zeros_like(x)
        fused, down = self.stacked(p + "gate_up_proj"), self.stacked(p + "down_proj")
        for t, experts in enumerate(best):
            for e, weight in zip(experts, softmax(score[t, experts])):
                y = fused[e] @ x[t] + self.w[p + "gate_up_proj_bias"][e]
                gate, up = np.minimum(y[::2], limit), np.clip(y[1::2], -limit, limit)
                y = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
                out[t] += weight * (down[e] @ y + self.w[p + "down_proj_bias"][e])
        return out

    def logits(self, tokens):
        """Logits of every position, [tokens, vocabulary]."""
        tied = "model.embed_tokens.weight" not in self.w  # transformers may store either of a tied pair
        table = self.w["lm_head.weight" if tied else "model.embed_tokens.weight"]
        x = table[np.asarray(tokens)] * (math.sqrt(self.c["hidden_size"]) if self.gemma else 1)
        for i in range(self.layers):
            p = f"model.layers.{i}."
            y = self.attention(self.norm(x, p + "input_layernorm"), i)
            if self.gemma:
                x = x + self.norm(y, p + "post_attention_layernorm")
                y = self.feed_forward(self.norm(x, p + "pre_feedforward_layernorm"), i)
                x = x + self.norm(y, p + "post_feedforward_layernorm")
            else:
                x = x + y
                x = x + self.feed_forward(self.norm(x, p + "post_attention_layernorm"), i)
        x = self.norm(x, "model.norm")
        x = x @ (self.w["lm_head.weight"] if "lm_head.weight" in self.w else table).T
        if cap := self.c.get("final_logit_softcapping"):
            x = cap * np.tanh(x / cap)
        return x


def kld(reference, logits):
    """Kullback-Leibler divergence of each position, in nats; both arguments are logits."""
    p, q = (x - x.max(-1, keepdims=True) for x in (np.float64(reference), np.float64(logits)))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--tokens", type=int, default=64, help="number of random tokens")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    model = Model(a.folder)
    tokens = np.random.default_rng(a.seed).integers(0, model.c["vocab_size"], a.tokens)
    out = model.logits(tokens)
    print(f"{out.shape[0]} positions, {out.shape[1]} logits, spread {out.std():.3f}, "
          f"most likely next token {int(out[-1].argmax())}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Small Hugging Face checkpoints with random weights, one family or variation a row of CASES.

    python synthetic.py OUT [CASE...] [--dtype f32] [--seed 0] [--list]

The constants are chosen to show mistakes: no epsilon, rotary base, cap or window is a runtime's default, and all are of
a size that moves the logits, so that a key lost on the way to another format changes what the model says.
"""
import argparse
import json
import struct
import zlib
from pathlib import Path

import numpy as np

import small_tokenizer

# family -> (class, model_type, kind of tokenizer, tied embeddings, what its config adds to COMMON)
FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama", "llama3", False, {"attention_bias": False, "mlp_bias": False}),
    "mistral": ("MistralForCausalLM", "mistral", "spm", False, {"sliding_window": None}),
    "mixtral": ("MixtralForCausalLM", "mixtral", "spm", False,
                {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", "qwen2", True, {"use_sliding_window": False, "sliding_window": None}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", "qwen2", True,
              {"use_sliding_window": False, "sliding_window": None, "attention_bias": False}),
    "qwen2vl": ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "qwen2", True,
                {"use_sliding_window": False, "sliding_window": None, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}),
    "qwen3vl": ("Qwen3VLForConditionalGeneration", "qwen3_vl", "qwen2", True,
                {"attention_bias": False, "vision_config": {"deepstack_visual_indexes": []},
                 "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [11, 11, 10]}}),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe", "qwen2", False,
                 {"use_sliding_window": False, "sliding_window": None, "attention_bias": False, "num_experts": 4,
                  "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", "gemma", True,
               {"rope_theta": 10000.0, "sliding_window": 24, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", "gemma", True,
               {"sliding_window": 24, "sliding_window_pattern": 6, "rope_local_base_freq": 100.0,
                "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "phi3": ("Phi3ForCausalLM", "phi3", "phi", False, {"sliding_window": None, "original_max_position_embeddings": 2048}),
    "smollm3": ("SmolLM3ForCausalLM", "smollm3", "llama3", True, {"attention_bias": False, "mlp_bias": False}),
    "gpt-oss": ("GptOssForCausalLM", "gpt_oss", "o200k", False,
                {"attention_bias": True, "sliding_window": 24, "num_local_experts": 4, "num_experts_per_tok": 2,
                 "swiglu_limit": 7.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                                       "truncate": True, "original_max_position_embeddings": 64}}),
}
SIZES = {"hidden": 256, "inter": 512, "layers": 2, "heads": 8, "kv_heads": 2, "head_dim": 32, "vocab": 512}
ODD = {"hidden": 288, "inter": 352, "heads": 9, "kv_heads": 3}  # rows that 256-wide blocks do not divide
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "short_factor": [1 + i / 50 for i in range(16)], "long_factor": [1 + i / 5 for i in range(16)]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert":
         ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
# case -> (family, sizes that differ, config that differs, dtype, shards)
CASES = {
    "llama": ("llama", {}, {}, "bf16", 1),
    "llama-odd": ("llama", ODD, {}, "f16", 2),
    "llama-deep": ("llama", {"layers": 12, "inter": 256}, {}, "f16", 3),
    "llama-wide-head": ("llama", {"head_dim": 64}, {"head_dim": 64}, "f32", 1),
    "llama3-rope": ("llama", {}, {"rope_scaling": LLAMA3}, "bf16", 1),
    "llama-linear-rope": ("llama", {}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "bf16", 1),
    "mistral": ("mistral", {}, {}, "bf16", 1),
    "mixtral": ("mixtral", {}, {}, "bf16", 2),
    "mixtral-8": ("mixtral", {"inter": 256}, {"num_local_experts": 8}, "f16", 1),  # llama.cpp has rules for 8 experts
    "qwen2": ("qwen2", {}, {}, "bf16", 1),
    "qwen2-yarn": ("qwen2", {}, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, "bf16", 1),
    "qwen3": ("qwen3", {"head_dim": 64}, {}, "bf16", 1),
    "qwen2vl": ("qwen2vl", {}, {"rms_norm_eps": 1e-9}, "bf16", 1),  # this llama.cpp takes 0 for it
    "qwen3vl": ("qwen3vl", {"head_dim": 64}, {}, "bf16", 1),
    "qwen3moe": ("qwen3moe", {"head_dim": 64, "inter": 256}, {}, "bf16", 2),
    "gemma2": ("gemma2", {"layers": 4, "head_dim": 64}, {}, "bf16", 1),
    "gemma3": ("gemma3", {"layers": 7, "head_dim": 64}, {}, "bf16", 1),
    "phi3": ("phi3", {}, {}, "bf16", 1),
    "phi3-long": ("phi3", {}, {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}, "bf16", 1),
    "phi3-short": ("phi3", {}, {"rope_scaling": LONGROPE, "original_max_position_embeddings": 1024}, "bf16", 1),
    "smollm3": ("smollm3", {"layers": 5}, {"no_rope_layers": [1, 1, 1, 0, 1], "no_rope_layer_interval": 4}, "bf16", 1),
    "gpt-oss": ("gpt-oss", {"layers": 3, "inter": 128}, {}, "bf16", 1),
    "gpt-oss-mxfp4": ("gpt-oss", {"layers": 3, "inter": 128}, {"quantization_config": MXFP4}, "bf16", 2),
}
DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16"), "u8": ("U8", None)}
GEMMA = ("gemma2", "gemma3")


def config(family, size, changes, tokens, dtype):
    """config.json of a case; `tokens` are the ids of the special tokens."""
    class_name, model_type, _, tied, extra = FAMILIES[family]
    c = {"architectures": [class_name], "model_type": model_type, "hidden_size": size["hidden"],
         "intermediate_size": size["inter"], "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"],
         "num_key_value_heads": size["kv_heads"], "vocab_size": size["vocab"], "max_position_embeddings": 2048,
         "hidden_act": "silu", "rms_norm_eps": 1e-3, "rope_theta": 700.0, "rope_scaling": None,
         "tie_word_embeddings": tied, "torch_dtype": DTYPES[dtype][1], **tokens, **extra}
    if family == "qwen3moe":
        c["moe_intermediate_size"] = size["inter"]
    if family == "gpt-oss":
        c["layer_types"] = [("sliding_attention", "full_attention")[i % 2] for i in range(size["layers"])]  # mlx-lm needs them
    if family in ("qwen3", "qwen3vl", "qwen3moe", "gpt-oss", *GEMMA):
        c["head_dim"] = size["head_dim"]
    if family in GEMMA:
        c.pop("hidden_act")
        c.update(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=size["head_dim"], rms_norm_eps=0.02)
    return {**c, **changes}


def shapes(family, s, experts, tied, packed=False):
    """(name, shape, spread) of every tensor in file order; a spread of None marks the gain of a norm. `packed`: experts in MXFP4."""
    q, kv, h, f = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"], s["hidden"], s["inter"]
    out = [("model.embed_tokens.weight", (s["vocab"], h), (3 if tied else 1) / np.sqrt(h))]

    def linear(name, rows, columns, gain=1.0):
        out.append((f"{name}.weight", (rows, columns), gain / np.sqrt(columns)))

    def norm(name, n):
        out.append((f"{name}.weight", (n,), None))

    def stack(name, outputs, columns, gain):
        """Experts in one tensor, as gpt-oss has them."""
        if packed:
            out.append((name + "_blocks", (experts, outputs, columns // 32, 16), None))
            out.append((name + "_scales", (experts, outputs, columns // 32), None))
        else:
            out.append((name, (experts, columns, outputs), gain / np.sqrt(columns)))
        out.append((name + "_bias", (experts, outputs), 0.5))

    for i in range(s["layers"]):
        p = f"model.layers.{i}."
        norm(p + "input_layernorm", h)
        if family == "phi3":
            linear(p + "self_attn.qkv_proj", q + 2 * kv, h, 1.4)
        else:
            for part, rows in (("q", q), ("k", kv), ("v", kv)):
                linear(f"{p}self_attn.{part}_proj", rows, h, 1.4)
                if family in ("qwen2", "qwen2vl", "gpt-oss"):
                    out.append((f"{p}self_attn.{part}_proj.bias", (rows,), 0.5))
        if family in ("qwen3", "qwen3vl", "qwen3moe", "gemma3"):
            norm(p + "self_attn.q_norm", s["head_dim"])
            norm(p + "self_attn.k_norm", s["head_dim"])
        linear(p + "self_attn.o_proj", h, q)
        if family == "gpt-oss":
            out.append((p + "self_attn.o_proj.bias", (h,), 0.5))
            out.append((p + "self_attn.sinks", (s["heads"],), 1.5))
        norm(p + "post_attention_layernorm", h)
        if family in GEMMA:
            norm(p + "pre_feedforward_layernorm", h)
            norm(p + "post_feedforward_layernorm", h)
        if family == "gpt-oss":
            linear(p + "mlp.router", experts, h, 2.0)
            out.append((p + "mlp.router.bias", (experts,), 0.5))
            stack(p + "mlp.experts.gate_up_proj", 2 * f, h, 4.0)
            stack(p + "mlp.experts.down_proj", h, f, 0.5)
        elif experts:
            block = p + ("block_sparse_moe." if family == "mixtral" else "mlp.")
            gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
            linear(block + "gate", experts, h, 2.0)
            for e in range(experts):
                linear(f"{block}experts.{e}.{gate}", f, h)
                linear(f"{block}experts.{e}.{up}", f, h)
                linear(f"{block}experts.{e}.{down}", h, f)
        elif family == "phi3":
            linear(p + "mlp.gate_up_proj", 2 * f, h)
            linear(p + "mlp.down_proj", h, f)
        else:
            linear(p + "mlp.gate_proj", f, h)
            linear(p + "mlp.up_proj", f, h)
            linear(p + "mlp.down_proj", h, f)
    norm("model.norm", h)
    if not tied:
        linear("lm_head", s["vocab"], h, 3.0)
    return out


def tensor(seed, family, name, shape, spread):
    """Random float32 values that depend on nothing but the seed, the name and the shape."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("_blocks"):
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if name.endswith("_scales"):  # weights of about 0.15
        return rng.integers(121, 125, shape, dtype=np.uint8)
    w = rng.standard_normal(shape, dtype=np.float32)
    if spread is None:
        return 0.25 * w + (0 if family in GEMMA else 1)  # Gemma stores the gain minus one
    if len(shape) == 2:  # rows and columns of unlike size, as in trained models
        w *= np.exp(0.2 * rng.standard_normal((shape[0], 1), dtype=np.float32))
        w *= np.exp(0.2 * rng.standard_normal((1, shape[1]), dtype=np.float32))
    return w * np.float32(spread)


def encode(values, dtype):
    """Little-endian bytes, rounded to the nearest even; bytes as they are."""
    if dtype == "u8":
        return values.tobytes()
    if dtype == "f32":
        return values.astype("<f4").tobytes()
    if dtype == "f16":
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def stored(name, dtype):
    """The type of one tensor in a model of type `dtype`."""
    return "u8" if name.endswith(("_blocks", "_scales")) else dtype


def size_of(name, shape, dtype):
    return int(np.prod(shape)) * {"u8": 1, "f32": 4}.get(stored(name, dtype), 2)


def write_safetensors(path, tensors, dtype):
    """tensors: (name, shape, function giving float32 values); one tensor is in memory at a time."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors:
        end = at + size_of(name, shape, dtype)
        header[name] = {"dtype": DTYPES[stored(name, dtype)][0], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for name, _, values in tensors:
            f.write(encode(values(), stored(name, dtype)))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make(out, family, size=None, changes=None, dtype="bf16", shards=1, seed=0):
    """Writes one checkpoint into the folder `out` and returns it."""
    out, size, changes = Path(out), {**SIZES, **(size or {})}, changes or {}
    out.mkdir(parents=True, exist_ok=True)
    _, _, kind, tied, _ = FAMILIES[family]
    special = small_tokenizer.write(out, kind, size["vocab"])
    c = config(family, size, changes, special, dtype)
    write_json(out / "config.json", c)
    write_json(out / "generation_config.json", special)
    rows = shapes(family, size, c.get("num_local_experts") or c.get("num_experts"), tied,
                  "quantization_config" in c)
    tensors = [(n, s, lambda n=n, s=s, d=d: tensor(seed, family, n, s, d)) for n, s, d in rows]
    if shards == 1:
        write_safetensors(out / "model.safetensors", tensors, dtype)
        return out
    where = {}
    for i in range(shards):
        file, part = f"model-{i + 1:05d}-of-{shards:05d}.safetensors", tensors[i::shards]
        write_safetensors(out / file, part, dtype)
        where.update((name, file) for name, _, _ in part)
    total = sum(size_of(n, s, dtype) for n, s, _ in rows)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return out


def case(out, name, dtype=None, seed=0):
    """Writes the case `name` of CASES into the folder `out` and returns it."""
    family, size, changes, own, shards = CASES[name]
    return make(out, family, size, changes, dtype or own, shards, seed)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path, nargs="?", default=Path("."))
    p.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    p.add_argument("--dtype", choices=["f32", "f16", "bf16"], help="default: the case's own")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--list", action="store_true", help="print the names of the cases")
    a = p.parse_args()
    if a.list:
        print("\n".join(CASES))
        return
    for name in a.cases or CASES:
        if name not in CASES:
            p.error(f"unknown case {name!r}; --list names them")
        print(case(a.out / name, name, a.dtype, a.seed))


if __name__ == "__main__":
    main()

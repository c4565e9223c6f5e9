"""Turns llama.cpp's own expectations (tests/snapshots/*.schema) into tests/golden/recipes.

    python recipe_snapshots.py LLAMA_CPP_SOURCE OUTPUT_FOLDER

A schema lists, per file type, only the tensors that differ from the default type. Every tensor that may be quantized shows
up somewhere (in MXFP4_MOE all but the experts do); the few that never differ are added here, and so are row lengths: schemas
have no shapes, they come from the published models' configurations.
"""

import re
import sys
from pathlib import Path

from recipe_golden import Golden

VERSION = "0c1e57098bba"

# Per model: architecture, row lengths by stem (default n_embd), and experts' stems with the stem whose layers they share.
HEADS_128 = {"attn_output": lambda m: m["n_head"] * 128}
EXPERTS = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]
MODELS = {
    "qwen3-0.6b": ("qwen3", HEADS_128),
    "qwen3-14b": ("qwen3", HEADS_128),
    "meta-llama-3.1-70b-instruct": ("llama", HEADS_128),
    "gemma-3-4b-it": ("gemma3", {"attn_output": lambda m: m["n_head"] * 256}),
    "glm-4.6v": ("glm4moe", {**HEADS_128, "ffn_down_exps": 1408, "ffn_down_shexp": 1408}, EXPERTS, "ffn_down_shexp"),
    "gpt-oss-120b": ("gpt-oss", {"attn_output": 4096, "ffn_down_exps": 2880}, EXPERTS, "attn_q"),
    "nvidia-nemotron-3-nano-30b-a3b": (
        "nemotron_h_moe",
        {"attn_output": 4096, "ssm_out": 4096, "ffn_down_exps": 1856, "ffn_down_shexp": 3712},
        EXPERTS[1:],
        "ffn_down_shexp",
    ),
    "qwen3-coder-next": (
        "qwen3next",
        {"attn_output": 4096, "ssm_out": 4096, "ffn_down_exps": 512, "ffn_down_shexp": 512},
        EXPERTS,
        "ffn_down_shexp",
    ),
    "qwen3.5-397b-a17b": (
        "qwen35moe",
        {"attn_output": 8192, "ssm_out": 8192, "ffn_down_exps": 1024, "ffn_down_shexp": 1024},
        EXPERTS,
        "ffn_down_shexp",
    ),
    "qwen3.6-27b": ("qwen35", {"attn_output": 6144, "ssm_out": 6144}),
    "step-3.5-flash": (
        "step35",
        {**HEADS_128, "ffn_down_exps": 1280, "ffn_down_shexp": 1280},
        EXPERTS,
        "ffn_down_shexp",
    ),
    "deepseek-v3.1": (
        "deepseek2",
        {
            "attn_output": 16384,
            "attn_q_b": 1536,
            "attn_k_b": 128,
            "attn_v_b": 512,
            "ffn_down_exps": 2048,
            "ffn_down_shexp": 2048,
        },
        EXPERTS,
        "ffn_down_shexp",
    ),
}
# MLA's per-head projections are stacks too; attn_v_b always has the default type, so no schema names it.
STACKED = EXPERTS + ["attn_k_b", "attn_v_b"]


def order(name):
    m = re.match(r"blk\.(\d+)\.", name)
    return (int(m[1]) if m else -1, name)


def convert(schema, out):
    stem = schema.stem
    arch, rows, *experts = MODELS[stem]
    text = schema.read_text()
    header = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", text.splitlines()[1])}
    sections, names = [], set()
    for line in text.splitlines():
        if line.startswith("["):
            title, default = re.fullmatch(r"\[(\w+)\] (\w+)", line).groups()
            sections.append((title.lower(), default.lower(), {}))
        elif line and not line.startswith("#"):
            name, kind = line.rsplit(" ", 1)
            sections[-1][2][name] = kind.lower()
            names.add(name)
    layers_of = lambda part: [order(n)[0] for n in names if re.search(rf"\.{part}\.", n)]
    if experts:
        names |= {f"blk.{i}.{e}.weight" for e in experts[0] for i in layers_of(experts[1])}
    if stem.startswith("deepseek"):
        names |= {f"blk.{i}.attn_v_b.weight" for i in layers_of("attn_k_b")}

    def shape(name):
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        cols = rows.get(part, header["n_ff"] if part == "ffn_down" else header["n_embd"])
        cols = cols(header) if callable(cols) else cols
        return (2, 4, cols) if part in STACKED else (4, cols)

    facts = {
        "arch": arch,
        "layers": header["n_layer"],
        "heads": header["n_head"],
        "kv_heads": header["n_head_kv"],
        "experts": header.get("n_expert", 0),
    }
    about = [
        f"llama.cpp {VERSION}, tests/snapshots/{schema.name}; rows shortened to 4, stacks to 2.",
        "Made by tests/interop/recipe_snapshots.py; the format is described in recipe_golden.py.",
    ]
    golden = Golden(about, facts, {n: ("f32", shape(n)) for n in sorted(names, key=order)})
    for title, default, different in sections:
        golden.run(title, {n: different.get(n, default) for n in golden.tensors})
    golden.write(out / f"snapshot-{stem}.txt")
    return len(sections), len(sections) * len(names)


def main():
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    schemas = sorted((source / "tests/snapshots").glob("*.schema"))
    totals = [convert(schema, out) for schema in schemas]
    print(f"{len(schemas)} models, {sum(t[0] for t in totals)} runs, {sum(t[1] for t in totals)} types")


if __name__ == "__main__":
    main()

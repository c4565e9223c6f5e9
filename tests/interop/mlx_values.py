#!/usr/bin/env python3
"""Compares the weights of an MLX folder, as mx.dequantize has them, with a folder of floats; needs the Python that loaders.py prints.

    mlx_values.py FOLDER DECODED

Prints how many weights there are and how many are the same. Experts that FOLDER stacks are single in DECODED.
"""
import json
import sys
from pathlib import Path

import mlx.core as mx

MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def tensors(folder):
    out = {}
    for path in Path(folder).glob("model*.safetensors"):
        out.update(mx.load(str(path)))
    return out


def single(module, experts):
    """Names of the matrices of a stack."""
    path, name = module.rsplit(".switch_mlp.", 1)
    name = MIXTRAL[name] if path.endswith("block_sparse_moe") else name
    return [f"{path}.experts.{e}.{name}.weight" for e in range(experts)]


def main():
    folder, decoded = map(Path, sys.argv[1:])
    mx.set_default_device(mx.cpu)
    settings = json.loads((folder / "config.json").read_text())["quantization"]
    stored, floats = tensors(folder), tensors(decoded)
    count = equal = 0
    for module in (name[:-len(".scales")] for name in stored if name.endswith(".scales")):
        own = settings.get(module) or {key: settings[key] for key in ("group_size", "bits", "mode")}
        weight, scales, biases = (stored.get(f"{module}.{part}") for part in ("weight", "scales", "biases"))
        if biases is not None:
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        ours = mx.dequantize(weight, scales, biases, **own, dtype=mx.float32)
        names = single(module, weight.shape[0]) if ".switch_mlp." in module else None
        theirs = mx.stack([floats[name] for name in names]) if names else floats[f"{module}.weight"]
        if ours.shape != theirs.shape:
            raise SystemExit(f"{module} is {ours.shape} and {theirs.shape}")
        count += ours.size
        equal += int((ours == theirs).sum())
    print(count, equal)


if __name__ == "__main__":
    main()

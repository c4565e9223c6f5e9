#!/usr/bin/env python3
"""Runs a model folder in the package that owns its format, on the CPU; needs the Python that loaders.py prints.

    load.py FOLDER TOKENS.npy LOGITS.npy [--with transformers|gptqmodel|modelopt|mlx]

Prints the package and its version. Ends with an error if it misses a tensor, finds one too many or one of a wrong shape, or if
a logit is not finite.
"""
import argparse
import contextlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
OWNER = {"gptq": "gptqmodel", "awq": "gptqmodel", "modelopt": "modelopt", "mlx": "mlx"}


def in_transformers(folder, tokens):
    import torch
    from transformers import AutoModelForCausalLM
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if wrong := {what: sorted(map(str, names))[:4] for what, names in found.items() if names}:
        raise SystemExit(f"transformers reports {wrong}")
    if hasattr(model, "ct_decompress_hook"):
        # What the first call would do. Activations stay as they are: it is weights that are compared.
        from compressed_tensors.quantization import disable_quantization
        model.hf_quantizer.compressor.decompress_model(model=model)
        for module in model.modules():
            module._apply(lambda t: t.float() if t.is_floating_point() else t, recurse=False)
        model.apply(disable_quantization)
    if method(folder) == "bitsandbytes":
        # Its products round weights to what the file says, or to BF16 where the processor has that.
        for module in model.modules():
            if getattr(module, "quant_state", None):
                module.weight.quant_state.dtype = torch.float32
        model = model.dequantize().float()
    # Without a GPU transformers decodes MXFP4 to BF16, which holds all of its values, but not those of activations.
    return call(model.float() if method(folder) == "mxfp4" else model, tokens)


def method(folder):
    return json.loads((folder / "config.json").read_text()).get("quantization_config", {}).get("quant_method")


def call(model, tokens):
    import torch
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(tokens)[None]).logits[0].float().numpy()


def in_modelopt(folder, tokens):
    """transformers does not read ModelOpt's folders; compressed-tensors has a converter of their 4-bit floats, 8-bit ones differ in
    nothing but config.json."""
    import shutil
    import tempfile
    from compressed_tensors.entrypoints.convert import ModelOptNvfp4Converter, convert_checkpoint
    from safetensors import safe_open
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names |= set(file.keys())
    config = json.loads((folder / "config.json").read_text())
    theirs = config["quantization_config"]
    side = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    if (side["quant_algo"], side["exclude_modules"]) != (theirs["quant_algo"], theirs["ignore"]):
        raise SystemExit("hf_quant_config.json and config.json differ")
    if missing := [n for n in names if n.endswith(".weight_scale") and n.replace("weight_scale", "input_scale") not in names]:
        raise SystemExit(f"no input_scale beside {sorted(missing)[:4]}")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work) / "converted"
        if theirs["quant_algo"] == "FP8":
            shutil.copytree(folder, work)
            scheme = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
            group = {"targets": ["Linear"], "weights": scheme, "input_activations": scheme}
            config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized",
                                             "quantization_status": "compressed", "config_groups": {"group_0": group},
                                             "ignore": theirs["ignore"]}
            (work / "config.json").write_text(json.dumps(config))
        else:
            targets = sorted(n.removesuffix(".weight_scale_2") for n in names if n.endswith(".weight_scale_2"))
            convert_checkpoint(folder, work, ModelOptNvfp4Converter(ignore=theirs["ignore"], targets=targets), max_workers=1)
        return in_transformers(work, tokens)


def in_gptqmodel(folder, tokens):
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from safetensors import safe_open
    backend = {"gptq": BACKEND.GPTQ_TORCH, "awq": BACKEND.AWQ_TORCH}[method(folder)]
    model = GPTQModel.load(str(folder), backend=backend, device="cpu", dtype=torch.float16).model
    state, stored = model.state_dict(), set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            stored |= set(file.keys())
    places = {}
    for name, tensor in state.items():
        places.setdefault(tensor.data_ptr(), []).append(name)
    tied = {name for names in places.values() if stored & set(names) for name in names}
    if wrong := (set(state) - stored - tied) | (stored - set(state)):
        raise SystemExit(f"gptqmodel and the folder differ in {sorted(wrong)[:6]}")
    return call(model, tokens)


def in_mlx(folder, tokens):
    import mlx.core as mx
    import numpy as np
    from mlx_lm.utils import load_model
    model, _ = load_model(folder, strict=True)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(tokens)[None])[0].astype(mx.float32))


RUN = {"transformers": in_transformers, "gptqmodel": in_gptqmodel, "modelopt": in_modelopt, "mlx": in_mlx}


def main():
    import numpy as np
    p = argparse.ArgumentParser()
    p.add_argument("folder", type=Path)
    p.add_argument("tokens")
    p.add_argument("logits")
    p.add_argument("--with", dest="loader", choices=RUN)
    a = p.parse_args()
    config = json.loads((a.folder / "config.json").read_text())
    owner = "mlx" if "quantization" in config else method(a.folder)
    loader = a.loader or OWNER.get(owner, "transformers")
    with contextlib.redirect_stdout(sys.stderr):  # they greet
        logits = RUN[loader](a.folder, np.load(a.tokens).tolist())
    if not np.isfinite(logits).all():
        raise SystemExit("logits that are not finite")
    np.save(a.logits, logits)
    package = {"mlx": "mlx-lm", "modelopt": "compressed-tensors"}.get(loader, loader)
    print(package, importlib.metadata.version(package))


if __name__ == "__main__":
    main()

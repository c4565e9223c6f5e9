#!/usr/bin/env python3
"""Rewrites tests/golden/{arch,layout,general} with llama.cpp's own converter.

    python arch_golden.py LLAMA_CPP_SOURCE [FOLDER_OF_GOLDEN_FILES]

Needs what the converter needs: torch, transformers 4.57.6, numpy, safetensors, sentencepiece, pyyaml.
The inputs live in the golden files themselves. To add a case, write a file with its inputs and run this:
arch/NAME.json {"config": a config.json}, layout/NAME.json {"config": a tiny config.json}, or one more entry of
general/folders.json.
"""
import json
import sys
import tempfile
from pathlib import Path

LLAMA = Path(sys.argv[1])
sys.path[:0] = [str(LLAMA), str(LLAMA / "gguf-py")]

import gguf
import numpy as np
import torch
import transformers
from conversion import get_model_class
from conversion.base import ModelBase, ModelType, get_model_architecture
from safetensors.torch import save_file

GOLDEN = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent.parent / "golden"
VERSIONS = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
CONVERTER = f"llama.cpp conversion/ (vendored in llama-cpp-python 0.3.36), {VERSIONS}"
METADATA = "llama.cpp gguf-py/gguf/metadata.py (vendored in llama-cpp-python 0.3.36)"
STEP = 1024  # a tensor of a layout case has fewer rows


def write(path, fields):
    """One line a field, one line a row of the lists of rows."""
    def lines(v):
        rows = isinstance(v, list) and v and isinstance(v[0], (list, dict))
        return "[\n  " + ",\n  ".join(json.dumps(r, ensure_ascii=False) for r in v) + "\n ]" if rows else json.dumps(v)
    path.write_text("{\n" + ",\n".join(f" {json.dumps(k)}: {lines(v)}" for k, v in fields.items()) + "\n}\n")


def bits(values):
    return [int(b) for b in np.asarray(values, dtype=np.float32).view(np.uint32).ravel()]


def pairs(writer, leave_out):
    out = []
    for key, v in writer.kv_data[0].items():
        kind = v.type.name.lower()
        row = ["f32_bits", bits([v.value])[0]] if kind == "float32" else [kind, v.value]
        out += [[key, *row]] if key not in leave_out else []
    return out


def converter(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    model = get_model_class(architecture)(folder, gguf.LlamaFileType.MOSTLY_BF16, folder / "x.gguf", eager=True)
    return getattr(model, "impl", model)  # Mistral 3 hands all work on


def arch(case, folder):
    model = converter(folder, case["config"])
    extra = [[name, bits(tensor)] for name, tensor in model.generate_extra_tensors()]
    model.set_gguf_parameters()
    metadata = pairs(model.gguf_writer, ["general.file_type"])
    return {"made_by": CONVERTER, "config": case["config"], "metadata": metadata, "extra_tensors_f32_bits": extra}


def shapes(config, folder):
    (folder / "config.json").write_text(json.dumps(config))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    tied = ["lm_head.weight"] if model.config.tie_word_embeddings else []
    return {name: list(t.shape) for name, t in model.state_dict().items() if name not in tied}


def transposed(config, name):
    """Whether the matrices of a stack lie [inputs, outputs]: outputs are what becomes rows."""
    return config["model_type"] == "gpt_oss" and name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def rows(shape):
    return int(np.prod(shape[:-1])) if len(shape) > 1 else shape[0]


def plane(values, names, count):
    """Values tell tensor and row: `STEP * tensor + row`, plus what the converter adds to all rows."""
    first = values if values.ndim == 1 else values[:, 0]
    for add in (0.0, 1.0):
        numbers = (first - add).astype(np.int64)
        name = names[numbers[0] // STEP]
        found = (numbers - numbers[0] // STEP * STEP).tolist()
        if set(found) <= set(range(count[name])):
            same = found == list(range(count[name]))
            return {"source": name, "add": add, "rows": "same" if same else found}
    raise ValueError("rows of several tensors in one matrix")


def layout(case, folder):
    source = case.get("source") or shapes(case["config"], folder)
    names = sorted(source)
    tensors, count = {}, {}
    for i, name in enumerate(names):
        turn = transposed(case["config"], name)
        shape = [source[name][n] for n in (0, 2, 1)] if turn else source[name]
        count[name] = rows(shape)
        column = torch.arange(count[name], dtype=torch.float32) + i * STEP
        tensor = (column if len(shape) == 1 else column[:, None].expand(-1, shape[-1])).reshape(shape)
        tensors[name] = (tensor.swapaxes(1, 2) if turn else tensor).contiguous()
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {str(i): i for i in range(64)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    model, out = converter(folder, case["config"]), []

    def add_tensor(name, data, raw_dtype=None, **_):
        planes = [plane(p, names, count) for p in (data if data.ndim == 3 else data[None])]
        f32 = raw_dtype == gguf.GGMLQuantizationType.F32
        out.append({"name": name, "shape": list(data.shape), "f32": f32, "planes": planes})

    model.gguf_writer.add_tensor = add_tensor
    quantize, gguf.quants.quantize = gguf.quants.quantize, lambda data, _: data  # values stay exact
    try:
        model.prepare_tensors()
    finally:
        gguf.quants.quantize = quantize
    used = {p["source"] for t in out for p in t["planes"]}
    dropped = sorted(set(source) - used)
    return {"made_by": CONVERTER, "config": case["config"], "source": source, "dropped": dropped, "tensors": out}


def general(case, parent):
    folder = parent / case["folder"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case["config"]))
    if case["readme"] is not None:
        (folder / "README.md").write_text(case["readme"])
    if case["generation"] is not None:
        (folder / "generation_config.json").write_text(json.dumps(case["generation"]))
    writer = gguf.GGUFWriter(path=None, arch="llama")
    for name, shape in case["tensors"]:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), 0)
    total, *parts = writer.get_total_parameter_count()
    meta = gguf.Metadata.load(None, folder, None, total)
    meta.name = folder.name if meta.name is None else meta.name
    if meta.size_label is None and total > 0:
        meta.size_label = gguf.size_label(total, *parts)
    writer.add_type(gguf.GGUFType.MODEL)
    meta.set_gguf_meta_model(writer)
    return {**case, "metadata": pairs(writer, ["general.architecture"])}


def main():
    for kind in (arch, layout):
        for path in sorted((GOLDEN / kind.__name__).glob("*.json")):
            with tempfile.TemporaryDirectory() as tmp:
                write(path, kind(json.loads(path.read_text()), Path(tmp)))
    path, cases = GOLDEN / "general/folders.json", []
    for case in json.loads(path.read_text())["cases"]:
        with tempfile.TemporaryDirectory() as tmp:
            cases.append(general(case, Path(tmp)))
    write(path, {"made_by": METADATA, "cases": cases})


if __name__ == "__main__":
    main()

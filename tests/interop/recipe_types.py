"""Asks the real llama.cpp (llama_model_quantize, dry run) which types it gives the tensors of small made-up models.

    python recipe_types.py --golden FOLDER [--random N]     write what llama.cpp says, for tests/recipes.rs
    python recipe_types.py --quant BINARY [--random N]      compare it with `quant plan --json`: prints a table, exits 1 on a difference

Needs gguf and llama-cpp-python. No weights are made: the files are holes, and a dry run never reads them.
"""

import argparse
import ctypes
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
from recipe_golden import Golden

VERSION = f"llama-cpp-python {llama_cpp.__version__} (llama.cpp 0c1e57098bba)"

FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12,
    "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20,
    "q2_k_s": 21, "iq3_xs": 22, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq3_m": 27, "iq2_s": 28,
    "iq2_m": 29, "iq4_xs": 30, "iq1_m": 31, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4_moe": 38, "q1_0": 40, "q2_0": 41,
    "copy": 0,
}  # fmt: skip


# ---- models -------------------------------------------------------------------------------------------------------------


class Model:
    def __init__(self, arch, layers, heads=8, kv_heads=2, experts=0, source="f16", keys=()):
        self.facts = {"arch": arch, "layers": layers, "heads": heads, "kv_heads": kv_heads, "experts": experts}
        self.source, self.keys = source, dict(keys)
        self.tensors = {}

    def add(self, stem, *shape, layers=None, kind=None):
        """A tensor, or one in each of some layers. Shapes are outermost first; vectors are f32 like in real files."""
        name = stem if "." in stem else stem + ".weight"
        kind = kind or ("f32" if len(shape) < 2 or "_norm" in stem or stem == "ffn_gate_inp" else self.source)
        for prefix in [""] if layers is None else [f"blk.{i}." for i in layers]:
            self.tensors[prefix + name] = (kind, shape)
        return self

    def frame(self, embd, tied=False):
        self.add("token_embd", 8, embd).add("output_norm", embd)
        return self if tied else self.add("output", 8, embd)

    def attention(self, embd, layers=None, heads_cols=None):
        layers = range(self.facts["layers"]) if layers is None else layers
        self.add("attn_norm", embd, layers=layers)
        for part in ["attn_q", "attn_k", "attn_v"]:
            self.add(part, 4, embd, layers=layers)
        return self.add("attn_output", 4, heads_cols or embd, layers=layers)

    def dense(self, embd, ff, layers=None):
        layers = range(self.facts["layers"]) if layers is None else layers
        self.add("ffn_norm", embd, layers=layers)
        return self.add("ffn_gate", 4, embd, layers=layers).add("ffn_up", 4, embd, layers=layers).add("ffn_down", 4, ff, layers=layers)

    def moe(self, embd, ff, layers=None, shared=None):
        layers = range(self.facts["layers"]) if layers is None else layers
        n = self.facts["experts"]
        self.add("ffn_gate_inp", n, embd, layers=layers)
        self.add("ffn_gate_exps", n, 4, embd, layers=layers).add("ffn_up_exps", n, 4, embd, layers=layers)
        self.add("ffn_down_exps", n, 4, ff, layers=layers)
        if shared:
            self.add("ffn_gate_inp_shexp", embd, layers=layers)
            self.add("ffn_gate_shexp", 4, embd, layers=layers).add("ffn_up_shexp", 4, embd, layers=layers)
            self.add("ffn_down_shexp", 4, shared, layers=layers)
        return self

    def write(self, path):
        w = gguf.GGUFWriter(path, self.facts["arch"])
        arch = self.facts["arch"]
        values = {
            "context_length": 128, "embedding_length": 256, "feed_forward_length": 512, "block_count": self.facts["layers"],
            "attention.head_count": self.facts["heads"], "attention.head_count_kv": self.facts["kv_heads"],
            "rope.dimension_count": 32, "attention.key_length": 32, "attention.value_length": 32, "vocab_size": 8,
            **({"expert_count": self.facts["experts"], "expert_used_count": 2} if self.facts["experts"] else {}),
            **self.keys,
        }  # fmt: skip
        for norm in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"]:
            w.add_float32(f"{arch}.{norm}", 1e-5)
        for key, value in values.items():
            if isinstance(value, list):
                w.add_array(f"{arch}.{key}", value)
            elif isinstance(value, bool):
                w.add_bool(f"{arch}.{key}", value)
            elif isinstance(value, float):
                w.add_float32(f"{arch}.{key}", value)
            else:
                w.add_uint32(f"{arch}.{key}", value)
        w.add_file_type(1)
        total = 0
        for name, (kind, shape) in self.tensors.items():
            ggml = gguf.GGMLQuantizationType[kind.upper()]
            block, size = gguf.GGML_QUANT_SIZES[ggml]
            n_bytes = size
            for d in shape:
                n_bytes *= d
            n_bytes //= block
            w.tensors[0][name] = gguf.gguf_writer.TensorInfo(shape=shape, dtype=ggml, nbytes=n_bytes)
            total += (n_bytes + 31) // 32 * 32
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_ti_data_to_file()
        w.close()
        with open(path, "r+b") as f:
            f.seek(0, 2)
            f.truncate((f.tell() + 31) // 32 * 32 + total)


def oddities(model):
    """One of everything that never is quantized, whatever model it is said to be from."""
    for stem in [
        "position_embd", "token_types", "per_layer_model_proj", "altup_proj", "altup_unembd_proj", "a.rvq.codebook.weight",
        "mm.a.code_embd.weight", "v.position_embd.weight", "v.patch_embd.weight", "mm.patch_merger.weight", "v.sam.pos_embd.weight",
        "v.sam.neck.0.weight", "v.sam.net_2.weight", "v.blk.0.rel_pos_h.weight", "token_embd_norm", "position_embd_x",
    ]:  # fmt: skip
        model.add(stem, 4, 256)
    for stem in [
        "laurel_l", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "indexer.o_proj.weight",
        "attn_rel_b", "ffn_gate_tid2eid", "ffn_gate_inp", "attn_q_norm", "time_mix_first", "time_mix_w0", "time_mix_w1",
        "time_mix_w2", "time_mix_w3", "time_mix_v0", "time_mix_v1", "time_mix_v2", "time_mix_a0", "time_mix_a1", "time_mix_a2",
        "time_mix_g0", "time_mix_g1", "time_mix_g2", "time_mix_decay_w1", "time_mix_decay_w2", "time_mix_lerp_fused",
        "time_mix_key", "hc_attn_fn", "indexer.attn_q_b.weight", "indexer.attn_k.weight", "indexer.proj.weight",
        "indexer_compressor_gate", "indexer_compressor_ape", "ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b", "ssm_beta", "ssm_alpha",
        "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_q_a", "attn_q_b", "nextn.eh_proj.weight", "attn_q.bias", "attn_q.lora_a",
    ]:  # fmt: skip
        model.add(stem, 4, 256, layers=[0, 1])
    return model.add("output.bias", 8).add("rope_freqs", 32).add("one_row", 1, 256).add("scalar_stack", 1, 1, 256)


def llama(layers=12, **facts):
    return Model("llama", layers, **facts)


def mixed_attention(model, embd):
    """Values live in three differently named tensors, and not in every layer."""
    n = model.facts["layers"]
    model.add("attn_qkv", 4, embd, layers=[i for i in range(n) if i % 4 == 0])
    model.add("attn_kv_b", 4, embd, layers=[i for i in range(n) if i % 4 == 1])
    model.attention(embd, layers=[i for i in range(n) if i % 4 == 2])
    return model.dense(embd, embd, layers=[i for i in range(n) if i % 3])


# Hyperparameters without which these two do not load; types do not depend on them.
GLM5 = {
    "attention.key_length_mla": 32, "attention.value_length_mla": 32, "attention.q_lora_rank": 64, "attention.kv_lora_rank": 64,
    "ssm.conv_kernel": 4, "kda.head_dim": 32, "kda.gate_lower_bound": -1.0, "expert_feed_forward_length": 64,
    "expert_shared_count": 1, "expert_gating_func": 2, "leading_dense_block_count": 1, "attention.indexer.head_count": 1,
    "attention.indexer.key_length": 32, "attention.indexer.top_k": 8, "attention.indexer.kpool": 4,
    "hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 1, "hyper_connection.epsilon": 1e-5,
}  # fmt: skip

MODELS = {
    "dense": lambda: llama().frame(256).attention(256).dense(256, 512),
    "dense-tied": lambda: llama(17, kv_heads=8, source="bf16").frame(256, tied=True).attention(256).dense(256, 512),
    "rows-576": lambda: llama(9, heads=9, kv_heads=3).frame(576, tied=True).attention(576).dense(576, 1536),
    "rows-2880": lambda: llama(9, source="f32").frame(2880).attention(2880, heads_cols=4096).dense(2880, 11008),
    "rows-100": lambda: llama(5).frame(100).attention(100).dense(100, 64),
    "rows-128": lambda: llama(5, kv_heads=1).frame(128).attention(128).dense(128, 384),
    "quantized-source": lambda: llama(8, source="q8_0").frame(256).attention(256).dense(256, 512),
    "oddities": lambda: oddities(llama(8)).frame(256).attention(256).dense(256, 512),
    "mixed-attention": lambda: mixed_attention(llama(33).frame(256), 256),
    "llama-70b": lambda: llama(80, heads=64, kv_heads=8).frame(256).attention(256).dense(256, 512),
    "llama-65b": lambda: llama(80, heads=8, kv_heads=8).frame(256).attention(256).dense(256, 512),
    "llama-80-layers-8-experts": lambda: llama(80, heads=64, kv_heads=8, experts=8).frame(256).attention(256).moe(256, 256),
    "qwen2-80-layers": lambda: Model("qwen2", 80, kv_heads=8).frame(256).attention(256).dense(256, 512),
    "deci-80-layers": lambda: Model("deci", 80, kv_heads=4).frame(256).attention(256).dense(256, 512),
    "olmo-80-layers": lambda: Model("olmo", 80, kv_heads=4).frame(256).attention(256).dense(256, 512),
    "jais2-68-layers": lambda: Model("jais2", 68, kv_heads=4).frame(256).attention(256).dense(256, 512),
    "mixtral": lambda: llama(16, experts=8).frame(256).attention(256).moe(256, 512),
    "mixtral-mha": lambda: llama(16, kv_heads=8, experts=8).frame(256, tied=True).attention(256).moe(256, 512),
    "moe-4": lambda: llama(16, kv_heads=8, experts=4).frame(256).attention(256).moe(256, 768),
    "moe-3-shared": lambda: llama(25, kv_heads=8, experts=3).frame(256).attention(256).moe(256, 160, shared=512),
    "moe-leading-dense": lambda: llama(20, kv_heads=8, experts=64, source="bf16")
    .frame(512).attention(512).dense(512, 1024, layers=[0, 1]).moe(512, 1408, layers=range(2, 20), shared=256),
    "falcon": lambda: Model("falcon", 32, kv_heads=1).frame(256)
    .add("attn_qkv", 4, 256, layers=range(32)).add("attn_output", 4, 256, layers=range(32))
    .add("ffn_up", 4, 256, layers=range(32)).add("ffn_down", 4, 512, layers=range(32)),
    "falcon-tied": lambda: Model("falcon", 32, kv_heads=8).frame(576, tied=True)
    .add("attn_qkv", 4, 576, layers=range(32)).add("attn_output", 4, 576, layers=range(32))
    .add("ffn_up", 4, 576, layers=range(32)).add("ffn_down", 4, 512, layers=range(32)),
    "falcon-8-experts": lambda: Model("falcon", 16, kv_heads=8, experts=8).frame(256).attention(256).moe(256, 256),
    "per-layer-embeddings": lambda: llama(8).frame(256, tied=True).add("per_layer_token_embd", 8, 512).attention(256).dense(256, 512),
    "per-layer-embeddings-untied": lambda: llama(8).frame(256).add("per_layer_token_embd", 8, 512).attention(256).dense(256, 512),
    "heads-by-layer": lambda: llama(6, heads=32, kv_heads=8, keys={
        "attention.head_count": [32, 16, 0, 32, 32, 32], "attention.head_count_kv": [8, 16, 0, 1, 1, 1],
    }).frame(256).attention(256).dense(256, 512),
    "no-kv-heads-first": lambda: llama(6, heads=32, kv_heads=0, keys={
        "attention.head_count_kv": [0, 8, 8, 8, 8, 8],
    }).frame(256).attention(256).dense(256, 512),
    "glm5-next": lambda: oddities(Model("glm5-next", 10, kv_heads=1, experts=8, keys=GLM5)).frame(256).attention(256).moe(256, 512, shared=256),
    "bailingmoe3": lambda: Model("bailingmoe3", 10, kv_heads=2, experts=8, keys=GLM5).frame(256).attention(256)
    .moe(256, 512, shared=256).add("attn_k_b", 2, 4, 256, layers=range(10)),
}  # fmt: skip

# Options of llama-quantize and what `quant` calls them.
OPTIONS = {
    "--set pure=true": {"pure": True},
    "--set output=q8_0": {"output_tensor_type": "q8_0"},
    "--set output=q4_k": {"output_tensor_type": "q4_k"},
    "--set token_embd=q8_0": {"token_embedding_type": "q8_0"},
    "--set output=q5_0 --set token_embd=q4_0": {"output_tensor_type": "q5_0", "token_embedding_type": "q4_0"},
    "--set pure=true --set output=f16 --set token_embd=bf16": {"pure": True, "output_tensor_type": "f16", "token_embedding_type": "bf16"},
    "--set attn_v=q8_0": {"types": [("attn_v", "q8_0")]},
    r"--set blk\.[0-3]\.ffn_down=q3_k --set ffn_(up|down)=q6_k": {"types": [(r"blk\.[0-3]\.ffn_down", "q3_k"), ("ffn_(up|down)", "q6_k")]},
    r"--set blk\.1\.attn_v=q3_k": {"types": [(r"blk\.1\.attn_v", "q3_k")]},
    "--set tensors.output=q5_k": {"types": [("output", "q5_k")]},
    r"--set token_embd\.weight=q6_k --set token_embd=q4_1": {"types": [(r"token_embd\.weight", "q6_k")], "token_embedding_type": "q4_1"},
    "--set pure=true --set attn_q=iq4_xs": {"pure": True, "types": [("attn_q", "iq4_xs")]},
}
LEAVE_OUTPUT = {r"--set ^output\.weight$=keep": {"quantize_output_tensor": False}}
OPTION_RUNS = ["q4_k_m", "iq2_s", "q4_0", "q2_k"]
OPTION_MODELS = ["dense", "dense-tied", "rows-576", "mixtral", "moe-3-shared", "per-layer-embeddings", "per-layer-embeddings-untied"]


def random_model(seed):
    r = random.Random(seed)
    arch = r.choice(["llama", "llama", "llama", "qwen2", "falcon", "deci", "olmo"])
    layers = r.choice([1, 2, 7, 8, 15, 16, 24, 31, 48, 68, 80])
    kv = r.choice([1, 2, 4, 8])
    experts = r.choice([0, 0, 0, 2, 4, 8, 8, 16])
    embd, ff = (r.choice([32, 64, 100, 128, 256, 576, 768, 1024, 2880]) for _ in range(2))
    model = Model(arch, layers, heads=kv * r.choice([1, 2, 3, 4, 7, 8]), kv_heads=kv, experts=experts, source=r.choice(["f32", "f16", "bf16"]))
    model.frame(embd, tied=r.random() < 0.4)
    some = lambda p: [i for i in range(layers) if r.random() < p]
    fused = some(0.2)
    model.add("attn_qkv", 4, embd, layers=fused).attention(embd, [i for i in range(layers) if i not in fused and r.random() < 0.9], r.choice([embd, ff]))
    sparse = some(0.7) if experts else []
    model.moe(embd, ff, layers=sparse, shared=r.choice([None, ff])) if sparse else None
    return model.dense(embd, ff, layers=[i for i in range(layers) if i not in sparse])


# ---- llama.cpp ----------------------------------------------------------------------------------------------------------

LOG = []


@llama_cpp.llama_log_callback
def on_log(_level, text, _data):
    LOG.append(text.decode(errors="replace"))


def ggml(name):
    return int(gguf.GGMLQuantizationType[name.upper()])


def ask(path, tensors, preset, importance, options):
    """(types, fallbacks, MiB, whether an importance matrix is needed) or None if llama.cpp refuses."""
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype, p.dry_run, p.allow_requantize, p.nthread = FILE_TYPES[preset], True, True, 1
    p.only_copy = preset == "copy"
    keep = []
    for key, value in options.items():
        if key == "types":
            pairs = [(pattern.encode(), ggml(kind)) for pattern, kind in value] + [(None, 0)]
            array = (llama_cpp.llama_model_tensor_override * len(pairs))(*pairs)
            p.tt_overrides = ctypes.cast(array, ctypes.POINTER(llama_cpp.llama_model_tensor_override))
            keep.append(array)
        elif key.endswith("_type"):
            setattr(p, key, ggml(value))
        else:
            setattr(p, key, value)
    if importance:
        data = (ctypes.c_float * 1)(1.0)
        array = (llama_cpp.llama_model_imatrix_data * 2)((b"x", data, 1), (None, None, 0))
        p.imatrix = ctypes.cast(array, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
        keep += [data, array]
    LOG.clear()
    if llama_cpp.llama_model_quantize(str(path).encode(), b"/nonexistent", ctypes.byref(p)):
        return None
    log = "".join(LOG)
    types = {}
    for name, kind, rest in re.findall(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\S+), (size = .*)$", log, re.M):
        new = re.search(r"MiB \((\S+)\)", rest)
        types[name] = (new[1] if new else kind).lower()
    assert types.keys() == tensors.keys(), types.keys() ^ tensors.keys()
    fallbacks = re.search(r"(\d+) of \d+ tensor\(s\) required fallback", log)
    return types, int(fallbacks[1]) if fallbacks else 0, float(re.search(r"quant size += +([\d.]+) MiB", log)[1]), "will require an imatrix" in log


def runs(name, model):
    """(title, preset, importance, options)"""
    tied = "output.weight" not in model.tensors
    # What llama.cpp lets pass and `quant` refuses: a pattern that matches nothing, an explicit type that rows do not fit.
    fits = model.tensors["token_embd.weight"][1][-1] % 256 == 0
    matches = lambda pattern: any(re.search(pattern, t) for t in model.tensors)
    for preset in FILE_TYPES:
        for importance in [False, True]:
            yield f"{preset}{' importance' * importance}", preset, importance, {}
    for preset in OPTION_RUNS if name in OPTION_MODELS or name.startswith("random") else []:
        for flags, options in {**OPTIONS, **({} if tied else LEAVE_OUTPUT)}.items():
            if not fits and "output=q4_k" in flags or not all(matches(pattern) for pattern, _ in options.get("types", [])):
                continue
            yield f"{preset} {flags}", preset, False, options


# ---- what to do with it -------------------------------------------------------------------------------------------------


def plan(binary, path, title):
    """Types that `quant plan` gives, or None if it refuses."""
    target, *flags = title.split(" ")
    if "importance" in flags:
        return "skipped"
    command = [binary, "plan", str(path), "--to", target, "--allow-requantize", "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return "skipped" if "cannot be written yet" in done.stderr else None
    return {t["name"]: t["codec"] for t in json.loads(done.stdout)["outputs"][0]["tensors"]}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--golden", type=Path)
    args.add_argument("--quant")
    args.add_argument("--random", type=int, default=0, metavar="N")
    args = args.parse_args()
    llama_cpp.llama_log_set(on_log, None)
    models = MODELS | {f"random-{seed}": lambda seed=seed: random_model(seed) for seed in range(args.random)}
    asked = types = different = 0
    for name, make in models.items():
        model = make()
        about = [f"{VERSION}: llama_model_quantize, dry run.", "Made by tests/interop/recipe_types.py; the format is described in recipe_golden.py."]
        golden = Golden(about, model.facts, model.tensors)
        wrong = refused = count = 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            model.write(path)
            for title, preset, importance, options in runs(name, model):
                answer = ask(path, model.tensors, preset, importance, options)
                count += 1
                refused += answer is None
                types += len(model.tensors) if answer else 0
                golden.run(title, *(answer or [None]))
                if args.quant:
                    ours, theirs = plan(args.quant, path, title), answer and answer[0]
                    if ours not in ("skipped", theirs):
                        # A missing importance matrix stops `quant plan`, llama.cpp's dry run only warns.
                        if not (ours is None and answer and answer[3]):
                            wrong += 1
                            print(f"{name} {title}: differs", file=sys.stderr)
        asked += count
        different += wrong
        print(f"{name:32} {len(model.tensors):5} tensors {count:4} runs, {refused} refused" + (f", {wrong} differ" if args.quant else ""))
        if count == refused:
            sys.exit(f"llama.cpp refuses {name} altogether:\n{''.join(LOG[-5:])}")
        if args.golden:
            golden.write(args.golden / f"llama-{name}.txt")
    print(f"{len(models)} models, {asked} runs, {types} types" + (f", {different} runs differ" if args.quant else ""))
    sys.exit(different > 0)


if __name__ == "__main__":
    main()

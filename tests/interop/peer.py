"""Real llama.cpp, through the C interface of llama-cpp-python: the implementation that decides who is right."""
import collections
import ctypes
import functools
import os
import tempfile

import numpy as np
import llama_cpp
from gguf import GGMLQuantizationType
from llama_cpp import llama_cpp as c

import imatrix as imatrix_file

GGML_F32 = 0
COPY = "copy"  # not a file type: the source's own
KV_INT, KV_STR = 0, 3  # enum llama_model_kv_override_type
NEWER_FTYPES = {"Q2_0": 41}  # in llama.cpp, not yet among the Python names
os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an assert should end the process, not start a debugger

_errors = collections.deque(maxlen=4)  # what llama.cpp said last that matters


@c.llama_log_callback
def _listen(level, text, _):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        _errors.append(text.decode(errors="replace").strip())


c.llama_log_set(_listen, None)


class PeerError(Exception):
    """llama.cpp refused or crashed; the message is the last of what it printed."""


def ftype(preset):
    """llama.cpp's number for a preset (`q4_k_m` -> 15), or None where it has no such file type."""
    name = preset.upper()
    for candidate in (f"LLAMA_FTYPE_MOSTLY_{name}", f"LLAMA_FTYPE_ALL_{name}"):
        if hasattr(c, candidate):
            return getattr(c, candidate)
    return NEWER_FTYPES.get(name)


def _overrides(entries):
    """The metadata that llama-quantize adds when it is given an importance matrix."""
    rows = (c.llama_model_kv_override * (len(entries) + 1))()
    for row, (key, value) in zip(rows, entries):
        row.key = key.encode()
        if isinstance(value, int):
            row.tag, row.value.val_i64 = KV_INT, value
        else:
            row.tag, row.value.val_str = KV_STR, value.encode()[:127]
    return rows


def _types(patterns):
    """Types of the tensors whose names match, in the order of llama-quantize's `--tensor-type`."""
    rows = (c.llama_model_tensor_override * (len(patterns) + 1))()
    for row, (pattern, name) in zip(rows, patterns):
        row.pattern, row.type = pattern.encode(), int(GGMLQuantizationType[name])
    return rows


def _parameters(number, threads, imatrix, pure, allow_requantize, types):
    p = c.llama_model_quantize_default_params()
    p.nthread, p.pure, p.allow_requantize = threads, pure, allow_requantize
    p.only_copy = number is None
    p.ftype = 0 if number is None else number
    if types:
        p.tt_overrides = _types(types)
    if imatrix:
        m = imatrix_file.load(imatrix)
        rows = (c.llama_model_imatrix_data * (len(m.values) + 1))()
        for row, (name, values) in zip(rows, m.values.items()):
            row.name, row.size = name.encode(), values.size
            row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        keys = [("quantize.imatrix.file", str(imatrix))]
        keys += [("quantize.imatrix.dataset", m.datasets[0])] if m.datasets else []
        keys += [("quantize.imatrix.entries_count", len(m.values))]
        keys += [("quantize.imatrix.chunks_count", m.chunks)] if m.chunks > 0 else []
        p.imatrix, p.kv_overrides = rows, _overrides(keys)
        p.keep = m  # the pointers above point into it
    return p


@functools.cache
def _prepare():
    """Has ggml make its tables for the codebook types, which takes it seconds, once for all processes to come."""
    for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"):
        c._lib.ggml_quantize_init(int(GGMLQuantizationType[name]))


def quantize(source, output, preset, imatrix=None, threads=2, pure=False, allow_requantize=True, types=()):
    """llama_model_quantize in a process of its own, so that an assert in it is an error here. Raises PeerError."""
    _prepare()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                c.llama_log_set(c.llama_log_callback(0), None)  # to stderr
                p = _parameters(None if preset == COPY else ftype(preset), threads, imatrix, pure, allow_requantize, types)
                status = c.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(p))
            finally:
                os._exit(1 if status else 0)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    if status:
        raise PeerError(lines[-1] if lines else f"wait status {status}")
    return output


def load(path, context=0, **options):
    """A model with caches in F32, so that what differs in its logits comes from the file. Raises PeerError."""
    _errors.clear()
    try:
        return _load(path, context or 512, **options)
    except ValueError as error:
        raise PeerError("; ".join(_errors) or error) from None


def _load(path, context, threads=2, **options):
    return llama_cpp.Llama(str(path), n_ctx=context, n_batch=context, n_ubatch=context,
                           n_threads=threads, n_threads_batch=threads, type_k=GGML_F32, type_v=GGML_F32, flash_attn=False,
                           swa_full=True, verbose=False, **options)


def logits(path, tokens):
    """Logits of every position, float32 [tokens, vocabulary]."""
    model = load(path, context=len(tokens), logits_all=True)
    model.eval(list(map(int, tokens)))
    rows = np.array(model.scores[: len(tokens)], dtype=np.float32)
    model.close()
    return rows

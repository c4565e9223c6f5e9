"""Writes what llama.cpp's own encoders make of generated weights: one file a type, and one more with an importance vector.

Made with llama-cpp-python 0.3.36 (its libggml-base, built for baseline x86-64: nothing fused), gguf 0.19.0, numpy.

    python make.py path/to/libggml-base.so

A file is a header line of `key=value` and the encoded rows. `weights` and `importance` are repeated, integer for integer, in
the test that reads the files (src/codec/ggml/encode/tests.rs).
"""

import ctypes
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type

TYPES = """Q1_0 Q2_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS
    TQ1_0 TQ2_0 MXFP4 NVFP4""".split()
# Not in every release of gguf-py.
IDS = {"Q1_0": 41, "Q2_0": 42}
IGNORE_IMPORTANCE = {"Q1_0", "Q2_0", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"}
REQUIRE_IMPORTANCE = {"IQ1_S", "IQ2_XXS", "IQ2_XS"}
# Where squares overflow, these end the process.
MODEST = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}
ROWS, COLS = 6, 1024
TOOL = "llama-cpp-python-0.3.36"


def scramble(index, seed):
    """A finalizer of 32-bit hashes over a counter."""
    h = index.astype(np.uint32) * np.uint32(0x9E3779B9) + np.uint32(seed)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def weights(n, modest):
    """Twelve kinds of super-block in turn; one of them less large if they shall be modest."""
    i = np.arange(n)
    a, b, pick = (scramble(i, seed).astype(np.int64) for seed in (1, 2, 3))
    bell = (a & 0xFFFF) + (a >> 16) + (b & 0xFFFF) + (b >> 16) - 131070
    zero = np.zeros_like(bell)
    kinds = [
        (bell, -21),
        (np.where(pick % 50 == 0, 64 * bell, bell), -21),  # outliers
        (zero + 45875, -16),  # constant
        (zero, 0),
        (bell, -120),  # tiny
        (bell, -149),  # denormal
        (bell, 10 if modest else 83),  # squares overflow at 83
        (np.abs(bell), -21),
        (-np.abs(bell), -21),
        (bell >> 15, -3),  # many ties
        (np.where(pick % 10 == 0, bell, zero), -17),  # sparse
        (bell, -40 + 5 * (i // 32 % 8)),  # uneven groups
    ]
    out = np.zeros(n, np.float32)
    for kind, (mantissa, exponent) in enumerate(kinds):
        values = np.ldexp(mantissa.astype(np.float64), exponent).astype(np.float32)
        out = np.where(i // 256 % len(kinds) == kind, values, out)
    return out


def importance(cols):
    h = scramble(np.arange(cols), 4).astype(np.int64)
    mantissa = np.where(h >> 28 == 0, 0, h & 0x3FF)
    return np.ldexp(mantissa.astype(np.float64), -(h >> 12 & 7)).astype(np.float32)


def main():
    ggml = ctypes.CDLL(sys.argv[1])
    ggml.ggml_row_size.restype = ctypes.c_size_t
    ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    q = importance(COLS)
    for name in TYPES:
        w = weights(ROWS * COLS, name in MODEST)
        id = IDS[name] if name in IDS else Type[name].value
        ways = [False] * (name not in REQUIRE_IMPORTANCE) + [True] * (name not in IGNORE_IMPORTANCE)
        for with_importance in ways:
            out = np.zeros(ROWS * ggml.ggml_row_size(id, COLS), np.uint8)
            pointer = q.ctypes.data if with_importance else None
            size = ggml.ggml_quantize_chunk(id, w.ctypes.data, out.ctypes.data, 0, ROWS, COLS, pointer)
            assert size == out.size
            header = f"tool={TOOL} type={id} rows={ROWS} cols={COLS} importance={int(with_importance)}\n"
            file = name.lower() + ("-importance" if with_importance else "") + ".bin"
            Path(__file__).with_name(file).write_bytes(header.encode() + out.tobytes())


if __name__ == "__main__":
    main()

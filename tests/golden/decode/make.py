"""Makes the golden files beside it: stored bytes of every part, then the weights as little-endian f32.
A file is named CODEC.ROWSxCOLS.bin.

Made with: libggml-base 0.25.3 of llama-cpp-python 0.3.36 (llama.cpp's own `to_float`), cross-checked against gguf 0.19.0 (numpy)
for the types that it knows; fp8 with ml_dtypes 0.6.0 and numpy.

    python make.py path/to/libggml-base.so
"""

import ctypes
import pathlib
import sys

import gguf
import ml_dtypes
import numpy as np

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(20261121)

# name: offsets of the f16 fields of a block. They get sane values, except in the last row, which stays random.
HALVES = {
    "f16": [], "bf16": [],
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0],
    "q2_K": [80, 82], "q3_K": [108], "q4_K": [0, 2], "q5_K": [0, 2], "q6_K": [208],
    "q1_0": [0], "q2_0": [0], "tq1_0": [52], "tq2_0": [64],
    "iq1_s": [0], "iq1_m": [], "iq2_xxs": [0], "iq2_xs": [0], "iq2_s": [0], "iq3_xxs": [0], "iq3_s": [0],
    "iq4_nl": [0], "iq4_xs": [0], "mxfp4": [], "nvfp4": [],
}


class Traits(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("weights", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    ]


def write(name, rows, cols, parts, values):
    assert values.shape == (rows, cols) and values.dtype == np.float32
    data = b"".join(p.tobytes() for p in parts) + values.tobytes()
    (HERE / f"{name}.{rows}x{cols}.bin").write_bytes(data)


def blocks(name, traits, rows, cols):
    per_row = cols // traits.weights
    data = RNG.integers(0, 256, (rows, per_row, traits.bytes), dtype=np.uint8)
    scales = RNG.uniform(0.001, 0.1, (rows, per_row)) * RNG.choice([-1, 1], (rows, per_row))
    scales = scales.astype(np.float16)[:, :, None].view(np.uint8)
    for at in HALVES[name]:
        data[:-1, :, at : at + 2] = scales[:-1]
    if name == "iq1_m":  # the scale's nibbles are the upper ones of four words
        bits = scales.view(np.uint16)
        for i in range(4):
            low = data[:-1, :, 49 + 2 * i] & 15
            data[:-1, :, 49 + 2 * i] = low | (bits[:-1, :, 0] >> (4 * i) & 15).astype(np.uint8) << 4
    if name == "mxfp4":
        data[:-1, :, 0] = RNG.integers(110, 130, (rows - 1, per_row))
        data[-1, :4, 0] = [0, 1, 2, 255]
    if name == "nvfp4":
        data[-1, 0, :4] = [0, 1, 0x7F, 0xFF]
    return data


def ggml(lib, name, kind):
    traits = lib.ggml_get_type_traits(kind).contents
    assert traits.name.decode() == name, (traits.name, name)
    rows, cols = (3, 512) if traits.weights == 256 else (4, 128) if traits.weights > 1 else (4, 30)
    data = blocks(name, traits, rows, cols)
    values = np.empty((rows, cols), dtype=np.float32)
    traits.to_float(data.ctypes.data, values.ctypes.data, values.size)
    try:
        other = gguf.dequantize(data.reshape(rows, -1), gguf.GGMLQuantizationType(kind))
        assert np.array_equal(other, values, equal_nan=True), name
        print(f"{name}: gguf agrees")
    except (NotImplementedError, ValueError) as e:
        print(f"{name}: not in gguf ({e})")
    write(name.lower(), rows, cols, [data], values)


def main():
    lib = ctypes.CDLL(sys.argv[1])
    lib.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    lib.ggml_init.argtypes = [ctypes.c_size_t * 3]
    lib.ggml_init((ctypes.c_size_t * 3)(1 << 16, 0, 0))  # fills its table of half floats
    kinds = {lib.ggml_get_type_traits(i).contents.name.decode(): i for i in range(43)}
    with np.errstate(all="ignore"):
        for name in HALVES:
            ggml(lib, name, kinds[name])
        every = np.arange(256, dtype=np.uint8).reshape(4, 64)
        write("f8_e4m3", 4, 64, [every], every.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
        write("f8_e5m2", 4, 64, [every], every.view(ml_dtypes.float8_e5m2).astype(np.float32))
        for rows, cols in [(3, 130), (259, 2)]:
            codes = RNG.integers(0, 256, (rows, cols), dtype=np.uint8)
            scales = RNG.uniform(1e-4, 1e-2, (-(-rows // 128), -(-cols // 128))).astype(np.float32)
            wide = np.repeat(np.repeat(scales, 128, axis=0), 128, axis=1)[:rows, :cols]
            values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * wide
            write("deepseek-fp8", rows, cols, [codes, scales], values)


main()

"""Makes the golden files of the float formats of folders beside it: stored bytes of every part, then the weights as little-endian
f32, without the scale of the whole matrix. A file is named CODEC.ROWSxCOLS.bin.

Made with: compressed-tensors 0.20.0 (`unpack_fp4_from_uint8`) and the float8 types of torch 2.11.0; products in f32. gpt-oss's
with transformers 5.17.0 (`convert_moe_packed_tensors`), which gives BF16: scales are such that nothing is lost.

    python make_floats.py
"""

import pathlib

import numpy as np
import torch
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(20261121)
DTYPES = {"": torch.bfloat16, "-f16": torch.float16, "-f32": torch.float32}


def write(name, rows, cols, parts, weights):
    assert tuple(weights.shape) == (rows, cols) and weights.dtype == torch.float32
    raw = b"".join(p.contiguous().flatten().view(torch.uint8).numpy().tobytes() for p in parts)
    (HERE / f"{name}.{rows}x{cols}.bin").write_bytes(raw + weights.contiguous().numpy().tobytes())


def some(*shape):
    return torch.from_numpy(RNG.integers(0, 256, shape, dtype=np.uint8))


def floats(*shape):
    return torch.from_numpy(RNG.uniform(1e-4, 1e-2, shape))


def fours(codes, rows, cols):
    """Their minus zero reads as zero."""
    return unpack_fp4_from_uint8(codes, rows, cols, torch.float32) + 0.0


def main():
    for suffix, dtype in DTYPES.items():
        codes = some(5, 48)
        scales = floats(5, 1).to(dtype)
        write(f"fp8-channel{suffix}", 5, 48, [codes, scales], codes.view(torch.float8_e4m3fn).float() * scales.float())
    codes, scales = some(130, 256), floats(2, 2).bfloat16()
    wide = scales.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[:130]
    write("fp8-block", 130, 256, [codes, scales], codes.view(torch.float8_e4m3fn).float() * wide)
    for name in ["fp8-tensor", "modelopt-fp8"]:
        codes = some(4, 64)
        write(name, 4, 64, [codes], codes.view(torch.float8_e4m3fn).float())
    for name in ["pack-nvfp4", "modelopt-nvfp4"]:
        codes, scales = some(64, 24), torch.arange(192, dtype=torch.uint8).remainder(128).reshape(64, 3)  # none is negative
        wide = scales.view(torch.float8_e4m3fn).float().repeat_interleave(16, 1)
        write(name, 64, 48, [codes, scales], fours(codes, 64, 48) * wide)
    codes, scales = some(128, 32), torch.arange(256, dtype=torch.uint8).reshape(128, 2)
    wide = scales.view(torch.float8_e8m0fnu).float().repeat_interleave(32, 1)
    write("pack-mxfp4", 128, 64, [codes, scales], fours(codes, 128, 64) * wide)
    codes, scales = some(1, 48, 4, 16), torch.arange(192, dtype=torch.uint8).add(32).reshape(1, 48, 4)
    weights = convert_moe_packed_tensors(codes, scales).float()[0].T + 0.0
    write("gpt-oss-mxfp4", 48, 128, [codes, scales], weights)
    codes, scales = some(128, 64), torch.arange(256, dtype=torch.uint8).reshape(128, 2)
    wide = scales.view(torch.float8_e8m0fnu).float().repeat_interleave(32, 1)
    write("mxfp8", 128, 64, [codes, scales], codes.view(torch.float8_e4m3fn).float() * wide)


main()

"""Makes the golden files of bitsandbytes' 4-bit formats beside it: stored bytes of every part, then the weights as little-endian f32.
A file is named CODEC.ROWSxCOLS.bin.

Made with: bitsandbytes 0.50.2 (`QuantState.as_dict`, `dequantize_4bit` to single precision, on the CPU) with torch 2.11.0.

    python make_nf4.py
"""

import pathlib

import numpy as np
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(20261130)
DTYPES = {"": torch.bfloat16, "-f16": torch.float16, "-f32": torch.float32}


def main():
    rows, cols = 5, 128
    for kind, name in ("nf4", "nf4"), ("fp4", "bnb-fp4"):
        for suffix, dtype in DTYPES.items():
            codes = torch.from_numpy(RNG.integers(0, 256, (rows * cols // 2, 1), dtype=np.uint8))
            absmax = torch.from_numpy(RNG.uniform(1e-4, 1e-2, rows * cols // 64)).float()
            state = QuantState(absmax, (rows, cols), get_4bit_type(kind, device="cpu"), 64, kind, dtype)
            stored = state.as_dict(packed=True)
            parts = [codes, stored["absmax"], stored["quant_map"], stored[f"quant_state.bitsandbytes__{kind}"]]
            state.dtype = torch.float32
            weights = dequantize_4bit(codes, state)
            assert tuple(weights.shape) == (rows, cols) and weights.dtype == torch.float32
            raw = b"".join(p.contiguous().flatten().view(torch.uint8).numpy().tobytes() for p in [*parts, weights])
            (HERE / f"{name}{suffix}.{rows}x{cols}.bin").write_bytes(raw)


main()

"""Makes the golden files of EXL2 beside it, of random codes: stored bytes of every part, then the weights as little-endian f32.
A file is named CODEC.ROWSxCOLS.bin. The reader is that of tests/interop/exl2.py.

    python make_exl2.py
"""

import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "interop"))
from exl2 import decode, random_parts  # noqa: E402

RNG = np.random.default_rng(20261121)

for name, rows, cols, bands in [
    ("exl2-8b5g32+5b10+4b-g128", 37, 320, [(8, 32), (5, 128), (4, 128), (4, 32)]),
    ("exl2-6b5g32+3b20+2b-g64", 32, 288, [(6, 32), (3, 64), (2, 64), (2, 64), (2, 64)]),
    ("exl2-3b50+2b-g32", 5, 96, [(3, 32), (3, 32), (2, 32)]),
]:
    parts = random_parts(RNG, cols, rows, bands)
    raw = b"".join(part.tobytes() for part in parts)
    (HERE / f"{name}.{rows}x{cols}.bin").write_bytes(raw + decode(*parts, rows).astype("<f4").tobytes())

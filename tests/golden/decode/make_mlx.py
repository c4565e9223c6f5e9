"""Makes the golden files of MLX's formats beside it: stored bytes of every part, then the weights as little-endian f32. A file is
named CODEC.ROWSxCOLS.bin.

Made with: mlx 0.32.4 (`mx.dequantize` in single precision, on the CPU). Scales that are no numbers, or zero, are left out.

    python make_mlx.py
"""

import pathlib

import mlx.core as mx
import numpy as np

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(20261121)
DTYPES = {"": mx.bfloat16, "-f16": mx.float16, "-f32": mx.float32}
AFFINE = [(2, 32, ""), (3, 64, ""), (4, 128, ""), (4, 32, "-f16"), (5, 32, ""), (6, 64, ""), (6, 32, "-f32"), (8, 128, "")]


def write(name, rows, cols, parts, weights):
    assert weights.shape == (rows, cols) and weights.dtype == mx.float32
    raw = b"".join(bytes(memoryview(p.view(mx.uint8))) for p in parts)
    (HERE / f"{name}.{rows}x{cols}.bin").write_bytes(raw + np.array(weights).tobytes())


def words(rows, cols, bits):
    return mx.array(RNG.integers(0, 2**32, (rows, cols * bits // 32), dtype=np.uint32))


def main():
    mx.set_default_device(mx.cpu)
    rows, cols = 5, 256
    for bits, group, suffix in AFFINE:
        stored = [mx.array(RNG.normal(size=(rows, cols // group)) * x).astype(DTYPES[suffix]) for x in (0.01, 0.1)]
        codes = words(rows, cols, bits)
        wide = [x.astype(mx.float32) for x in stored]
        weights = mx.dequantize(codes, *wide, group_size=group, bits=bits)
        write(f"mlx-{bits}bit-g{group}{suffix}", rows, cols, [codes, *stored], weights)
    for mode, group, first, count in [("nvfp4", 16, 1, 126), ("mxfp4", 32, 0, 255)]:
        rows, cols = count, 2 * group
        codes, one = words(rows, cols, 4), np.arange(first, first + count, dtype=np.uint8)
        scales = mx.array(np.stack([one, one[::-1]], -1))
        weights = mx.dequantize(codes, scales, group_size=group, bits=4, mode=mode, dtype=mx.float32)
        write(f"mlx-{mode}", rows, cols, [codes, scales], weights + 0)  # zeros without a sign
    rows, cols = 255, 64
    one = np.arange(rows, dtype=np.uint8)
    eights = RNG.integers(0, 256, (rows, cols), dtype=np.uint8)
    eights[eights & 0x7f == 0x7f] = 0  # a number to mlx
    codes, scales = mx.array(eights).view(mx.uint32), mx.array(np.stack([one, one[::-1]], -1))
    write("mlx-mxfp8", rows, cols, [codes, scales], mx.dequantize(codes, scales, group_size=32, bits=8, mode="mxfp8", dtype=mx.float32))


main()

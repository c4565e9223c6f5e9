"""Makes the golden files of the integer formats beside it: stored bytes of every part, then the weights as little-endian f32.
A file is named CODEC.ROWSxCOLS.bin.

Made with: compressed-tensors 0.20.0 (`pack_to_int32`, `unpack_from_int32`) and gptqmodel 7.7.0 (`TorchLinear.dequantize_weight`,
`convert_gptq_v1_to_v2_format_module`, AWQ's `dequantize_gemm`) on torch 2.11.0; products in f32.

    python make_integers.py
"""

import pathlib

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(20261121)
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def write(name, rows, cols, parts, weights):
    assert tuple(weights.shape) == (rows, cols) and weights.dtype == torch.float32
    raw = b"".join(p.contiguous().flatten().view(torch.uint8).numpy().tobytes() for p in parts)
    (HERE / f"{name}.{rows}x{cols}.bin").write_bytes(raw + weights.contiguous().numpy().tobytes())


def words(*shape):
    return torch.from_numpy(RNG.integers(-(2**31), 2**31, shape, dtype=np.int64).astype(np.int32))


def scales(dtype, *shape):
    values = RNG.uniform(0.001, 0.1, shape) * RNG.choice([-1, 1], shape)
    return torch.from_numpy(values).to(DTYPES[dtype])


def groups_of(cols, group):
    return cols // group if group else 1


def suffix(group):
    return f"g{group}" if group else "channel"


def packed(bits, group, symmetric, dtype="bf16", rows=9, cols=64):
    codes = torch.from_numpy(RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols)).astype(np.int8))
    groups = groups_of(cols, group)
    s = scales(dtype, rows, groups)
    weight_packed, shape = pack_to_int32(codes, bits), torch.tensor([rows, cols])
    parts, zeros = [weight_packed, s], torch.zeros(rows, groups, dtype=torch.int8)
    if not symmetric:
        zeros = torch.from_numpy(RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, groups)).astype(np.int8))
        parts.append(pack_to_int32(zeros, bits, packed_dim=0))
        zeros = unpack_from_int32(parts[-1], bits, zeros.shape, packed_dim=0)
    codes = unpack_from_int32(weight_packed, bits, codes.shape).float()
    weights = (codes - zeros.float().repeat_interleave(cols // groups, 1)) * s.float().repeat_interleave(cols // groups, 1)
    name = f"pack-{bits}bit-{suffix(group)}-{'sym' if symmetric else 'asym'}{'' if dtype == 'bf16' else '-' + dtype}"
    write(name, rows, cols, [*parts, shape], weights)


def int8(group, symmetric, rows=5, cols=64):
    codes = torch.from_numpy(RNG.integers(-128, 128, (rows, cols)).astype(np.int8))
    groups = groups_of(cols, group)
    s, zeros = scales("bf16", rows, groups), torch.zeros(rows, groups, dtype=torch.int8)
    parts = [codes, s]
    if not symmetric:
        zeros = torch.from_numpy(RNG.integers(-128, 128, (rows, groups)).astype(np.int8))
        parts.append(zeros)
    wide = lambda x: x.float().repeat_interleave(cols // groups, 1)
    write(f"int-8bit-{suffix(group)}-{'sym' if symmetric else 'asym'}", rows, cols, parts, (codes.float() - wide(zeros)) * wide(s))


def stream(values, bits):
    """A row of codes as 32-bit words, least significant bit first."""
    flat = (values[..., None].astype(np.uint32) >> np.arange(bits, dtype=np.uint32) & 1).reshape(*values.shape[:-1], -1, 32)
    return torch.from_numpy((flat << np.arange(32, dtype=np.uint32)).sum(-1).astype(np.uint32).view(np.int32))


def gptq(version, bits, group, dtype="f16", permuted=False, rows=32, cols=64):
    groups = groups_of(cols, group)
    qweight = words(cols * bits // 32, rows)
    # Version 1 stores zeros less one; of a zero of 0 nothing sensible comes.
    zeros = RNG.integers(0, 2**bits - (version == 1), (groups, rows))
    qzeros, s = stream(zeros, bits), scales(dtype, groups, rows)
    order = RNG.permutation(cols) if permuted else np.arange(cols)
    g_idx = torch.from_numpy((order // (cols // groups)).astype(np.int32))
    linear = TorchLinear(bits=bits, group_size=group or -1, sym=False, desc_act=permuted, in_features=cols, out_features=rows,
                         bias=False, pack_dtype=torch.int32, register_buffers=True)
    linear.qweight, linear.qzeros, linear.scales, linear.g_idx = qweight.clone(), qzeros.clone(), s.float(), g_idx.clone()
    if version == 1:
        convert_gptq_v1_to_v2_format_module(linear, bits, torch.int32)
    linear.post_init()
    weights = linear.dequantize_weight().T.float()
    name = f"gptq{'-v2' if version == 2 else ''}-{bits}bit-{suffix(group)}{'' if dtype == 'f16' else '-' + dtype}"
    write(name, rows, cols, [qweight, qzeros, s, g_idx], weights)


def awq(group, dtype="f16", rows=16, cols=64):
    groups = groups_of(cols, group)
    qweight, qzeros, s = words(cols, rows // 8), words(groups, rows // 8), scales(dtype, groups, rows)
    weights = dequantize_gemm(qweight, qzeros, s.float(), 4, cols // groups).T.float()
    write(f"awq-4bit-{suffix(group)}{'' if dtype == 'f16' else '-' + dtype}", rows, cols, [qweight, qzeros, s], weights)


def main():
    for bits in range(2, 9):
        packed(bits, 32, True)
        packed(bits, 16, False)
    packed(4, None, False, "f32", rows=40, cols=33)
    packed(3, None, True, "f16", cols=33)
    int8(32, True)
    int8(None, False)
    for bits in (2, 3, 4, 8):
        gptq(1, bits, 32)
        gptq(2, bits, 16)
    gptq(1, 4, None, "bf16")
    gptq(2, 4, 32, permuted=True)
    gptq(2, 3, 16, "f32", permuted=True)
    awq(32)
    awq(None, "bf16")


main()

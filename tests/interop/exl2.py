#!/usr/bin/env python3
"""EXL2 without exllamav2, which runs on CUDA only: a reader and a writer in numpy, from the description of the format.

    exl2.py [--only written,read]

written: folders that quant makes at several averages of bits, plainly and with statistics: every weight as this file reads it
         against quant's decoded copy, bit for bit; widths fall, columns are sorted by activity, names and sizes are exllamav2's,
         and the bits that were asked for are what the packed weights take.
read:    a folder of random codes in bands that quant does not write, padded outputs among them: the same, bit for bit.
"""
import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

import engine
import synthetic
from common import ROOT, QuantError, Report, convert, decoded, main, quant

DTYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I16": "<i2"}
AVERAGES = ("2.5", "3", "4.25", "6", "8")


def read_safetensors(folder):
    """Name to array, of all files of a folder; BF16 as its bits."""
    out = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        raw = np.memmap(path, np.uint8, "r")
        start = 8 + int(raw[:8].view("<u8")[0])
        for name, entry in json.loads(raw[8:start].tobytes()).items():
            if name != "__metadata__":
                a, b = entry["data_offsets"]
                out[name] = raw[start + a:start + b].view(DTYPES.get(entry["dtype"], "<u2")).reshape(entry["shape"])
    return out


def groups(q_groups, words):
    """(bits, first row of words, end) of each group."""
    pairs = q_groups.reshape(-1, 2).astype(int)
    ends = [*pairs[1:, 1], words]
    return [(bits, first, end) for (bits, first), end in zip(pairs, ends)]


def decode(q_weight, q_scale, q_scale_max, q_groups, q_invperm, outputs):
    """[outputs, inputs] f32. Each group: codes run down a column of words, least significant bit first; an output's scale is the
    square of a 16th of its 4 bits and one, times the group's largest."""
    words, padded = q_weight.shape
    bands = []
    for g, (bits, first, end) in enumerate(groups(q_groups, words)):
        column = q_weight[first:end].view("<u4")
        stream = (column[:, None, :] >> np.arange(32, dtype=np.uint32)[:, None]) & 1  # [words, 32, padded]
        stream = stream.reshape((end - first) * 32 // bits, bits, padded)
        codes = (stream << np.arange(bits, dtype=np.uint32)[:, None]).sum(axis=1).astype(np.int32)
        nibbles = (q_scale[g].view("<u4")[:, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
        root = nibbles.reshape(-1).astype(np.float32) + 1
        scale = root * root * (np.float32(q_scale_max[g]) / np.float32(256))
        bands.append((codes - (1 << bits - 1)).astype(np.float32) * scale)
    sorted_rows = np.concatenate(bands)
    return np.ascontiguousarray(sorted_rows[q_invperm][:, :outputs].T)


def pack(codes, bits):
    """Codes [n, outputs] to words [n * bits / 32, outputs]."""
    n, outputs = codes.shape
    stream = (codes[:, None, :].astype(np.uint32) >> np.arange(bits, dtype=np.uint32)[:, None]) & 1
    stream = stream.reshape(n * bits // 32, 32, outputs)
    return (stream << np.arange(32, dtype=np.uint32)[:, None]).sum(axis=1, dtype=np.uint32).view("<i4")


def random_parts(rng, inputs, outputs, bands):
    """The parts of a weight with these (bits, columns) groups, in the order of `decode`'s arguments."""
    padded = -outputs % 32 + outputs
    weight, pairs, row = [], [], 0
    for bits, columns in bands:
        weight.append(pack(rng.integers(0, 1 << bits, (columns, padded)), bits))
        pairs.append((bits, row))
        row += len(weight[-1])
    scale = rng.integers(-(2**31), 2**31, (len(bands), padded // 8)).astype("<i4")
    largest = rng.uniform(0.01, 0.1, len(bands)).astype("<f2")
    return np.concatenate(weight), scale, largest, np.array(pairs, "<i2").reshape(-1), rng.permutation(inputs).astype("<i4")


PARTS = ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")


def compare(folder, copy):
    """(weights that are packed, values that differ from quant's decoded copy, bits a packed weight)."""
    stored, plain = read_safetensors(folder), read_safetensors(copy)
    modules = [name[: -len(".q_weight")] for name in stored if name.endswith(".q_weight")]
    differing, bits, weights = 0, 0, 0
    for module in modules:
        parts = [stored.pop(f"{module}.{part}") for part in PARTS]
        ours = plain[f"{module}.weight"]
        theirs = decode(*parts, ours.shape[0])
        differing += (ours.view("<u4") != theirs.view("<u4")).sum()
        bits += sum(part.nbytes for part in parts) * 8
        weights += ours.size
        widths = [b for b, _, _ in groups(parts[3], len(parts[0]))]
        if widths != sorted(widths, reverse=True):
            raise QuantError(f"{module}: widths {widths}")
        if sorted(parts[4]) != list(range(len(parts[4]))):
            raise QuantError(f"{module}: q_invperm is no permutation")
    left = [name for name in stored if name.rsplit(".", 1)[-1] in PARTS]
    if left or not modules:
        raise QuantError(f"parts without weights: {left}" if left else "nothing is packed")
    return modules, differing, bits / weights


def sources(work):
    yield "probe", ROOT / "evals" / "probe" / "model"
    for family in ("qwen2", "qwen3moe"):
        yield family, synthetic.case(work / family, family)


def statistics(source, work):
    text = [option for path in engine.BUNDLED for option in ("--data", path)]
    quant("calibrate", source, "--gram", "--rows", 8, "--length", 64, "-o", work / "stats", "--quiet", *text)
    return "--stats", work / "stats"


def check_written(_):
    report = Report("EXL2 written", "model", "target", "method", "bits asked", "bits", "differing", "error")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for name, source in sources(work):
            for average in AVERAGES:
                for method, options in (("plain", ()), ("statistics", statistics(source, work))):
                    cells = (name, f"exl2-{average}bpw", method, average)
                    try:
                        folder = convert(source, f"exl2-{average}bpw", work / "artifact", *options)
                        modules, differing, bits = compare(folder, decoded(folder, work))
                        config = json.loads((folder / "config.json").read_text())["quantization_config"]
                        told = config["quant_method"] == "exl2" and abs(config["bits"] - bits) < 0.006
                        files = sorted(p.name for p in folder.glob("*.safetensors*")) == ["output.safetensors"]
                        order = read_safetensors(folder)[f"{modules[0]}.q_invperm"]
                        sorted_ = (order != np.arange(len(order))).any() == (method == "statistics")
                        good = differing == 0 and bits <= float(average) and told and files and sorted_
                        wrong = [] if good else [f"told {told}, files {files}, columns sorted {sorted_}"]
                        report.row("ok" if good else "FAIL", *cells, f"{bits:.3f}", differing, *(wrong or [""]))
                    except QuantError as error:
                        report.row("FAIL", *cells, "-", "-", error)
    return report.finish()


# Mixes that quant does not write: short groups, groups of unlike length, and all widths.
BANDS = {
    "all widths": lambda n: [(8, 32), (6, 32), (5, 32), (4, 32), (3, 64), (2, n - 192)],
    "short groups": lambda n: [(3, 32)] + [(2, 16)] * ((n - 32) // 16),
    "one group": lambda n: [(5, n)],
}


def check_read(_):
    report = Report("EXL2 read", "bands", "declared", "differing", "error")
    rng = np.random.default_rng(20261121)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for title, bands in BANDS.items():
            for declared in (True, False):
                source = synthetic.case(work / f"{title} {declared}", "llama", "f32")
                config = json.loads((source / "config.json").read_text())
                if declared:
                    config["quantization_config"] = {"quant_method": "exl2", "bits": 4.0}
                (source / "config.json").write_text(json.dumps(config))
                tensors = {}
                for name, value in read_safetensors(source).items():
                    module = name.removesuffix(".weight")
                    if value.ndim == 2 and "embed" not in name:
                        parts = random_parts(rng, value.shape[1], value.shape[0], bands(value.shape[1]))
                        tensors |= {f"{module}.{part}": p for part, p in zip(PARTS, parts)}
                    else:
                        tensors[name] = value.astype("<f2")
                for old in source.glob("*.safetensors*"):
                    old.unlink()
                write(source / "output.safetensors", tensors)
                try:
                    _, differing, _ = compare(source, decoded(source, work))
                    report.row("FAIL" if differing else "ok", title, declared, differing, "")
                except QuantError as error:
                    report.row("FAIL", title, declared, "-", error)
    return report.finish()


def write(path, tensors):
    names = {np.dtype(v): k for k, v in DTYPES.items()}
    header, offset = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": names[value.dtype], "shape": value.shape, "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(v).tobytes() for v in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


CHECKS = {"written": check_written, "read": check_read}


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default=",".join(CHECKS))
    a = p.parse_args()
    results = [CHECKS[name](a) for name in a.only.split(",")]
    return 1 if 1 in results else max(results) if all(results) else 0


if __name__ == "__main__":
    main(run)

"""Importance matrices: made at random, written in both file formats, read as llama-quantize reads them."""
import struct
from dataclasses import dataclass, field

import gguf
import numpy as np

CHUNKS, CHUNK_SIZE, DATASET = 3, 512, "random.txt"


@dataclass
class Imatrix:
    values: dict = field(default_factory=dict)  # weight name -> mean squared input, experts one after the other
    datasets: list = field(default_factory=list)
    chunks: int = 0


def weights(model):
    """(name, columns, experts) of the weights of a GGUF that an importance matrix describes."""
    for t in gguf.GGUFReader(model).tensors:
        shape = [int(n) for n in t.shape]
        if t.name.startswith("blk.") and t.name.endswith(".weight") and len(shape) > 1 and "norm" not in t.name:
            yield t.name, shape[0], shape[2] if len(shape) > 2 else 1


def random_sums(model, seed=0, missing=()):
    """{name: (sums [experts, columns], counts [experts])} in float32; the last of several experts saw no token."""
    rng, out = np.random.default_rng(seed), {}
    for name, columns, experts in weights(model):
        if any(part in name for part in missing):
            continue
        counts = rng.integers(100, 2000, experts).astype(np.float32)
        if experts > 1:
            counts[-1] = 0
        mean = np.exp(rng.normal(0, 1.5, (experts, columns)))
        mean[:, rng.integers(0, columns, 3)] *= 100  # the few loud channels of real models
        mean[:, rng.integers(0, columns, 2)] = 0
        out[name] = ((mean * counts[:, None]).astype(np.float32), counts)
    return out


def write_gguf(path, sums):
    w = gguf.GGUFWriter(path, arch="")
    w.kv_data[0].clear()  # an importance matrix names no architecture
    w.add_type("imatrix")
    w.add_array("imatrix.datasets", [DATASET])
    w.add_uint32("imatrix.chunk_count", CHUNKS)
    w.add_uint32("imatrix.chunk_size", CHUNK_SIZE)
    for name, (total, counts) in sorted(sums.items()):
        w.add_tensor(f"{name}.in_sum2", total)
        w.add_tensor(f"{name}.counts", counts.reshape(-1, 1))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_dat(path, sums):
    """The format before GGUF: means times the number of calls, no counts per expert."""
    with open(path, "wb") as f:
        f.write(struct.pack("<i", len(sums)))
        for name, (total, counts) in sums.items():
            calls = int(np.ceil(counts.max() / CHUNK_SIZE))
            seen = counts[:, None] > 0
            mean = np.where(seen, total / np.where(seen, counts[:, None], 1), 1)
            values = (mean * calls).astype("<f4").ravel()
            f.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size))
            f.write(values.tobytes())
        f.write(struct.pack("<ii", CHUNKS, len(DATASET)) + DATASET.encode())


def load(path):
    with open(path, "rb") as f:
        return _load_gguf(path) if f.read(4) == b"GGUF" else _load_dat(path)


def _load_gguf(path):
    reader = gguf.GGUFReader(path)
    tensors = {t.name: np.array(t.data, dtype=np.float32) for t in reader.tensors}
    out = Imatrix(datasets=reader.fields["imatrix.datasets"].contents(),
                  chunks=int(reader.fields["imatrix.chunk_count"].contents()))
    for name in sorted(n.removesuffix(".in_sum2") for n in tensors if n.endswith(".in_sum2")):
        counts = np.rint(tensors[f"{name}.counts"]).astype(np.float32).reshape(-1, 1)
        sums = tensors[f"{name}.in_sum2"].reshape(len(counts), -1)
        mean = np.where(counts > 0, sums / np.where(counts > 0, counts, 1), 1)
        out.values[name] = np.ascontiguousarray(mean, dtype=np.float32).ravel()
    return out


def _load_dat(path):
    with open(path, "rb") as f:
        data = f.read()
    at, out = 4, Imatrix()
    for _ in range(struct.unpack_from("<i", data)[0]):
        (length,) = struct.unpack_from("<i", data, at)
        name = data[at + 4:at + 4 + length].decode()
        calls, count = struct.unpack_from("<ii", data, at + 4 + length)
        at += 12 + length
        values = np.frombuffer(data, "<f4", count, at).astype(np.float32)
        out.values[name] = values / np.float32(calls) if calls > 0 else values
        at += 4 * count
    if at < len(data):
        out.chunks, length = struct.unpack_from("<ii", data, at)
        out.datasets = [data[at + 8:at + 8 + length].decode()]
    return out

#!/usr/bin/env python3
"""Compares two GGUF files with the `gguf` package: tensors (names, order, types, shapes, bytes) and metadata.

    python ggufdiff.py A.gguf B.gguf [--ignore KEY]...
"""
import argparse
import filecmp
from dataclasses import dataclass, field

import gguf
import numpy as np

from common import FAILED, OK, main


@dataclass
class Difference:
    tensors: int = 0
    equal: int = 0  # tensors alike in type, shape and bytes
    identical: bool = False  # the whole files
    notes: list = field(default_factory=list)  # what differs, a line each
    types: dict = field(default_factory=dict)  # tensors by type in the first file

    @property
    def same(self):
        return not self.notes


def _metadata(reader):
    """{key: raw bytes of the value with its type}, in file order, without the reader's own header fields."""
    keep = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    return {k: (tuple(f.types), b"".join(p.tobytes() for p in f.parts[2:])) for k, f in keep.items()}


def _show(reader, key):
    value = str(reader.fields[key].contents()) if key in reader.fields else "absent"
    return value if len(value) <= 60 else value[:57] + "..."


def _raw(tensor):
    return np.ascontiguousarray(tensor.data).view(np.uint8).ravel()


def compare(first, second, ignore=()):
    """What differs between two files; keys in `ignore` may."""
    out = Difference(identical=filecmp.cmp(first, second, shallow=False))
    a, b = gguf.GGUFReader(first), gguf.GGUFReader(second)
    theirs = {t.name: t for t in b.tensors}
    for t in a.tensors:
        out.tensors += 1
        out.types[t.tensor_type.name] = out.types.get(t.tensor_type.name, 0) + 1
        other = theirs.pop(t.name, None)
        if other is None:
            out.notes.append(f"{t.name}: only in the first")
        elif (t.tensor_type, list(t.shape)) != (other.tensor_type, list(other.shape)):
            out.notes.append(f"{t.name}: {t.tensor_type.name} {list(map(int, t.shape))} against "
                             f"{other.tensor_type.name} {list(map(int, other.shape))}")
        elif not out.identical and not np.array_equal(_raw(t), _raw(other)):
            wrong = np.flatnonzero(_raw(t) != _raw(other))
            out.notes.append(f"{t.name}: {t.tensor_type.name}, {wrong.size} of {_raw(t).size} bytes differ, first at {wrong[0]}")
        else:
            out.equal += 1
    out.notes += [f"{name}: only in the second" for name in theirs]
    names = [t.name for t in a.tensors], [t.name for t in b.tensors]
    if sorted(names[0]) == sorted(names[1]) and names[0] != names[1]:
        out.notes.append("the tensors stand in another order")
    if not out.identical:
        left, right = _metadata(a), _metadata(b)
        for key in dict.fromkeys([*left, *right]):
            if key not in ignore and left.get(key) != right.get(key):
                out.notes.append(f"{key}: {_show(a, key)} against {_show(b, key)}")
        if not out.notes and [*left] != [*right] and set(left) == set(right):
            out.notes.append("the metadata keys stand in another order")
        if not out.notes and not ignore:
            out.notes.append("tensors and metadata are alike, the bytes of the files are not (layout or padding)")
    return out


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("first")
    p.add_argument("second")
    p.add_argument("--ignore", action="append", default=[], metavar="KEY", help="metadata that may differ")
    a = p.parse_args()
    found = compare(a.first, a.second, a.ignore)
    for note in found.notes:
        print(note)
    print(f"{found.equal} of {found.tensors} tensors equal; files {'identical' if found.identical else 'not identical'}; "
          f"{', '.join(f'{n} x {k}' for k, n in sorted(found.types.items()))}")
    return OK if found.same else FAILED


if __name__ == "__main__":
    main(run)

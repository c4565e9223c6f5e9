#!/usr/bin/env python3
"""Does `quant convert` write what llama.cpp writes? Every preset on small models of every kind, without and with an
importance matrix; the whole file must be the same, byte for byte. No metadata key may differ: paths and dates are not
stored, and both record the importance matrix as it was named on the command line.

    byte_identity.py [PRESET...] [--cases gqa,moe] [--keep DIR]      default: all presets, all cases

Where both refuse, that is agreement; where one refuses alone, it fails. Presets that quant does not write yet
("cannot be written yet") and file types that llama.cpp has no number for are counted, not judged.
"""
import argparse
import filecmp
import itertools
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import ggufdiff
import imatrix
import peer
import synthetic
from common import QuantError, Report, convert, main, presets

NOT_YET = "cannot be written yet"
# case -> (family, sizes, config, type of the source GGUF)
CASES = {
    "gqa": ("llama", {}, {}, "f16"),
    "mha": ("llama", {"kv_heads": 8}, {}, "f16"),
    "deep": ("llama", {"layers": 12, "inter": 256}, {}, "f16"),  # layers at the ends get more bits
    "biases-tied": ("qwen2", {}, {}, "f16"),
    "moe-4": ("mixtral", {"inter": 256}, {}, "f16"),
    "moe-8": ("mixtral", {"inter": 256}, {"num_local_experts": 8}, "f16"),  # llama.cpp has rules for 8 experts
    "rows-288": ("llama", synthetic.ODD, {}, "f16"),  # blocks of 32 divide the rows, blocks of 256 do not
    "rows-240": ("llama", {"hidden": 240, "inter": 336, "head_dim": 30}, {}, "f16"),  # no block does
    "from-bf16": ("llama", {}, {}, "bf16"),
    "from-f32": ("llama", {}, {}, "f32"),
    "from-q8_0": ("llama", {}, {}, "q8_0"),
}


def short(sums):
    """The same with one entry that is too short for its weight."""
    name = next(iter(sums))
    total, counts = sums[name]
    return {**sums, name: (total[:, :-32], counts)}


MISSING = "blk.0.attn_v", "blk.1.ffn_down"
# The last expert of each weight saw no token in all of them (imatrix.random_sums).
MATRICES = {
    "none": None,
    "gguf": lambda model, path: imatrix.write_gguf(path, imatrix.random_sums(model)),
    "dat": lambda model, path: imatrix.write_dat(path, imatrix.random_sums(model)),
    "missing entry": lambda model, path: imatrix.write_gguf(path, imatrix.random_sums(model, missing=MISSING)),
    "short entry": lambda model, path: imatrix.write_gguf(path, short(imatrix.random_sums(model))),
}


def matrix(kind, model):
    """Path of an importance matrix for the model, or None."""
    if MATRICES[kind] is None:
        return None
    path = model.with_name(f"{model.stem}-{kind.replace(' ', '-')}.{'dat' if kind == 'dat' else 'gguf'}")
    MATRICES[kind](model, path)
    return path


def attempt(make, *arguments):
    """(path, None) or (None, what was said)."""
    try:
        return make(*arguments), None
    except (QuantError, peer.PeerError) as error:
        return None, str(error)


def difference(ours, theirs):
    """None if the files are the same, else what differs first."""
    if filecmp.cmp(ours, theirs, shallow=False):
        return None
    try:
        notes = ggufdiff.compare(ours, theirs).notes
    except ValueError as error:  # a type newer than the gguf package
        notes = [f"the files differ, and cannot be compared by tensor: {error}"]
    return "; ".join(notes[:2]) + (f" and {len(notes) - 2} more" if len(notes) > 2 else "")


def judge(model, preset, values, work):
    """(outcome, what differs): "identical", "both refuse", "not written yet", "no such file type" or "differs"."""
    if preset != peer.COPY and peer.ftype(preset) is None:
        return "no such file type", None
    options = ("--allow-requantize", *(("--imatrix", values) if values else ()))
    ours, our_error = attempt(convert, model, preset, work / "ours.gguf", *options)
    if our_error and NOT_YET in our_error:
        return "not written yet", None
    theirs, their_error = attempt(peer.quantize, model, work / "theirs.gguf", preset, values)
    if ours and theirs:
        note = difference(ours, theirs)
        return ("differs", note) if note else ("identical", None)
    if ours or theirs:
        return "differs", f"quant {our_error or 'writes it'}; llama.cpp {their_error or 'writes it'}"
    return "both refuse", None


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("presets", nargs="*", metavar="PRESET")
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--keep", metavar="DIR", type=Path, help="leave the models and matrices there")
    a = p.parse_args()
    names = a.presets or presets()
    if unknown := set(a.cases.split(",")) - set(CASES):
        p.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    outcomes = ["identical", "both refuse", "not written yet", "no such file type"]
    report = Report("byte identity", "model", "imatrix", *outcomes, "differences")
    total = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        work = a.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for case, kind in itertools.product(a.cases.split(","), MATRICES):
            model = work / f"{case}.gguf"
            if kind == "none":
                family, size, changes, source = CASES[case]
                convert(synthetic.make(work / case, family, size, changes, dtype="f32"), source, model)
            values = matrix(kind, model)
            found, differ = Counter(), defaultdict(list)
            for preset in names:
                outcome, note = judge(model, preset, values, work)
                found[outcome] += 1
                if note:
                    differ[note].append(preset)
            notes = " // ".join(f"{', '.join(names)}: {note}" for note, names in differ.items())
            report.row("FAIL" if notes else "ok", case, kind, *(found[o] for o in outcomes), notes)
            total += found
    print("\nconversions: " + ", ".join(f"{n} {outcome}" for outcome, n in total.items()))
    return report.finish()


if __name__ == "__main__":
    main(run)

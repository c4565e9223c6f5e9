"""The format of tests/golden/recipes: a model's facts and tensors, and the type of every tensor under each preset.

    # where the types come from
    facts arch=llama layers=2 heads=8 kv_heads=2 experts=0
    tensor f16 8x256 output.weight blk.{0,1}.attn_q.weight      source type, shape outermost first, names
    run q4_k_m importance --set pure=true                       preset and options; several such lines share what follows:
      else q4_k                                                 the type of all tensors not listed below
      q6_k output.weight blk.{0}.attn_v.weight
      fallbacks 1                                               tensors whose shape ruled their type out (if known)
      size 1.25                                                 MiB of all tensors (if known)
      wants importance                                          some tensor needs an importance matrix (if known)
      error                                                     instead of all that: the run is impossible
"""

import re
from collections import Counter, defaultdict


def ranges(numbers):
    numbers, out = sorted(numbers), []
    for n in numbers:
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in out)


def compact(names):
    """blk.0.x blk.1.x -> blk.{0-1}.x"""
    plain, layers = [], defaultdict(list)
    for name in names:
        m = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        if m:
            layers[m[2]].append(int(m[1]))
        else:
            plain.append(name)
    return " ".join(plain + [f"blk.{{{ranges(n)}}}.{stem}" for stem, n in layers.items()])


class Golden:
    def __init__(self, about, facts, tensors):
        """tensors: {name: (type, shape outermost first)}"""
        self.tensors = tensors
        self.runs = {}
        self.lines = [f"# {line}" for line in about]
        self.lines.append("facts " + " ".join(f"{k}={v}" for k, v in facts.items()))
        groups = defaultdict(list)
        for name, (kind, shape) in tensors.items():
            groups[kind, "x".join(map(str, shape))].append(name)
        self.lines += [f"tensor {kind} {shape} {compact(names)}" for (kind, shape), names in groups.items()]

    def run(self, title, types, fallbacks=None, size=None, wants=None):
        """types: {name: type}, or None for an error"""
        self.runs.setdefault(tuple(self.outcome(types, fallbacks, size, wants)), []).append(title)

    def outcome(self, types, fallbacks, size, wants):
        if types is None:
            return ["  error"]
        assert types.keys() == self.tensors.keys(), types.keys() ^ self.tensors.keys()
        default = Counter(types.values()).most_common(1)[0][0]
        groups = defaultdict(list)
        for name, kind in types.items():
            if kind != default:
                groups[kind].append(name)
        lines = [f"  else {default}"] + [f"  {kind} {compact(names)}" for kind, names in groups.items()]
        if fallbacks is not None:
            lines.append(f"  fallbacks {fallbacks}")
        if size is not None:
            lines.append(f"  size {size}")
        if wants:
            lines.append("  wants importance")
        return lines

    def write(self, path):
        lines = list(self.lines)
        for outcome, titles in self.runs.items():
            lines += [f"run {title}" for title in titles] + list(outcome)
        path.write_text("\n".join(lines) + "\n")

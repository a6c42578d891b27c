"""Loads many broken checkpoints under a limit of memory: `python fuzz_checkpoints.py FOLDER FROM TO`.

Prints, as one JSON object, how many files of each kind were refused and how many loaded exactly; anything else (another
exception, other numbers, a crash) ends the process with an error.
"""

import builtins
import importlib
import json
import math
import os
import random
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

import linnet
from support.signing import parts, signed, signed_text, text_of

LIMIT = 2 << 30
CLEAR = (
    "is not a valid linnet checkpoint: ",
    "does not fit the checkpoint",
    "could not be loaded: ",
    "does not describe its",
)
"""One of these stands in every refusal."""
NETS = {
    "mlp": lambda: linnet.MLP(6, 8, 3, depth=3, layer="orthogonal"),
    "sparse": lambda: nn.Sequential(linnet.SparseLinear(16, 12, sparsity=0.8, dynamic=True), linnet.KWinners(12)),
    "wide": lambda: nn.Sequential(linnet.Spread(), linnet.MLP(4, 5, 3, beings=6)),
    "blocks": lambda: nn.Sequential(
        linnet.Residual(linnet.Repeat(linnet.SymmetricLinear(5, 5), 2)), linnet.FixedRandom(5, 5), nn.BatchNorm1d(5)
    ),
}
STRANGE = (
    *(None, True, -1, 0, 1, 10**9, 10**18, 10**40, 0.5, -1e308, "", "x" * 1000, "os.system", "__import__('os')"),
    *([], [[]], {}, {"$tensor": "nothing"}, {"$float": "nan"}, {"$float": "-inf"}, {"$tuple": [1]}, {"$dict": []}),
    *(
        {"$code": "print(1)"},
        {"layer": "Linear"},
        {"same": ""},
        {"block": "Sequential", "attributes": {}, "modules": {}},
    ),
    *({"module": "Exec", "arguments": {}}, {"record": "RigL", "fields": {}}, "PSDLinear", "given", "bfloat16"),
)


def refuse(*args, **kwargs):
    os._exit(66)  # something tried to execute what it had read


def saved(folder, name, seed):
    torch.manual_seed(seed)
    net = NETS[name]()
    optimizer = torch.optim.Adam(net.parameters())
    path = folder / f"{name}.safetensors"
    linnet.save(net, path, optimizer=optimizer, step=seed, extra={"note": [1.5, (2, "three")]})
    return path.read_bytes()


def places(tree, path=()):
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


def flipped(data, rng):
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8))):
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def truncated(data, rng):
    return data[: rng.randrange(len(data))] + rng.randbytes(rng.choice((0, 0, 5, 2000)))


def swapped(data, rng):
    """Tensors under each other's names, of another shape or dtype, missing, or of numbers that are none."""
    description, tensors = parts(data)
    a, b = rng.sample(sorted(tensors), 2)
    kind = rng.randrange(5)
    if kind == 0:
        tensors[a], tensors[b] = tensors[b], tensors[a]
    elif kind == 1:
        tensors[a] = tensors[a].flatten()[:-1].clone()
    elif kind == 2:
        tensors[a] = tensors[a].to(rng.choice((torch.float64, torch.int32, torch.uint8, torch.bool)))
    elif kind == 3:
        del tensors[a]
    elif tensors[a].is_floating_point():
        tensors[a] = torch.full_like(tensors[a], rng.choice((math.nan, math.inf, 1e38)))
    else:
        tensors[a] = torch.randint_like(tensors[a].long(), -3, 1 << 30).to(tensors[a].dtype)
    return signed(description, tensors)


def lied(data, rng):
    """One to three values of the description, replaced."""
    description, tensors = parts(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        wanted = rng.choice(("architecture", "architecture", "", "optimizer", "rng", "model", "extra"))
        found = [path for path in places(description) if path and (not wanted or path[0] == wanted)]
        if not found:
            continue
        *outer, last = rng.choice(found)
        inner = description
        for key in outer:
            inner = inner[key]
        action = rng.randrange(3)
        if action == 0 and isinstance(inner, dict):
            del inner[last]
        elif action == 1 and isinstance(inner, dict):
            inner[rng.choice(("layer", "module", "block", "each", "same", "$tensor", "beings"))] = inner[last]
        else:
            inner[last] = rng.choice(STRANGE)
    return signed(description, tensors)


def nested(data, rng):
    description, tensors = parts(data)
    key, depth = (
        rng.choice(("architecture", "extra", "model", "optimizer")),
        rng.choice((50, 400, 900, 20_000, 200_000)),
    )
    text = text_of(description | {key: "NEST"})
    opening, closing = rng.choice(
        (("[", "]"), ('{"a":', "}"), ('{"block":"Sequential","attributes":{},"modules":{"0":', "}}"))
    )
    text = text.replace('"NEST"', opening * depth + rng.choice(("1", "null", "NaN", "1e999")) + closing * depth)
    return signed_text(text, tensors)


KINDS = (flipped, truncated, swapped, swapped, lied, lied, lied, nested)


def main(folder, start, stop):
    whole = {name: saved(folder, name, 7) for name in NETS}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, -1))
    builtins.exec = builtins.eval = builtins.compile = refuse
    os.system = subprocess.Popen = importlib.import_module = refuse
    told, path = Counter(), folder / "broken.safetensors"
    for seed in range(start, stop):
        rng = random.Random(seed)
        name, kind = rng.choice(sorted(NETS)), rng.choice(KINDS)
        path.write_bytes(kind(whole[name], rng))
        for own in (True, False):
            torch.manual_seed(seed)
            net = NETS[name]() if own else None
            before = {key: value.clone() for key, value in net.state_dict().items()} if own else {}
            optimizer = torch.optim.Adam(net.parameters()) if own and rng.random() < 0.5 else None
            stored = None
            try:
                found = linnet.load(path, into=net, optimizer=optimizer)
                stored = parts(path.read_bytes())
            except ValueError as error:
                if "\n" in str(error) or not any(words in str(error) for words in CLEAR) or len(str(error)) > 5000:
                    raise SystemExit(f"{seed} {kind.__name__}: an unclear refusal: {str(error)[:2000]}") from error
                if own and any(not same(value, before[key]) for key, value in net.state_dict().items()):
                    raise SystemExit(f"{seed} {kind.__name__}: refused, but the model changed") from error
                told[f"{kind.__name__}, refused"] += 1
                continue
            description, tensors = stored
            wanted = {key: tensors[value["$tensor"]] for key, value in description["model"].items()}
            got = found.network.state_dict()
            if got.keys() != wanted.keys() or any(not same(got[key], wanted[key]) for key in got):
                raise SystemExit(f"{seed} {kind.__name__}: what was loaded is not what the file holds")
            told[f"{kind.__name__}, loaded"] += 1
    print(json.dumps(told))


def same(a, b):
    return a.shape == b.shape and np.array_equal(a.float().numpy(), b.float().numpy(), equal_nan=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

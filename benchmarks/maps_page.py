"""The page that maps.py writes: its targets, its tables, and why a target is missed."""

from collections.abc import Iterable, Sequence

from interleaved import SLOW, Case, number, shown, table
from peers import Row, versions

__all__ = [
    "BATCH",
    "FROZEN",
    "RECURRENT",
    "REFLECTORS",
    "RNN_BATCH",
    "RNN_SIZE",
    "RNN_STEPS",
    "TARGETS",
    "WHY",
    "page",
    "targets",
    "verdict",
]

BATCH = 128
RNN_STEPS, RNN_SIZE, RNN_BATCH = 50, 128, 64

REFLECTORS = "OrthogonalLinear, n/4 reflectors"
TARGETS: dict[str, dict[int, float]] = {
    "OrthogonalLinear": {64: 5, 256: 4.5, 1024: 6},
    REFLECTORS: {64: 2.6, 256: 1.3, 1024: 1.4},
    "SVDLinear": {64: 10, 256: 9, 1024: 12},
    "SymplecticLinear": {64: 4, 256: 2, 1024: 1.6},
    "ButterflyLinear": {64: 8, 256: 3, 1024: 0.6},
    "MonarchLinear": {64: 2.5, 256: 0.7, 1024: 0.2},
    "CirculantLinear": {64: 1.5, 256: 0.4, 1024: 0.08},
}
"""Forward and backward, by the size of the layer."""
RNN_TARGET, FROZEN_TARGET = 1.15, 1.05
FROZEN = ("OrthogonalLinear", "SVDLinear", "SymplecticLinear", "PowerBoundLinear")
RECURRENT = (
    "Linear",
    "OrthogonalLinear",
    "SVDLinear",
    "SymplecticLinear",
    "PowerBoundLinear",
    "SchurStableLinear",
    "torch.nn.RNN",
)

CALLS = "At n = 64 a step takes as long as its calls into torch, each of 5 to 30 µs here; a step of nn.Linear is three"
WHY: dict[str, str] = {
    "OrthogonalLinear": (
        f"{CALLS}; the reflections need some thirty. At n = 256 the products run at 60 to 130 GFLOP/s, but with 2.7 "
        "times the operations of nn.Linear, and solving, normalizing and copying transposed blocks take the rest."
    ),
    REFLECTORS: (
        f"{CALLS}; with a quarter of the reflections the calls are the same thirty. So it is, less so, at n = 256: "
        "there the products would take 0.8 of nn.Linear's time."
    ),
    "SVDLinear": f"{CALLS}; it is two products of reflections, about sixty calls. At n = 256 it is what "
    "each of them takes, twice.",
    "SymplecticLinear": (
        "The fifteen products of half the size are 1.25 times the operations of nn.Linear and take 1.5 times as long. "
        "The rest at n = 1024 is (P + Pᵀ)/2 and its backward: adding a transposed matrix moves five million bytes "
        "against the order of memory, 4 ms each way. Packed triangles were slower still (a gather, a scatter), and "
        "products with both triangles would double the operations. At n = 64 and 256 it is calls, about forty."
    ),
    "ButterflyLinear": (
        "The factors multiply out into two block-diagonal matrices in some sixty small calls, forward and backward, "
        "whatever the batch: nearly all of the time at n = 64, half of it at n = 256."
    ),
    "MonarchLinear": (
        "Between the two batched products the axes change places, four transposed copies of the batch in a step; at "
        "n = 1024 they take 1.0 of the 2.4 ms. One kernel for both products would be needed to save them. At n = 64, "
        "and for the most part at n = 256, it is calls."
    ),
    "CirculantLinear": (
        "Four real transforms of the batch, two elementwise complex products and a sum are all that is done. At n = "
        "1024 the transforms alone take 0.65 ms, 0.07 of nn.Linear's time, the products and the sum as much again; at "
        "n = 256 they are 0.24 of the 0.49 ms. The rest, and all of n = 64, is calls, about twelve."
    ),
    "frozen forward": (
        "W at hand is checked at every call (3 to 5 µs), which shows where the product takes 30 µs. Up to n = 512 W is "
        "stored column by column, which MKL multiplies faster; that pays for the check. At n = 1024 the check does not "
        "show: what differs from 1 is noise."
    ),
    "RNN over SVDLinear": (
        "W = V S Uᵀ and its backward take 4 ms once in a sequence: two products of 128 reflections each, with a "
        "correction against rounding, and their product."
    ),
    "RNN over PowerBoundLinear": (
        "Two products of reflections, a QR decomposition and their backward, once in a sequence, take 5 ms."
    ),
    "RNN over SchurStableLinear": (
        "Two products of reflections, a QR decomposition and their backward, once in a sequence, take 5 ms."
    ),
}
"""Why a target is missed, written by hand after a measurement. Keys: the name of a layer of TARGETS, "frozen forward",
"baked", or "RNN over" and the name of the hidden map."""

HEAD = """# Structured maps: speed

{machine}

Written by `python benchmarks/maps.py`; [README.md](README.md) says how to run it. All figures but those in ms are
ratios to `nn.Linear(n, n, bias=False)` of the same size, with a batch of {batch}, float32, one thread. Candidates and
baseline take turns in one process; a round runs each of them once, the baseline right before the candidate, with the
garbage collector off (where a step of nn.Linear takes less than 2 ms, the fastest of ten in a row counts). **The
ratio is fastest step / fastest step of nn.Linear in the same rounds; in parentheses the median over the rounds of
candidate / nn.Linear.** A step is forward and backward, with gradients of the input and of all parameters. `*`: one
step took longer than {slow:g} s, and only one was timed.
"""

BUILD = """The matrix alone (`layer.weight` without gradient, in ms), and the product alone: the forward without
gradient inside `linnet.frozen`, as a ratio to the forward of nn.Linear without gradient. Layers whose own forward is
cheaper than the dense product are simply called there.
"""

ONCE = """With W at hand: inside `linnet.frozen`, without an optimizer step between the rounds, and after
`linnet.bake`. The target ({target:g}) is read as: the forward without gradient inside `frozen`, and forward and
backward of the baked layer. Forward and backward inside `frozen` passes in each backward through the computation of W
once, and is given for comparison.
"""

RECURRENCE = """`linnet.RNN({n}, {n}, hidden_map=...)` over {steps} steps, batch {batch}, forward and backward: ratio to
the same net with `hidden_map=nn.Linear`, and to the one over linnet's own Linear.
"""


def targets(cases: Iterable[Case]) -> list[tuple[str, Case, float]]:
    """Every case that has a target: what it is (a key of WHY), the case, the target."""
    found = []
    for case in cases:
        if case.section == "layers" and case.size in TARGETS.get(case.name, {}):
            found.append((case.name, case, TARGETS[case.name][case.size]))
        elif case.section == "apply" and case.name in FROZEN:
            found.append(("frozen forward", case, FROZEN_TARGET))
        elif case.section == "baked":
            found.append(("baked", case, FROZEN_TARGET))
        elif case.section == "rnn" and case.name not in ("Linear", "torch.nn.RNN"):
            found.append((f"RNN over {case.name}", case, RNN_TARGET))
    sections, layers = ("layers", "apply", "baked", "rnn"), (*TARGETS, *FROZEN, *RECURRENT)
    return sorted(found, key=lambda entry: (sections.index(entry[1].section), layers.index(entry[1].name)))


def titled(what: str, case: Case) -> str:
    if case.section == "rnn":
        return what
    return f"{case.name}, n = {case.size}" + ("" if what == case.name else f", {what}")


def verdict(ratio: float, target: float) -> str:
    return "met" if ratio <= target else f"missed by {100 * (ratio / target - 1):.0f} %"


def page(cases: Sequence[Case], kinds: Iterable[Row], reasons: dict[tuple[str, int], str], machine: str) -> str:
    """The whole page in Markdown."""
    sizes = list(dict.fromkeys(case.size for case in cases if case.section == "layers"))
    by_key = {(case.section, case.name, case.size): case for case in cases}
    rows = {row.name: row for row in kinds}

    def cell(section: str, name: str, n: int) -> str:
        case = by_key.get((section, name, n))
        return "–" if case is None else shown(case)

    def names(section: str) -> list[str]:
        return list(dict.fromkeys(case.name for case in cases if case.section == section))

    parts = [HEAD.format(machine=machine, batch=BATCH, slow=SLOW)]
    judged = targets(cases)
    if judged:
        parts.append("## Targets\n")
        lines = [[titled(what, case), f"{t:g}", number(case.ratio), verdict(case.ratio, t)] for what, case, t in judged]
        parts.append(table(["", "target", "measured", ""], lines))
        missed = dict.fromkeys(what for what, case, target in judged if case.ratio > target)
        if missed:
            parts.append("Why targets are missed:\n")
            parts.append("".join(f"* {what}: {WHY.get(what, 'no reason is written down yet.')}\n" for what in missed))

    columns = [f"n = {n}" for n in sizes]
    if sizes:
        parts.append("## Forward and backward\n")
        first = ["nn.Linear, in ms"] + [number(1e3 * min(by_key["layers", "nn.Linear", n].base_seconds)) for n in sizes]
        own = [name for name in names("layers") if name not in rows or not rows[name].package]
        lines = [[*first, f"{sizes[-1] ** 2:,}"]]
        for name in own:
            last = next(by_key["layers", name, n] for n in reversed(sizes) if ("layers", name, n) in by_key)
            label = "nn.Linear again (the noise)" if name == "nn.Linear" else name
            lines.append([label, *(cell("layers", name, n) for n in sizes), f"{last.parameters:,}"])
        parts.append(table(["layer", *columns, f"parameters, n = {sizes[-1]}"], lines))

    foreign = [row for row in rows.values() if row.package and any(name == row.name for name, _ in reasons)]
    foreign += [rows[name] for name in names("layers") if name in rows and rows[name].package]
    foreign = [row for row in rows.values() if row in foreign]  # each once, in the order of the list
    if foreign:
        parts.append("## Beside the peers\n")
        lines = []
        for beside in dict.fromkeys(row.beside for row in foreign):
            lines.append([f"**linnet {beside}**", *(cell("layers", beside, n) for n in sizes), ""])
            for row in (row for row in foreign if row.beside == beside):
                why = dict.fromkeys(reasons[row.name, n] for n in sizes if (row.name, n) in reasons)
                notes = "; ".join([*([row.note] if row.note else []), *why])
                lines.append([row.name, *(cell("layers", row.name, n) for n in sizes), notes])
        parts.append(table(["layer", *columns, ""], lines))
        parts.append("Versions: " + ", ".join(f"{name} {v}" for name, v in versions(foreign).items()) + ".\n")

    if names("build"):
        parts.append("## The matrix and the product\n\n" + BUILD)
        lines = []
        for name in names("build"):
            times = [number(1e3 * min(by_key["build", name, n].seconds)) for n in sizes]
            lines.append([name, *times, *(cell("apply", name, n) for n in sizes)])
        parts.append(table(["layer", *(f"W, n = {n}" for n in sizes), *(f"product, n = {n}" for n in sizes)], lines))

    if names("baked"):
        parts.append("## Frozen and baked\n\n" + ONCE.format(target=FROZEN_TARGET))
        lines = [
            [f"{name}, n = {n}", *(cell(section, name, n) for section in ("apply", "baked", "frozen"))]
            for name in names("baked")
            for n in sizes
        ]
        header = ["layer", "frozen, forward", "baked, forward and backward", "frozen, forward and backward"]
        parts.append(table(header, lines))

    if names("rnn"):
        parts.append("## Recurrent nets\n\n" + RECURRENCE.format(n=RNN_SIZE, steps=RNN_STEPS, batch=RNN_BATCH))
        parts.append(
            table(
                ["hidden map", "to nn.Linear", "to linnet.Linear", "ms"],
                (
                    [
                        name,
                        cell("rnn", name, RNN_SIZE),
                        cell("rnn-linnet", name, RNN_SIZE),
                        number(1e3 * min(by_key["rnn", name, RNN_SIZE].seconds)),
                    ]
                    for name in names("rnn")
                ),
            )
        )
    return "\n".join(parts)

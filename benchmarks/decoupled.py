"""A training step with decoupled stages beside one of backpropagation: time, and memory for activations.

python benchmarks/decoupled.py --out benchmarks/decoupled.md
"""

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import linnet
from interleaved import Case, Step, deliver, machine, measure, number, shown, table
from linnet import DNI, DirectFeedback, LocalLoss, LowRankSynthesizer, Synthetic

BATCH, CLASSES = 256, 10
LAYERS = (3, 6)
RANK = 8
"""A low-rank synthesizer has the width over this as its rank."""

FAST = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)

DNIS: dict[str, Callable[[int, int], dict[str, object]]] = {
    "DNI, linear": lambda width, layers: {"gradient": Synthetic()},
    "cDNI, linear": lambda width, layers: {"gradient": Synthetic(context=CLASSES)},
    "DNI, low rank": lambda width, layers: {"gradient": Synthetic(LowRankSynthesizer, width // RANK, FAST)},
    "DNI, linear, a cut for 3 layers": lambda width, layers: {"gradient": Synthetic(), "at": ["5"]},
    "DNI, linear, immediate": lambda width, layers: {"gradient": Synthetic(), "update": "immediate"},
    "local loss": lambda width, layers: {"gradient": LocalLoss(F.cross_entropy, CLASSES, optim=FAST)},
    "direct feedback": lambda width, layers: {"gradient": DirectFeedback()},
}
"""The rows: options of DNI for a width and a number of layers."""

TARGETS = {("DNI, linear", 3): 1.7, ("DNI, low rank", 3): 1.25, ("DNI, linear, a cut for 3 layers", 6): 1.25}
"""How many times the time of backpropagation a row may take."""

WHY = (
    "What a linear synthesizer adds to a layer of its own width is 4/6 of the layer's products: 1.44 at two cuts in "
    "three layers, if all the rest were free. The rest is two dozen passes over the activations and 0.2 to 0.3 ms of "
    "Python for a cut (hooks, one walk over the graph, two calls of autograd); it weighs the less the wider the layers."
)


def network(width: int, layers: int) -> nn.Sequential:
    """Equal layers with ReLU between them."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def training(model: nn.Module, optimizer: torch.optim.Optimizer, width: int) -> Step:
    """zero_grad, forward, loss, backward, step."""
    x, y = torch.randn(BATCH, width), torch.randint(CLASSES, (BATCH,))
    told = isinstance(model, DNI) and model.conditioned

    def run() -> None:
        optimizer.zero_grad()
        if told:
            with model.context(y):  # type: ignore[operator]
                output = model(x)
        else:
            output = model(x)
        F.cross_entropy(output, y).backward()
        optimizer.step()

    return Step(run)


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=1e-4)


def cases_of(width: int, layers: int) -> list[Case]:
    found = []
    for name, options in DNIS.items():
        if "a cut for 3" in name and layers < 6:
            continue
        plain, net = network(width, layers), network(width, layers)
        optimizer = adam(net)
        model = DNI(net, optimizer, **options(width, layers))  # type: ignore[arg-type]
        pair = training(model, optimizer, width), training(plain, adam(plain), width)
        found.append(Case(str(layers), name, width, *pair))
    return found


def peer() -> str:
    """What pytorch-dni 0.0.1 does here, in one sentence."""
    try:
        package = importlib.import_module("dni")
        net = network(64, 3)
        optimizer = adam(net)
        training(package.DNI(net, optim=optimizer), optimizer, 64).run()
    except ImportError:
        return "pytorch-dni was not installed."
    except Exception as error:
        return f"pytorch-dni raises at the first step: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return "pytorch-dni ran."


def memory(width: int, layers: int) -> tuple[float, float, float]:
    """Megabytes kept for backward at the peak of a step, without the weights: backprop, DNI, and what may be."""
    plain, net = network(width, layers), network(width, layers)
    x = torch.randn(BATCH, width)
    dni = DNI(net, example=x)

    def kept(model: nn.Module) -> int:
        return linnet.activation_memory(lambda: model(x).square().mean().backward())

    weights, activations = width * width * 4, BATCH * width * 4
    backprop = kept(plain) - layers * weights
    share = (layers - 1) * 2 * activations  # the synthesizer's input, normed and centred
    return backprop / 1e6, (kept(dni) - layers * weights) / 1e6, (backprop / layers + share) / 1e6


def page(cases: Sequence[Case], widths: Sequence[int], where: str) -> str:
    lines = [
        "# Decoupled training\n",
        "Time of a training step (`zero_grad`, forward, loss, backward, Adam's step) over that of backpropagation on",
        f"the same network of equal layers, batch {BATCH}, a cut in front of each layer but the first: the fastest",
        "step over the fastest of the same rounds, and in brackets the median of the rounds, by turns, on one",
        "thread. Made by `decoupled.py`.\n",
    ]
    header = ("", *(f"{layers} layers of {width}" for layers in LAYERS for width in widths), "target")
    by = {(case.name, int(case.section), case.size): case for case in cases}
    rows, missed = [], []
    for name in DNIS:
        target = [(layers, value) for (row, layers), value in TARGETS.items() if row == name]
        for layers, value in target:
            for width in widths:
                case = by[name, layers, width]
                if case.ratio > value:
                    missed.append(f"{name}, {layers} layers of {width}: {number(case.ratio)} for {value}")
        cells = [by.get((name, layers, width)) for layers in LAYERS for width in widths]
        shown_target = f"{target[0][1]} at {target[0][0]} layers" if target else ""
        rows.append((name, *("–" if case is None else shown(case) for case in cells), shown_target))
    lines.append(table(header, rows))
    lines.append(f"Missed: {'; '.join(missed)}. {WHY}\n" if missed else "All targets are met.\n")
    lines.append(f"{peer()}\n")
    lines.append("## Memory\n")
    lines.append(
        "Megabytes that autograd keeps for backward at the highest point of a step, without weights. Wanted: at"
    )
    lines.append("most 1/K of backpropagation's and the synthesizers' share, their inputs as they come and are read.\n")
    found = [(layers, width, *memory(width, layers)) for layers in LAYERS for width in widths]
    lines.append(
        table(
            ("stages", "width", "backprop", "DNI", "wanted"),
            [(str(layers), str(width), *(number(value) for value in values)) for layers, width, *values in found],
        )
    )
    return "\n".join([*lines, where]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=60, help="rounds of each row (default: 60)")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for a row (default: 4)")
    parser.add_argument("--out", type=Path, help="write the page there instead of to stdout")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.widths) < RANK:
        parser.error(f"rounds must be positive and widths at least {RANK}")
    torch.set_num_threads(1)
    cases: list[Case] = []
    for layers in LAYERS:
        for width in options.widths:
            found = cases_of(width, layers)
            measure(found, options.rounds, options.budget)
            cases += found
            print(f"{layers} layers of {width}: done", file=sys.stderr, flush=True)
    deliver(page(cases, options.widths, machine()), options.out)


if __name__ == "__main__":
    main()

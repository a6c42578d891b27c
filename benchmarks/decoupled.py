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
from torch.profiler import ProfilerActivity, profile

import linnet
from interleaved import Case, Step, deliver, machine, measure, number, shown, table
from linnet import DNI, DirectFeedback, LeastSquaresSynthesizer, LocalLoss, LowRankSynthesizer, Synthetic

BATCH, CLASSES = 256, 10
LAYERS = (3, 6)
RANK = 8
"""A low-rank synthesizer has the width over this as its rank."""

FAST = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)

DNIS: dict[str, Callable[[int, int], dict[str, object]]] = {
    "DNI, linear": lambda width, layers: {"gradient": Synthetic()},
    "cDNI, linear": lambda width, layers: {"gradient": Synthetic(context=CLASSES)},
    "DNI, least squares": lambda width, layers: {"gradient": Synthetic(LeastSquaresSynthesizer)},
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
    "Backpropagation through three equal layers is eight products (nobody asks for the gradient of the input), and the "
    "synthesizers of two cuts are four more: 1.5, if all the rest were free. The rest is a dozen passes over the "
    "activations and, for a cut, 0.7 ms of Python and of calls into torch, whatever the width: 0.3 ms for the hooks, "
    "the walk over the graph and two calls of autograd, 0.4 ms for the synthesizer. So it weighs the less "
    "the wider the layers. A rank of an eighth of the width is thin products, slower than their share of the sums."
)

DEPTH = 4
"""Layers of a stage, where memory is measured."""


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


def allocated(step: Callable[[], object]) -> int:
    """Bytes at the highest point of a step, over those before it: all that torch allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = highest = 0
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        now += event.self_cpu_memory_usage
        highest = max(highest, now)
    return highest


def memory(width: int, stages: int) -> tuple[float, ...]:
    """Megabytes of activations at the peak of a step: kept by autograd (backprop, DNI, what may be), allocated (both).

    What the second half of a batch twice as large adds: that is activations, without weights and their gradients.
    """
    plain, net = network(width, stages * DEPTH), network(width, stages * DEPTH)
    dni = DNI(net, at=[2 * DEPTH * stage - 1 for stage in range(1, stages)], example=torch.randn(2, width))

    def added(measure: Callable[[Callable[[], object]], int], model: nn.Module) -> float:
        found = []
        for batch in (BATCH, 2 * BATCH):
            x = torch.randn(batch, width)
            model(x).square().mean().backward()
            found.append(measure(lambda: model(x).square().mean().backward()))  # noqa: B023
        return (found[1] - found[0]) / 1e6

    backprop, one = added(linnet.activation_memory, plain), BATCH * width * 4 / 1e6
    wanted = backprop / stages + (stages - 1) * one  # a synthesizer keeps its input
    dnis = added(linnet.activation_memory, dni)
    return backprop, dnis, wanted, added(allocated, plain), added(allocated, dni)


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
        f"Megabytes of activations at the highest point of a step, batch {BATCH}, stages of {DEPTH} layers with a cut "
        "between\nthem. Wanted of what autograd keeps: at most 1/K of backpropagation's at K stages, and for each "
        "synthesizer its input.\nAllocated is all that torch allocates: temporary results, and what sources remember "
        "outside of autograd.\n"
    )
    found = [(stages, width, *memory(width, stages)) for stages in LAYERS for width in widths]
    header = ("stages", "width", "kept: backprop", "DNI", "wanted", "allocated: backprop", "DNI")
    lines.append(table(header, [(str(stages), str(width), *map(number, values)) for stages, width, *values in found]))
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

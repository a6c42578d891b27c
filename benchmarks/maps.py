"""The speed of the structured maps beside their peers: ratios to nn.Linear, measured interleaved in one process.

    python benchmarks/maps.py --out benchmarks/maps.md

`README.md` beside this file says how to get the peers and what the options are.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

import linnet
from interleaved import Case, Step, deliver, learned, machine, measure, training, without_gradient
from maps_page import BATCH, FROZEN, RECURRENT, REFLECTORS, RNN_BATCH, RNN_SIZE, RNN_STEPS, page
from peers import Row, built, peers

__all__ = ["main"]


def ours() -> list[Row]:
    """Every class of the catalogue with its default options, and the orthogonal one with n/4 reflectors."""
    rows = []
    shipped = [cls for cls in linnet.catalogue().values() if cls.__module__.startswith("linnet.")]
    for cls in sorted(shipped, key=lambda cls: (cls is not linnet.Linear, cls.__name__)):
        rows.append(Row(cls.__name__, lambda n, cls=cls: cls(n, n, bias=False)))  # type: ignore[misc]
        if cls is linnet.OrthogonalLinear:
            rows.append(Row(REFLECTORS, lambda n: linnet.OrthogonalLinear(n, n, bias=False, reflectors=max(n // 4, 1))))
    return rows


def layer_cases(rows: Iterable[tuple[Row, nn.Module]], n: int) -> list[Case]:
    """Forward and backward of each layer beside nn.Linear."""
    x, grad = torch.randn(BATCH, n, requires_grad=True), torch.randn(BATCH, n)
    base = training(nn.Linear(n, n, bias=False), x, grad)
    control = Row("nn.Linear", lambda n: nn.Linear(n, n, bias=False))
    return [
        Case("layers", row.name, n, training(layer, x, grad), base, learned(layer))
        for row, layer in [(control, control.build(n)), *rows]
    ]


def build_cases(rows: Iterable[tuple[Row, nn.Module]], n: int) -> list[Case]:
    """The matrix alone, without gradient, beside the forward of nn.Linear."""
    x, linear = torch.randn(BATCH, n), nn.Linear(n, n, bias=False)
    base = without_gradient(partial(linear, x))
    return [
        Case("build", row.name, n, without_gradient(partial(getattr, layer, "weight")), base, learned(layer))
        for row, layer in rows
    ]


def apply_cases(rows: Iterable[tuple[Row, nn.Module]], n: int) -> list[Case]:
    """Inside ``frozen``: the forward without gradient; for four of the layers forward and backward, and baked, too."""
    x, grad = torch.randn(BATCH, n, requires_grad=True), torch.randn(BATCH, n)
    linear = nn.Linear(n, n, bias=False)
    forward, both = without_gradient(partial(linear, x)), training(linear, x, grad)
    cases = []
    for row, layer in rows:
        cases.append(Case("apply", row.name, n, without_gradient(partial(layer, x)), forward))
        if row.name in FROZEN:
            plain = linnet.bake(nn.Sequential(layer)).get_submodule("0").requires_grad_(True)
            cases.append(Case("frozen", row.name, n, training(layer, x, grad), both))
            cases.append(Case("baked", row.name, n, training(plain, x, grad), both))
    return cases


def rnn_cases(names: Iterable[str]) -> list[Case]:
    """Recurrent nets over a whole sequence beside the same net over nn.Linear, and over linnet.Linear."""
    n = RNN_SIZE
    x, grad = torch.randn(RNN_STEPS, RNN_BATCH, n), torch.randn(RNN_STEPS, RNN_BATCH, n)

    def step(net: nn.Module) -> Step:
        def run() -> None:
            net(x)[0].backward(grad)

        return Step(run, tuple(net.parameters()))

    over_torch, over_ours = step(linnet.RNN(n, n, hidden_map=nn.Linear)), step(linnet.RNN(n, n))
    cases = []
    for name in names:
        net = nn.RNN(n, n) if name == "torch.nn.RNN" else linnet.RNN(n, n, hidden_map=getattr(linnet, name))
        cases.append(Case("rnn", name, n, step(net), over_torch, learned(net)))
        cases.append(Case("rnn-linnet", name, n, step(net), over_ours, learned(net)))
    return cases


def run(
    rows: Sequence[Row], recurrent: Sequence[str], sizes: Sequence[int], rounds: int, budget: float
) -> tuple[list[Case], dict[tuple[str, int], str]]:
    """All cases with their times, and for the peers that could not run, by row and size, the reason."""
    torch.manual_seed(0)
    cases: list[Case] = []
    reasons: dict[tuple[str, int], str] = {}
    for n in sizes:
        pairs = []
        for row in rows:
            layer = built(row, n)
            if isinstance(layer, str):
                reasons[row.name, n] = layer
            else:
                pairs.append((row, layer))
        torch.set_num_threads(1)  # whatever the import of a peer has done
        own = [(row, layer) for row, layer in pairs if not row.package]
        cases += timed(f"n = {n}, forward and backward", layer_cases(pairs, n), rounds, budget)
        cases += timed(f"n = {n}, the matrix", build_cases(own, n), rounds, budget)
        with linnet.frozen(nn.ModuleList(layer for _, layer in own)):
            cases += timed(f"n = {n}, frozen", apply_cases(own, n), rounds, budget)
    cases += timed("recurrent nets", rnn_cases(recurrent), rounds, budget)
    return cases, reasons


def timed(what: str, cases: list[Case], rounds: int, budget: float) -> list[Case]:
    start = time.perf_counter()
    if cases:
        measure(cases, rounds, budget)
    print(f"{what}: {len(cases)} rows, {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return cases


def chosen(only: Sequence[str], *names: str) -> bool:
    """Whether one of the names contains one of the words; without words everything is chosen."""
    return not only or any(word.lower() in name.lower() for word in only for name in names)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The speed of the structured maps: ratios to nn.Linear.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024], metavar="N")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows whose name contains one of these")
    parser.add_argument("--no-peers", action="store_true", help="linnet's own rows only")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each row (default: 40)")
    parser.add_argument("--budget", type=float, default=1.5, help="seconds for a row of one size (default: 1.5)")
    parser.add_argument("--out", type=Path, help="write the page there instead of to stdout")
    parser.add_argument("--json", type=Path, help="write every single time there")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.sizes) < 1:
        parser.error("rounds and sizes must be positive")
    offered = [*ours(), *([] if options.no_peers else peers())]
    rows = [row for row in offered if chosen(options.only, row.name, row.beside)]
    recurrent = [name for name in RECURRENT if chosen(options.only, name)]
    if not rows:
        parser.error(f"--only must name a row, got {' '.join(options.only)}")
    torch.set_num_threads(1)
    cases, reasons = run(rows, recurrent, options.sizes, options.rounds, options.budget)
    text = page(cases, rows, reasons, machine())
    deliver(text, options.out)
    if options.json:
        keep = ("section", "name", "size", "parameters", "rounds", "seconds", "base_seconds")
        found = [{name: getattr(case, name) for name in keep} | {"ratio": case.ratio} for case in cases]
        missing = [{"name": name, "size": n, "reason": reason} for (name, n), reason in reasons.items()]
        options.json.write_text(json.dumps({"machine": machine(), "cases": found, "missing": missing}, indent=1))


if __name__ == "__main__":
    main()

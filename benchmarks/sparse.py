"""The speed and memory of the sparse layer beside nn.Linear and other packages, measured interleaved in one process.

    python benchmarks/sparse.py --out benchmarks/sparse.md

`README.md` beside this file says how to get the peers and what the options are.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

import linnet
from interleaved import Case, deliver, machine, measure, training, without_gradient
from sparse_page import GRID, MEMORY, SPARSITIES, page
from sparse_peers import LINNET, Peer, made, peers

__all__ = ["main"]


@dataclass(frozen=True)
class Memory:
    """What one training step of one layer takes: megabytes of resident memory over import, seconds to build it."""

    size: int
    connections: int
    batch: int
    megabytes: float
    seconds: float


def speed_cases(
    rows: Sequence[Peer], n: int, batch: int, sparsities: Sequence[float], reasons: dict[tuple[str, str], str]
) -> list[Case]:
    """Forward and backward of each row at each sparsity beside nn.Linear; of one sample the forward alone."""
    x, grad = torch.randn(batch, n, requires_grad=True), torch.randn(batch, n)
    linear = nn.Linear(n, n)
    base = training(linear, x, grad) if batch > 1 else without_gradient(partial(linear, x))
    cases = []
    for row in rows:
        for sparsity in sparsities:
            name = f"{row.name} {sparsity}"
            layer = made(row, n, sparsity, batch)
            if isinstance(layer, str):
                reasons[row.name, f"{n} {batch}"] = layer
                continue
            step = training(layer, x, grad) if batch > 1 else without_gradient(partial(layer, x))
            cases.append(Case(f"{n} {batch}", name, n, step, base))
    return cases


def frozen_cases(n: int, sparsities: Sequence[float]) -> tuple[nn.ModuleList, list[Case]]:
    """One sample, inside ``frozen``."""
    x, linear = torch.randn(1, n), nn.Linear(n, n)
    base = without_gradient(partial(linear, x))
    layers = nn.ModuleList(linnet.SparseLinear(n, n, sparsity=s) for s in sparsities)
    steps = [without_gradient(partial(layer, x)) for layer in layers]
    names = [f"{LINNET} {s}" for s in sparsities]
    return layers, [Case(f"frozen {n}", name, n, step, base) for name, step in zip(names, steps, strict=True)]


def memory_of(n: int, connections: int, batch: int) -> Memory:
    """Built, one forward and backward, one step of Adam; in this process, which must do nothing else."""
    torch.set_num_threads(1)
    before = peak()
    start = time.perf_counter()
    layer = linnet.SparseLinear(n, n, sparsity=1 - connections / n**2)
    seconds = time.perf_counter() - start
    optimizer = torch.optim.Adam(layer.parameters())
    x, grad = torch.randn(batch, n), torch.randn(batch, n)
    layer(x).backward(grad)
    optimizer.step()
    return Memory(n, connections, batch, peak() - before, seconds)


def peak() -> float:
    """The highest resident memory of this process so far, in megabytes; getrusage would count its parent's too."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise OSError("The memory is read from /proc, which this system does not have (use --no-memory)")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024


def measured_memory(n: int, connections: int, batch: int) -> Memory:
    command = [sys.executable, __file__, "--memory-of", str(n), str(connections), str(batch)]
    return Memory(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The sparse layer: times as fast as nn.Linear, and memory.")
    parser.add_argument("--sizes", nargs="+", default=[f"{n}x{b}" for n, b in GRID], metavar="NxBATCH")
    parser.add_argument("--sparsity", type=float, nargs="+", default=list(SPARSITIES), metavar="S")
    parser.add_argument("--no-peers", action="store_true", help="linnet alone")
    parser.add_argument("--no-memory", action="store_true", help="speed alone")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each row (default: 40)")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for a row (default: 4)")
    parser.add_argument("--out", type=Path, help="write the page there instead of to stdout")
    parser.add_argument("--json", type=Path, help="write every single time there")
    parser.add_argument("--memory-of", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        print(json.dumps(asdict(memory_of(*options.memory_of))))
        return
    try:
        grid = [(int(n), int(batch)) for n, batch in (size.split("x") for size in options.sizes)]
    except ValueError:
        parser.error(f"--sizes must be like 1024x32, got {' '.join(options.sizes)}")
    if options.rounds < 1 or min(min(pair) for pair in grid) < 1:
        parser.error("rounds, sizes and batches must be positive")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    reasons: dict[tuple[str, str], str] = {}
    cases: list[Case] = []
    for n, batch in grid:
        start = time.perf_counter()
        alone = speed_cases(peers(False), n, batch, options.sparsity, reasons)
        measure(alone, options.rounds, options.budget)
        for case in alone:
            case.section = f"alone {n} {batch}"
        cases += alone
        found = speed_cases(peers(not options.no_peers), n, batch, options.sparsity, reasons)
        torch.set_num_threads(1)  # whatever the import of a peer has done
        measure(found, options.rounds, options.budget)
        if batch == 1:
            layers, more = frozen_cases(n, options.sparsity)
            with linnet.frozen(layers):
                measure(more, options.rounds, options.budget)
            found += more
        cases += found
        print(f"{n}, batch {batch}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    memory = [] if options.no_memory else [measured_memory(*key) for key in MEMORY]
    text = page(cases, grid, options.sparsity, memory, reasons, machine())
    deliver(text, options.out)
    if options.json:
        keep = ("section", "name", "size", "rounds", "seconds", "base_seconds")
        found = [{name: getattr(case, name) for name in keep} | {"ratio": case.ratio} for case in cases]
        options.json.write_text(
            json.dumps({"machine": machine(), "cases": found, "memory": [asdict(m) for m in memory]})
        )


if __name__ == "__main__":
    main()

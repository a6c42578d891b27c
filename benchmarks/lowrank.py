"""Low-rank populations beside pure inference and beside an evolution strategy that forms its noise.

python benchmarks/lowrank.py --out benchmarks/lowrank.md
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from interleaved import Case, deliver, machine, measure, number, table, without_gradient
from linnet.evolve import LowRank

BEINGS, WIDTHS, BATCH, RANKS = 256, (256, 512, 1024), 32, (1, 4)
INFERENCE, NAIVE = 0.9, 50.0
"""The targets: the share of inference throughput at rank 1; how many times as fast as forming the noise at batch 1."""
MANY, MANY_SIZES, CHUNK = 100_000, (512, 1024, 480, 8), 2000


def network(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        parts += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def inference_cases(widths: Sequence[int], beings: int, batch: int) -> list[Case]:
    """A generation's forward, noise and all, beside the network alone on the same samples."""
    cases = []
    for width in widths:
        net = network(width, width, width, 10)
        x = torch.randn(batch, beings, width)
        for rank in RANKS:
            population = LowRank(net, beings, rank=rank)

            def once(population: LowRank = population, x: Tensor = x) -> None:
                population.perturb(0, population.generation + 1, 0.05)
                population(x)

            again = without_gradient(lambda p=population, x=x: p(x))
            alone = without_gradient(lambda net=net, x=x: net(x))
            cases.append(Case("noise drawn", f"width {width}, rank {rank}", width, without_gradient(once), alone))
            cases.append(Case("noise kept", f"width {width}, rank {rank}", width, again, alone))
    return cases


def naive_case(width: int, beings: int) -> Case:
    """One sample each, noise and all, beside members that are formed: W + σ E, E (beings, out, in)."""
    net, x = network(width, width, width, 10), torch.randn(1, beings, width)
    population, layers = LowRank(net, beings), [part for part in net if isinstance(part, nn.Linear)]

    def ours() -> None:
        population.perturb(0, population.generation + 1, 0.05)
        population(x)

    def formed() -> None:
        y = x[0].unsqueeze(1)  # (beings, 1, in)
        for layer in layers:
            weight = torch.randn(beings, *layer.weight.shape).mul_(0.05).add_(layer.weight)
            bias = torch.randn(beings, len(layer.bias)).mul_(0.05).add_(layer.bias)
            y = torch.baddbmm(bias.unsqueeze(1), y, weight.mT).relu()

    return Case("formed", f"width {width}", width, without_gradient(ours), without_gradient(formed))


def many() -> None:
    """Evaluate MANY beings, and print the seconds and the memory at the peak beyond that before them, in GB."""
    net = network(*MANY_SIZES)
    population, x = LowRank(net, MANY, chunk_size=CHUNK), torch.randn(1, 1, MANY_SIZES[0])
    with torch.no_grad():
        LowRank(net, 2)(x)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        start = time.perf_counter()
        population.perturb(0, 0, 0.05)
        y = population(x)
        forward = time.perf_counter() - start
    population.estimate(y.sum((0, 2)))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(sum(p.numel() for p in net.parameters()), forward, seconds - forward, peak / 1e9)


def page(cases: Sequence[Case], naive: Case, found: list[float], where: str) -> str:
    rows = []
    for name in dict.fromkeys(case.name for case in cases):
        shares = {case.section: 1 / case.ratio for case in cases if case.name == name}
        verdict = ""
        if name.endswith("rank 1"):
            verdict = f"{INFERENCE:.0%}: " + ("met" if shares["noise drawn"] >= INFERENCE else "**missed**")
        rows.append((name, *(f"{shares[section]:.0%}" for section in ("noise drawn", "noise kept")), verdict))
    parameters, forward, estimate, gigabytes = found
    reached = "met" if 1 / naive.ratio >= NAIVE else "**missed**"
    lines = [
        "# Low-rank populations\n",
        f"Throughput of a population of {BEINGS} low-rank beings, as a share of the network alone, batch {BATCH}, "
        "one thread:\nits fastest step over ours in the same rounds, by turns in one process. Made by `lowrank.py`.\n",
        table(("network of three layers", "with its noise drawn", "with its noise kept", ""), rows),
        f"At batch 1 a generation's forward of {naive.size} wide nets, noise and all, takes "
        f"{number(1e3 * min(naive.seconds))} ms; with members formed {number(1e3 * min(naive.base_seconds))} ms, "
        f"{number(1 / naive.ratio)} times as long (target {NAIVE:g}: {reached}).",
        f"\n{MANY:,} beings of a network of {parameters:,.0f} parameters, one sample, {CHUNK} at a time, two threads: "
        f"{forward:.1f} s, the estimate of the gradient {estimate:.1f} s, and {gigabytes:.2f} GB at the peak beyond "
        "what the process had before.",
    ]
    return "\n".join([*lines, "", where]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--many", action="store_true", help="the 100 000 beings alone, in a process of their own")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each row (default: 20)")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds for a row (default: 8)")
    parser.add_argument("--out", type=Path, help="write the page there instead of to stdout")
    options = parser.parse_args(arguments)
    if options.many:
        return many()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cases, naive = inference_cases(WIDTHS, BEINGS, BATCH), naive_case(WIDTHS[0], BEINGS)
    for some in (cases, [naive]):
        measure(some, options.rounds, options.budget)
    command = [sys.executable, __file__, "--many"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = page(cases, naive, [float(value) for value in printed.split()], machine())
    deliver(text, options.out)
    return None


if __name__ == "__main__":
    main()

"""Timing by turns: a candidate and its baseline in one process, one right after the other, round after round."""

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

import linnet

__all__ = [
    "SLOW",
    "Case",
    "Step",
    "deliver",
    "learned",
    "machine",
    "measure",
    "number",
    "shown",
    "table",
    "training",
    "without_gradient",
]

FEWEST = 3
"""Rounds that every case gets, however slow it is."""
SLOW = 3.0
"""Seconds: a case whose step takes longer gets no rounds, only the figure of one step."""


@dataclass
class Step:
    """Something to be timed, and the tensors whose gradients are set to None before it, outside the time."""

    run: Callable[[], object]
    clear: tuple[Tensor, ...] = ()

    def time(self) -> float:
        for tensor in self.clear:
            tensor.grad = None
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


@dataclass
class Case:
    """A candidate beside its baseline; both are run in every round, one right after the other.

    Args:
        section: which table it belongs to.
        name: the row.
        size: n of the layer.
        step: the candidate.
        base: the baseline.
        parameters: how many numbers the layer learns.
    """

    section: str
    name: str
    size: int
    step: Step
    base: Step
    parameters: int = 0
    seconds: list[float] = field(default_factory=list)
    base_seconds: list[float] = field(default_factory=list)
    rounds: int = 0

    @property
    def ratio(self) -> float:
        """The fastest step over the fastest step of the baseline in the same rounds."""
        return min(self.seconds) / min(self.base_seconds)

    @property
    def median(self) -> float:
        """The median over the rounds of candidate / baseline."""
        return statistics.median(a / b for a, b in zip(self.seconds, self.base_seconds, strict=True))


def measure(cases: Sequence[Case], rounds: int, budget: float, slow: float = SLOW) -> None:
    """Fill in the times: rounds in which every case runs once, baseline and candidate in turn.

    A case whose time is spent (``budget`` seconds, but at least three rounds) leaves; one whose single step takes
    longer than ``slow`` has that figure alone, with ``rounds == 0``.
    """
    gc.collect()
    gc.freeze()  # what is alive stays so: collections between rounds are then cheap
    gc.disable()
    live = []
    try:
        for case in cases:
            case.base.time()
            if case.step.time() > slow and (seconds := case.step.time()) > slow:
                case.seconds, case.base_seconds = [seconds], [case.base.time()]
            else:
                live.append(case)
        # Where a step is short, the fastest of ten in a row counts: caches are then as warm for every row.
        inner = 10 if live and live[0].base.time() < 2e-3 else 1
        spent = dict.fromkeys(range(len(live)), 0.0)
        for done in range(rounds):
            for i, case in enumerate(live):
                if done >= FEWEST and spent[i] > budget:
                    continue
                start = time.perf_counter()
                case.base_seconds.append(min(case.base.time() for _ in range(inner)))
                case.seconds.append(min(case.step.time() for _ in range(inner)))
                case.rounds += 1
                spent[i] += time.perf_counter() - start
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()


def training(layer: nn.Module, x: Tensor, grad: Tensor) -> Step:
    """Forward and backward, with gradients of the input and of every parameter."""

    def run() -> None:
        layer(x).backward(grad)

    return Step(run, (x, *layer.parameters()))


def without_gradient(function: Callable[[], object]) -> Step:
    def run() -> None:
        with torch.no_grad():
            function()

    return Step(run)


def learned(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def number(value: float) -> str:
    """A ratio or a time with about three digits, never with an exponent.

    Example:
        >>> number(0.0716), number(4.567), number(23.41), number(351.4)
        ('0.072', '4.57', '23.4', '351')
    """
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}"


def shown(case: Case) -> str:
    return f"{number(case.ratio)} ({number(case.median)})" if case.rounds else f"{number(case.ratio)} \\*"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column and those without a title are text, the others are figures."""
    rule = ["---:" if i and title else "---" for i, title in enumerate(header)]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def machine() -> str:
    """CPU, versions and date, as one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return (
        f"{cpu}, one thread, torch {torch.__version__}, linnet {linnet.__version__}, "
        f"Python {platform.python_version()}, {date.today().isoformat()}."
    )


def deliver(text: str, out: Path | None) -> None:
    """Write a page to a file, or, without one, to stdout."""
    if out:
        out.write_text(text)
    else:
        print(text)

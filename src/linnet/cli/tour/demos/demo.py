"""What a demo gives, one line of the closing table and one panel of the picture, and what several demos share."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Progress = Callable[[float], None]
"""Called with the share of a demo that is done."""


@dataclass(frozen=True)
class Demo:
    """What a demo found."""

    claim: str  # what linnet is said to do here and nn.Linear not
    plain: str  # what nn.Linear did
    linnet: str  # what linnet did
    holds: bool  # whether the claim came out, by a rule that the demo states before it runs
    note: str  # what else a reader should know
    draw: Callable[[Any], None]  # draws the panel, given a matplotlib Axes
    numbers: dict[str, Any]  # everything measured, for tour.json


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers: outputs (batch, [beings,] classes), targets (batch,) -> ([beings])."""
    right = outputs.argmax(-1) == (targets[:, None] if outputs.dim() == 3 else targets)
    return right.double().mean(0)


def count_steps(progress: Progress, total: int) -> Callable[[], None]:
    """A function to call after each of ``total`` equal steps."""
    steps = itertools.count(1)
    return lambda: progress(next(steps) / total)


def percent(shares: Tensor, digits: int = 0) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{100 * shares.mean():.{digits}f} ± {100 * shares.std():.{digits}f} %"


def mean_and_range(axes: Any, x: Iterable[int], shares: Tensor, **style: Any) -> None:
    """Draw shares (steps, seeds) in percent: their mean as a line, and their range over the seeds."""
    values = 100 * shares
    axes.plot(x, values.mean(1), **style)
    axes.fill_between(x, values.amin(1), values.amax(1), color=style["color"], alpha=0.2, linewidth=0)

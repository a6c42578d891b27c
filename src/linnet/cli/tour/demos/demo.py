"""What an act gives: one line of the closing table and one panel of the picture."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from linnet.core.palette import BLUE, GREY, ORANGE

__all__ = ["BLUE", "GREY", "ORANGE", "Act", "accuracy"]


@dataclass(frozen=True)
class Act:
    """One act.

    Attributes:
        claim: what linnet is said to do here and nn.Linear not.
        plain: what nn.Linear did.
        linnet: what linnet did.
        holds: whether the claim came out, by a rule that the act states before it runs.
        note: what else an honest reader should know.
        draw: draws the panel, given a matplotlib Axes.
        numbers: everything measured, for ``tour.json``.
    """

    claim: str
    plain: str
    linnet: str
    holds: bool
    note: str
    draw: Callable[[Any], None]
    numbers: dict[str, Any] = field(default_factory=dict)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers: outputs (batch, [beings,] classes), targets (batch,) -> ([beings])."""
    right = outputs.argmax(-1) == (targets[:, None] if outputs.dim() == 3 else targets)
    return right.double().mean(0)

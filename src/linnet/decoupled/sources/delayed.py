"""Delayed: the true gradient, some steps late, as in a pipeline whose stages run in parallel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.decoupled.sources.source import Source


class Delayed(Source):
    """g(t) = ∂L(t − steps)/∂θ: the parameters below get the true gradient of the batch ``steps`` backwards ago.

    A pipeline without backward locking applies this gradient, which belongs to the weights of that time: with K stages
    the k-th from below waits ``K − k`` steps, so give each cut its own delay (``gradient={"0": Delayed(2), "3":
    Delayed(1)}``). Here all stages run in one process, and the true gradient passes the cut. During the first ``steps``
    backwards the gradient of the parameters is zero. The waiting gradients are in the state_dict.

    Args:
        steps: number of backwards that a gradient waits.

    Raises:
        ValueError: steps is not a positive integer; the parameters below the cut have changed in number or shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from linnet import DNI
        >>> net = DNI(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), gradient=Delayed(1))
        >>> net(torch.randn(2, 4)).square().mean().backward()
        >>> bool((net.network[0].weight.grad == 0).all())
        True

    Reference:
        Z. Huo, B. Gu, Q. Yang, H. Huang, Decoupled parallel backpropagation with convergence guarantee, 2018,
        arXiv 1804.10574.
    """

    late = True

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.steps = check_positive(steps=steps)[0]
        self.waiting: list[list[Tensor | None]] = []

    def predict(self, h: Tensor, context: Tensor | None) -> tuple[None, None]:
        return None, None

    def delay(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        if self.waiting and [_shape(g) for g in self.waiting[-1]] != [_shape(g) for g in gradients]:
            raise ValueError(
                "Delayed needs the same parameters below its cut in every step; their number or shapes have changed"
            )
        self.waiting.append([None if g is None else g.detach().clone() for g in gradients])
        if len(self.waiting) <= self.steps:
            return [None if g is None else torch.zeros_like(g) for g in gradients]
        return self.waiting.pop(0)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Delayed":
        self.waiting = [[None if g is None else fn(g) for g in row] for row in self.waiting]
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for i, row in enumerate(self.waiting):
            for j, gradient in enumerate(row):
                destination[f"{prefix}waiting.{i}.{j}"] = torch.empty(0) if gradient is None else gradient

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.waiting = []
        while f"{prefix}waiting.{len(self.waiting)}.0" in state_dict:
            start = f"{prefix}waiting.{len(self.waiting)}."
            row: list[Tensor | None] = []
            while start + str(len(row)) in state_dict:
                value = state_dict.pop(start + str(len(row)))
                row.append(value.detach().clone() if value.numel() else None)
            self.waiting.append(row)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _shape(gradient: Tensor | None) -> torch.Size | None:
    return None if gradient is None else gradient.shape

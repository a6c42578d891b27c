"""Matrices with a penalty on the size of their entries, and exact zeros.

The structure is soft: nothing is promised of the matrix. Add ``penalty()`` to the loss, or call ``prox`` after every
optimizer step instead.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_number
from linnet.core.linear_map import LinearMap


class LassoLinear(LinearMap):
    """y = x A + b with the penalty γ Σ|a_ij|, and a proximal step that makes entries exactly zero.

    Either add ``penalty()`` to the loss, which makes entries small, or call ``prox(lr)`` after each step of an SGD with
    learning rate lr (proximal gradient descent), which makes them zero. Any matrix is assigned exactly.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        gamma: γ, >= 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - entries: ([beings,] out_features, in_features)

    Raises:
        ValueError: gamma is negative or not finite.

    Example:
        >>> layer = LassoLinear(3, 1, bias=False, gamma=0.5)
        >>> layer.weight = torch.tensor([[1.0, -0.25, 0.125]])
        >>> layer.prox(1.0)
        >>> layer.weight.tolist()
        [[0.5, 0.0, 0.0]]

    Reference:
        R. Tibshirani, Regression shrinkage and selection via the lasso, 1996; L. Bottou, Large-scale machine learning
        with stochastic gradient descent, 2010.
    """

    family = "sparse"
    promise = "none"
    hard = False
    decays = ("entries",)

    entries: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        gamma: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_number(0, gamma=gamma)
        self.gamma = gamma
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"entries": (self.out_features, self.in_features)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"gamma": 0.1}]

    def _weight(self, entries: Tensor) -> Tensor:
        return entries

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"entries": weight}

    def penalty(self) -> Tensor:
        return self.gamma * self.entries.abs().sum()

    @torch.no_grad()
    def prox(self, step_size: float) -> None:
        """Move every entry towards 0 by γ·step_size and no further: the proximal map of step_size · penalty."""
        check_number(0, step_size=step_size)
        step = self.gamma * step_size
        self.entries.sub_(self.entries.clamp(-step, step))


class LassoLinearRELU(LinearMap):
    """y = x A + b with W = Aᵀ = max(u, 0) − max(v, 0) and the penalty γ Σ (max(u, 0) + max(v, 0)).

    The penalty has a constant slope up to zero, and what it pushes below stays exactly zero. ``prox(lr)`` after each
    step of an SGD takes the place of the penalty; it ends at u, v >= 0, where an entry that is zero still has a
    gradient. Any matrix is assigned exactly, as its positive and negative part.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        gamma: γ, >= 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - u, v: ([beings,] out_features, in_features)

    Raises:
        ValueError: gamma is negative or not finite.

    Example:
        >>> layer = LassoLinearRELU(3, 1, bias=False)
        >>> layer.weight = torch.tensor([[1.0, -2.0, 0.0]])
        >>> layer.weight.tolist(), layer.penalty().item()
        ([[1.0, -2.0, 0.0]], 3.0)

    Reference:
        L. Bottou, Large-scale machine learning with stochastic gradient descent, 2010.
    """

    family = "sparse"
    promise = "none"
    hard = False
    decays = ("u", "v")

    u: nn.Parameter
    v: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        gamma: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_number(0, gamma=gamma)
        self.gamma = gamma
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shape = (self.out_features, self.in_features)
        return {"u": shape, "v": shape}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"gamma": 0.1}]

    def _weight(self, u: Tensor, v: Tensor) -> Tensor:
        return u.clamp_min(0) - v.clamp_min(0)  # unlike relu, clamp passes the gradient on at exactly 0

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"u": weight.clamp_min(0), "v": (-weight).clamp_min(0)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        bound = math.sqrt(2 / self.in_features)  # the difference then has nn.Linear's variance
        for part in raw.values():
            part.uniform_(0, bound, generator=generator)

    def penalty(self) -> Tensor:
        return self.gamma * (self.u.clamp_min(0).sum() + self.v.clamp_min(0).sum())

    @torch.no_grad()
    def prox(self, step_size: float) -> None:
        """Lower u and v by γ·step_size, but not below 0: the proximal map of step_size · penalty on u, v >= 0."""
        check_number(0, step_size=step_size)
        for part in (self.u, self.v):
            part.sub_(self.gamma * step_size).clamp_min_(0)

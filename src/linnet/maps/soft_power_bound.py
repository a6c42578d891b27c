"""Matrices that are penalized for a spectral radius above a bound."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap
from linnet.maps.math.spectral_radius import radius, radius_estimate


class SoftPowerBoundLinear(LinearMap):
    """y = x A + b with any A, and a penalty that brings the spectral radius ρ(A) under max_p: nothing is guaranteed.

    ``penalty()`` is max(0, ρ̂ − max_p)², summed over the beings, with the estimate ρ̂ = ‖Aᵏ‖_F^(1/k), k = pwr_iters, that
    is never smaller than ρ(A) and differentiable where ρ is not. It is 0 only where ρ(A) <= max_p. The estimate exceeds
    ρ by a factor of up to (√n cond(V))^(1/k), V the eigenvectors, so a matrix that close to the bound is still
    penalized. ``violation()`` takes ρ itself. Any matrix is assigned exactly.
    :class:`linnet.PowerBoundLinear` keeps the bound always.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        max_p: the largest modulus of an eigenvalue that is not penalized, above 0.
        pwr_iters: the power k in the estimate of the spectral radius.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - entries: ([beings,] n, n)

    Raises:
        ValueError: in_features != out_features, max_p <= 0 or not finite, or pwr_iters < 1.

    Example:
        >>> layer = SoftPowerBoundLinear(2, 2, pwr_iters=100)
        >>> layer.weight = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])  # eigenvalues ±2i
        >>> round(layer.penalty().item(), 2)
        1.01

    Reference:
        I. Gelfand, Normierte Ringe, 1941 (the estimate).
    """

    family = "stable"
    promise = "ρ(A) <= max_p, softly"
    decays = ("entries",)
    square = True
    hard = False

    entries: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        max_p: float = 1.0,
        pwr_iters: int = 200,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 < max_p < math.inf:
            raise ValueError(f"max_p must be a finite number > 0, got {max_p}")
        self.max_p, self.pwr_iters = max_p, check_positive(pwr_iters=pwr_iters)[0]
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"entries": (self.in_features, self.in_features)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"max_p": 0.25, "pwr_iters": 20}]

    def _weight(self, entries: Tensor) -> Tensor:
        return entries

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"entries": weight}

    def spectral_radius(self) -> Tensor:
        """An estimate of ρ(A) without eigenvalues: ‖Aᵏ‖_F^(1/k), k = pwr_iters, never too small, ([beings])."""
        wide = torch.promote_types(self.entries.dtype, torch.float32)
        return radius_estimate(self.entries.to(wide), self.pwr_iters).to(self.entries.dtype)

    def penalty(self) -> Tensor:
        return (self.spectral_radius() - self.max_p).clamp_min(0).square().sum()

    def _violation(self, weight: Tensor) -> Tensor:
        return (radius(weight) / self.max_p - 1).clamp_min(0)

"""Differences of two stable nonnegative matrices: absolute row sums bound the eigenvalues."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.intervals import check_interval, sigmoid_raw, sigmoid_to_interval
from linnet.maps.math.simplex import project_l1


class StableSplitLinear(LinearMap):
    """y = x A + b with A = B − C, B >= 0, C >= 0, and row sums of B + C in [sigma_min, sigma_max].

    So ‖x A‖₁ <= sigma_max ‖x‖₁, and, where A is square, the spectral radii of A, B and C are at most sigma_max: all
    three are stable if sigma_max <= 1. Each row of [B, C] is a softmax times a learned sum. Every A with
    Σⱼ|aᵢⱼ| <= sigma_max is reached; where a row is smaller than its sum in B + C, B and C overlap. Any other matrix
    is assigned row by row as the nearest with that bound.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sigma_min: the smallest row sum of B + C, at least 0.
        sigma_max: the largest row sum of B + C, the bound on the spectral radius.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - logits: ([beings,] in_features, 2 out_features), row i those of row i of [B, C]
        - sums: ([beings,] in_features)

    Raises:
        ValueError: not 0 <= sigma_min < sigma_max.

    Example:
        >>> layer = StableSplitLinear(8, 8)
        >>> torch.allclose(layer.B - layer.C, layer.weight.mT), bool((layer.B + layer.C).sum(-1).max() <= 1.0001)
        (True, True)

    Reference:
        J. Drgoňa et al., Spectral analysis and stability of deep neural dynamics, 2020, arXiv 2011.13492.
    """

    family = "stable"
    promise = "A = B − C, B, C >= 0, Σⱼ|aᵢⱼ| <= sigma_max, so ρ(A) <= sigma_max"

    logits: nn.Parameter
    sums: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max, strict=True)
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, m = self.in_features, self.out_features
        return {"logits": (n, 2 * m), "sums": (n,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"sigma_min": 0.0, "sigma_max": 0.5}]

    def _parts(self, logits: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """B and C, (..., in, out) each."""
        rows = logits.softmax(-1) * sigmoid_to_interval(sums, self.sigma_min, self.sigma_max).unsqueeze(-1)
        b, c = rows.tensor_split(2, -1)
        return b, c

    def _weight(self, logits: Tensor, sums: Tensor) -> Tensor:
        b, c = self._parts(logits, sums)
        return (b - c).mT

    @property
    def B(self) -> Tensor:
        """The nonnegative matrix B of A = B − C, ([beings,] in, out)."""
        return self._parts(self.logits, self.sums)[0]

    @property
    def C(self) -> Tensor:
        """The nonnegative matrix C of A = B − C, ([beings,] in, out)."""
        return self._parts(self.logits, self.sums)[1]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        a = project_l1(weight.mT, self.sigma_max)
        # Row sums of B + C exceed those of |A|, halfway to the bound: where there is room B and C overlap, all their
        # entries are > 0, and every logit has a gradient.
        used = a.abs().sum(-1)
        raw = sigmoid_raw((used.clamp_min(self.sigma_min) + self.sigma_max) / 2, self.sigma_min, self.sigma_max)
        total = sigmoid_to_interval(raw, self.sigma_min, self.sigma_max)
        a = a * (total / used.clamp_min(torch.finfo(a.dtype).tiny)).clamp_max(1.0).unsqueeze(-1)
        spare = (total - a.abs().sum(-1)).clamp_min(0).unsqueeze(-1) / (2 * self.out_features)
        split = torch.cat((a.clamp_min(0) + spare, (-a).clamp_min(0) + spare), -1) / total.unsqueeze(-1)
        return {"logits": split.clamp_min(torch.finfo(self.logits.dtype).tiny).log(), "sums": raw}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        # A coefficient of variation ~ √m/2: with flat rows B and C would be nearly equal, and A nearly zero.
        raw["logits"].normal_(0, math.sqrt(math.log1p(self.out_features / 4)), generator=generator)
        raw["sums"].normal_(0, 2, generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return (weight.abs().sum(-2).amax(-1) / self.sigma_max - 1).clamp_min(0)

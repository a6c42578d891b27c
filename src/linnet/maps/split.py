"""Differences of two matrices with entries >= 0."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.softplus import draw_positive, positive, positive_raw


class SplitLinear(LinearMap):
    """y = x A + b with A = B − C and B, C >= 0, which are ``layer.B`` and ``layer.C``.

    Every matrix is such a difference, so nothing is promised of A itself; B and C stay >= 0 whatever the optimizer
    does. Their entries are s·softplus(raw/s), s = 1/√in. A matrix is assigned as B = max(A, 0) + m and
    C = max(−A, 0) + m with m the root mean square of A: without that margin half of the entries could hardly learn.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - raw_B, raw_C: ([beings,] out_features, in_features), those of Bᵀ and Cᵀ

    Example:
        >>> layer = SplitLinear(3, 5)
        >>> bool((layer.B >= 0).all() and (layer.C >= 0).all()), torch.equal(layer.weight.mT, layer.B - layer.C)
        (True, True)

    Reference:
        J. Drgoňa et al., Spectral analysis and stability of deep neural dynamics, 2020, arXiv 2011.13492.
    """

    family = "nonnegative"
    promise = "none"

    raw_B: nn.Parameter
    raw_C: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shape = (self.out_features, self.in_features)
        return {"raw_B": shape, "raw_C": shape}

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.in_features)

    @property
    def B(self) -> Tensor:
        """The positive part of A, ([beings,] in, out), differentiable."""
        return positive(self.raw_B, self._scale).mT

    @property
    def C(self) -> Tensor:
        """What is subtracted from it, ([beings,] in, out), differentiable."""
        return positive(self.raw_C, self._scale).mT

    def _weight(self, raw_B: Tensor, raw_C: Tensor) -> Tensor:
        return positive(raw_B, self._scale) - positive(raw_C, self._scale)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        eps = torch.finfo(self.raw_B.dtype).eps
        margin = weight.square().mean((-2, -1), keepdim=True).sqrt()
        margin = torch.where(margin > 0, margin, self._scale)
        parts = {"raw_B": weight.clamp_min(0) + margin, "raw_C": (-weight).clamp_min(0) + margin}
        return {name: positive_raw(part, self._scale, eps) for name, part in parts.items()}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        for part in raw.values():  # the difference of two uniform numbers has twice the variance of one
            draw_positive(part, math.sqrt(2) * self._scale, self._scale, generator)

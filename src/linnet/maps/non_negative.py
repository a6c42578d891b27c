"""Matrices with entries >= 0."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.softplus import draw_positive, positive, positive_raw


class NonNegativeLinear(LinearMap):
    """y = x A + b with A >= 0.

    A = s·softplus(raw/s), s = 1/√in. The start has nn.Linear's second moment: entries uniform on [0, 1/√in]. Any
    matrix is assigned as max(A, 0), the nearest; an exact zero becomes eps² s.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - raw: ([beings,] out_features, in_features)

    Example:
        >>> layer = NonNegativeLinear(3, 5)
        >>> bool((layer.weight >= 0).all())
        True

    Reference:
        C. Dugas, Y. Bengio, F. Bélisle, C. Nadeau, R. Garcia, Incorporating second-order functional knowledge for
        better option pricing, 2000 (the softplus).
    """

    family = "nonnegative"
    promise = "A >= 0"

    raw: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"raw": (self.out_features, self.in_features)}

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.in_features)

    def _weight(self, raw: Tensor) -> Tensor:
        return positive(raw, self._scale)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"raw": positive_raw(weight, self._scale, torch.finfo(self.raw.dtype).eps)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        draw_positive(raw["raw"], self._scale, self._scale, generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return (-weight).amax((-2, -1)).clamp_min(0) / weight.abs().amax((-2, -1)).clamp_min(1e-300)

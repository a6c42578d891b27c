"""Matrices with entries >= 0 whose row sums lie in an interval."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.intervals import check_interval
from linnet.maps.math.simplex import logit_spread, project_band, softmax


class PerronFrobeniusLinear(LinearMap):
    """y = x A + b with A >= 0 and every row sum of A in [sigma_min, sigma_max].

    For a square A its spectral radius, the Perron–Frobenius eigenvalue, then lies in the same interval. A = diag(r) P
    with P = softmax(logits) over the outputs and r = sigma_min + (sigma_max − sigma_min) sigmoid(sums). Any other
    matrix is assigned row by row as the nearest; an exact zero becomes the smallest positive number. At the start the
    row sums are uniform on the interval.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sigma_min: least row sum, >= 0.
        sigma_max: largest row sum, > 0 and >= sigma_min.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - logits: ([beings,] out_features, in_features)
        - sums: ([beings,] in_features)

    Raises:
        ValueError: the bounds are not finite or not 0 <= sigma_min <= sigma_max, sigma_max > 0.

    Example:
        >>> layer = PerronFrobeniusLinear(6, 6)
        >>> radius = layer.eigvals().abs().max()
        >>> bool(0.8 - 1e-5 <= radius <= 1 + 1e-5)
        True

    Reference:
        A. Tuor, J. Drgoňa, D. Vrabie, Constrained neural ordinary differential equations with stability guarantees,
        2020, arXiv 2004.10883.
    """

    family = "stochastic"
    promise = "A >= 0, row sums in [sigma_min, sigma_max]"

    logits: nn.Parameter
    sums: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_min: float = 0.8,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max)
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"logits": (self.out_features, self.in_features), "sums": (self.in_features,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"sigma_min": 0.0, "sigma_max": 3.0}]

    def _weight(self, logits: Tensor, sums: Tensor) -> Tensor:
        row_sums = self.sigma_min + (self.sigma_max - self.sigma_min) * sums.sigmoid()
        return softmax(logits, -2) * row_sums.unsqueeze(-2)  # row i of A is column i of W

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        info = torch.finfo(self.logits.dtype)
        a = project_band(weight.mT, self.sigma_min, self.sigma_max)  # (..., in, out)
        total = a.sum(-1, keepdim=True)
        logits = (a / total.clamp_min(1e-300)).clamp_min(info.tiny).log()
        width = self.sigma_max - self.sigma_min
        place = (total.squeeze(-1) - self.sigma_min) / width if width > 0 else torch.full_like(a[..., 0], 0.5)
        return {"logits": logits.mT, "sums": place.logit(eps=info.eps)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["logits"].normal_(0, logit_spread(self.out_features), generator=generator)
        raw["sums"].uniform_(0, 1, generator=generator)
        raw["sums"].copy_(raw["sums"].logit(eps=1e-3))

    def _violation(self, weight: Tensor) -> Tensor:
        total = weight.sum(-2)  # (..., in)
        outside = torch.maximum(self.sigma_min - total, total - self.sigma_max).amax(-1)
        return torch.maximum(outside, (-weight).amax((-2, -1))).clamp_min(0) / self.sigma_max

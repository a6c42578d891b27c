"""Matrices with entries >= 0 whose rows sum to 1."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.simplex import logit_spread, project_simplex, simplex_violation, softmax


class RightStochasticLinear(LinearMap):
    """y = x A + b with A >= 0 and every row of A summing to 1, so that ``layer(p).sum(-1) == p.sum(-1)``.

    A = softmax(logits) over the outputs. Any other matrix is assigned row by row as the nearest point of the simplex;
    an exact zero becomes the smallest positive number.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - logits: ([beings,] out_features, in_features)

    Example:
        >>> layer = RightStochasticLinear(3, 5, bias=False)
        >>> p = torch.tensor([0.2, 0.3, 0.5])
        >>> bool((layer(p).sum() - 1).abs() < 1e-6)
        True

    Reference:
        J. Drgoňa et al., Spectral analysis and stability of deep neural dynamics, 2020, arXiv 2011.13492.
    """

    family = "stochastic"
    promise = "A >= 0, rows sum to 1"

    logits: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"logits": (self.out_features, self.in_features)}

    def _weight(self, logits: Tensor) -> Tensor:
        return softmax(logits, -2)  # row i of A is column i of W

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        a = project_simplex(weight.mT)  # (..., in, out)
        smallest = torch.finfo(self.logits.dtype).tiny
        return {"logits": a.mT.clamp_min(smallest).log()}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["logits"].normal_(0, logit_spread(self.out_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return simplex_violation(weight.mT)

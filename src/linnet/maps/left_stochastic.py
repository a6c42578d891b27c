"""Matrices with entries >= 0 whose columns sum to 1."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.simplex import logit_spread, project_simplex, simplex_violation, softmax


class LeftStochasticLinear(LinearMap):
    """y = x A + b with A >= 0 and every column of A summing to 1: each output is a weighted mean of the inputs.

    A = softmax(logits) over the inputs. Any other matrix is assigned column by column as the nearest point of the
    simplex; an exact zero becomes the smallest positive number.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - logits: ([beings,] out_features, in_features)

    Example:
        >>> layer = LeftStochasticLinear(3, 5, bias=False)
        >>> torch.allclose(layer(torch.full((3,), 7.0)), torch.full((5,), 7.0))
        True

    Reference:
        J. Drgoňa et al., Spectral analysis and stability of deep neural dynamics, 2020, arXiv 2011.13492.
    """

    family = "stochastic"
    promise = "A >= 0, columns sum to 1"

    logits: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"logits": (self.out_features, self.in_features)}

    def _weight(self, logits: Tensor) -> Tensor:
        return softmax(logits, -1)  # column j of A is row j of W

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        p = project_simplex(weight)
        return {"logits": p.clamp_min(torch.finfo(self.logits.dtype).tiny).log()}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["logits"].normal_(0, logit_spread(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return simplex_violation(weight)

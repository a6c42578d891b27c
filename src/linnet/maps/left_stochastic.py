"""Matrices with entries >= 0 whose columns sum to 1."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.simplex import lively_logit_scale, project_simplex, simplex_violation, softmax

__all__ = ["LeftStochasticLinear"]


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

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        shape = (*self.leading, self.out_features, self.in_features)
        self.logits = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def _weight(self, logits: Tensor) -> Tensor:
        return softmax(logits, -1)  # column j of A is row j of W

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        p = project_simplex(weight)
        return {"logits": p.clamp_min(torch.finfo(self.logits.dtype).tiny).log()}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["logits"].normal_(0, lively_logit_scale(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return simplex_violation(weight)

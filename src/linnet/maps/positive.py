"""Matrices with entries >= 0."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap

__all__ = ["RightStochasticLinear"]


def project_simplex(x: Tensor) -> Tensor:
    """The nearest point of the probability simplex {p >= 0, Σp = 1} to each vector along the last axis.

    Reference:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball for learning in
        high dimensions, 2008.
    """
    x = x - x.amax(-1, keepdim=True)  # the same point; at any scale the largest entry then stays positive
    descending = x.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    threshold = (descending.cumsum(-1) - 1) / count  # (..., n): the shift if the first `count` entries stay positive
    kept = (descending > threshold).sum(-1, keepdim=True)
    return (x - threshold.gather(-1, kept - 1)).clamp_min(0)


def simplex_violation(p: Tensor) -> Tensor:
    """The larger of |Σp − 1| and the most negative entry, over vectors along the last axis: (..., k, n) -> (...)."""
    off_sum = (p.sum(-1) - 1).abs().amax(-1)
    return torch.maximum(off_sum, (-p).amax((-2, -1)).clamp_min(0))


def lively_logit_scale(n: int) -> float:
    """Standard deviation of normal logits whose softmax over n entries has coefficient of variation ~ √n/2.

    With small logits every row of a stochastic matrix is nearly uniform and the matrix has rank one: nothing but the
    mean passes. exp of N(0, s²) has coefficient of variation √(exp(s²) − 1).
    """
    return math.sqrt(math.log1p(n / 4))


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

    promise = "A >= 0, rows sum to 1"

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
        p = logits.softmax(-2)  # row i of A is column i of W
        return p / p.detach().sum(-2, keepdim=True)  # softmax adds up naively here: 1e-4 off for 300 000 outputs

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        a = project_simplex(weight.mT)  # (..., in, out)
        smallest = torch.finfo(self.logits.dtype).tiny
        return {"logits": a.mT.clamp_min(smallest).log()}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["logits"].normal_(0, lively_logit_scale(self.out_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return simplex_violation(weight.mT)

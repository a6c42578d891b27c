"""Matrices of low rank."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap


class LowRankLinear(LinearMap):
    """y = x A + b with rank(A) <= rank: two skinny products, x ``down``ᵀ ``up``ᵀ.

    Any matrix is assigned as its truncated SVD, the nearest of that rank, with singular values shared evenly between
    the two factors. Fresh outputs have nn.Linear's scale.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        rank: at most min(in_features, out_features); None means a quarter of that, but at least 1.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - down: ([beings,] rank, in_features)
        - up: ([beings,] out_features, rank)

    Raises:
        ValueError: rank is not in 1..min(in_features, out_features).

    Example:
        >>> layer = LowRankLinear(40, 30, rank=2)
        >>> int(torch.linalg.matrix_rank(layer.weight))
        2

    Reference:
        C. Eckart, G. Young, The approximation of one matrix by another of lower rank, 1936.
    """

    family = "rank"
    promise = "rank(A) <= rank"
    fast = True
    decays = ("down", "up")

    down: nn.Parameter
    up: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.rank = rank
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        smaller = min(self.in_features, self.out_features)
        r = max(1, smaller // 4) if self.rank is None else check_positive(rank=self.rank)[0]
        if r > smaller:
            raise ValueError(f"rank must be at most min(in_features, out_features)={smaller}, got {r}")
        return {"down": (r, self.in_features), "up": (self.out_features, r)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"rank": 3}]

    def _weight(self, down: Tensor, up: Tensor) -> Tensor:
        return up @ down

    def _product(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return (x @ down.mT) @ up.mT

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        r = self.down.shape[-2]
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, vh = u[..., :r], s[..., :r], vh[..., :r, :]
        # A direction that the matrix lacks keeps a row of `down`: with both factors 0 no gradient would find it.
        largest = torch.where(s[..., :1] > 0, s[..., :1], 1.0)
        share = torch.maximum(s, largest * torch.finfo(self.down.dtype).eps).sqrt()
        return {"down": share.unsqueeze(-1) * vh, "up": u * (s / share).unsqueeze(-2)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        down, up = raw["down"], raw["up"]
        (r, n), m = down.shape, up.shape[0]
        # An entry of A is a sum of r products: with variances s² and t² of the factors it has r s²t² = 1/(3n),
        # nn.Linear's; the factors have one norm if r n s² = m r t².
        spread = (m / (3 * r * n**2)) ** 0.25
        down.normal_(0, spread, generator=generator)
        up.normal_(0, spread * math.sqrt(n / m), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        s = torch.linalg.svdvals(weight)
        r = self.down.shape[-2]
        if r == s.shape[-1]:
            return torch.zeros_like(s[..., 0])
        return s[..., r] / s[..., 0].clamp_min(torch.finfo(s.dtype).tiny)

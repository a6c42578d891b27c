"""Monarch matrices: two block-diagonal factors with a permutation in between."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.blocks import blocks_near_root, check_blocks
from linnet.maps.math.rank_one import rank_one, rank_one_error
from linnet.maps.math.two_stages import monarch, two_stages


class MonarchLinear(LinearMap):
    """y = x A + b with W = Aᵀ = P L Pᵀ R, L and R block-diagonal, P the permutation that turns rows into columns.

    With b blocks there are about b (in + out) numbers, and the product is two batched small ones. Sizes that b does
    not divide are padded with zeros and cut off. Any matrix is assigned as the nearest: b² blocks of rank one.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        blocks: b, the number of blocks of R, and of L; None takes about √max(in, out), if possible a divisor of both.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - first (R): ([beings,] b, b, ⌈in/b⌉)
        - second (L): ([beings,] b, ⌈out/b⌉, b)

    Raises:
        ValueError: blocks is not a positive integer or exceeds a size.

    Example:
        >>> layer = MonarchLinear(64, 64, bias=False)
        >>> sum(p.numel() for p in layer.parameters())
        1024

    Reference:
        T. Dao et al., Monarch: expressive structured matrices for efficient and accurate training, 2022,
        arXiv 2204.00595.
    """

    family = "few-parameters"
    promise = "Aᵀ = P L Pᵀ R, L and R block-diagonal"
    fast = True
    decays = ("first", "second")

    first: nn.Parameter
    second: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        blocks: int | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.blocks = blocks
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, m = self.in_features, self.out_features
        usual = min(blocks_near_root(max(n, m), (n, m)), n, m)
        b = usual if self.blocks is None else check_blocks(self.blocks, n, m)
        return {"first": (b, b, -(-n // b)), "second": (b, -(-m // b), b)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"blocks": 2, "in_features": 8, "out_features": 6}]

    def _weight(self, first: Tensor, second: Tensor) -> Tensor:
        return monarch(first, second)[..., : self.out_features, : self.in_features]

    def _product(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        missing = first.shape[-3] * first.shape[-1] - self.in_features
        x = F.pad(x, (0, missing)) if missing else x
        y = two_stages(x, first, second)
        return y if y.shape[-1] == self.out_features else y[..., : self.out_features].clone()

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        second, first = rank_one(self._blocks(weight))  # (..., k, q, s), (..., k, q, p)
        return {"first": first, "second": second.movedim(-3, -1)}

    def _blocks(self, weight: Tensor) -> Tensor:
        """W, padded with zeros -> its blocks, (..., k, q, s, p)."""
        (b, p), s = self.first.shape[-2:], self.second.shape[-2]
        full = F.pad(weight, (0, b * p - self.in_features, 0, b * s - self.out_features))
        return full.unflatten(-1, (b, p)).unflatten(-3, (s, b)).movedim(-2, -4).transpose(-3, -2)

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        first, second = raw["first"], raw["second"]
        bound = math.sqrt(3 / first.shape[-1])  # R keeps the size of a vector, L brings it to nn.Linear's
        first.uniform_(-bound, bound, generator=generator)
        bound = 1 / math.sqrt(second.shape[-1])
        second.uniform_(-bound, bound, generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return rank_one_error(self._blocks(weight), 2)

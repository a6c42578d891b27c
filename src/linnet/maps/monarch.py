"""Monarch matrices: two block-diagonal factors with a permutation in between."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.autograd import eager, through_reference
from linnet.core.linear_map import LinearMap
from linnet.maps.structured import blocks_near_root, check_blocks, rank_one, rank_one_error

__all__ = ["MonarchLinear"]


def monarch(first: Tensor, second: Tensor) -> Tensor:
    """R, (..., k, q, p), and L, (..., q, s, k) -> the matrix P L Pᵀ R, (..., s q, k p).

    The p inputs of block k, and the s outputs of number q within their group, are joined by a block of rank one.
    """
    return torch.einsum("...qsk,...kqp->...sqkp", second, first).flatten(-4, -3).flatten(-2)


def two_stages_reference(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """x (P L Pᵀ R)ᵀ for rows x, (..., batch, k p) -> (..., batch, s q), in operations that autograd sees."""
    x = x.unflatten(-1, (-1, first.shape[-1])).movedim(-3, -1)  # (..., k, p, batch)
    z = (first @ x).transpose(-3, -2).contiguous()  # (..., k, q, batch) -> (..., q, k, batch)
    y = (second @ z).movedim(-1, -3).transpose(-2, -1)  # (..., q, s, batch) -> (..., batch, s, q)
    return y.flatten(-2)


def two_stages(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What :func:`two_stages_reference` computes, with a backward by hand where one real map is at work."""
    if x.dim() == 2 and first.dim() == second.dim() == 3 and not first.is_complex() and eager():
        return _TwoStages.apply(x.contiguous(), first, second)
    return two_stages_reference(x, first, second)


class _TwoStages(torch.autograd.Function):
    """:func:`two_stages` for one map, with no copy of x and one of each gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        k, _, p = first.shape
        z = torch.bmm(first, x.view(len(x), k, p).permute(1, 2, 0)).transpose(0, 1).contiguous()  # (q, k, batch)
        ctx.save_for_backward(x, first, second, z)
        q, s, _ = second.shape
        y = x.new_empty(len(x), s * q)  # no view, so that it may be changed in place
        y.view(len(x), s, q).copy_(torch.bmm(second, z).permute(2, 1, 0))  # (q, s, batch) -> (batch, s q)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, first, second, z = ctx.saved_tensors
        if torch.is_grad_enabled() or not eager():
            return through_reference(two_stages_reference, (x, first, second), ctx.needs_input_grad, grad)
        (k, _, p), (q, s, _) = first.shape, second.shape
        gy = grad.reshape(len(x), s, q).permute(2, 1, 0).contiguous()  # (q, s, batch)
        gz = torch.bmm(second.mT, gy).transpose(0, 1).contiguous()  # (k, q, batch)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = torch.bmm(gz.mT, first).transpose(0, 1).reshape(x.shape)  # (k, batch, p) -> (batch, k p)
        return gx, torch.bmm(gz, x.view(len(x), k, p).transpose(0, 1)), torch.bmm(gy, z.mT)


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

    promise = "Aᵀ = P L Pᵀ R, L and R block-diagonal"
    fast = True
    decays = ("first", "second")

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
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        n, m = self.in_features, self.out_features
        self.blocks = blocks
        usual = min(blocks_near_root(max(n, m), (n, m)), n, m)
        b = usual if blocks is None else check_blocks(blocks, n, m)
        self.first = nn.Parameter(torch.empty(*self.leading, b, b, -(-n // b), device=device, dtype=dtype))
        self.second = nn.Parameter(torch.empty(*self.leading, b, -(-m // b), b, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"blocks": 2, "in_features": 8, "out_features": 6}]

    def _weight(self, first: Tensor, second: Tensor) -> Tensor:
        return monarch(first, second)[..., : self.out_features, : self.in_features]

    def forward(self, input: Tensor) -> Tensor:
        return self._matrix_free(input, self._product)

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

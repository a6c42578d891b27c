"""Block-diagonal matrices: separate small maps, evaluated as one."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.maps.abstract.invertible import Invertible
from linnet.maps.math.blocks import blocks_near_root, check_blocks, split_evenly


class BlockDiagonalLinear(Invertible):
    """y = x A + b with A zero outside of blocks along the diagonal: separate small maps, evaluated as one.

    Block i joins inputs ⌊i in/b⌋ up to ⌊(i+1) in/b⌋ with the outputs of the same kind, so that the blocks differ by at
    most one in each size. Any matrix is assigned by its blocks, the nearest.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        blocks: b, the number of blocks; None takes about √min(in, out), if possible a divisor of both.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - entries: ([beings,] b, ⌈out/b⌉, ⌈in/b⌉); smaller blocks leave their last row or column unused

    Raises:
        ValueError: blocks is not a positive integer or exceeds a size.

    Example:
        >>> layer = BlockDiagonalLinear(6, 4, bias=False, blocks=2)
        >>> (layer.weight != 0).int()
        tensor([[1, 1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [0, 0, 0, 1, 1, 1],
                [0, 0, 0, 1, 1, 1]], dtype=torch.int32)

    Reference:
        A. Krizhevsky, I. Sutskever, G. E. Hinton, ImageNet classification with deep convolutional neural networks,
        2012 (maps in groups).
    """

    family = "few-parameters"
    promise = "a_ij = 0 outside of the diagonal blocks"
    fast = True
    decays = ("entries",)

    entries: nn.Parameter

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
        b = blocks_near_root(min(n, m), (n, m)) if self.blocks is None else check_blocks(self.blocks, n, m)
        return {"entries": (b, -(-m // b), -(-n // b))}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"blocks": 3}, {"blocks": 2, "in_features": 6, "out_features": 8}]

    def _weight(self, entries: Tensor) -> Tensor:
        inside, place = self._places(entries.device)
        return torch.where(inside, entries.flatten(-3)[..., place], 0)

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Whether each entry of W lies in a block, and where in ``entries``: (out, in) each."""
        b, s, p = self.entries.shape[-3:]
        block_of_row, row = split_evenly(self.out_features, b, device)
        block_of_column, column = split_evenly(self.in_features, b, device)
        return block_of_row.unsqueeze(-1) == block_of_column, ((block_of_row * s + row) * p).unsqueeze(-1) + column

    def _product(self, x: Tensor, entries: Tensor) -> Tensor:
        # All blocks have the size of the largest, so that one batched product serves them all.
        b, s, p = entries.shape[-3:]
        if b * p != self.in_features:  # the shorter blocks take a zero as their last input
            block, column = split_evenly(self.in_features, b, x.device)
            source = torch.full((b * p,), self.in_features, device=x.device)
            source = source.scatter(0, block * p + column, torch.arange(self.in_features, device=x.device))
            x = F.pad(x, (0, 1))[..., source]
        x = x.unflatten(-1, (b, p)).transpose(-3, -2)  # (..., b, batch, p)
        y = (x @ entries.mT).transpose(-3, -2).flatten(-2)  # (..., batch, b s)
        if b * s != self.out_features:
            block, row = split_evenly(self.out_features, b, x.device)
            y = y[..., block * s + row]
        return y

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        return self._weight(torch.linalg.inv(self._completed(raw["entries"])))

    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        return torch.linalg.slogdet(self._completed(raw["entries"]))[1].sum(-1)

    def _completed(self, entries: Tensor) -> Tensor:
        """Square blocks in which the unused last row and column of the smaller ones are those of the identity."""
        b, s = entries.shape[-3:-1]
        size = torch.bincount(split_evenly(self.in_features, b, entries.device)[0], minlength=b)
        used = torch.arange(s, device=entries.device) < size.unsqueeze(-1)  # (b, s)
        inside = used.unsqueeze(-1) & used.unsqueeze(-2)
        return torch.where(inside, entries, torch.eye(s, device=entries.device, dtype=entries.dtype))

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        inside, place = self._places(weight.device)
        entries = weight.new_zeros(*weight.shape[:-2], self.entries.shape[-3:].numel())
        entries[..., place[inside]] = weight[..., inside]
        return {"entries": entries.unflatten(-1, self.entries.shape[-3:])}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        bound = math.sqrt(raw["entries"].shape[-3] / self.in_features)  # 1/√(inputs of a block)
        raw["entries"].uniform_(-bound, bound, generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        inside, _ = self._places(weight.device)
        outside = torch.where(inside, 0, weight).abs().amax((-2, -1))
        return outside / weight.abs().amax((-2, -1)).clamp_min(torch.finfo(weight.dtype).tiny)

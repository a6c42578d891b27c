"""Matrices of few numbers, whose product with a vector costs little: block-diagonal and Kronecker."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.being import check_positive
from linnet.maps.invertible import Invertible

__all__ = ["BlockDiagonalLinear", "KroneckerLinear"]


def rank_one(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """u, (..., s), and v, (..., p), of equal norm with u vᵀ the nearest matrix of rank one to each, (..., s, p)."""
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    root = sigma[..., :1].sqrt()
    return u[..., 0] * root, vh[..., 0, :] * root


def rank_one_error(blocks: Tensor, axes: int) -> Tensor:
    """How far blocks, (..., m, n), are from rank one, relative to their largest entry: reduced over the last axes too.

    What remains after the cross of the largest entry is taken out; a singular value decomposition would round more.
    """
    n = blocks.shape[-1]
    pivot = blocks.abs().flatten(-2).argmax(-1)[..., None, None]  # (..., 1, 1)
    row = blocks.gather(-2, (pivot // n).expand(*blocks.shape[:-2], 1, n))
    column = blocks.gather(-1, (pivot % n).expand(*blocks.shape[:-1], 1))
    corner = row.gather(-1, pivot % n)
    rest = blocks - column * (row / torch.where(corner == 0, 1.0, corner))
    reduced = tuple(range(-2 - axes, 0))
    largest = blocks.abs().amax(reduced).clamp_min(torch.finfo(blocks.dtype).tiny)
    return rest.abs().amax(reduced) / largest


def kronecker(first: Tensor, second: Tensor) -> Tensor:
    """(..., a, b), (..., c, d) -> their Kronecker product, (..., ac, bd)."""
    return (first[..., :, None, :, None] * second[..., None, :, None, :]).flatten(-4, -3).flatten(-2)


def blocks_near_root(n: int, sizes: tuple[int, int]) -> int:
    """A number of blocks about √n: the nearest that divides both sizes, if it is at most twice off, else √n rounded."""
    root = math.sqrt(n)
    divisors = [d for d in range(1, math.gcd(*sizes) + 1) if math.gcd(*sizes) % d == 0]
    nearest = min(divisors, key=lambda d: abs(math.log(d / root)))
    return nearest if root / 2 <= nearest <= 2 * root else max(1, round(root))


def check_blocks(blocks: int, in_features: int, out_features: int) -> int:
    """``blocks`` as an int; it must not exceed either size."""
    count = check_positive(blocks=blocks)[0]
    if count > min(in_features, out_features):
        raise ValueError(
            f"blocks must be at most min(in_features, out_features) = {min(in_features, out_features)}, "
            f"however: {count}"
        )
    return count


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

    promise = "a_ij = 0 outside of the diagonal blocks"
    fast = True
    decays = ("entries",)

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
        b = blocks_near_root(min(n, m), (n, m)) if blocks is None else check_blocks(blocks, n, m)
        self.entries = nn.Parameter(torch.empty(*self.leading, b, -(-m // b), -(-n // b), device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"blocks": 3}, {"blocks": 2, "in_features": 6, "out_features": 8}]

    def _weight(self, entries: Tensor) -> Tensor:
        inside, place = self._places(entries.device)
        return torch.where(inside, entries.flatten(-3)[..., place], 0)

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Whether each entry of W lies in a block, and where in ``entries``: (out, in) each."""
        b, s, p = self.entries.shape[-3:]
        block_of_row, row = _split(self.out_features, b, device)
        block_of_column, column = _split(self.in_features, b, device)
        return block_of_row.unsqueeze(-1) == block_of_column, ((block_of_row * s + row) * p).unsqueeze(-1) + column

    def forward(self, input: Tensor) -> Tensor:
        return self._matrix_free(input, self._product)

    def _product(self, x: Tensor, entries: Tensor) -> Tensor:
        b, s, p = entries.shape[-3:]
        if b * p != self.in_features:  # the shorter blocks take a zero as their last input
            block, column = _split(self.in_features, b, x.device)
            source = torch.full((b * p,), self.in_features, device=x.device)
            source = source.scatter(0, block * p + column, torch.arange(self.in_features, device=x.device))
            x = F.pad(x, (0, 1))[..., source]
        x = x.unflatten(-1, (b, p)).transpose(-3, -2)  # (..., b, batch, p)
        y = (x @ entries.mT).transpose(-3, -2).flatten(-2)  # (..., batch, b s)
        if b * s != self.out_features:
            block, row = _split(self.out_features, b, x.device)
            y = y[..., block * s + row]
        return y

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        return self._weight(torch.linalg.inv(self._filled(raw["entries"])))

    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        return torch.linalg.slogdet(self._filled(raw["entries"]))[1].sum(-1)

    def _filled(self, entries: Tensor) -> Tensor:
        """Square blocks in which the unused last row and column of the smaller ones are those of the identity."""
        b, s = entries.shape[-3:-1]
        size = torch.bincount(_split(self.in_features, b, entries.device)[0], minlength=b)
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


class KroneckerLinear(Invertible):
    """y = x A + b with A = A₁ ⊗ A₂, a Kronecker product.

    Any matrix is assigned as the nearest Kronecker product of these sizes. Where both sizes are prime, A₁ is a single
    number and A is free.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        factors: (in, out) sizes of A₁, divisors of in_features and out_features; None takes of each the largest
            divisor up to its square root.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - first (A₁ᵀ): ([beings,] o₁, i₁)
        - second (A₂ᵀ): ([beings,] out/o₁, in/i₁)

    Raises:
        ValueError: factors is not a pair of divisors of in_features and out_features.

    Example:
        >>> layer = KroneckerLinear(6, 4)
        >>> torch.allclose(layer.weight, torch.kron(layer.first, layer.second))
        True

    Reference:
        C. F. Van Loan, N. Pitsianis, Approximation with Kronecker products, 1993.
    """

    promise = "A = A₁ ⊗ A₂"
    fast = True
    decays = ("first", "second")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        factors: tuple[int, int] | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.factors = factors
        i, o = (_divisor(self.in_features), _divisor(self.out_features)) if factors is None else self._check(factors)
        i2, o2 = self.in_features // i, self.out_features // o
        self.first = nn.Parameter(torch.empty(*self.leading, o, i, device=device, dtype=dtype))
        self.second = nn.Parameter(torch.empty(*self.leading, o2, i2, device=device, dtype=dtype))
        self.reset_parameters()

    def _check(self, factors: Any) -> list[int]:
        pair = tuple(factors) if isinstance(factors, (tuple, list)) else ()
        if len(pair) != 2:
            raise ValueError(f"factors must be a pair (in, out), however: {factors!r}")
        sizes = check_positive(**{"factors[0]": pair[0], "factors[1]": pair[1]})
        if self.in_features % sizes[0] or self.out_features % sizes[1]:
            raise ValueError(
                f"factors must divide in_features={self.in_features} and out_features={self.out_features}, "
                f"however: {factors!r}"
            )
        return sizes

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        sizes = {"in_features": 6, "out_features": 4}
        return [sizes, {"factors": (3, 4), **sizes}]

    def _weight(self, first: Tensor, second: Tensor) -> Tensor:
        return kronecker(first, second)

    def forward(self, input: Tensor) -> Tensor:
        return self._matrix_free(input, self._product)

    def _product(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        i, i2 = first.shape[-1], second.shape[-1]
        batch = x.shape[-2]
        y = x.unflatten(-1, (i, i2)).flatten(-3, -2) @ second.mT  # (..., batch i₁, o₂)
        y = y.unflatten(-2, (batch, i)).transpose(-2, -1).flatten(-3, -2) @ first.mT  # (..., batch o₂, o₁)
        return y.unflatten(-2, (batch, second.shape[-2])).transpose(-2, -1).flatten(-2)

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        return kronecker(torch.linalg.inv(raw["first"]), torch.linalg.inv(raw["second"]))

    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        first, second = (torch.linalg.slogdet(raw[name])[1] for name in ("first", "second"))
        return self.second.shape[-1] * first + self.first.shape[-1] * second

    def _wide_raw(self) -> dict[str, Tensor]:
        raw = super()._wide_raw()
        if self.first.shape[-1] != self.first.shape[-2]:
            raise ValueError(
                "An inverse and a determinant need a square A₁, without which A₁ ⊗ A₂ is singular, "
                f"however: {self.first.shape[-1]} -> {self.first.shape[-2]}"
            )
        return raw

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        first, second = rank_one(self._rearranged(weight))
        return {"first": first.reshape(self.first.shape), "second": second.reshape(self.second.shape)}

    def _rearranged(self, weight: Tensor) -> Tensor:
        """Each block of W as one row, (..., o₁ i₁, o₂ i₂): of rank one iff W is a Kronecker product."""
        (o, i), (o2, i2) = self.first.shape[-2:], self.second.shape[-2:]
        blocks = weight.unflatten(-1, (i, i2)).unflatten(-3, (o, o2)).transpose(-3, -2)  # (..., o₁, i₁, o₂, i₂)
        return blocks.flatten(-2).flatten(-3, -2)

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        bound = math.sqrt(3 / raw["first"].shape[-1])  # A₁ keeps the size of a vector, A₂ brings it to nn.Linear's
        raw["first"].uniform_(-bound, bound, generator=generator)
        bound = 1 / math.sqrt(raw["second"].shape[-1])
        raw["second"].uniform_(-bound, bound, generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return rank_one_error(self._rearranged(weight), 0)


def _divisor(n: int) -> int:
    return max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)


def _split(n: int, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of n places its block, ⌊i n/b⌋ being where block i starts, and its place inside it."""
    starts = [i * n // blocks for i in range(blocks + 1)]
    block = [i for i in range(blocks) for _ in range(starts[i], starts[i + 1])]
    inner = [j - starts[i] for i in range(blocks) for j in range(starts[i], starts[i + 1])]
    return torch.tensor(block, device=device), torch.tensor(inner, device=device)

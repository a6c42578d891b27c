"""Kronecker products of two small matrices."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.maps.abstract.invertible import Invertible
from linnet.maps.math.rank_one import rank_one, rank_one_error


def kronecker(first: Tensor, second: Tensor) -> Tensor:
    """(..., a, b), (..., c, d) -> their Kronecker product, (..., ac, bd)."""
    return (first[..., :, None, :, None] * second[..., None, :, None, :]).flatten(-4, -3).flatten(-2)


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

    family = "few-parameters"
    promise = "A = A₁ ⊗ A₂"
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
        factors: tuple[int, int] | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.factors = factors
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, m = self.in_features, self.out_features
        i, o = (_divisor(n), _divisor(m)) if self.factors is None else self._check(self.factors)
        return {"first": (o, i), "second": (m // o, n // i)}

    def _check(self, factors: Any) -> list[int]:
        pair = tuple(factors) if isinstance(factors, (tuple, list)) else ()
        if len(pair) != 2:
            raise ValueError(f"factors must be a pair (in, out), got {factors!r}")
        sizes = check_positive(**{"factors[0]": pair[0], "factors[1]": pair[1]})
        if self.in_features % sizes[0] or self.out_features % sizes[1]:
            raise ValueError(
                f"factors must divide in_features={self.in_features} and out_features={self.out_features}, "
                f"got {factors!r}"
            )
        return sizes

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        sizes = {"in_features": 6, "out_features": 4}
        return [sizes, {"factors": (3, 4), **sizes}]

    def _weight(self, first: Tensor, second: Tensor) -> Tensor:
        return kronecker(first, second)

    def _product(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        # (A₁ ⊗ A₂) is applied to x, read as an i₁ × i₂ matrix X, as A₁ᵀ X A₂: two small products, by A₂ and then by A₁.
        i, i2 = first.shape[-1], second.shape[-1]
        batch = x.shape[-2]
        y = x.unflatten(-1, (i, i2)).flatten(-3, -2) @ second.mT  # (..., batch i₁, o₂)
        y = y.unflatten(-2, (batch, i)).transpose(-2, -1).flatten(-3, -2) @ first.mT  # (..., batch o₂, o₁)
        return y.unflatten(-2, (batch, second.shape[-2])).transpose(-2, -1).flatten(-2)

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        return kronecker(torch.linalg.inv(raw["first"]), torch.linalg.inv(raw["second"]))

    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        # det(A₁ ⊗ A₂) = det(A₁)^n₂ det(A₂)^n₁ for sizes n₁ and n₂
        first, second = (torch.linalg.slogdet(raw[name])[1] for name in ("first", "second"))
        return self.second.shape[-1] * first + self.first.shape[-1] * second

    def _wide_raw(self) -> dict[str, Tensor]:
        raw = super()._wide_raw()
        if self.first.shape[-1] != self.first.shape[-2]:
            raise ValueError(
                "An inverse and a determinant need a square A₁ (otherwise A₁ ⊗ A₂ is singular), "
                f"got {self.first.shape[-1]} -> {self.first.shape[-2]}"
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

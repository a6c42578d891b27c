"""Matrices that equal their transpose."""

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.triangles import mirror, symmetric_part, upper_triangle


class SymmetricLinear(LinearMap):
    """y = x A + b with A = Aᵀ, exactly.

    The upper triangle is the parameter, so each of the n(n+1)/2 degrees of freedom is stored once.
    A matrix that is not symmetric is assigned as (A + Aᵀ)/2, the nearest in the Frobenius norm.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - upper: ([beings,] n(n+1)/2)

    Raises:
        ValueError: in_features != out_features.

    Example:
        >>> layer = SymmetricLinear(4, 4)
        >>> bool((layer.weight == layer.weight.mT).all())
        True

    Reference:
        N. J. Higham, Matrix nearness problems and applications, 1989 (the nearest symmetric matrix).
    """

    family = "symmetric"
    promise = "A = Aᵀ"
    square = True
    decays = ("upper",)

    upper: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {"upper": (n * (n + 1) // 2,)}

    def _weight(self, upper: Tensor) -> Tensor:
        return mirror(upper, self.in_features)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"upper": upper_triangle(symmetric_part(weight))}

    def _violation(self, weight: Tensor) -> Tensor:
        scale = weight.abs().amax((-2, -1)).clamp_min(torch.finfo(weight.dtype).tiny)
        return (weight - weight.mT).abs().amax((-2, -1)) / scale

"""Matrices that equal minus their transpose."""

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.triangles import antimirror, skew_part, strict_upper


class SkewSymmetricLinear(LinearMap):
    """y = x A + b with A = −Aᵀ, exactly, so that x A is orthogonal to x and every eigenvalue is imaginary.

    The strict upper triangle is the parameter: n(n−1)/2 numbers; for n = 1 there is none and A = 0.
    Any other matrix is assigned as (A − Aᵀ)/2, the nearest in the Frobenius norm.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - upper: ([beings,] n(n-1)/2)

    Raises:
        ValueError: in_features != out_features.

    Example:
        >>> layer = SkewSymmetricLinear(4, 4)
        >>> bool((layer.weight == -layer.weight.mT).all())
        True

    Reference:
        E. Haber, L. Ruthotto, Stable architectures for deep neural networks, 2017, arXiv 1705.03341.
    """

    family = "symmetric"
    promise = "A = −Aᵀ"
    square = True
    decays = ("upper",)

    upper: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {"upper": (n * (n - 1) // 2,)}

    def _weight(self, upper: Tensor) -> Tensor:
        return -antimirror(upper, self.in_features)  # W = Aᵀ

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"upper": strict_upper(skew_part(weight.mT))}

    def _violation(self, weight: Tensor) -> Tensor:
        scale = weight.abs().amax((-2, -1)).clamp_min(torch.finfo(weight.dtype).tiny)
        return (weight + weight.mT).abs().amax((-2, -1)) / scale

"""Symmetric matrices with eigenvalues in an interval."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.maps.abstract.diagonal_core import DiagonalCore
from linnet.maps.math.householder import draw_reflections
from linnet.maps.math.intervals import angle_of, draw_angles, outside, sine_to_interval
from linnet.maps.math.svd import asymmetry, check_reflectors, eigen_factors, symmetric_matrix


class SymmetricSpectralLinear(DiagonalCore):
    """y = x A + b with A = Aᵀ and all eigenvalues of A in [sigma_min, sigma_max].

    A = Q diag(s) Qᵀ, Q a product of ``n_reflectors`` reflections, s a sine of the angles scaled to the interval, which
    may reach below 0; with sigma_min > 0, A is positive definite with condition number at most sigma_max / sigma_min.
    With n reflectors every such matrix is reached, and any matrix is assigned as its symmetric part with the
    eigenvalues clamped, the nearest in the Frobenius norm. With fewer, the layer is cheaper and Q reaches less far;
    ``assign`` then keeps the eigenvalues farthest from their mean with their vectors, and of the rest the
    diagonal, which need not be the nearest, even for a matrix that the layer can be.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        n_reflectors: reflections in Q, at most n; None means n.
        sigma_min: lower bound of the eigenvalues.
        sigma_max: upper bound of the eigenvalues.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - vectors: ([beings,] n_reflectors, n)
        - angles: ([beings,] n)

    Raises:
        ValueError: in_features != out_features; sigma_min > sigma_max, or both 0; or too many reflectors.

    Example:
        >>> layer = SymmetricSpectralLinear(6, 6, sigma_min=0.5, bias=False)
        >>> x = torch.randn(6)
        >>> bool(layer(x) @ x >= 0.49 * x @ x)
        True

    Reference:
        J. Zhang, Q. Lei, I. S. Dhillon, Stabilizing gradients for deep neural networks via efficient SVD
        parameterization, 2018, arXiv 1803.09327.
    """

    family = "singular-values"
    promise = "A = Aᵀ, sigma_min <= eigenvalues of A <= sigma_max"
    square = True
    lowest = -math.inf

    vectors: nn.Parameter
    angles: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        n_reflectors: int | None = None,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.n_reflectors = n_reflectors
        super().__init__(
            in_features,
            out_features,
            bias,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            beings=beings,
            device=device,
            dtype=dtype,
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {"vectors": (check_reflectors("n_reflectors", self.n_reflectors, n, n), n), "angles": (n,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        # fewer reflectors than n keep the contract but for an exact assign
        return [{}, {"sigma_min": -2.0, "sigma_max": -0.5}]

    def _weight(self, vectors: Tensor, angles: Tensor) -> Tensor:
        q, s, _ = self._parts(vectors=vectors, angles=angles)
        return symmetric_matrix(q, s)

    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return raw["vectors"], sine_to_interval(raw["angles"], self.sigma_min, self.sigma_max), raw["vectors"]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        vectors, s = eigen_factors(weight, self.vectors.shape[-2])
        return {"vectors": vectors, "angles": angle_of(s, self.sigma_min, self.sigma_max, self.angles.dtype)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["vectors"].copy_(draw_reflections(raw["vectors"].shape, generator, raw["vectors"])[0])
        draw_angles(raw["angles"], generator)

    def _violation(self, weight: Tensor) -> Tensor:
        eigenvalues = torch.linalg.eigvalsh((weight + weight.mT) / 2)
        scale = max(abs(self.sigma_min), abs(self.sigma_max))
        return torch.maximum(outside(eigenvalues, self.sigma_min, self.sigma_max), asymmetry(weight) / scale)

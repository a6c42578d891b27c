"""Symmetric matrices with singular values in an interval."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.maps.abstract.diagonal_core import DiagonalCore
from linnet.maps.math.householder import draw_reflections
from linnet.maps.math.intervals import angle_of, draw_angles, outside, sine_to_interval
from linnet.maps.math.svd import asymmetry, eigen_factors, symmetric_matrix


class SymmetricSVDLinear(DiagonalCore):
    """y = x A + b with A = Aᵀ and all singular values of A in [sigma_min, sigma_max].

    A = Q diag(± s) Qᵀ, Q a product of n reflections, s a sine of the angles scaled to the interval. The signs of the
    eigenvalues are not learned: ``reset_parameters`` draws them, each ± with equal chance, and ``assign`` sets them;
    with given signs every such matrix is reached. Any matrix is assigned as its symmetric part with the sizes of the
    eigenvalues clamped to the interval, the nearest in the Frobenius norm.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        sigma_min: lower bound, >= 0.
        sigma_max: upper bound, > 0.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - vectors: ([beings,] n, n)
        - angles: ([beings,] n)
        - signs: ([beings,] n), a buffer

    Raises:
        ValueError: in_features != out_features; not 0 <= sigma_min <= sigma_max, or both 0.

    Example:
        >>> layer = SymmetricSVDLinear(6, 6)
        >>> bool((layer.weight == layer.weight.mT).all()), bool((layer.svdvals() < 1.01).all())
        (True, True)

    Reference:
        J. Zhang, Q. Lei, I. S. Dhillon, Stabilizing gradients for deep neural networks via efficient SVD
        parameterization, 2018, arXiv 1803.09327.
    """

    family = "singular-values"
    promise = "A = Aᵀ, sigma_min <= singular values of A <= sigma_max"
    square = True
    fixed = ("signs",)

    vectors: nn.Parameter
    angles: nn.Parameter
    signs: Tensor

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {"vectors": (n, n), "angles": (n,), "signs": (n,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"sigma_min": 0.5, "sigma_max": 2.0}]

    def _weight(self, vectors: Tensor, angles: Tensor, signs: Tensor) -> Tensor:
        q, s, _ = self._parts(vectors=vectors, angles=angles, signs=signs)
        return symmetric_matrix(q, s)

    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = raw["signs"] * sine_to_interval(raw["angles"], self.sigma_min, self.sigma_max)
        return raw["vectors"], s, raw["vectors"]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        vectors, s = eigen_factors(weight, self.in_features)
        angles = angle_of(s.abs(), self.sigma_min, self.sigma_max, self.angles.dtype)
        return {"vectors": vectors, "angles": angles, "signs": torch.where(s < 0, -1.0, 1.0)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["vectors"].copy_(draw_reflections(raw["vectors"].shape, generator, raw["vectors"])[0])
        draw_angles(raw["angles"], generator)
        raw["signs"].bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

    def _violation(self, weight: Tensor) -> Tensor:
        beyond = outside(torch.linalg.svdvals(weight), self.sigma_min, self.sigma_max)
        return torch.maximum(beyond, asymmetry(weight) / self.sigma_max)

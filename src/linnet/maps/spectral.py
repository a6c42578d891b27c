"""Matrices with singular values or eigenvalues in an interval, with fewer reflections, or symmetric."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.being import check_positive
from linnet.maps.reflections import draw_reflections, householder_product, reflections
from linnet.maps.svd import (
    DiagonalCore,
    angle_in,
    check_interval,
    draw_angles,
    draw_svd,
    interval,
    outside,
    svd_factors,
    svd_matrix,
)

__all__ = ["SpectralLinear", "SymmetricSVDLinear", "SymmetricSpectralLinear"]


def check_reflectors(name: str, count: int | None, size: int, default: int) -> int:
    """The number of reflectors, or a ValueError unless it is in 1..size."""
    k = default if count is None else check_positive(**{name: count})[0]
    if k > size:
        raise ValueError(f"{name} must be at most {size}, the size of what is reflected, however: {k}")
    return k


def eigen_factors(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Reflection vectors q, (..., k, n), and eigenvalues s, (..., n), with (W + Wᵀ)/2 = Q diag(s) Qᵀ.

    Exact if k = n. Fewer reflectors take over the k eigenvalues that are farthest from the mean with their vectors, and
    s is the diagonal of Qᵀ W Q: the best for this Q.
    """
    values, vectors = torch.linalg.eigh((weight + weight.mT) / 2)
    order = (values - values.mean(-1, keepdim=True)).abs().argsort(-1, descending=True)[..., None, :k]
    q, _ = reflections(vectors.gather(-1, order.expand(*vectors.shape[:-1], k)))
    core = householder_product(householder_product(weight, q).mT, q)
    return q, core.diagonal(dim1=-2, dim2=-1)


def symmetric_matrix(q: Tensor, s: Tensor) -> Tensor:
    """Q diag(s) Qᵀ, exactly symmetric, (..., n, n), for reflection vectors q, (..., k, n), and values s, (..., n)."""
    w = svd_matrix(q, s, q)
    return (w + w.mT) / 2


def asymmetry(weight: Tensor) -> Tensor:
    """max |A − Aᵀ|, (..., n, n) -> (...)."""
    return (weight - weight.mT).abs().amax((-2, -1))


class SpectralLinear(DiagonalCore):
    """y = x A + b with the singular values of A in [sigma_min, sigma_max], and as many reflections as asked for.

    As :class:`SVDLinear`, A = U diag(± s) Vᵀ, but the numbers of reflections in U and in V are options: they set the
    cost and how far U and V reach, not the rank, for all min(in, out) singular values are still there. With
    min(in, out) reflectors each, every matrix with such singular values is reached and ``assign`` gives the nearest.
    With fewer, ``assign`` takes over the largest singular values with their vectors, as many as there are reflectors on
    both sides, and of the rest the diagonal; that need not be the nearest, even for a matrix that the layer can be.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        n_U_reflectors: reflections in U, at most in_features; None means min(in_features, out_features).
        n_V_reflectors: reflections in V, at most out_features; None means min(in_features, out_features).
        sigma_min: lower bound, >= 0.
        sigma_max: upper bound, > 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - u_vectors: ([beings,] n_U_reflectors, in_features)
        - v_vectors: ([beings,] n_V_reflectors, out_features)
        - angles: ([beings,] min(in_features, out_features))
        - signs: ([beings,] min(in_features, out_features)), a buffer

    Raises:
        ValueError: not 0 <= sigma_min <= sigma_max, or both 0; or too many reflectors.

    Example:
        >>> layer = SpectralLinear(64, 64, n_U_reflectors=8, n_V_reflectors=8, sigma_min=0.5)
        >>> bool((layer.svdvals() > 0.49).all())
        True

    Reference:
        J. Zhang, Q. Lei, I. S. Dhillon, Stabilizing gradients for deep neural networks via efficient SVD
        parameterization, 2018, arXiv 1803.09327.
    """

    promise = "sigma_min <= singular values of A <= sigma_max"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        n_U_reflectors: int | None = None,
        n_V_reflectors: int | None = None,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max)
        r = min(self.in_features, self.out_features)
        self.n_U_reflectors, self.n_V_reflectors = n_U_reflectors, n_V_reflectors
        n_u = check_reflectors("n_U_reflectors", n_U_reflectors, self.in_features, r)
        n_v = check_reflectors("n_V_reflectors", n_V_reflectors, self.out_features, r)
        self.u_vectors = nn.Parameter(torch.empty(*self.leading, n_u, self.in_features, device=device, dtype=dtype))
        self.v_vectors = nn.Parameter(torch.empty(*self.leading, n_v, self.out_features, device=device, dtype=dtype))
        self.angles = nn.Parameter(torch.empty(*self.leading, r, device=device, dtype=dtype))
        self.register_buffer("signs", torch.empty(*self.leading, r, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        # fewer reflectors than min(in, out) keep the contract but for an exact assign
        return [{}, {"in_features": 6, "out_features": 4, "n_U_reflectors": 6, "sigma_max": 2.0}]

    def _weight(self, u_vectors: Tensor, v_vectors: Tensor, angles: Tensor, signs: Tensor) -> Tensor:
        return svd_matrix(*self._parts(u_vectors=u_vectors, v_vectors=v_vectors, angles=angles, signs=signs))

    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = raw["signs"] * interval(raw["angles"], self.sigma_min, self.sigma_max)
        return raw["u_vectors"], s, raw["v_vectors"]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        u, v, s = svd_factors(weight, self.u_vectors.shape[-2], self.v_vectors.shape[-2])
        angles = angle_in(s.abs(), self.sigma_min, self.sigma_max, self.angles.dtype)
        return {"u_vectors": u, "v_vectors": v, "angles": angles, "signs": torch.where(s < 0, -1.0, 1.0)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        draw_svd(raw["u_vectors"], raw["v_vectors"], raw["signs"], generator)
        draw_angles(raw["angles"], generator)


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

    promise = "A = Aᵀ, sigma_min <= singular values of A <= sigma_max"
    square = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max)
        n = self.in_features
        self.vectors = nn.Parameter(torch.empty(*self.leading, n, n, device=device, dtype=dtype))
        self.angles = nn.Parameter(torch.empty(*self.leading, n, device=device, dtype=dtype))
        self.register_buffer("signs", torch.empty(*self.leading, n, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"sigma_min": 0.5, "sigma_max": 2.0}]

    def _weight(self, vectors: Tensor, angles: Tensor, signs: Tensor) -> Tensor:
        q, s, _ = self._parts(vectors=vectors, angles=angles, signs=signs)
        return symmetric_matrix(q, s)

    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = raw["signs"] * interval(raw["angles"], self.sigma_min, self.sigma_max)
        return raw["vectors"], s, raw["vectors"]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        vectors, s = eigen_factors(weight, self.in_features)
        angles = angle_in(s.abs(), self.sigma_min, self.sigma_max, self.angles.dtype)
        return {"vectors": vectors, "angles": angles, "signs": torch.where(s < 0, -1.0, 1.0)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["vectors"].copy_(draw_reflections(raw["vectors"].shape, generator, raw["vectors"])[0])
        draw_angles(raw["angles"], generator)
        raw["signs"].bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

    def _violation(self, weight: Tensor) -> Tensor:
        beyond = outside(torch.linalg.svdvals(weight), self.sigma_min, self.sigma_max)
        return torch.maximum(beyond, asymmetry(weight) / self.sigma_max)


class SymmetricSpectralLinear(DiagonalCore):
    """y = x A + b with A = Aᵀ and all eigenvalues of A in [sigma_min, sigma_max].

    A = Q diag(s) Qᵀ, Q a product of ``n_reflectors`` reflections, s a sine of the angles scaled to the interval, which
    may reach below 0; with sigma_min > 0, A is positive definite with condition number at most sigma_max / sigma_min.
    With n reflectors every such matrix is reached, and any matrix is assigned as its symmetric part with the
    eigenvalues clamped, the nearest in the Frobenius norm. With fewer, the layer is cheaper and Q reaches less far;
    ``assign`` then takes over the eigenvalues farthest from their mean with their vectors, and of the rest the
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

    promise = "A = Aᵀ, sigma_min <= eigenvalues of A <= sigma_max"
    square = True

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
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max, -math.inf)
        self.n_reflectors = n_reflectors
        n = self.in_features
        k = check_reflectors("n_reflectors", n_reflectors, n, n)
        self.vectors = nn.Parameter(torch.empty(*self.leading, k, n, device=device, dtype=dtype))
        self.angles = nn.Parameter(torch.empty(*self.leading, n, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        # fewer reflectors than n keep the contract but for an exact assign
        return [{}, {"sigma_min": -2.0, "sigma_max": -0.5}]

    def _weight(self, vectors: Tensor, angles: Tensor) -> Tensor:
        q, s, _ = self._parts(vectors=vectors, angles=angles)
        return symmetric_matrix(q, s)

    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return raw["vectors"], interval(raw["angles"], self.sigma_min, self.sigma_max), raw["vectors"]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        vectors, s = eigen_factors(weight, self.vectors.shape[-2])
        return {"vectors": vectors, "angles": angle_in(s, self.sigma_min, self.sigma_max, self.angles.dtype)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["vectors"].copy_(draw_reflections(raw["vectors"].shape, generator, raw["vectors"])[0])
        draw_angles(raw["angles"], generator)

    def _violation(self, weight: Tensor) -> Tensor:
        eigenvalues = torch.linalg.eigvalsh((weight + weight.mT) / 2)
        scale = max(abs(self.sigma_min), abs(self.sigma_max))
        return torch.maximum(outside(eigenvalues, self.sigma_min, self.sigma_max), asymmetry(weight) / scale)

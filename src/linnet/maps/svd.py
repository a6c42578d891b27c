"""Matrices whose singular values stay in an interval.

A = U diag(s) Vᵀ with U and V products of reflections: the interval is kept whatever the parameters become, and
x → ((x U) s) Vᵀ is evaluated without forming A.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.maps.invertible import Invertible
from linnet.maps.reflections import draw_reflections, frame, householder_product, reflections

__all__ = ["SVDLinear", "SVDLinearLearnBounds"]


def check_interval(sigma_min: float, sigma_max: float, lowest: float = 0.0) -> tuple[float, float]:
    """The two ends as floats, or a ValueError unless lowest <= sigma_min <= sigma_max, both finite and not both 0."""
    low, high = float(sigma_min), float(sigma_max)
    if not (lowest <= low <= high and math.isfinite(high - low) and (low, high) != (0.0, 0.0)):
        at_least = "" if lowest == -math.inf else f"{lowest:g} <= "
        raise ValueError(
            f"sigma_min and sigma_max must be finite, {at_least}sigma_min <= sigma_max, and not both 0, "
            f"however: sigma_min={sigma_min!r}, sigma_max={sigma_max!r}"
        )
    return low, high


def interval(angle: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Any real number -> [low, high], by a sine: no value of the angle is far from one where the gradient is large."""
    return low + (high - low) * (1 + angle.sin()) / 2


def angle_in(value: Tensor, low: float | Tensor, high: float | Tensor, dtype: torch.dtype) -> Tensor:
    """The angle that :func:`interval` maps to ``value``, clamped into [low, high].

    The ends themselves, where the sine is flat, are missed by eps (high − low)/4, so that the gradient is not zero.
    """
    width = torch.as_tensor(high - low, dtype=value.dtype, device=value.device)
    place = torch.where(width > 0, 2 * (value - low) / torch.where(width > 0, width, 1.0) - 1, 0.0)
    steepest = math.pi / 2 - math.sqrt(torch.finfo(dtype).eps)
    return place.clamp(-1, 1).asin().clamp(-steepest, steepest)


def svd_matrix(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """W = V diag(s) Uᵀ, (..., out, in), for reflection vectors u, (..., k, in), v, (..., l, out), and s, (..., r)."""
    r = s.shape[-1]
    return (frame(v, r) * s.unsqueeze(-2)) @ frame(u, r).mT  # (out, r) (r, in)


def svd_product(x: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """x A = x U diag(s) Vᵀ without forming A, for rows x, (..., b, in), and the arguments of :func:`svd_matrix`."""
    y = householder_product(x, u)[..., : s.shape[-1]] * s.unsqueeze(-2)  # (..., b, r)
    return householder_product(F.pad(y, (0, v.shape[-1] - s.shape[-1])), v.flip(-2))


def svd_factors(weight: Tensor, n_u: int, n_v: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reflection vectors u, (..., n_u, in), v, (..., n_v, out), and s, (..., r), signed, with W = V diag(s) Uᵀ.

    Exact if n_u and n_v are at least r = min(in, out). Fewer reflectors take over the largest singular values with
    their vectors, min(n_u, n_v) of them, and s is then the diagonal of Uᵀ A V: the best for this U and V.
    """
    left, _, right = torch.linalg.svd(weight.mT, full_matrices=False)
    exact = min(n_u, n_v, left.shape[-1])
    u = _filled(reflections(left[..., :exact])[0], n_u)
    v = _filled(reflections(right.mT[..., :exact])[0], n_v)
    core = householder_product(householder_product(weight, u).mT, v)  # Uᵀ A V, (..., in, out)
    return u, v, core.diagonal(dim1=-2, dim2=-1)


def _filled(v: Tensor, count: int) -> Tensor:
    """Reflection vectors, (..., k, n), filled up to ``count`` by copies of the last axis, which cancel in pairs."""
    last = torch.eye(1, v.shape[-1], device=v.device, dtype=v.dtype).flip(-1)
    return torch.cat([v, last.expand(*v.shape[:-2], count - v.shape[-2], -1)], -2)


def draw_svd(u: Tensor, v: Tensor, signs: Tensor, generator: torch.Generator | None) -> None:
    """Fill reflection vectors u, (k, in), v, (l, out), and signs, (r,), in place: U and V uniform."""
    signs.fill_(1)
    for vectors in (u, v):
        drawn, leading = draw_reflections(vectors.shape, generator, vectors)
        vectors.copy_(drawn)
        kept = min(len(leading), len(signs))
        signs[:kept] *= leading[:kept].to(signs.dtype)


def draw_angles(angles: Tensor, generator: torch.Generator | None) -> None:
    """Fill angles in place so that :func:`interval` of them is uniform over the interval."""
    angles.uniform_(-1, 1, generator=generator).asin_()


def outside(values: Tensor, low: float, high: float) -> Tensor:
    """How far values, (..., k), reach beyond [low, high], relative to the larger end: (...)."""
    beyond = torch.maximum(low - values.amin(-1), values.amax(-1) - high)
    return beyond.clamp_min(0) / max(abs(low), abs(high))


class DiagonalCore(Invertible, catalogue=False):
    """A = U diag(s) Vᵀ with U and V products of reflections: what the layers of this file share.

    A class names its raw tensors in ``_weight`` and writes ``_parts``: raw -> (vectors of U, s, vectors of V).
    """

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw tensors -> reflection vectors u, (..., k, in), signed values s, (..., r), and v, (..., l, out)."""

    def _product(self, x: Tensor, **raw: Tensor) -> Tensor:
        return svd_product(x, *self._parts(**raw))

    def forward(self, input: Tensor) -> Tensor:
        return self._matrix_free(input, self._product)

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        u, s, v = self._parts(**raw)
        return svd_matrix(v, 1 / s, u)

    def logabsdet(self) -> Tensor:
        """log |det A|, () or (beings,), differentiable, in at least float32.

        Raises:
            ValueError: in_features != out_features, or the interval contains 0.
        """
        self._check_invertible()
        return self._logabsdet(self._wide_raw())

    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        return self._parts(**raw)[1].abs().log().sum(-1)

    def _check_invertible(self) -> None:
        if self.in_features != self.out_features or self.sigma_min <= 0 <= self.sigma_max:
            raise ValueError(
                "An inverse and a determinant need in_features == out_features and an interval without 0, "
                f"however: {self.in_features} -> {self.out_features}, [{self.sigma_min:g}, {self.sigma_max:g}]"
            )

    def _violation(self, weight: Tensor) -> Tensor:
        return outside(torch.linalg.svdvals(weight), self.sigma_min, self.sigma_max)


class SVDLinear(DiagonalCore):
    """y = x A + b with all min(in, out) singular values of A in [sigma_min, sigma_max], whatever the optimizer does.

    A = U diag(± s) Vᵀ, U and V products of min(in, out) reflections, s a sine of the angles scaled to the interval.
    Every such matrix is reached; for a square A the sign of its determinant is fixed by the signs, which
    ``reset_parameters`` draws and ``assign`` sets. Fresh singular values are uniform over the interval. Any matrix is
    assigned with its singular values clamped to the interval, the nearest in every unitarily invariant norm. Weight
    decay on the angles pulls singular values to the middle of the interval and leaves U and V alone.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sigma_min: lower bound, >= 0.
        sigma_max: upper bound, > 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - u_vectors: ([beings,] r, in_features), with r = min(in_features, out_features)
        - v_vectors: ([beings,] r, out_features)
        - angles: ([beings,] r)
        - signs: ([beings,] r), a buffer

    Raises:
        ValueError: not 0 <= sigma_min <= sigma_max, or both 0.

    Example:
        >>> layer = SVDLinear(30, 20, sigma_min=0.5)
        >>> s = layer.svdvals()
        >>> bool(s.min() > 0.49), bool(s.max() < 1.01)
        (True, True)

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
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max)
        r = min(self.in_features, self.out_features)
        self.u_vectors = nn.Parameter(torch.empty(*self.leading, r, self.in_features, device=device, dtype=dtype))
        self.v_vectors = nn.Parameter(torch.empty(*self.leading, r, self.out_features, device=device, dtype=dtype))
        self.angles = nn.Parameter(torch.empty(*self.leading, r, device=device, dtype=dtype))
        self.register_buffer("signs", torch.empty(*self.leading, r, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"sigma_min": 0.5, "sigma_max": 2.0}]

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


class SVDLinearLearnBounds(DiagonalCore):
    """y = x A + b with lo <= singular values of A <= hi, both bounds learned, sigma_min <= lo <= hi <= sigma_max.

    As :class:`SVDLinear`; the first of ``bound_angles`` places lo in [sigma_min, sigma_max], the second places hi in
    [lo, sigma_max]. Fresh bounds lie one hundredth inside the cap. ``assign`` clamps the singular values to the cap,
    the nearest, and sets the bounds around them, a tenth of the way to the cap.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sigma_min: the least that lo can become, >= 0.
        sigma_max: the most that hi can become, > 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - u_vectors: ([beings,] r, in_features), with r = min(in_features, out_features)
        - v_vectors: ([beings,] r, out_features)
        - angles: ([beings,] r)
        - signs: ([beings,] r), a buffer
        - bound_angles: ([beings,] 2)

    Raises:
        ValueError: not 0 <= sigma_min <= sigma_max, or both 0.

    Example:
        >>> layer = SVDLinearLearnBounds(8, 8)
        >>> low, high = layer.bounds
        >>> bool(0.1 <= low <= high <= 1.0)
        True

    Reference:
        J. Zhang, Q. Lei, I. S. Dhillon, Stabilizing gradients for deep neural networks via efficient SVD
        parameterization, 2018, arXiv 1803.09327.
    """

    promise = "sigma_min <= lo <= singular values of A <= hi <= sigma_max"

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
        r = min(self.in_features, self.out_features)
        self.u_vectors = nn.Parameter(torch.empty(*self.leading, r, self.in_features, device=device, dtype=dtype))
        self.v_vectors = nn.Parameter(torch.empty(*self.leading, r, self.out_features, device=device, dtype=dtype))
        self.angles = nn.Parameter(torch.empty(*self.leading, r, device=device, dtype=dtype))
        self.register_buffer("signs", torch.empty(*self.leading, r, device=device, dtype=dtype))
        self.bound_angles = nn.Parameter(torch.empty(*self.leading, 2, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The learned bounds lo and hi, each () or (beings,), differentiable."""
        low, high = self._bounds(self.bound_angles)
        return low.squeeze(-1), high.squeeze(-1)

    def _bounds(self, bound_angles: Tensor) -> tuple[Tensor, Tensor]:
        low = interval(bound_angles[..., :1], self.sigma_min, self.sigma_max)
        return low, interval(bound_angles[..., 1:], low, self.sigma_max)

    def _weight(
        self, u_vectors: Tensor, v_vectors: Tensor, angles: Tensor, signs: Tensor, bound_angles: Tensor
    ) -> Tensor:
        raw = {"u_vectors": u_vectors, "v_vectors": v_vectors, "angles": angles, "signs": signs}
        return svd_matrix(*self._parts(**raw, bound_angles=bound_angles))

    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = raw["signs"] * interval(raw["angles"], *self._bounds(raw["bound_angles"]))
        return raw["u_vectors"], s, raw["v_vectors"]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        u, v, s = svd_factors(weight, self.u_vectors.shape[-2], self.v_vectors.shape[-2])
        values, dtype = s.abs().clamp(self.sigma_min, self.sigma_max), self.angles.dtype
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        low, high = low + (self.sigma_min - low) / 10, high + (self.sigma_max - high) / 10
        first = angle_in(low, self.sigma_min, self.sigma_max, dtype)
        low = interval(first, self.sigma_min, self.sigma_max)
        second = angle_in(high, low, self.sigma_max, dtype)
        angles = angle_in(values, low, interval(second, low, self.sigma_max), dtype)
        signs = torch.where(s < 0, -1.0, 1.0)
        bound_angles = torch.cat([first, second], -1)
        return {"u_vectors": u, "v_vectors": v, "angles": angles, "signs": signs, "bound_angles": bound_angles}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        draw_svd(raw["u_vectors"], raw["v_vectors"], raw["signs"], generator)
        draw_angles(raw["angles"], generator)
        inside = math.asin(0.98)  # one hundredth of the interval away from its end
        raw["bound_angles"].copy_(torch.tensor([-inside, inside]))

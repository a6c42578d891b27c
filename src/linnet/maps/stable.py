"""Stable matrices that need not be normal: eigenvalues in a disc or a half-plane, conditioning bounded.

A matrix has its spectrum in the disc of radius r iff it is a contraction in some other basis: A = S⁻¹KS with
‖K‖₂ <= r. The worse S is conditioned, the less the eigenvalues of the rounded matrix have to do with those of A:
rounding moves them by up to cond(S)² eps ‖K‖. So cond(S) is bounded by ``max_cond``, and ‖K‖ is kept smaller than r by
the factor 1 − max_cond² eps, with the eps of float32. With the singular value decomposition S = U D Qᵀ, and U
absorbed in K, S = D Qᵀ loses no generality: A = Q D⁻¹ K D Qᵀ. The same holds for the left half-plane and matrices K
whose symmetric part is negative.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.being import check_positive
from linnet.core.linear_map import LinearMap
from linnet.maps.power import radius, radius_estimate
from linnet.maps.ranges import EDGE, within_raw
from linnet.maps.reflections import householder_product, polish, reflections

__all__ = ["PowerBoundLinear", "SchurStableLinear"]

EPS = torch.finfo(torch.float32).eps
DOUBLINGS = 40  # 2⁴⁰ terms of a Lyapunov series
GENTLE = 8.0  # divides the parameters of D, on which A depends exponentially
SHARES = (0.0, 0.3, 0.6, 0.9, 0.99)  # of the distance between the bound and the spectrum, for which norms are tried


def contraction(m: Tensor) -> Tensor:
    """M -> K = M R⁻¹ with RᵀR = I + MᵀM: one to one between all matrices and those with ‖K‖₂ < 1.

    K is the upper half of the orthonormal factor of [M; I] = Q R, so it is a contraction whatever rounding does.
    """
    eye = torch.eye(m.shape[-1], device=m.device, dtype=m.dtype).expand_as(m)
    q, r = torch.linalg.qr(torch.cat((m, eye), -2))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(m.dtype)
    return q[..., : m.shape[-2], :] * signs.unsqueeze(-2)


def contraction_raw(k: Tensor) -> Tensor:
    """The inverse of :func:`contraction`, for ‖K‖₂ < 1: I − KᵀK = R⁻ᵀR⁻¹."""
    eye = torch.eye(k.shape[-1], device=k.device, dtype=k.dtype)
    lower = torch.linalg.cholesky(eye - k.mT @ k)
    return torch.linalg.solve_triangular(lower, k.mT, upper=False).mT.contiguous()


def clip_singular(k: Tensor, largest: float, inset: float) -> Tensor:
    """Singular values are cut to ``largest``·(1 − inset); a matrix with none above ``largest`` is returned as it is."""
    u, s, vh = torch.linalg.svd(k)
    limit = largest * (1 - inset)
    clipped = (u * s.clamp_max(limit).unsqueeze(-2)) @ vh
    fits = (s[..., 0] <= largest * (1 - EDGE / 2))[..., None, None]  # below that limit the inverse is safe
    return torch.where(fits, k, clipped)


def orthogonal(vectors: Tensor) -> Tensor:
    """The product of the reflections, (..., n, n) -> (..., n, n)."""
    eye = torch.eye(vectors.shape[-1], device=vectors.device, dtype=vectors.dtype)
    return polish(householder_product(eye.expand_as(vectors), vectors))


def stretch(scales: Tensor, max_cond: float) -> Tensor:
    """Any numbers -> positive ones, D, whose ratios are at most max_cond."""
    half = math.log(max_cond) / 2
    return (half * (2 * (scales / GENTLE).sigmoid() - 1)).exp()


def in_basis(k: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """Q D⁻¹ K D Qᵀ."""
    return q @ (k * d.unsqueeze(-2) / d.unsqueeze(-1)) @ q.mT


def out_of_basis(weight: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """D Qᵀ W Q D⁻¹, the inverse of :func:`in_basis`."""
    return (q.mT @ weight @ q) * d.unsqueeze(-1) / d.unsqueeze(-2)


def series(b: Tensor, x: Tensor) -> Tensor:
    """X = Σ (Bᵀ)ᵏYBᵏ, for ρ(B) < 1: it solves X − BᵀXB = Y, so B contracts in the norm √(xᵀXx)."""
    for _ in range(DOUBLINGS):
        x, b = x + b.mT @ x @ b, b @ b
    return x


def eigenbasis(weight: Tensor) -> Tensor:
    """V⁻ᴴV⁻¹ for the unit eigenvectors V: the norm in which W is normal; real, as they come in conjugate pairs."""
    _, vectors = torch.linalg.eig(weight)
    inverse = torch.linalg.inv_ex(vectors)[0]
    return (inverse.mH @ inverse).real


def tightened(max_cond: float) -> float:
    """max_cond² eps of float32: how far rounding may move an eigenvalue, relative to ‖K‖; at most 1/8 is admitted."""
    if not 1 < max_cond < math.inf or max_cond**2 * EPS > 0.125:
        raise ValueError(
            f"max_cond must be greater than 1 and at most {math.floor(math.sqrt(0.125 / EPS))}, beyond which float32 "
            f"has no digits for the eigenvalues, however: {max_cond}"
        )
    return max_cond**2 * EPS


class Based(LinearMap, catalogue=False):
    """W = Q D⁻¹ K D Qᵀ: what the stable maps have in common, the basis and how ``assign`` finds one."""

    square = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        *,
        max_cond: float,
        beings: int | None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.max_cond, self._margin = max_cond, tightened(max_cond)
        n = self.in_features
        self.vectors = nn.Parameter(torch.empty(*self.leading, n, n, device=device, dtype=dtype))
        self.scales = nn.Parameter(torch.empty(*self.leading, n, device=device, dtype=dtype))

    @abstractmethod
    def _metrics(self, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        """W -> the nearby matrix to take instead (stable), and positive matrices SᵀS in whose norms it may fit."""

    @abstractmethod
    def _admit(self, k: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """K -> the admitted K nearest to it, and its raw tensors."""

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        target, metrics = self._metrics(weight)
        eye = torch.eye(weight.shape[-1], device=weight.device, dtype=weight.dtype).expand_as(weight)
        least = weight.new_full(weight.shape[:-2], torch.inf)
        found: dict[str, Tensor] = {}
        own = orthogonal(self.vectors.detach().double()), stretch(self.scales.detach().double(), self.max_cond)
        own_metric = in_basis(torch.diag_embed(own[1].square()), own[0], torch.ones_like(own[1]))
        for metric in (own_metric, eye, *metrics):
            usable = metric.isfinite().all(-1).all(-1)[..., None, None]
            values, vectors = torch.linalg.eigh(torch.where(usable, metric, eye))
            q = orthogonal(reflections(vectors)[0])
            d = values.clamp_min(values[..., -1:] * 1e-30).sqrt().log()
            half = math.log(self.max_cond) / 2
            scales = within_raw(d - (d.amax(-1, keepdim=True) + d.amin(-1, keepdim=True)) / 2, -half, half)
            scales = GENTLE * scales
            d = stretch(scales, self.max_cond)
            k, raw = self._admit(out_of_basis(target, q, d))
            moved = torch.linalg.matrix_norm(in_basis(k, q, d) - weight)
            better = moved < least
            least = torch.where(better, moved, least)
            for name, value in {"vectors": reflections(vectors)[0], "scales": scales, **raw}.items():
                chosen = better.reshape(*better.shape, *[1] * (value.dim() - better.dim()))
                found[name] = torch.where(chosen, value, found[name]) if name in found else value
        return found

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["vectors"].normal_(generator=generator)
        raw["scales"].normal_(0, GENTLE / 2, generator=generator)


class _Disc(Based):
    """‖K‖₂ < r: the maps with eigenvalues in a disc."""

    _radius: float

    def _matrix(self, vectors: Tensor, scales: Tensor, core: Tensor) -> Tensor:
        k = contraction(core) * (self._radius * (1 - self._margin))
        return in_basis(k, orthogonal(vectors), stretch(scales, self.max_cond))

    def _metrics(self, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        largest = self._radius * (1 - self._margin) * (1 - EDGE)
        own = radius(weight)
        target = weight * (largest / own.clamp_min(largest))[..., None, None]
        reached = own.clamp_max(largest)
        normal, eye = eigenbasis(target), torch.eye(weight.shape[-1], device=weight.device, dtype=weight.dtype)
        metrics = [normal]
        for share in SHARES:  # in the norm for a smaller radius the matrix contracts more, conditioned worse
            b = target / (largest * (1 + EDGE) - (largest * (1 + EDGE) - reached) * share)[..., None, None]
            metrics += [series(b, eye.expand_as(b)), series(b, normal)]
        return target, metrics

    def _admit(self, k: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        largest = self._radius * (1 - self._margin)
        k = clip_singular(k, largest, self._margin)  # rounding moves singular values by about the margin
        return k, {"core": contraction_raw(k / largest)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        super()._draw({name: raw[name] for name in ("vectors", "scales")}, generator)
        raw["core"].normal_(0, 1 / math.sqrt(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return (radius(weight) / self._radius - 1).clamp_min(0)


class SchurStableLinear(_Disc):
    """y = x A + b with every eigenvalue of A in the disc |λ| <= bound < 1: the system x ← x A forgets its start.

    A = S⁻¹KS with ‖K‖₂ < bound·(1 − max_cond² eps) and cond(S) <= max_cond; every such matrix is reached, so A itself
    may be up to max_cond times larger than its eigenvalues. ``assign`` takes a stable matrix exactly if it finds S
    among the norms of its eigenvectors and of its Lyapunov functions. Otherwise it first scales the matrix down
    to the radius, then clips what of S and K is out of bounds, which need not give the nearest.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        bound: the largest modulus of an eigenvalue, 0 < bound < 1.
        max_cond: the largest condition number of the basis S, above 1.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - core, vectors: ([beings,] n, n)
        - scales: ([beings,] n)

    Raises:
        ValueError: in_features != out_features, bound is not in (0, 1), or max_cond is not in (1, 1024].

    Example:
        >>> layer = SchurStableLinear(8, 8, bound=0.9)
        >>> bool(layer.eigvals().abs().max() <= 0.9)
        True

    Reference:
        N. Gillis, M. Karow, P. Sharma, Approximating the nearest stable discrete-time system, 2019, arXiv 1802.08033.
    """

    promise = "ρ(A) <= bound"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bound: float = 0.99,
        max_cond: float = 100.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, max_cond=max_cond, beings=beings, device=device, dtype=dtype)
        if not 0 < bound < 1:
            raise ValueError(f"bound must lie in (0, 1), however: {bound}")
        self.bound = self._radius = bound
        self.core = nn.Parameter(torch.empty_like(self.vectors))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"bound": 0.5, "max_cond": 10.0}]

    def _weight(self, vectors: Tensor, scales: Tensor, core: Tensor) -> Tensor:
        return self._matrix(vectors, scales, core)


class PowerBoundLinear(_Disc):
    """y = x A + b with the spectral radius ρ(A) <= max_p, always.

    A = S⁻¹KS with ‖K‖₂ < max_p·(1 − max_cond² eps) and cond(S) <= max_cond, as in :class:`SchurStableLinear`, for a
    bound of any size. Nothing is penalized; ``pwr_iters`` is the number of powers that :meth:`spectral_radius` takes.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        max_p: the largest modulus of an eigenvalue, above 0.
        pwr_iters: the power k in the estimate ‖Aᵏ‖^(1/k) of the spectral radius.
        max_cond: the largest condition number of the basis S, above 1.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - core, vectors: ([beings,] n, n)
        - scales: ([beings,] n)

    Raises:
        ValueError: in_features != out_features, max_p <= 0, pwr_iters < 1, or max_cond is not in (1, 1024].

    Example:
        >>> layer = PowerBoundLinear(8, 8, max_p=2.0)
        >>> bool(layer.eigvals().abs().max() <= 2), bool(layer.spectral_radius() >= layer.eigvals().abs().max())
        (True, True)

    Reference:
        N. Gillis, M. Karow, P. Sharma, Approximating the nearest stable discrete-time system, 2019, arXiv 1802.08033;
        I. Gelfand, Normierte Ringe, 1941 (the estimate).
    """

    promise = "ρ(A) <= max_p"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        max_p: float = 1,
        pwr_iters: int = 200,
        max_cond: float = 100.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, max_cond=max_cond, beings=beings, device=device, dtype=dtype)
        if not 0 < max_p < math.inf:
            raise ValueError(f"max_p must be a finite number > 0, however: {max_p}")
        self.max_p = self._radius = max_p
        self.pwr_iters = check_positive(pwr_iters=pwr_iters)[0]
        self.core = nn.Parameter(torch.empty_like(self.vectors))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"max_p": 2.5, "pwr_iters": 20, "max_cond": 10.0}]

    def _weight(self, vectors: Tensor, scales: Tensor, core: Tensor) -> Tensor:
        return self._matrix(vectors, scales, core)

    def spectral_radius(self) -> Tensor:
        """An estimate of ρ(A) without eigenvalues: ‖Aᵏ‖_F^(1/k), k = pwr_iters, never too small, ([beings]).

        Differentiable, where ρ itself is not; it approaches ρ like (√n·max_cond)^(1/k).
        """
        return radius_estimate(self.weight, self.pwr_iters)

"""Stable matrices of continuous time: eigenvalues in a half-plane, conditioning bounded."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.maps.abstract.stable import Stable
from linnet.maps.math.bases import (
    SHARES,
    bounded_ratios,
    eigenvector_metric,
    in_basis,
    lyapunov_series,
    orthogonal,
    rounding_margin,
)
from linnet.maps.math.intervals import compressed, compressed_raw
from linnet.maps.math.triangles import antimirror, skew_part, strict_upper

# Steps of the fixed-point iteration for the shift in `_admit`.
FIXED_POINT_STEPS = 60
# The size from which on F grows with the logarithm of its parameter; the rates of decay, F Fᵀ, grow with its square.
LINEAR_TO = 1.0


def damped(skew: Tensor, factor: Tensor, alpha: float, margin: float) -> Tensor:
    """K = G − (alpha + margin‖G‖_F) I with G = S − F Fᵀ: λ_max of (K + Kᵀ)/2 is at most −alpha − margin‖G‖_F.

    No eigenvalue of K has a real part above that λ_max (Bendixson), and rounding moves it by margin‖G‖_F at most.
    """
    g = antimirror(skew, factor.shape[-1]) - factor @ factor.mT
    shift = alpha + margin * frobenius(g)
    return g - shift * torch.eye(g.shape[-1], device=g.device, dtype=g.dtype)


def frobenius(g: Tensor) -> Tensor:
    """‖G‖_F, (..., n, n) -> (..., 1, 1), with the gradient 0 at 0."""
    zero = (g == 0).all(-1).all(-1)[..., None, None]
    return torch.where(zero, 0.0, torch.linalg.matrix_norm(torch.where(zero, 1.0, g), keepdim=True))


def spectral_abscissa(weight: Tensor) -> Tensor:
    """The largest real part of an eigenvalue, (..., n, n) -> (...)."""
    return torch.linalg.eigvals(weight).real.amax(-1)


class HurwitzLinear(Stable):
    """y = x A + b with Re λ <= −alpha for every eigenvalue of A: the system ẋ = x A decays.

    A = S⁻¹KS with cond(S) <= max_cond and K = G − (alpha + max_cond² eps ‖G‖_F) I, where G has a symmetric part
    without positive eigenvalues; every such matrix is reached. The margin, with the eps of float32, is what rounding
    can do to the eigenvalues. ``assign`` takes a matrix exactly if it finds S among the norms of its eigenvectors and
    of its Lyapunov functions. Otherwise it first shifts the matrix by a multiple of I, then clips what of S and K is
    out of bounds, which need not give the nearest.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        alpha: the smallest rate of decay, at least 0.
        max_cond: the largest condition number of the basis S, above 1.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - skew: ([beings,] n(n-1)/2)
        - factor, vectors: ([beings,] n, n)
        - scales: ([beings,] n)

    Raises:
        ValueError: in_features != out_features, alpha < 0, or max_cond is not in (1, 1024].

    Example:
        >>> layer = HurwitzLinear(8, 8, alpha=0.2)
        >>> bool(layer.eigvals().real.max() <= -0.2)
        True

    Reference:
        N. Gillis, P. Sharma, On computing the distance to stability for matrices using linear dissipative Hamiltonian
        systems, 2017, arXiv 1611.00595.
    """

    family = "stable"
    promise = "Re λ(A) <= −alpha"

    skew: nn.Parameter
    factor: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        alpha: float = 0.1,
        max_cond: float = 100.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be a finite number >= 0, got {alpha}")
        self.alpha = alpha
        self.max_cond, self._margin = max_cond, rounding_margin(max_cond)
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {**super()._shapes(), "skew": (n * (n - 1) // 2,), "factor": (n, n)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"alpha": 0.0, "max_cond": 10.0}]

    def _weight(self, vectors: Tensor, scales: Tensor, skew: Tensor, factor: Tensor) -> Tensor:
        k = damped(skew, compressed(factor, LINEAR_TO), self.alpha, self._margin)
        return in_basis(k, orthogonal(vectors), bounded_ratios(scales, self.max_cond))

    def _metrics(self, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        eye = torch.eye(weight.shape[-1], device=weight.device, dtype=weight.dtype)
        # A matrix that is not stable enough is moved to the left as a whole, which keeps its eigenvectors.
        size = torch.linalg.matrix_norm(weight).clamp_min(torch.finfo(weight.dtype).tiny)
        excess = spectral_abscissa(weight) + self.alpha
        shift = torch.where(excess > 0, excess + 2 * self._margin * size, 0.0)
        target = weight - shift[..., None, None] * eye
        slack = (-self.alpha - spectral_abscissa(target)).clamp_min(0)
        normal = eigenvector_metric(target)
        metrics = [normal]
        # With Re λ(M) < 0, Cayley's transform B = (I − M)⁻¹(I + M) has its spectrum in the unit disc, and both have the
        # same Lyapunov functions: MᵀX + X M <= 0 iff BᵀX B <= X. M is W moved to the right by a share of its slack.
        for share in SHARES:
            moved = (target + (self.alpha + share * slack)[..., None, None] * eye) / size[..., None, None]
            b = torch.linalg.solve_ex(eye - moved, eye + moved)[0]
            metrics += [lyapunov_series(b, eye.expand_as(b)), lyapunov_series(b, normal)]
        return target, metrics

    def _admit(self, k: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # K = S − F Fᵀ − shift I, shift = alpha + margin‖S − F Fᵀ‖_F: S is the skew part of K, and F Fᵀ has the
        # eigenvalues of −(K + Kᵀ)/2 less the shift, cut off at 0. The shift depends on F, though little, since
        # margin <= 1/8: a fixed-point iteration finds both.
        values, vectors = torch.linalg.eigh((k + k.mT) / 2)
        skew = skew_part(k)
        least, shift = torch.zeros_like(values[..., :1]), torch.zeros_like(values[..., :1])
        # The second time, what does not fit is put so far inside that rounding keeps it there.
        for _ in range(2):
            for _ in range(FIXED_POINT_STEPS):
                rates = torch.maximum(-values - shift, least)  # eigenvalues of F Fᵀ
                norm = (skew.square().sum((-2, -1)) + rates.square().sum(-1)).sqrt().unsqueeze(-1)
                shift = self.alpha + self._margin * norm
            fits = (-values - shift).amin(-1, keepdim=True) >= 0
            least = torch.where(fits, 0.0, self._margin * norm)
        factor = vectors * rates.sqrt().unsqueeze(-2)
        raw = {"skew": strict_upper(skew), "factor": compressed_raw(factor, LINEAR_TO)}
        return damped(raw["skew"], factor, self.alpha, self._margin), raw

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        super()._draw({name: raw[name] for name in ("vectors", "scales")}, generator)
        bound = 1 / math.sqrt(self.in_features)
        raw["skew"].uniform_(-bound, bound, generator=generator)
        raw["factor"].normal_(0, 0.5 * bound, generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        scale = torch.linalg.matrix_norm(weight).clamp_min(max(self.alpha, torch.finfo(weight.dtype).tiny))
        return (spectral_abscissa(weight) + self.alpha).clamp_min(0) / scale

"""What the stable maps have in common: a basis of bounded conditioning, and how ``assign`` finds one."""

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.bases import (
    D_SCALE,
    SHARES,
    bounded_ratios,
    clip_singular_values,
    contraction,
    contraction_raw,
    eigenvector_metric,
    in_basis,
    lyapunov_series,
    orthogonal,
    out_of_basis,
)
from linnet.maps.math.householder import reflections
from linnet.maps.math.intervals import EDGE, sigmoid_raw
from linnet.maps.math.spectral_radius import radius


class Stable(LinearMap, catalogue=False):
    """W = Q D⁻¹ K D Qᵀ, Q orthogonal, D diagonal with ratios of at most max_cond; a subclass says what K is.

    ``assign`` cannot know the best basis. W fits into the set in the basis S = D Qᵀ iff K = S W S⁻¹ is admitted, that
    is, iff W is a contraction (or dissipative) in the norm √(xᵀ SᵀS x). So a subclass proposes positive matrices SᵀS,
    from the eigenvectors of W and from its Lyapunov functions, and the one that moves W least is taken.
    """

    square = True

    max_cond: float
    _margin: float
    """How far rounding may move an eigenvalue, relative to ‖K‖."""
    vectors: nn.Parameter
    scales: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {"vectors": (n, n), "scales": (n,)}

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
        # The layer's present basis is tried first: what the layer is already is then assigned exactly.
        own = orthogonal(self.vectors.detach().double()), bounded_ratios(self.scales.detach().double(), self.max_cond)
        own_metric = in_basis(torch.diag_embed(own[1].square()), own[0], torch.ones_like(own[1]))
        for metric in (own_metric, eye, *metrics):
            # Where a series diverged, or eigenvectors are dependent, the metric is not finite: I takes its place.
            usable = metric.isfinite().all(-1).all(-1)[..., None, None]
            # SᵀS = Q D² Qᵀ. As a product of reflections Q keeps its columns but for their signs, which K absorbs.
            values, vectors = torch.linalg.eigh(torch.where(usable, metric, eye))
            q = orthogonal(reflections(vectors)[0])
            d = values.clamp_min(values[..., -1:] * 1e-30).sqrt().log()
            # A factor common to all of D cancels: log D is centred, then clipped to the admitted ratios.
            half = math.log(self.max_cond) / 2
            scales = sigmoid_raw(d - (d.amax(-1, keepdim=True) + d.amin(-1, keepdim=True)) / 2, -half, half)
            scales = D_SCALE * scales
            d = bounded_ratios(scales, self.max_cond)
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
        raw["scales"].normal_(0, D_SCALE / 2, generator=generator)


class StableInDisc(Stable):
    """‖K‖₂ < r, so that all eigenvalues lie in the disc of radius r."""

    _radius: float
    core: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._shapes(), "core": (self.in_features, self.in_features)}

    def _matrix(self, vectors: Tensor, scales: Tensor, core: Tensor) -> Tensor:
        k = contraction(core) * (self._radius * (1 - self._margin))
        return in_basis(k, orthogonal(vectors), bounded_ratios(scales, self.max_cond))

    def _metrics(self, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        largest = self._radius * (1 - self._margin) * (1 - EDGE)
        own = radius(weight)
        target = weight * (largest / own.clamp_min(largest))[..., None, None]
        reached = own.clamp_max(largest)
        normal, eye = eigenvector_metric(target), torch.eye(weight.shape[-1], device=weight.device, dtype=weight.dtype)
        metrics = [normal]
        # For any radius between that of the spectrum and the bound, B = W/radius has ρ(B) < 1, and the Lyapunov series
        # gives a norm in which B contracts. In the norm of a smaller radius W contracts more, but it is conditioned
        # worse; which norm clips least of S and K is found by trying.
        for share in SHARES:
            b = target / (largest * (1 + EDGE) - (largest * (1 + EDGE) - reached) * share)[..., None, None]
            metrics += [lyapunov_series(b, eye.expand_as(b)), lyapunov_series(b, normal)]
        return target, metrics

    def _admit(self, k: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        largest = self._radius * (1 - self._margin)
        k = clip_singular_values(k, largest, self._margin)  # rounding moves singular values by about the margin
        return k, {"core": contraction_raw(k / largest)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        super()._draw({name: raw[name] for name in ("vectors", "scales")}, generator)
        raw["core"].normal_(0, 1 / math.sqrt(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return (radius(weight) / self._radius - 1).clamp_min(0)

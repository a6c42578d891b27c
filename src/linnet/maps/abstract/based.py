"""What the stable maps have in common: a basis, and how ``assign`` finds one."""

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.bases import (
    GENTLE,
    SHARES,
    clip_singular,
    contraction,
    contraction_raw,
    eigenbasis,
    in_basis,
    orthogonal,
    out_of_basis,
    series,
    stretch,
)
from linnet.maps.math.householder import reflections
from linnet.maps.math.intervals import EDGE, within_raw
from linnet.maps.math.spectral_radius import radius

__all__ = ["Based"]


class Based(LinearMap, catalogue=False):
    """W = Q D⁻¹ K D Qᵀ: what the stable maps have in common, the basis and how ``assign`` finds one."""

    square = True

    max_cond: float
    _margin: float
    """tightened(max_cond): how far rounding may move an eigenvalue, relative to ‖K‖."""
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
    core: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._shapes(), "core": (self.in_features, self.in_features)}

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

"""Matrices with entries >= 0, differences of two of them, and matrices that their diagonal dominates.

Entries are s·softplus(raw/s) with s = 1/√in: smooth and increasing, so no entry is cut off from learning as a ReLU
cuts off half of them; for raw >> s the entry is raw itself, and raw = 0, where weight decay leads, is the entry
s·ln 2, of the size that entries have at the start.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap

__all__ = ["DiagonallyDominantLinear", "NonNegativeLinear", "SplitLinear", "relu_straight_through"]


def relu_straight_through(x: Tensor) -> Tensor:
    """max(x, 0), with the gradient of the identity: what is cut off goes on learning.

    Shape:
        - x: any
        - returns: as x

    Example:
        >>> x = torch.tensor([-2.0, 3.0], requires_grad=True)
        >>> y = relu_straight_through(x)
        >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
        ([0.0, 3.0], [1.0, 1.0])

    Reference:
        Y. Bengio, N. Léonard, A. Courville, Estimating or propagating gradients through stochastic neurons for
        conditional computation, 2013, arXiv 1308.3432.
    """
    return torch.where(x > 0, x, x - x.detach())


def positive(raw: Tensor, scale: float) -> Tensor:
    """scale · softplus(raw / scale), > 0 and increasing; about raw where raw >> scale."""
    return F.softplus(raw, beta=1 / scale, threshold=50.0)  # where it is cut off, the error is below float64's


def positive_raw(value: Tensor, scale: float, eps: float) -> Tensor:
    """The inverse of :func:`positive`; a value below eps² scale counts as that, since 0 would need raw = −∞."""
    t = (value / scale).clamp_min(eps**2)
    return scale * (t + (-torch.expm1(-t)).log())


def dominate(entries: Tensor, signs: Tensor, gap: float) -> Tensor:
    """The matrix, (..., n, n), whose off-diagonal is that of ``entries`` and whose diagonal dominates each column.

    |w_ii| = Σ_{j≠i} |w_ji| + gap + softplus(entries_ii), with the sign sᵢ. The sum is raised by 16 eps, more than
    rounding takes from it.
    """
    off = entries - torch.diag_embed(entries.diagonal(dim1=-2, dim2=-1))
    least = off.abs().sum(-2) * (1 + 16 * torch.finfo(entries.dtype).eps) + gap
    diagonal = signs * (least + positive(entries.diagonal(dim1=-2, dim2=-1), 1.0))
    return off + torch.diag_embed(diagonal)


def nearest_dominated(diagonal: Tensor, off: Tensor, gap: float) -> tuple[Tensor, Tensor]:
    """The nearest d, o with d >= Σ|o| + gap to given d0, (..., ), and o0, (..., k), in the Euclidean norm.

    d = d0 + t and o = o0 with its absolute values lowered by t, down to 0 at most. With the m largest left positive,
    t = (their sum + gap − d0) / (m + 1); they are those that exceed their own t.
    """
    descending = off.abs().sort(-1, descending=True).values
    sums = F.pad(descending.cumsum(-1), (1, 0))  # (..., k + 1): of the m largest, m = 0..k
    count = torch.arange(1, sums.shape[-1] + 1, device=off.device, dtype=off.dtype)
    threshold = (sums + gap - diagonal.unsqueeze(-1)) / count
    kept = (descending > threshold[..., 1:]).sum(-1, keepdim=True)
    t = threshold.gather(-1, kept).clamp_min(0)
    return diagonal + t.squeeze(-1), off.sign() * (off.abs() - t).clamp_min(0)


def dominance(a: Tensor) -> Tensor:
    """|a_ii| − Σ_{j≠i} |a_ij| for each row of A: (..., n, n) -> (..., n)."""
    return 2 * a.diagonal(dim1=-2, dim2=-1).abs() - a.abs().sum(-1)


class NonNegativeLinear(LinearMap):
    """y = x A + b with A >= 0.

    A = s·softplus(raw/s), s = 1/√in. The start has nn.Linear's second moment: entries uniform on [0, 1/√in]. Any
    matrix is assigned as max(A, 0), the nearest; an exact zero becomes eps² s.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - raw: ([beings,] out_features, in_features)

    Example:
        >>> layer = NonNegativeLinear(3, 5)
        >>> bool((layer.weight >= 0).all())
        True

    Reference:
        C. Dugas, Y. Bengio, F. Bélisle, C. Nadeau, R. Garcia, Incorporating second-order functional knowledge for
        better option pricing, 2000 (the softplus).
    """

    promise = "A >= 0"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        shape = (*self.leading, self.out_features, self.in_features)
        self.raw = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.in_features)

    def _weight(self, raw: Tensor) -> Tensor:
        return positive(raw, self._scale)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"raw": positive_raw(weight, self._scale, torch.finfo(self.raw.dtype).eps)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        _draw_entries(raw["raw"], self._scale, self._scale, generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return (-weight).amax((-2, -1)).clamp_min(0) / weight.abs().amax((-2, -1)).clamp_min(1e-300)


class SplitLinear(LinearMap):
    """y = x A + b with A = B − C and B, C >= 0, both at hand as ``layer.B`` and ``layer.C``.

    Every matrix is such a difference, so nothing is promised of A itself; B and C stay >= 0 whatever the optimizer
    does. Their entries are s·softplus(raw/s), s = 1/√in. A matrix is assigned as B = max(A, 0) + m and
    C = max(−A, 0) + m with m the root mean square of A: without that margin half of the entries could hardly learn.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - raw_B, raw_C: ([beings,] out_features, in_features), those of Bᵀ and Cᵀ

    Example:
        >>> layer = SplitLinear(3, 5)
        >>> bool((layer.B >= 0).all() and (layer.C >= 0).all()), torch.equal(layer.weight.mT, layer.B - layer.C)
        (True, True)

    Reference:
        J. Drgoňa et al., Spectral analysis and stability of deep neural dynamics, 2020, arXiv 2011.13492.
    """

    promise = "none"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        shape = (*self.leading, self.out_features, self.in_features)
        self.raw_B = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.raw_C = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.in_features)

    @property
    def B(self) -> Tensor:
        """The positive part of A, ([beings,] in, out), differentiable."""
        return positive(self.raw_B, self._scale).mT

    @property
    def C(self) -> Tensor:
        """What is subtracted from it, ([beings,] in, out), differentiable."""
        return positive(self.raw_C, self._scale).mT

    def _weight(self, raw_B: Tensor, raw_C: Tensor) -> Tensor:
        return positive(raw_B, self._scale) - positive(raw_C, self._scale)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        eps = torch.finfo(self.raw_B.dtype).eps
        margin = weight.square().mean((-2, -1), keepdim=True).sqrt()
        margin = torch.where(margin > 0, margin, self._scale)
        parts = {"raw_B": weight.clamp_min(0) + margin, "raw_C": (-weight).clamp_min(0) + margin}
        return {name: positive_raw(part, self._scale, eps) for name, part in parts.items()}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        for part in raw.values():  # the difference of two uniform numbers has twice the variance of one
            _draw_entries(part, math.sqrt(2) * self._scale, self._scale, generator)


class DiagonallyDominantLinear(LinearMap):
    """y = x A + b with |a_ii| >= Σ_{j≠i} |a_ij| + gap in every row, so that A always has a bounded inverse.

    The off-diagonal entries are free; |a_ii| is their sum plus gap plus softplus(entries_ii), and the sign of a_ii is
    a buffer that ``reset_parameters`` draws and ``assign`` sets. Any matrix is assigned as the nearest one that has the
    structure. At the start half of |a_ii| ~ 0.55 comes from the sum, and outputs have nn.Linear's scale.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        gap: least excess of |a_ii| over the rest of its row, > 0.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - entries: ([beings,] n, n)
        - signs: ([beings,] n), a buffer

    Raises:
        ValueError: in_features != out_features, or gap is not a positive number.

    Example:
        >>> layer = DiagonallyDominantLinear(4, 4)
        >>> a = layer.weight.mT
        >>> bool(torch.linalg.matrix_norm(a.inverse(), torch.inf) <= layer.inverse_bound())
        True

    Reference:
        J. M. Varah, A lower bound for the smallest singular value of a matrix, 1975.
    """

    promise = "|a_ii| >= Σ_{j≠i} |a_ij| + gap"
    square = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        gap: float = 0.1,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        if isinstance(gap, bool) or not (gap > 0 and math.isfinite(gap)):
            raise ValueError(f"gap must be a finite number > 0, however: {gap!r}")
        self.gap = gap
        n = self.in_features
        self.entries = nn.Parameter(torch.empty(*self.leading, n, n, device=device, dtype=dtype))
        self.register_buffer("signs", torch.empty(*self.leading, n, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"gap": 2.0}]

    def inverse_bound(self) -> Tensor:
        """1 / minᵢ(|a_ii| − Σ_{j≠i} |a_ij|) >= ‖A⁻¹‖_∞, the largest absolute row sum of A⁻¹: ([beings]), <= 1/gap."""
        wide = self.weight.to(torch.promote_types(self.entries.dtype, torch.float32))
        least = dominance(wide.mT).amin(-1)
        return 1 / least.clamp_min(self.gap)  # below the gap it is rounding

    def _weight(self, entries: Tensor, signs: Tensor) -> Tensor:
        return dominate(entries, signs, self.gap)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        n, a = weight.shape[-1], weight.mT
        eps = torch.finfo(self.entries.dtype).eps
        diagonal = a.diagonal(dim1=-2, dim2=-1)
        signs = torch.where(diagonal < 0, -1.0, 1.0).to(a)
        off = a - torch.diag_embed(diagonal)
        size, off = nearest_dominated(diagonal.abs(), off, self.gap)
        excess = size - off.abs().sum(-1) * (
            1 + 16 * torch.finfo(torch.promote_types(self.entries.dtype, torch.float32)).eps
        )
        raw = positive_raw(excess - self.gap, 1.0, eps)
        eye = torch.eye(n, device=a.device, dtype=torch.bool)
        return {"entries": torch.where(eye, raw.unsqueeze(-1), off).mT, "signs": signs}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        entries, signs = raw["entries"], raw["signs"]
        n = entries.shape[-1]
        bound = 1 / (2 * max(n - 1, 1))  # rows sum to 1/4
        entries.uniform_(-bound, bound, generator=generator)
        entries.diagonal().fill_(math.log(math.expm1(0.2)))
        signs.uniform_(-1, 1, generator=generator)
        signs.copy_(torch.where(signs < 0, -1.0, 1.0))

    def _violation(self, weight: Tensor) -> Tensor:
        missing = (self.gap - dominance(weight.mT)).amax(-1).clamp_min(0)
        return missing / weight.abs().amax((-2, -1)).clamp_min(self.gap)


def _draw_entries(raw: Tensor, largest: float, scale: float, generator: torch.Generator | None) -> None:
    """Fill ``raw`` so that the entries are uniform on [0, largest]."""
    raw.uniform_(1e-3, 1, generator=generator)
    raw.copy_(positive_raw(raw.to(torch.float64) * largest, scale, 1e-6))

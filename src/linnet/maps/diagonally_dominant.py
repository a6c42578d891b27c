"""Diagonally dominant matrices: |a_ii| exceeds the sum of the other entries of its row."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.softplus import positive, positive_raw


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
    # Both sides of d >= Σ|o| + gap share the correction evenly, the diagonal rises by t and each entry shrinks by t,
    # because the constraint has the normal (1, −sign o): the nearest point of a half-space, on the entries that remain.
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

    family = "nonnegative"
    promise = "|a_ii| >= Σ_{j≠i} |a_ij| + gap"
    square = True
    fixed = ("signs",)

    entries: nn.Parameter
    signs: Tensor

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
        if isinstance(gap, bool) or not (gap > 0 and math.isfinite(gap)):
            raise ValueError(f"gap must be a finite number > 0, got {gap!r}")
        self.gap = gap
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {"entries": (n, n), "signs": (n,)}

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
        # What `dominate` will add up, its allowance for rounding included, is taken off before the inverse softplus.
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

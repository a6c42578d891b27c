"""Matrices with entries >= 0 whose columns, or rows and columns, sum to 1, or whose row sums lie in an interval."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.being import check_positive
from linnet.core.linear_map import LinearMap
from linnet.maps.positive import lively_logit_scale, project_simplex, simplex_violation

__all__ = ["DoublyStochasticLinear", "LeftStochasticLinear", "PerronFrobeniusLinear"]

LEAST_ITERATIONS = 10


def softmax(logits: Tensor, dim: int) -> Tensor:
    """softmax whose sums are 1 up to rounding for any number of entries."""
    p = logits.softmax(dim)
    return p / p.detach().sum(dim, keepdim=True)  # torch's adds up naively: 1e-4 off for 300 000 entries


def project_band(a: Tensor, low: float, high: float) -> Tensor:
    """The nearest vector p >= 0 with low <= Σp <= high to each vector along the last axis."""
    p = a.clamp_min(0)
    total = p.sum(-1, keepdim=True)
    goal = total.clamp(low, high)
    onto = torch.where(total == goal, 1.0, goal)
    shifted = a - a.amax(-1, keepdim=True)  # a constant changes nothing, and large numbers would absorb the 1
    return torch.where(total == goal, p, onto * project_simplex(shifted / onto))


def sinkhorn(logits: Tensor, iterations: int, tolerance: float) -> Tensor:
    """exp(logits) with rows and columns rescaled in turn until the rows sum to 1 within ``tolerance``: (..., n, n).

    Everything happens on logarithms, so any size of logits is safe. After ten iterations a matrix that is within the
    tolerance is left as it is; the number of iterations does not depend on the values, so that the loop can be traced.
    The columns of the result sum to 1.

    Reference:
        R. Sinkhorn, A relationship between arbitrary positive matrices and doubly stochastic matrices, 1964.
    """
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    log_p = log_p - log_p.logsumexp(-2, keepdim=True)
    for i in range(1, iterations):
        log_rows = log_p.logsumexp(-1, keepdim=True)  # (..., n, 1): 0 where the row sums to 1
        next_p = log_p - log_rows
        next_p = next_p - next_p.logsumexp(-2, keepdim=True)
        if i >= LEAST_ITERATIONS:
            unfinished = log_rows.detach().abs().amax((-2, -1), keepdim=True) > tolerance
            next_p = torch.where(unfinished, next_p, log_p)
        log_p = next_p
    return log_p.exp()


def round_doubly(p: Tensor) -> Tensor:
    """A doubly stochastic matrix near a p >= 0: rows and columns above 1 are scaled down, the rest is added.

    What then is missing in rows, r, and in columns, c, is filled by the rank-one matrix r cᵀ / Σr.

    Reference:
        J. Altschuler, J. Weed, P. Rigollet, Near-linear time approximation algorithms for optimal transport via
        Sinkhorn iteration, 2017, arXiv 1705.09634.
    """
    p = p / p.sum(-1, keepdim=True).clamp_min(1)
    p = p / p.sum(-2, keepdim=True).clamp_min(1)
    rows = (1 - p.sum(-1, keepdim=True)).clamp_min(0)  # (..., n, 1)
    columns = (1 - p.sum(-2, keepdim=True)).clamp_min(0)  # (..., 1, n)
    # The two totals are equal but for rounding; the larger one keeps what is added within what is missing.
    total = torch.maximum(rows.sum((-2, -1), keepdim=True), columns.sum((-2, -1), keepdim=True))
    return p + rows * (columns / total.clamp_min(torch.finfo(p.dtype).tiny))


def nearest_doubly(a: Tensor, steps: int = 100) -> Tensor:
    """The nearest doubly stochastic matrix to each float64 matrix, (..., n, n).

    It is max(A + f 1ᵀ + 1 gᵀ, 0), where f and g minimize a convex function; its slope is what the sums of rows and
    columns exceed 1 by, and Newton's method with a line search finds its zero. A constant added to a row or column of
    A changes nothing, so means are taken off first; what then is larger than 100 is scaled down to that and gets a
    near matrix instead of the nearest.

    Reference:
        X. Li, D. Sun, K.-C. Toh, On the efficient computation of a projector over the Birkhoff polytope, 2020.
    """
    n = a.shape[-1]
    a = a - a.mean(-1, keepdim=True)
    a = a - a.mean(-2, keepdim=True)
    a = a * (100 / a.abs().amax((-2, -1), keepdim=True).clamp_min(100))
    size = a.abs().amax((-2, -1)).clamp_min(1)

    def part(shift: Tensor) -> Tensor:
        return (a + shift[..., :n, None] + shift[..., None, n:]).clamp_min(0)

    def height(shift: Tensor) -> Tensor:
        return part(shift).square().sum((-2, -1)) / 2 - shift.sum(-1)

    shift = torch.cat([1 / n - a.amax(-1), torch.zeros_like(a[..., 0])], -1)  # f and g, (..., 2n)
    identity = torch.eye(2 * n, device=a.device, dtype=a.dtype)
    for _ in range(steps):
        p = part(shift)
        slope = torch.cat([p.sum(-1), p.sum(-2)], -1) - 1
        error = slope.abs().amax(-1)
        if bool((error <= 1e-15 * n * size).all()):
            break
        support = (p > 0).to(a)
        rows = torch.cat([torch.diag_embed(support.sum(-1)), support], -1)
        columns = torch.cat([support.mT, torch.diag_embed(support.sum(-2))], -1)
        ridge = 1e-12 + 0.1 * error.clamp_max(1) / size
        step = torch.linalg.solve(torch.cat([rows, columns], -2) + ridge[..., None, None] * identity, -slope)
        best = height(shift)
        length = torch.where(error < 1e-6, 1.0, 0.0).to(a)  # so near the end heights differ by rounding alone
        for halving in range(12):
            lower = height(shift + step / 2**halving)
            length = torch.where(lower < best, 0.5**halving, length)
            best = torch.minimum(lower, best)
        shift = shift + length.unsqueeze(-1) * step
    return round_doubly(part(shift))


class LeftStochasticLinear(LinearMap):
    """y = x A + b with A >= 0 and every column of A summing to 1: each output is a weighted mean of the inputs.

    A = softmax(logits) over the inputs. Any other matrix is assigned column by column as the nearest point of the
    simplex; an exact zero becomes the smallest positive number.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - logits: ([beings,] out_features, in_features)

    Example:
        >>> layer = LeftStochasticLinear(3, 5, bias=False)
        >>> torch.allclose(layer(torch.full((3,), 7.0)), torch.full((5,), 7.0))
        True

    Reference:
        J. Drgoňa et al., Spectral analysis and stability of deep neural dynamics, 2020, arXiv 2011.13492.
    """

    promise = "A >= 0, columns sum to 1"

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
        self.logits = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def _weight(self, logits: Tensor) -> Tensor:
        return softmax(logits, -1)  # column j of A is row j of W

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        p = project_simplex(weight)
        return {"logits": p.clamp_min(torch.finfo(self.logits.dtype).tiny).log()}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["logits"].normal_(0, lively_logit_scale(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return simplex_violation(weight)


class PerronFrobeniusLinear(LinearMap):
    """y = x A + b with A >= 0 and every row sum of A in [sigma_min, sigma_max].

    For a square A its spectral radius, the Perron–Frobenius eigenvalue, then lies in the same interval. A = diag(r) P
    with P = softmax(logits) over the outputs and r = sigma_min + (sigma_max − sigma_min) sigmoid(sums). Any other
    matrix is assigned row by row as the nearest; an exact zero becomes the smallest positive number. At the start the
    row sums are uniform on the interval.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sigma_min: least row sum, >= 0.
        sigma_max: largest row sum, > 0 and >= sigma_min.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - logits: ([beings,] out_features, in_features)
        - sums: ([beings,] in_features)

    Raises:
        ValueError: the bounds are not finite or not 0 <= sigma_min <= sigma_max, sigma_max > 0.

    Example:
        >>> layer = PerronFrobeniusLinear(6, 6)
        >>> radius = layer.eigvals().abs().max()
        >>> bool(0.8 - 1e-5 <= radius <= 1 + 1e-5)
        True

    Reference:
        A. Tuor, J. Drgoňa, D. Vrabie, Constrained neural ordinary differential equations with stability guarantees,
        2020, arXiv 2004.10883.
    """

    promise = "A >= 0, row sums in [sigma_min, sigma_max]"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_min: float = 0.8,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        if not (0 <= sigma_min <= sigma_max and 0 < sigma_max < math.inf):
            raise ValueError(
                "The bounds must be finite with 0 <= sigma_min <= sigma_max and sigma_max > 0, "
                f"however: {sigma_min!r} and {sigma_max!r}"
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        shape = (*self.leading, self.out_features, self.in_features)
        self.logits = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.sums = nn.Parameter(torch.empty(*self.leading, self.in_features, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"sigma_min": 0.0, "sigma_max": 3.0}]

    def _weight(self, logits: Tensor, sums: Tensor) -> Tensor:
        row_sums = self.sigma_min + (self.sigma_max - self.sigma_min) * sums.sigmoid()
        return softmax(logits, -2) * row_sums.unsqueeze(-2)  # row i of A is column i of W

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        info = torch.finfo(self.logits.dtype)
        a = project_band(weight.mT, self.sigma_min, self.sigma_max)  # (..., in, out)
        total = a.sum(-1, keepdim=True)
        logits = (a / total.clamp_min(1e-300)).clamp_min(info.tiny).log()
        width = self.sigma_max - self.sigma_min
        place = (total.squeeze(-1) - self.sigma_min) / width if width > 0 else torch.full_like(a[..., 0], 0.5)
        return {"logits": logits.mT, "sums": place.logit(eps=info.eps)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["logits"].normal_(0, lively_logit_scale(self.out_features), generator=generator)
        raw["sums"].uniform_(0, 1, generator=generator)
        raw["sums"].copy_(raw["sums"].logit(eps=1e-3))

    def _violation(self, weight: Tensor) -> Tensor:
        total = weight.sum(-2)  # (..., in)
        outside = torch.maximum(self.sigma_min - total, total - self.sigma_max).amax(-1)
        return torch.maximum(outside, (-weight).amax((-2, -1))).clamp_min(0) / self.sigma_max


class DoublyStochasticLinear(LinearMap):
    """y = x A + b with A >= 0 and all rows and columns of A summing to 1.

    Sinkhorn's iteration on the logits comes close, however slowly for large logits, and a rounding then makes all sums
    exact; ``sinkhorn_error()`` tells how much was left to it. A doubly stochastic matrix is assigned exactly, zeros as
    the smallest positive number; any other as the nearest (where rows and columns of mean 0 have entries above 100, as
    one near it).

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        iterations: how often rows and columns are rescaled at most.
        tolerance: error of the row sums at which, after ten iterations, the rescaling stops.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - logits: ([beings,] n, n)

    Raises:
        ValueError: in_features != out_features, iterations is not a positive integer, or tolerance is negative.

    Example:
        >>> layer = DoublyStochasticLinear(4, 4)
        >>> a = layer.weight.mT
        >>> torch.allclose(a.sum(0), torch.ones(4)), torch.allclose(a.sum(1), torch.ones(4))
        (True, True)

    Reference:
        J. Altschuler, J. Weed, P. Rigollet, 2017, arXiv 1705.09634 (the rounding); Z. Xie et al., mHC:
        manifold-constrained hyper-connections, 2025, arXiv 2512.24880 (a use).
    """

    promise = "A >= 0, rows and columns sum to 1"
    square = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        iterations: int = 20,
        tolerance: float = 1e-6,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.iterations = check_positive(iterations=iterations)[0]
        if not (0 <= tolerance < math.inf):
            raise ValueError(f"tolerance must be a finite number >= 0, however: {tolerance!r}")
        self.tolerance = tolerance
        n = self.in_features
        self.logits = nn.Parameter(torch.empty(*self.leading, n, n, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"iterations": 3, "tolerance": 0.0}]

    def sinkhorn_error(self) -> Tensor:
        """Largest |sum − 1|, over rows and columns, that the iteration leaves to the rounding, ([beings])."""
        wide = self.logits.detach().to(torch.promote_types(self.logits.dtype, torch.float32))
        return (sinkhorn(wide, self.iterations, self.tolerance).sum(-1) - 1).abs().amax(-1)  # the others were made 1

    def _weight(self, logits: Tensor) -> Tensor:
        return round_doubly(sinkhorn(logits, self.iterations, self.tolerance))

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"logits": nearest_doubly(weight).clamp_min(torch.finfo(self.logits.dtype).tiny).log()}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["logits"].normal_(0, lively_logit_scale(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return torch.maximum(simplex_violation(weight), simplex_violation(weight.mT))

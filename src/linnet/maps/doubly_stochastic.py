"""Doubly stochastic matrices: entries >= 0, rows and columns that sum to 1."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap
from linnet.maps.math.simplex import logit_spread, simplex_violation

# Iterations after which a matrix within the tolerance is left as it is.
LEAST_ITERATIONS = 10


def sinkhorn(logits: Tensor, iterations: int, tolerance: float) -> Tensor:
    """exp(logits) with rows and columns rescaled in turn until the rows sum to 1 within ``tolerance``: (..., n, n).

    Everything happens on logarithms, so any size of logits is safe. After ten iterations a matrix that is within the
    tolerance is left as it is; the number of iterations does not depend on the values, so that the loop can be traced.
    The columns of the result sum to 1.

    Reference:
        R. Sinkhorn, A relationship between arbitrary positive matrices and doubly stochastic matrices, 1964.
    """
    # log P − log(row sums): dividing rows by their sums, without ever leaving the logarithms
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    log_p = log_p - log_p.logsumexp(-2, keepdim=True)
    for i in range(1, iterations):
        log_rows = log_p.logsumexp(-1, keepdim=True)  # (..., n, 1): 0 where the row sums to 1
        next_p = log_p - log_rows
        next_p = next_p - next_p.logsumexp(-2, keepdim=True)
        # A fixed point would be reached only in the limit: stopping by a mask, matrix by matrix, keeps the number of
        # iterations, and the result for one being, independent of the other beings.
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
    # Scaling down only: both sums are then at most 1, and what is missing is >= 0.
    p = p / p.sum(-1, keepdim=True).clamp_min(1)
    p = p / p.sum(-2, keepdim=True).clamp_min(1)
    rows = (1 - p.sum(-1, keepdim=True)).clamp_min(0)  # (..., n, 1)
    columns = (1 - p.sum(-2, keepdim=True)).clamp_min(0)  # (..., 1, n)
    # The two totals are equal but for rounding; the larger one keeps what is added within what is missing.
    total = torch.maximum(rows.sum((-2, -1), keepdim=True), columns.sum((-2, -1), keepdim=True))
    return p + rows * (columns / total.clamp_min(torch.finfo(p.dtype).tiny))


def nearest_doubly(a: Tensor, steps: int = 100) -> Tensor:
    """The nearest doubly stochastic matrix to each float64 matrix, (..., n, n).

    It is P = max(A + f 1ᵀ + 1 gᵀ, 0), where f and g, the multipliers of the sums, minimize the convex dual function
    ‖P‖²/2 − Σf − Σg. Its gradient is what the sums of rows and columns exceed 1 by, and Newton's method with a line
    search finds its zero. A constant added to a row or column of A changes nothing, so means are taken off first; what
    then is larger than 100 is scaled down to that and gets a near matrix instead of the nearest.

    Reference:
        X. Li, D. Sun, K.-C. Toh, On the efficient computation of a projector over the Birkhoff polytope, 2020.
    """
    n = a.shape[-1]
    a = a - a.mean(-1, keepdim=True)
    a = a - a.mean(-2, keepdim=True)
    a = a * (100 / a.abs().amax((-2, -1), keepdim=True).clamp_min(100))
    size = a.abs().amax((-2, -1)).clamp_min(1)

    def primal(shift: Tensor) -> Tensor:
        return (a + shift[..., :n, None] + shift[..., None, n:]).clamp_min(0)

    def dual(shift: Tensor) -> Tensor:
        return primal(shift).square().sum((-2, -1)) / 2 - shift.sum(-1)

    # Every row starts with its largest entry at 1/n, so that none is empty.
    shift = torch.cat([1 / n - a.amax(-1), torch.zeros_like(a[..., 0])], -1)  # f and g, (..., 2n)
    identity = torch.eye(2 * n, device=a.device, dtype=a.dtype)
    for _ in range(steps):
        p = primal(shift)
        gradient = torch.cat([p.sum(-1), p.sum(-2)], -1) - 1
        error = gradient.abs().amax(-1)
        if bool((error <= 1e-15 * n * size).all()):
            break
        # The Hessian counts positive entries: [[diag(by rows), support], [supportᵀ, diag(by columns)]]. It is singular,
        # as f + c and g − c give the same P, and more so where the support falls apart: hence the ridge.
        support = (p > 0).to(a)
        rows = torch.cat([torch.diag_embed(support.sum(-1)), support], -1)
        columns = torch.cat([support.mT, torch.diag_embed(support.sum(-2))], -1)
        ridge = 1e-12 + 0.1 * error.clamp_max(1) / size
        step = torch.linalg.solve(torch.cat([rows, columns], -2) + ridge[..., None, None] * identity, -gradient)
        best = dual(shift)
        # So near the end values of the dual differ by rounding alone, and a full step of Newton's is right.
        length = torch.where(error < 1e-6, 1.0, 0.0).to(a)
        for halving in range(12):
            lower = dual(shift + step / 2**halving)
            length = torch.where(lower < best, 0.5**halving, length)
            best = torch.minimum(lower, best)
        shift = shift + length.unsqueeze(-1) * step
    return round_doubly(primal(shift))


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

    family = "stochastic"
    promise = "A >= 0, rows and columns sum to 1"
    square = True

    logits: nn.Parameter

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
        self.iterations = check_positive(iterations=iterations)[0]
        if not (0 <= tolerance < math.inf):
            raise ValueError(f"tolerance must be a finite number >= 0, got {tolerance!r}")
        self.tolerance = tolerance
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"logits": (self.in_features, self.in_features)}

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
        raw["logits"].normal_(0, logit_spread(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return torch.maximum(simplex_violation(weight), simplex_violation(weight.mT))

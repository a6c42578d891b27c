"""Probability vectors and balls of the 1-norm: softmax, projections, distances."""

import math

import torch
from torch import Tensor


def softmax(logits: Tensor, dim: int) -> Tensor:
    """softmax whose sums are 1 up to rounding for any number of entries."""
    # torch's softmax sums term by term and is 1e-4 off for 300 000 entries. The correction is rounding alone, and
    # autograd need not see it.
    p = logits.softmax(dim)
    return p / p.detach().sum(dim, keepdim=True)


def project_band(a: Tensor, low: float, high: float) -> Tensor:
    """The nearest vector p >= 0 with low <= Σp <= high to each vector along the last axis."""
    p = a.clamp_min(0)
    total = p.sum(-1, keepdim=True)
    goal = total.clamp(low, high)
    # {p >= 0, Σp = s} is s times the simplex, so the nearest point in it is s times the projection of a/s.
    onto = torch.where(total == goal, 1.0, goal)
    # A constant changes nothing, and beside large numbers the 1 of the simplex would be lost.
    shifted = a - a.amax(-1, keepdim=True)
    return torch.where(total == goal, p, onto * project_simplex(shifted / onto))


def project_simplex(x: Tensor) -> Tensor:
    """The nearest point of the probability simplex {p >= 0, Σp = 1} to each vector along the last axis.

    Reference:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball for learning in
        high dimensions, 2008.
    """
    # The nearest point is max(x − t, 0) with the one t for which it sums to 1. If the m largest entries stay positive,
    # t = (their sum − 1)/m; m is the largest number for which the m-th entry exceeds its t.
    x = x - x.amax(-1, keepdim=True)  # the same point; at any scale the largest entry then stays positive
    descending = x.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    threshold = (descending.cumsum(-1) - 1) / count  # (..., n): t for m = 1..n
    kept = (descending > threshold).sum(-1, keepdim=True)
    return (x - threshold.gather(-1, kept - 1)).clamp_min(0)


def simplex_violation(p: Tensor) -> Tensor:
    """The larger of |Σp − 1| and the most negative entry, over vectors along the last axis: (..., k, n) -> (...)."""
    off_sum = (p.sum(-1) - 1).abs().amax(-1)
    return torch.maximum(off_sum, (-p).amax((-2, -1)).clamp_min(0))


def logit_spread(n: int) -> float:
    """Standard deviation of normal logits whose softmax over n entries has coefficient of variation ~ √n/2.

    With small logits every row of a stochastic matrix is nearly uniform and the matrix nearly of rank one: only the
    mean of the inputs would pass. exp of N(0, s²) has coefficient of variation √(exp(s²) − 1).
    """
    return math.sqrt(math.log1p(n / 4))


def project_l1(rows: Tensor, radius: float) -> Tensor:
    """The nearest point with Σ|r| <= radius to each vector along the last axis.

    Reference:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball for learning in
        high dimensions, 2008.
    """
    # As for the simplex, with the absolute values, which are lowered by t; inside the ball t would be negative.
    size = rows.abs()
    descending = size.sort(-1, descending=True).values
    count = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    threshold = (descending.cumsum(-1) - radius) / count
    kept = (descending > threshold).sum(-1, keepdim=True).clamp_min(1)
    return rows.sign() * (size - threshold.gather(-1, kept - 1).clamp_min(0)).clamp_min(0)

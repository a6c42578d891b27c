"""Probability vectors and balls of the 1-norm: softmax, projections, distances."""

import math

import torch
from torch import Tensor

__all__ = ["lively_logit_scale", "project_band", "project_l1", "project_simplex", "simplex_violation", "softmax"]


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


def project_simplex(x: Tensor) -> Tensor:
    """The nearest point of the probability simplex {p >= 0, Σp = 1} to each vector along the last axis.

    Reference:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball for learning in
        high dimensions, 2008.
    """
    x = x - x.amax(-1, keepdim=True)  # the same point; at any scale the largest entry then stays positive
    descending = x.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    threshold = (descending.cumsum(-1) - 1) / count  # (..., n): the shift if the first `count` entries stay positive
    kept = (descending > threshold).sum(-1, keepdim=True)
    return (x - threshold.gather(-1, kept - 1)).clamp_min(0)


def simplex_violation(p: Tensor) -> Tensor:
    """The larger of |Σp − 1| and the most negative entry, over vectors along the last axis: (..., k, n) -> (...)."""
    off_sum = (p.sum(-1) - 1).abs().amax(-1)
    return torch.maximum(off_sum, (-p).amax((-2, -1)).clamp_min(0))


def lively_logit_scale(n: int) -> float:
    """Standard deviation of normal logits whose softmax over n entries has coefficient of variation ~ √n/2.

    With small logits every row of a stochastic matrix is nearly uniform and the matrix has rank one: nothing but the
    mean passes. exp of N(0, s²) has coefficient of variation √(exp(s²) − 1).
    """
    return math.sqrt(math.log1p(n / 4))


def project_l1(rows: Tensor, radius: float) -> Tensor:
    """The nearest point with Σ|r| <= radius to each vector along the last axis.

    Reference:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball for learning in
        high dimensions, 2008.
    """
    size = rows.abs()
    descending = size.sort(-1, descending=True).values
    count = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    threshold = (descending.cumsum(-1) - radius) / count
    kept = (descending > threshold).sum(-1, keepdim=True).clamp_min(1)
    return rows.sign() * (size - threshold.gather(-1, kept - 1).clamp_min(0)).clamp_min(0)

"""Stable matrices that need not be normal: eigenvalues in a disc or a half-plane, conditioning bounded.

A matrix has its spectrum in the disc of radius r iff it is a contraction in some other basis: A = S⁻¹KS with
‖K‖₂ <= r. The worse S is conditioned, the less the eigenvalues of the rounded matrix have to do with those of A:
rounding moves them by up to cond(S)² eps ‖K‖. So cond(S) is bounded by ``max_cond``, and ‖K‖ is kept smaller than r by
the factor 1 − max_cond² eps, with the eps of float32. With the singular value decomposition S = U D Qᵀ, and U
absorbed in K, S = D Qᵀ loses no generality: A = Q D⁻¹ K D Qᵀ. The same holds for the left half-plane and matrices K
whose symmetric part is negative.
"""

import math

import torch
from torch import Tensor

from linnet.maps.math.householder import householder_product, polish
from linnet.maps.math.intervals import EDGE

__all__ = [
    "GENTLE",
    "SHARES",
    "clip_singular",
    "contraction",
    "contraction_raw",
    "eigenbasis",
    "in_basis",
    "orthogonal",
    "out_of_basis",
    "series",
    "stretch",
    "tightened",
]

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
            f"has no digits for the eigenvalues, got {max_cond}"
        )
    return max_cond**2 * EPS

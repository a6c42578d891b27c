"""Stable matrices that need not be normal: eigenvalues in a disc or a half-plane, conditioning bounded.

If A = S⁻¹KS with ‖K‖₂ <= r, all eigenvalues of A lie in the disc of radius r, and every A with its spectrum inside the
open disc has such a form. But the worse S is conditioned, the less the eigenvalues of the rounded matrix have to do
with those of A. Rounding adds an E with ‖E‖ <= eps ‖A‖ <= eps cond(S) ‖K‖, and A + E = S⁻¹(K + S E S⁻¹)S, where
‖S E S⁻¹‖ <= cond(S) ‖E‖ <= cond(S)² eps ‖K‖. So cond(S) is bounded by ``max_cond``, and ‖K‖ is kept smaller than r by
the factor 1 − max_cond² eps, with the eps of float32: the rounded matrix keeps the promise.

With the singular value decomposition S = U D Qᵀ, and U absorbed in K, S = D Qᵀ loses no generality: A = Q D⁻¹ K D Qᵀ.
The same holds for the left half-plane and matrices K whose symmetric part is negative.
"""

import math

import torch
from torch import Tensor

from linnet.maps.math.householder import householder_product, newton_schulz_step
from linnet.maps.math.intervals import EDGE

EPS = torch.finfo(torch.float32).eps
# Doublings of a Lyapunov series: 2⁴⁰ terms.
DOUBLINGS = 40
# Divides the raw parameters of D, on which A depends exponentially: a step of the optimizer moves D less.
D_SCALE = 8.0
# Parts of the distance between the bound and the spectrum for which `assign` tries norms.
SHARES = (0.0, 0.3, 0.6, 0.9, 0.99)


def contraction(m: Tensor) -> Tensor:
    """M -> K = M R⁻¹ with RᵀR = I + MᵀM: one to one between all matrices and those with ‖K‖₂ < 1.

    K is the upper half of the orthonormal factor of [M; I] = Q R, so it is a contraction whatever rounding does.
    KᵀK = I − R⁻ᵀR⁻¹ < I.
    """
    eye = torch.eye(m.shape[-1], device=m.device, dtype=m.dtype).expand_as(m)
    q, r = torch.linalg.qr(torch.cat((m, eye), -2))
    # R is unique, and a smooth function of M, only with a positive diagonal; LAPACK leaves the signs open.
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(m.dtype)
    return q[..., : m.shape[-2], :] * signs.unsqueeze(-2)


def contraction_raw(k: Tensor) -> Tensor:
    """The inverse of :func:`contraction`, for ‖K‖₂ < 1: I − KᵀK = R⁻ᵀR⁻¹."""
    eye = torch.eye(k.shape[-1], device=k.device, dtype=k.dtype)
    # The Cholesky factor of I − KᵀK is R⁻ᵀ, so M = K R is the solution of R⁻ᵀ Mᵀ = Kᵀ.
    lower = torch.linalg.cholesky(eye - k.mT @ k)
    return torch.linalg.solve_triangular(lower, k.mT, upper=False).mT.contiguous()


def clip_singular_values(k: Tensor, largest: float, inset: float) -> Tensor:
    """Cut singular values to ``largest``·(1 − inset); a matrix with none above ``largest`` is returned as it is."""
    u, s, vh = torch.linalg.svd(k)
    limit = largest * (1 - inset)
    clipped = (u * s.clamp_max(limit).unsqueeze(-2)) @ vh
    # Closer to `largest` the Cholesky factorization of `contraction_raw` could fail by rounding.
    fits = (s[..., 0] <= largest * (1 - EDGE / 2))[..., None, None]
    return torch.where(fits, k, clipped)


def orthogonal(vectors: Tensor) -> Tensor:
    """The product of the reflections, (..., n, n) -> (..., n, n)."""
    eye = torch.eye(vectors.shape[-1], device=vectors.device, dtype=vectors.dtype)
    return newton_schulz_step(householder_product(eye.expand_as(vectors), vectors))


def bounded_ratios(scales: Tensor, max_cond: float) -> Tensor:
    """Any numbers -> positive ones, D, whose ratios are at most max_cond."""
    half = math.log(max_cond) / 2
    # log D lies between −half and half, so that two of them differ by at most log(max_cond)
    return (half * (2 * (scales / D_SCALE).sigmoid() - 1)).exp()


def in_basis(k: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """Q D⁻¹ K D Qᵀ."""
    return q @ (k * d.unsqueeze(-2) / d.unsqueeze(-1)) @ q.mT


def out_of_basis(weight: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """D Qᵀ W Q D⁻¹, the inverse of :func:`in_basis`."""
    return (q.mT @ weight @ q) * d.unsqueeze(-1) / d.unsqueeze(-2)


def lyapunov_series(b: Tensor, x: Tensor) -> Tensor:
    """X = Σ (Bᵀ)ᵏYBᵏ, for ρ(B) < 1: it solves X − BᵀXB = Y, so B contracts in the norm √(xᵀXx).

    Reference:
        R. A. Smith, Matrix equation XA + BX = C, 1968 (the doubling).
    """
    # If X holds the first m terms, X + (B^m)ᵀ X B^m holds 2m.
    for _ in range(DOUBLINGS):
        x, b = x + b.mT @ x @ b, b @ b
    return x


def eigenvector_metric(weight: Tensor) -> Tensor:
    """V⁻ᴴV⁻¹ for the unit eigenvectors V: the norm in which W is normal; real, as they come in conjugate pairs."""
    _, vectors = torch.linalg.eig(weight)
    inverse = torch.linalg.inv_ex(vectors)[0]
    return (inverse.mH @ inverse).real


def rounding_margin(max_cond: float) -> float:
    """max_cond² eps of float32: how far rounding may move an eigenvalue, relative to ‖K‖; at most 1/8 is admitted."""
    if not 1 < max_cond < math.inf or max_cond**2 * EPS > 0.125:
        raise ValueError(
            f"max_cond must be greater than 1 and at most {math.floor(math.sqrt(0.125 / EPS))}, beyond which float32 "
            f"has no digits for the eigenvalues, got {max_cond}"
        )
    return max_cond**2 * EPS

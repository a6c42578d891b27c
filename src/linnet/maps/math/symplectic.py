"""Symplectic matrices as products of shears, and what a given one is the product of.

n = 2m throughout, J = [[0, I], [−I, 0]], and every matrix is cut into four m × m blocks.
"""

from typing import Any

import torch
from torch import Tensor

from linnet.core.autograd import eager, through_reference
from linnet.maps.math.intervals import LINEAR_TO, compressed_raw
from linnet.maps.math.triangles import symmetric_part

FACTORS = 5
# The S₁ = pivot·I that `assign` tries: A − pivot·C must be well conditioned, and no single pivot suits every matrix.
PIVOTS = (0.0, 1.0, -1.0, 0.4, -0.4, 2.5, -2.5, 0.15, -0.15, 6.0, -6.0)


def blocks(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[[A, B], [C, D]], (..., 2m, 2m) -> A, B, C, D, each (..., m, m)."""
    m = matrix.shape[-1] // 2
    return matrix[..., :m, :m], matrix[..., :m, m:], matrix[..., m:, :m], matrix[..., m:, m:]


def joined(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """A, B, C, D -> [[A, B], [C, D]]."""
    return torch.cat((torch.cat((a, b), -1), torch.cat((c, d), -1)), -2)


def shear(p: Tensor, q: Tensor, symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (p, q), each (..., b, m), through F₁F₂⋯F₅, transposed: (p, q) F₅ᵀ⋯F₁ᵀ.

    The factors are in turn [[I, S], [0, I]] and [[I, 0], [S, I]], with S = Sᵀ from ``symmetric``, (..., 5, m, m).
    """
    # As rows, (p, q) [[I, S], [0, I]]ᵀ = (p + q S, q): each factor changes one half and reads the other.
    for i, s in reversed(list(enumerate(symmetric.unbind(-3)))):
        if i % 2 == 0:
            p = p + q @ s
        else:
            q = q + p @ s
    return p, q


def compression(r: Tensor) -> Tensor:
    """The factor c asinh(r/c)/r, c = LINEAR_TO: about 1 for r << c; r times it grows like a logarithm."""
    r = r.clamp_min(1e-6)
    return LINEAR_TO * torch.asinh(r / LINEAR_TO) / r


def compressed_symmetric(factors: Tensor) -> Tensor:
    """P, (..., m, m) -> S = (P + Pᵀ)/2, its root mean square r brought to 10 asinh(r/10)."""
    # One factor for the whole matrix: S keeps its shape, and only its size is compressed.
    doubled = factors + factors.mT
    r = torch.linalg.matrix_norm(doubled, keepdim=True) / (2 * factors.shape[-1])
    return doubled * (compression(r) / 2)


def compressed_symmetric_raw(symmetric: Tensor) -> Tensor:
    """The inverse of :func:`compressed_symmetric` among symmetric matrices, as far as numbers go."""
    r = torch.linalg.matrix_norm(symmetric, keepdim=True) / symmetric.shape[-1]
    return symmetric * (compressed_raw(r) / r.clamp_min(1e-300))


def transform_reference(x: Tensor, factors: Tensor) -> Tensor:
    """What :func:`transform` computes, in operations that autograd sees."""
    m = factors.shape[-1]
    return torch.cat(shear(x[..., :m], x[..., m:], compressed_symmetric(factors)), -1)


def transform(x: Tensor, factors: Tensor) -> Tensor:
    """x F₅ᵀ⋯F₁ᵀ for rows x, (..., b, 2m), and the factors of :func:`compressed_symmetric`, (..., 5, m, m)."""
    if not eager() or factors.dim() != 3 or x.dim() != 2:
        return transform_reference(x, factors)
    return _Transform.apply(x, factors)


class _Transform(torch.autograd.Function):
    """:func:`transform` for one map, (b, 2m) and (5, m, m)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: Tensor) -> Tensor:
        m = factors.shape[-1]
        symmetric = compressed_symmetric(factors)
        y = x.clone()
        p, q = y[:, :m], y[:, m:]
        read = []  # what each factor multiplied: the half that it does not change
        for i in reversed(range(len(symmetric))):
            source, goal = (q, p) if i % 2 == 0 else (p, q)
            read.append(source.clone())
            goal.addmm_(source, symmetric[i])
        ctx.save_for_backward(x, factors, symmetric, *read[::-1])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, factors, symmetric, *read = ctx.saved_tensors
        if torch.is_grad_enabled() or not eager():
            return through_reference(transform_reference, (x, factors), ctx.needs_input_grad, grad)
        m = factors.shape[-1]
        gx, found = grad.clone(), []
        gp, gq = gx[:, :m], gx[:, m:]
        for i in range(len(symmetric)):
            source, goal = (gq, gp) if i % 2 == 0 else (gp, gq)  # the gradients of what it read and of what it changed
            found.append(read[i].mT @ goal)
            source.addmm_(goal, symmetric[i])
        if not ctx.needs_input_grad[1]:
            return gx, None
        gs = torch.stack(found)
        # S = k(r) T with T = (P + Pᵀ)/2 of root mean square r: along T itself the slope is that of r k(r)
        scaled = torch.linalg.matrix_norm(symmetric, keepdim=True) / m  # r k(r) = c asinh(r/c)
        r = (LINEAR_TO * torch.sinh(scaled / LINEAR_TO)).clamp_min(1e-6)
        k, slope = compression(r), torch.rsqrt(1 + (r / LINEAR_TO).square())
        along = (gs * symmetric).sum((-2, -1), keepdim=True) / (scaled.clamp_min(1e-6) * m).square()
        gs = torch.addcmul(gs * (k / 2), symmetric, along * (slope - k) / 2)
        return gx if ctx.needs_input_grad[0] else None, gs + gs.mT


def unshear(p: Tensor, q: Tensor, symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`shear`: the same factors in the opposite order with −S."""
    for i in range(symmetric.shape[-3]):
        s = symmetric[..., i, :, :]
        if i % 2 == 0:
            p = p - q @ s
        else:
            q = q - p @ s
    return p, q


def compose(symmetric: Tensor) -> Tensor:
    """S₁ ... S₅, (..., 5, m, m) -> F₁F₂⋯F₅, (..., 2m, 2m)."""
    m = symmetric.shape[-1]
    eye = torch.eye(2 * m, device=symmetric.device, dtype=symmetric.dtype)
    eye = eye.expand(*symmetric.shape[:-3], 2 * m, 2 * m)
    return torch.cat(shear(eye[..., :m], eye[..., m:], symmetric), -1).mT


def two_symmetric(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """M -> symmetric P, Q with M = P Q, for a diagonalizable M: from M = V Λ V⁻¹, P = V Vᵀ and Q = V⁻ᵀ Λ V⁻¹.

    Complex eigenvectors come in conjugate pairs, so that what is not real cancels in V Vᵀ, and in Q too.

    Reference:
        A. J. Bosch, The factorization of a square matrix into two symmetric matrices, 1986.
    """
    # Q is taken as P⁻¹M: with whatever P rounding has left, the product is M again.
    _, vectors = torch.linalg.eig(matrix)
    p = symmetric_part((vectors @ vectors.mT).real)
    return p, symmetric_part(solve(p, matrix))


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """M⁻¹ R, without an error where M is singular: then the result is not finite or useless."""
    return torch.linalg.solve_ex(matrix, right)[0]


def factorize(weight: Tensor, pivot: float) -> Tensor:
    """S₁ ... S₅ whose product is W, for a symplectic W, (..., 2m, 2m) -> (..., 5, m, m).

    The first factor, S₁ = pivot·I, makes the upper left block A of the rest nonsingular. Multiplied out, that rest is

        F₂F₃F₄F₅ = [[A, A S₅ + S₃], [S₂ A + S₄, ·]] with A = I + S₃S₄,

    from which S₃ and S₄, S₅ = A⁻¹(B − S₃) and S₂ = (C − S₄)A⁻¹ follow block by block; the last block is then right
    because W is symplectic. Of a matrix that is not symplectic the symmetric parts are taken, which keeps A and most
    of B.
    """
    a, b, c, d = blocks(weight)
    eye = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype).expand_as(a)
    # F₁⁻¹ = [[I, −S₁], [0, I]] changes the upper blocks alone
    a, b = a - pivot * c, b - pivot * d
    third, fourth = two_symmetric(a - eye)
    a = eye + third @ fourth
    fifth = symmetric_part(solve(a, b - third))
    # solve() has the unknown on the right, so S₂ᵀ = A⁻ᵀ(C − S₄)ᵀ
    second = symmetric_part(solve(a.mT, (c - fourth).mT))
    return torch.stack((pivot * eye, second, third, fourth, fifth), -3)


def symplectic_form(m: int, like: Tensor) -> Tensor:
    """J = [[0, I], [−I, 0]] of size 2m."""
    eye = torch.eye(m, device=like.device, dtype=like.dtype)
    return joined(torch.zeros_like(eye), eye, -eye, torch.zeros_like(eye))


def check_even(name: str, n: int) -> int:
    """n/2, or a ValueError if n is odd."""
    if n % 2:
        raise ValueError(f"in_features of {name} must be even (positions and momenta), got {n}")
    return n // 2

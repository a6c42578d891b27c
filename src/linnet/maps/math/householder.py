"""Products of Householder reflections, which every map with orthogonal factors is made of.

A product of reflections stays orthogonal whatever its vectors become: only their directions count, so weight decay,
huge learning rates and huge vectors change nothing, and a vector that vanishes drops out as an identity.

:func:`householder_product` works block by block of reflections. k reflections in dimension n cost 4bnk operations for a
batch of b and 2nkc for the small Gram matrices of blocks of c, never n³; forward and backward together come to
(12b + 6c) nk, against 6bn² of a dense layer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.core.autograd import autocast_off, eager, through_reference


def unit(v: Tensor) -> Tensor:
    """v / ‖v‖ along the last axis, at any scale; 0 stays 0, and what is too small to have a direction becomes 0."""
    largest = v.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    v = v / largest  # entries of at most 1: squares neither overflow nor vanish
    return v / F.threshold(torch.linalg.vector_norm(v, dim=-1, keepdim=True), 0.5, torch.inf)


def compact_wy(v: Tensor) -> tuple[Tensor, Tensor]:
    """The compact WY form U, T: H₁H₂⋯H_k = I − Uᵀ T⁻¹ U for Hᵢ = I − 2uᵢuᵢᵀ, uᵢ = vᵢ/‖vᵢ‖, and rows vᵢ, (..., k, n).

    T = I/2 + the strict upper triangle of U Uᵀ. Its inverse has entries of at most 4, being itself made of products of
    reflections, so the triangular solve is safe for any vectors.

    Reference:
        T. Joffrain, T. M. Low, E. S. Quintana-Ortí, R. van de Geijn, F. G. Van Zee, Accumulating Householder
        transformations, revisited, 2006; V. Likhosherstov et al., CWY parametrization, 2020, arXiv 2004.08675.
    """
    u = unit(v)
    half = torch.eye(v.shape[-2], device=v.device, dtype=v.dtype) / 2
    return u, (u @ u.mT).triu(1) + half


def block_size(n: int) -> int:
    """How many reflections in dimension n are taken together; measured with 128 rows in float32.

    A block of c reflections is two large products, 4bnc operations, instead of c small ones, and costs 2nc² for its
    Gram matrix: larger blocks run faster until that term counts.
    """
    return 64 if n < 256 else 128


def householder_product_reference(x: Tensor, v: Tensor) -> Tensor:
    """What :func:`householder_product` computes, in one block of operations that autograd sees."""
    u, t = compact_wy(v)
    return x - torch.linalg.solve_triangular(t, x @ u.mT, upper=True, left=False) @ u


def householder_product(x: Tensor, v: Tensor) -> Tensor:
    """x H₁H₂⋯H_k for rows x, (..., b, n), and reflection vectors v, (..., k, n); a zero vector reflects nothing.

    Args:
        x: the rows; leading axes broadcast with those of v.
        v: the reflection vectors, of any length each.

    Shape:
        - x: (..., b, n)
        - v: (..., k, n)
        - returns: (..., b, n)

    Example:
        >>> x, v = torch.randn(5, 4), torch.randn(3, 4)
        >>> torch.allclose(householder_product(x, v).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
        True

    Reference:
        V. Likhosherstov et al., CWY parametrization, 2020, arXiv 2004.08675; A. Mathiasen et al., FastH, 2020, arXiv
        2009.13977 (blocks of reflections).
    """
    wide, device = torch.promote_types(v.dtype, torch.float32), v.device.type
    if x.dtype != wide or v.dtype != wide or (device != "meta" and torch.is_autocast_enabled(device)):
        dtype = torch.promote_types(x.dtype, v.dtype)
        with autocast_off(device):  # LAPACK has no half precision
            return householder_product(x.to(wide), v.to(wide)).to(dtype)
    if not eager():
        return householder_product_reference(x, v)
    # without a gradient nothing needs to be kept for a backward
    plain = not (torch.is_grad_enabled() and (x.requires_grad or v.requires_grad))
    if x.dim() == 2 and v.dim() == 2:
        return reflect(x, directions(v)[0]) if plain else _Reflect.apply(x, v)
    leading = torch.broadcast_shapes(x.shape[:-2], v.shape[:-2])
    count = math.prod(leading)
    x = x.expand(*leading, *x.shape[-2:]).reshape(count, *x.shape[-2:])
    v = v.expand(*leading, *v.shape[-2:]).reshape(count, *v.shape[-2:])
    y = reflect(x, directions(v)[0]) if plain else _Reflect.apply(x, v)
    return y.reshape(*leading, *x.shape[-2:])


def reflect(x: Tensor, u: Tensor, steps: list[Tensor] | None = None) -> Tensor:
    """x H₁⋯H_k for u of length √2 each, block by block; ``steps`` receives what a backward needs."""
    add = torch.addmm if x.dim() == 2 else torch.baddbmm
    for part in blocks(u):
        # Products with Uᵀ along its rows take half the time, from the size on where the copy pays.
        part_t = part.mT.contiguous() if part.shape[-1] >= 128 else part.mT
        # With rows of length √2, T of `compact_wy` becomes I + the strict upper triangle of U Uᵀ: the solve reads that
        # triangle of the Gram matrix alone and takes its diagonal as 1.
        t = part @ part_t
        w = torch.linalg.solve_triangular(t, x @ part_t, upper=True, left=False, unitriangular=True)  # (..., b, c)
        if steps is not None:
            steps += (x, w, t, part_t)
        x = add(x, w, part, alpha=-1)
    return x


class _Reflect(torch.autograd.Function):
    """x H₁⋯H_k for (b, n) and (k, n), or with one leading axis each; every product reads its operands along rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor) -> Tensor:
        u, scale = directions(v)
        steps: list[Tensor] = []
        y = reflect(x, u, steps)
        ctx.save_for_backward(x, v, u, scale, *steps)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, v, u, scale, *steps = ctx.saved_tensors
        wants_x, wants_v = ctx.needs_input_grad
        if torch.is_grad_enabled() or not eager():  # gradients of gradients, or many at once
            return through_reference(householder_product_reference, (x, v), ctx.needs_input_grad, grad)
        with autocast_off(grad.device.type):  # of a backward that is called where it is on
            add = torch.addmm if x.dim() == 2 else torch.baddbmm
            add_ = Tensor.addmm_ if x.dim() == 2 else Tensor.baddbmm_
            parts = blocks(u)
            found: list[Tensor] = []
            for i in reversed(range(len(parts))):
                part, (y, w, t, part_t) = parts[i], steps[4 * i : 4 * i + 4]
                # Forward: y' = y − W U, W = Z T⁻¹, Z = y Uᵀ, T = I + triu(U Uᵀ, 1). With g = dL/dy':
                #   dL/dW = −g Uᵀ,  dL/dZ = dL/dW T⁻ᵀ = −gz,  dL/dT = −Wᵀ dL/dZ = Wᵀ gz (above the diagonal only),
                #   dL/dy = g − gz U,  dL/dU = (dL/dT + dL/dTᵀ) U − gzᵀ y − Wᵀ g.
                gz = torch.linalg.solve_triangular(t.mT, grad @ part_t, upper=False, left=False, unitriangular=True)
                if wants_v:
                    gt = (w.mT @ gz).triu_(1)
                    gu = add_((gt + gt.mT) @ part, gz.mT, y, alpha=-1)
                    found.append(add_(gu, w.mT, grad, alpha=-1))
                # the first product writes a tensor of its own, for grad belongs to autograd; the others write into it
                if i or wants_x:
                    grad = add(grad, gz, part, alpha=-1) if i == len(parts) - 1 else add_(grad, gz, part, alpha=-1)
            gradients = None
            # u = √2 v/‖v‖, so du = √2/‖v‖ (I − uuᵀ/2) dv: the part of the gradient along u drops out
            if wants_v:
                gradients = found[0] if len(found) == 1 else torch.cat(found[::-1], -2)
                along = torch.linalg.vecdot(gradients, u).unsqueeze(-1)
                gradients.addcmul_(along, u, value=-0.5).mul_(scale)
        return grad if wants_x else None, gradients


def blocks(u: Tensor) -> tuple[Tensor, ...]:
    """The reflections in blocks of :func:`block_size`."""
    size = block_size(u.shape[-1])
    return (u,) if u.shape[-2] <= size else u.split(size, -2)


def directions(v: Tensor) -> tuple[Tensor, Tensor]:
    """u = √2 v/‖v‖ along the last axis, and √2/‖v‖, (..., 1); both 0 for a vector too small to have a direction.

    With the factor √2 the matrix of :func:`compact_wy`, times 2, has ones on its diagonal, and H = I − uuᵀ.
    """
    largest = v.abs().amax(-1, keepdim=True).clamp_min_(torch.finfo(v.dtype).tiny)
    u = v / largest  # entries of at most 1: squares neither overflow nor vanish
    norms = F.threshold(torch.linalg.vector_norm(u, dim=-1, keepdim=True), 0.5, torch.inf)  # below: 0 or subnormal
    scale = norms.reciprocal_().mul_(math.sqrt(2))
    return u.mul_(scale), scale.div_(largest)


def frame(v: Tensor, r: int) -> Tensor:
    """The first r columns of H₁H₂⋯H_k for vectors v, (..., k, n): orthonormal, (..., n, r); never builds n x n.

    Example:
        >>> q = frame(torch.randn(3, 1000), 3)
        >>> torch.allclose(q.mT @ q, torch.eye(3), atol=1e-5)
        True
    """
    # The columns of H₁⋯H_k are the rows of its transpose H_k⋯H₁, as every reflection is symmetric.
    start = torch.eye(r, v.shape[-1], device=v.device, dtype=v.dtype)
    return newton_schulz_step(householder_product(start, v.flip(-2)).mT)


def newton_schulz_step(q: Tensor) -> Tensor:
    """One Newton–Schulz step Q(3I − QᵀQ)/2 against rounding: an error of δ in QᵀQ = I becomes one of δ².

    Nearly parallel reflection vectors would else leave 2e-5 in float32. With Q = I − E (for r columns, the first r of
    I) the error is E + Eᵀ − EᵀE, free of sums in which a rounded 1 drowns small terms. The correction is as small as
    rounding, so autograd need not see it.
    """
    # I − QᵀQ = I − (I − E)ᵀ(I − E) = E + Eᵀ − EᵀE, where the first r rows of E are square
    n, r = q.shape[-2:]
    e = torch.eye(n, r, device=q.device, dtype=q.dtype) - q.detach()
    top = e[..., :r, :]
    error = top + top.mT - e.mT @ e  # I − QᵀQ, (..., r, r)
    # Q(3I − QᵀQ)/2 = Q + Q (I − QᵀQ)/2, and Q = I − E
    return q + (F.pad(error, (0, 0, 0, n - r)) - e @ error) / 2


def reflections(q: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors v, (..., r, n), none of them zero, and signs d, (..., r), with Q = H₁⋯H_r diag(d), for orthonormal Q.

    Q has r columns, (..., n, r); of the product the first r columns are meant. LAPACK's QR leaves out a reflection
    where a column needs none; here that is eᵢ with the sign dᵢ flipped, which is the same product because I − 2eᵢeᵢᵀ
    commutes with every later reflection.
    """
    # Q = H₁⋯H_r R, and R, upper triangular and orthogonal, is a diagonal of signs. LAPACK stores the vectors below the
    # diagonal of R and leaves out their first entry, which is 1.
    packed, tau = torch.geqrf(q)
    r = packed.diagonal(dim1=-2, dim2=-1)
    identity = torch.eye(*q.shape[-2:], device=q.device, dtype=q.dtype)
    v = torch.where(tau.unsqueeze(-2) == 0, identity, packed.tril(-1) + identity)
    signs = torch.where(r < 0, -1.0, 1.0).to(q.dtype) * torch.where(tau == 0, -1.0, 1.0).to(q.dtype)
    return v.mT, signs


def draw_reflections(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """k reflection vectors, (k, n), and signs d, (k,), that make the first k columns of H₁⋯H_k diag(d) uniform.

    These are the reflections that would triangularize a Gaussian matrix, and the signs that they leave.

    Reference:
        G. W. Stewart, The efficient generation of random orthogonal matrices, 1980.
    """
    k, n = shape
    wide = torch.promote_types(like.dtype, torch.float32)
    # Row i holds what the first i reflections leave of Gaussian column i: Gaussian again, in n − i dimensions. H maps x
    # to −sign(x₁)‖x‖e₁ for v = x + sign(x₁)‖x‖e₁, the sign without cancellation.
    v = torch.randn(k, n, generator=generator, device=like.device, dtype=wide).triu()
    leading = torch.where(v.diagonal() < 0, -1.0, 1.0).to(wide)
    v = v + F.pad(torch.diag(leading * torch.linalg.vector_norm(v, dim=-1)), (0, n - k))
    return unit(v), -leading


def greedy_reflections(q: Tensor, k: int) -> Tensor:
    """Vectors v, (..., k, n), with Q ≈ H₁⋯H_k, for an orthogonal Q, (..., n, n).

    Each reflection maps the image of the axis that Q moves farthest back to that axis, and lowers rank(Q − I) by one.
    So the product is Q itself iff k reflections can give it: rank(Q − I) ≤ k, and an even number of them is left over,
    which cancel in pairs (Cartan and Dieudonné).
    """
    identity = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
    vectors = []
    for _ in range(k):
        moved = q - identity
        farthest = moved.square().sum(-2).argmax(-1)[..., None, None].expand(*q.shape[:-1], 1)
        v = moved.gather(-1, farthest).squeeze(-1)  # Q eⱼ − eⱼ, (..., n)
        # where nothing is moved any more, any reflection will do: two equal ones cancel
        v = torch.where((v == 0).all(-1, keepdim=True), identity[0], unit(v))
        q = q - 2 * v.unsqueeze(-1) * (v.unsqueeze(-2) @ q)
        vectors.append(v)
    return torch.stack(vectors, -2)


def orthogonality_error(a: Tensor) -> Tensor:
    """max |AᵀA − I|, or of A Aᵀ for a wide matrix: (..., m, n) -> (...)."""
    gram = a.mT @ a if a.shape[-2] >= a.shape[-1] else a @ a.mT
    return (gram - torch.eye(gram.shape[-1], device=a.device, dtype=a.dtype)).abs().amax((-2, -1))

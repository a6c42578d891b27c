"""A = U diag(s) Vᵀ and Q diag(s) Qᵀ, with U, V and Q products of reflections.

The singular values of A are the |s|: an interval for them is an interval for s, and nothing can leave it. The values
carry signs, because the number of reflections fixes the determinants of U and V.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.maps.math.householder import draw_reflections, frame, householder_product, reflections


def svd_matrix(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """W = V diag(s) Uᵀ, (..., out, in), for reflection vectors u, (..., k, in), v, (..., l, out), and s, (..., r)."""
    r = s.shape[-1]
    return (frame(v, r) * s.unsqueeze(-2)) @ frame(u, r).mT  # (out, r) (r, in)


def svd_product(x: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """x A = x U diag(s) Vᵀ without forming A, for rows x, (..., b, in), and the arguments of :func:`svd_matrix`."""
    y = householder_product(x, u)[..., : s.shape[-1]] * s.unsqueeze(-2)  # (..., b, r)
    # y times the first r rows of Vᵀ: zeros for the other rows, and Vᵀ has the reflections of V in the opposite order
    return householder_product(F.pad(y, (0, v.shape[-1] - s.shape[-1])), v.flip(-2))


def svd_factors(weight: Tensor, n_u: int, n_v: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reflection vectors u, (..., n_u, in), v, (..., n_v, out), and s, (..., r), signed, with W = V diag(s) Uᵀ.

    Exact if n_u and n_v are at least r = min(in, out). Fewer reflectors take over the largest singular values with
    their vectors, min(n_u, n_v) of them, and s is then the diagonal of Uᵀ A V: the best for this U and V.
    """
    left, _, right = torch.linalg.svd(weight.mT, full_matrices=False)
    exact = min(n_u, n_v, left.shape[-1])
    # The reflections reproduce singular vectors up to signs; these come out again in s, through the core.
    u = _padded(reflections(left[..., :exact])[0], n_u)
    v = _padded(reflections(right.mT[..., :exact])[0], n_v)
    core = householder_product(householder_product(weight, u).mT, v)  # Uᵀ A V, (..., in, out)
    return u, v, core.diagonal(dim1=-2, dim2=-1)


def _padded(v: Tensor, count: int) -> Tensor:
    """Reflection vectors, (..., k, n), and copies of the last axis up to ``count``: they cancel in pairs.

    A copy that is left over flips the last column, and with it a sign of s. Zero vectors would have no gradient.
    """
    last = torch.eye(1, v.shape[-1], device=v.device, dtype=v.dtype).flip(-1)
    return torch.cat([v, last.expand(*v.shape[:-2], count - v.shape[-2], -1)], -2)


def draw_svd(u: Tensor, v: Tensor, signs: Tensor, generator: torch.Generator | None) -> None:
    """Fill reflection vectors u, (k, in), v, (l, out), and signs, (r,), in place: U and V uniform."""
    # H₁⋯H_k diag(d) is uniform; diag(d) of both sides moves into s, as far as s reaches.
    signs.fill_(1)
    for vectors in (u, v):
        drawn, leading = draw_reflections(vectors.shape, generator, vectors)
        vectors.copy_(drawn)
        kept = min(len(leading), len(signs))
        signs[:kept] *= leading[:kept].to(signs.dtype)


def check_reflectors(name: str, count: int | None, size: int, default: int) -> int:
    """The number of reflectors, or a ValueError unless it is in 1..size."""
    k = default if count is None else check_positive(**{name: count})[0]
    if k > size:
        raise ValueError(f"{name} must be at most {size}, the dimension of the reflections, got {k}")
    return k


def eigen_factors(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Reflection vectors q, (..., k, n), and eigenvalues s, (..., n), with (W + Wᵀ)/2 = Q diag(s) Qᵀ.

    Exact if k = n. Fewer reflectors take over the k eigenvalues that are farthest from the mean with their vectors, and
    s is the diagonal of Qᵀ W Q: the best for this Q.
    """
    # A multiple of I commutes with Q and costs no reflection: what matters is the distance from the mean eigenvalue.
    values, vectors = torch.linalg.eigh((weight + weight.mT) / 2)
    order = (values - values.mean(-1, keepdim=True)).abs().argsort(-1, descending=True)[..., None, :k]
    q, _ = reflections(vectors.gather(-1, order.expand(*vectors.shape[:-1], k)))
    core = householder_product(householder_product(weight, q).mT, q)
    return q, core.diagonal(dim1=-2, dim2=-1)


def symmetric_matrix(q: Tensor, s: Tensor) -> Tensor:
    """Q diag(s) Qᵀ, exactly symmetric, (..., n, n), for reflection vectors q, (..., k, n), and values s, (..., n)."""
    w = svd_matrix(q, s, q)
    return (w + w.mT) / 2


def asymmetry(weight: Tensor) -> Tensor:
    """max |A − Aᵀ|, (..., n, n) -> (...)."""
    return (weight - weight.mT).abs().amax((-2, -1))

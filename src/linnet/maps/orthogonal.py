"""Orthogonal matrices as products of Householder reflections.

A product of reflections stays orthogonal whatever the parameters become: only the directions of the vectors count, so
weight decay, huge learning rates and huge vectors change nothing, and a vector that vanishes drops out as an identity.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.beings import check_positive
from linnet.linear import LinearMap

__all__ = ["OrthogonalLinear", "householder_product"]


def unit(v: Tensor) -> Tensor:
    """v / ‖v‖ along the last axis, at any scale; 0 stays 0."""
    largest = v.detach().abs().amax(-1, keepdim=True)
    v = v / torch.where(largest > 0, largest, 1.0)  # entries of at most 1: squares neither overflow nor vanish
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(0.5)


def compact(v: Tensor) -> tuple[Tensor, Tensor]:
    """The factors U, T with H₁H₂⋯H_k = I − Uᵀ T⁻¹ U, where Hᵢ = I − 2uᵢuᵢᵀ and uᵢ = vᵢ/‖vᵢ‖: (..., k, n) each row a v.

    T = I/2 + the strict upper triangle of U Uᵀ. Its inverse has entries of at most 4, being itself made of products of
    reflections, so the triangular solve is safe for any vectors.

    Reference:
        T. Joffrain, T. M. Low, E. S. Quintana-Ortí, R. van de Geijn, F. G. Van Zee, Accumulating Householder
        transformations, revisited, 2006; A. Likhosherstov et al., CWY parametrization, 2020, arXiv 2004.08675.
    """
    u = unit(v)
    half = torch.eye(v.shape[-2], device=v.device, dtype=v.dtype) / 2
    return u, (u @ u.mT).triu(1) + half


def householder_product(x: Tensor, v: Tensor) -> Tensor:
    """x H₁H₂⋯H_k for rows x, (..., b, n), and reflection vectors v, (..., k, n); a zero vector reflects nothing.

    Example:
        >>> x, v = torch.randn(5, 4), torch.randn(3, 4)
        >>> torch.allclose(householder_product(x, v).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
        True
    """
    u, t = compact(v)
    return x - torch.linalg.solve_triangular(t, x @ u.mT, upper=True, left=False) @ u


def frame(v: Tensor, r: int) -> Tensor:
    """The first r columns of H₁H₂⋯H_k for vectors v, (..., k, n): orthonormal, (..., n, r); never builds n x n.

    Example:
        >>> q = frame(torch.randn(3, 1000), 3)
        >>> torch.allclose(q.mT @ q, torch.eye(3), atol=1e-5)
        True
    """
    u, t = compact(v)
    start = torch.eye(v.shape[-1], r, device=v.device, dtype=v.dtype)
    return polish(start - u.mT @ torch.linalg.solve_triangular(t, u[..., :r], upper=True))


def polish(q: Tensor) -> Tensor:
    """One Newton–Schulz step Q(3I − QᵀQ)/2 against rounding: an error of δ in QᵀQ = I becomes one of δ².

    Nearly parallel reflection vectors would else leave 2e-5 in float32. With Q = I − E (for r columns, the first r of
    I) the error is E + Eᵀ − EᵀE, free of sums in which a rounded 1 drowns small terms. The correction is as small as
    rounding, so autograd need not see it.
    """
    n, r = q.shape[-2:]
    e = torch.eye(n, r, device=q.device, dtype=q.dtype) - q.detach()
    top = e[..., :r, :]
    error = top + top.mT - e.mT @ e  # I − QᵀQ, (..., r, r)
    return q + (F.pad(error, (0, 0, 0, n - r)) - e @ error) / 2


def reflections(q: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors v, (..., r, n), none of them zero, and signs d, (..., r), with Q = H₁⋯H_r diag(d), for orthonormal Q.

    Q has r columns, (..., n, r); of the product the first r columns are meant. LAPACK's QR leaves out a reflection
    where a column needs none; here that is eᵢ with the sign dᵢ flipped, which is the same product because I − 2eᵢeᵢᵀ
    commutes with every later reflection.
    """
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
    v = torch.randn(k, n, generator=generator, device=like.device, dtype=wide).triu()
    leading = torch.where(v.diagonal() < 0, -1.0, 1.0).to(wide)  # row i is the column that is mapped to ± its norm eᵢ
    v = v + F.pad(torch.diag(leading * torch.linalg.vector_norm(v, dim=-1)), (0, n - k))
    return unit(v), -leading


def peel(q: Tensor, k: int) -> Tensor:
    """Vectors v, (..., k, n), with Q ≈ H₁⋯H_k, for an orthogonal Q, (..., n, n).

    Each reflection brings home the unit vector that Q moves farthest, and with it lowers rank(Q − I) by one. So the
    product is Q itself iff k reflections can give it: rank(Q − I) ≤ k, and an even number of them is left over, which
    cancel in pairs (Cartan and Dieudonné).
    """
    identity = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
    vectors = []
    for _ in range(k):
        moved = q - identity
        farthest = moved.square().sum(-2).argmax(-1)[..., None, None].expand(*q.shape[:-1], 1)
        v = moved.gather(-1, farthest).squeeze(-1)  # Q eⱼ − eⱼ, (..., n)
        v = torch.where((v == 0).all(-1, keepdim=True), identity[0], unit(v))
        q = q - 2 * v.unsqueeze(-1) * (v.unsqueeze(-2) @ q)
        vectors.append(v)
    return torch.stack(vectors, -2)


def orthogonality_error(a: Tensor) -> Tensor:
    """max |AᵀA − I|, or of A Aᵀ for a wide matrix: (..., m, n) -> (...)."""
    gram = a.mT @ a if a.shape[-2] >= a.shape[-1] else a @ a.mT
    return (gram - torch.eye(gram.shape[-1], device=a.device, dtype=a.dtype)).abs().amax((-2, -1))


class OrthogonalLinear(LinearMap):
    """y = x A + b with AᵀA = I, whatever the optimizer does.

    W = H₁⋯H_k D, a product of k reflections and a fixed diagonal D of ±1. With k = n every orthogonal matrix of the
    determinant (−1)ᵏ det D is reached; ``reset_parameters`` draws D too (both determinants, W uniform over O(n)),
    ``assign`` sets it. A matrix that is not orthogonal is assigned as its polar factor, the nearest orthogonal one.
    With fewer reflectors the layer is cheaper and less expressive, and D = diag(1, ..., 1, ±1); ``assign`` is exact for
    what such a layer can be, and otherwise brings home one by one the k axes that W moves farthest, which need not
    give the nearest.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        reflectors: how many reflections; None means n.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - vectors: ([beings,] reflectors, n)
        - signs: ([beings,] n), a buffer

    Raises:
        ValueError: in_features != out_features, or reflectors is not in 1..n.

    Example:
        >>> layer = OrthogonalLinear(16, 16, bias=False)
        >>> x = torch.randn(8, 16)
        >>> torch.allclose(layer(x).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
        True

    Reference:
        Z. Mhammedi et al., Efficient orthogonal parametrisation of recurrent neural networks using Householder
        reflections, 2017, arXiv 1612.00188; G. W. Stewart, The efficient generation of random orthogonal matrices,
        1980.
    """

    promise = "AᵀA = I"
    square = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        reflectors: int | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        n = self.in_features
        self.reflectors = reflectors
        k = n if reflectors is None else check_positive(reflectors=reflectors)[0]
        if k > n:
            raise ValueError(f"reflectors must be at most in_features={n}, however: {k}")
        self.vectors = nn.Parameter(torch.empty(*self.leading, k, n, device=device, dtype=dtype))
        self.register_buffer("signs", torch.empty(*self.leading, n, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"reflectors": 2}]

    def _weight(self, vectors: Tensor, signs: Tensor) -> Tensor:
        identity = torch.eye(self.in_features, device=vectors.device, dtype=vectors.dtype)
        q = householder_product(identity.expand(*vectors.shape[:-2], -1, -1), vectors)
        return polish(q) * signs.unsqueeze(-2)

    def _product(self, x: Tensor, vectors: Tensor, signs: Tensor) -> Tensor:
        return householder_product(x * signs.unsqueeze(-2), vectors.flip(-2))  # x D (H₁⋯H_k)ᵀ

    def forward(self, input: Tensor) -> Tensor:
        return self._matrix_free(input, self._product)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        u, _, vh = torch.linalg.svd(weight)
        q, k = u @ vh, self.vectors.shape[-2]
        if k == self.in_features:
            vectors, signs = reflections(q)
        else:
            signs = torch.ones_like(q[..., 0])
            signs[..., -1] = torch.linalg.det(q).sign() * (-1) ** k
            vectors = peel(q * signs.unsqueeze(-2), k)
        return {"vectors": vectors, "signs": signs}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        vectors, signs = raw["vectors"], raw["signs"]
        k, n = vectors.shape
        uniform, leading = draw_reflections((n, n), generator, vectors)
        vectors.copy_(uniform[:k])
        signs.copy_(leading)
        if k < n:
            signs[:-1] = 1  # so that `assign` can tell D from W: det W = (−1)ᵏ det D

    def _violation(self, weight: Tensor) -> Tensor:
        return orthogonality_error(weight)

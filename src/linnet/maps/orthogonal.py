"""Orthogonal matrices as products of Householder reflections.

A product of reflections stays orthogonal whatever the parameters become: only the directions of the vectors count, so
weight decay, huge learning rates and huge vectors change nothing, and a vector that vanishes drops out as an identity.
"""

from collections.abc import Mapping
from typing import Any

import torch
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


def polish(q: Tensor) -> Tensor:
    """One Newton–Schulz step Q(3I − QᵀQ)/2 against rounding: an error of δ in QᵀQ = I becomes one of δ².

    Nearly parallel reflection vectors would else leave 2e-5 in float32. The correction is as small as rounding, so
    autograd need not see it.
    """
    exact = q.detach()
    identity = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
    return q + exact @ (identity - exact.mT @ exact) / 2


def reflections(q: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors v, (..., n, n), none of them zero, and signs d, (..., n), with Q = H₁⋯H_n diag(d), for an orthogonal Q.

    LAPACK's QR leaves out a reflection where a column needs none; here that is eᵢ with the sign dᵢ flipped, which is
    the same product because I − 2eᵢeᵢᵀ commutes with every later reflection.
    """
    packed, tau = torch.geqrf(q)
    r = packed.diagonal(dim1=-2, dim2=-1)
    v = packed.tril(-1) + torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
    v = torch.where(tau.unsqueeze(-2) == 0, torch.eye(q.shape[-1], device=q.device, dtype=q.dtype), v)
    signs = torch.where(r < 0, -1.0, 1.0).to(q.dtype) * torch.where(tau == 0, -1.0, 1.0).to(q.dtype)
    return v.mT, signs


def orthogonality_error(a: Tensor) -> Tensor:
    """max |AᵀA − I|, or of A Aᵀ for a wide matrix: (..., m, n) -> (...)."""
    gram = a.mT @ a if a.shape[-2] >= a.shape[-1] else a @ a.mT
    return (gram - torch.eye(gram.shape[-1], device=a.device, dtype=a.dtype)).abs().amax((-2, -1))


class OrthogonalLinear(LinearMap):
    """y = x A + b with AᵀA = I, whatever the optimizer does.

    W = H₁⋯H_k D, a product of k reflections and a fixed diagonal D of ±1. With k = n every orthogonal matrix of the
    determinant (−1)ᵏ det D is reached; ``reset_parameters`` draws D too (both determinants, W uniform over O(n)),
    ``assign`` sets it. A matrix that is not orthogonal is assigned as its polar factor, the nearest orthogonal one.
    With fewer reflectors the layer is cheaper and less expressive; ``assign`` then keeps the first k columns of W.

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
        vectors, signs = reflections(u @ vh)
        return {"vectors": vectors[..., : self.vectors.shape[-2], :], "signs": signs}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        # Stewart: reflections that would triangularize a Gaussian matrix, and the signs they leave, make W uniform.
        vectors, signs = raw["vectors"], raw["signs"]
        k = vectors.shape[-2]
        wide = torch.promote_types(vectors.dtype, torch.float32)
        gaussian = torch.randn(signs.shape[-1], signs.shape[-1], generator=generator, device=signs.device, dtype=wide)
        v = gaussian.triu()  # row i is the column that reflection i maps to a multiple of eᵢ
        leading = torch.where(v.diagonal() < 0, -1.0, 1.0).to(wide)
        v = v + torch.diag(leading * torch.linalg.vector_norm(v, dim=-1))
        vectors.copy_(unit(v)[:k])
        signs.copy_(-leading)

    def _violation(self, weight: Tensor) -> Tensor:
        return orthogonality_error(weight)

"""Rectangular matrices with orthonormal columns or rows."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.householder import draw_reflections, frame, householder_product, orthogonality_error, reflections


class StiefelLinear(LinearMap):
    """y = x A + b with orthonormal columns, AᵀA = I, or, if A is wide, orthonormal rows, A Aᵀ = I.

    The r = min(in, out) columns (or rows) are the first r columns of a product of r reflections in the larger
    dimension n, with signs: memory O(nr), time O(nr²), never an n x n matrix. With in <= out the layer keeps norms;
    with in > out it is a projection onto an r-dimensional space followed by a rotation. Every such matrix is reached;
    if in = out, those of the determinant that the signs fix (``reset_parameters`` draws them, ``assign`` sets them). A
    fresh matrix is uniform over the set. Any matrix is assigned as its polar factor, the nearest in the Frobenius norm.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - vectors: ([beings,] r, n), with r = min(in_features, out_features), n = max(in_features, out_features)
        - signs: ([beings,] r), a buffer

    Example:
        >>> layer = StiefelLinear(3, 1000, bias=False)
        >>> x = torch.randn(8, 3)
        >>> torch.allclose(layer(x).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
        True

    Reference:
        V. Likhosherstov et al., CWY parametrization, 2020, arXiv 2004.08675; N. J. Higham, Matrix nearness problems
        and applications, 1989 (the polar factor).
    """

    family = "orthogonal"
    promise = "AᵀA = I, or A Aᵀ = I if A is wide"
    fixed = ("signs",)

    vectors: nn.Parameter
    signs: Tensor

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        r, n = sorted((self.in_features, self.out_features))
        return {"vectors": (r, n), "signs": (r,)}

    def _weight(self, vectors: Tensor, signs: Tensor) -> Tensor:
        q = frame(vectors, signs.shape[-1]) * signs.unsqueeze(-2)  # (n, r)
        return q if self.out_features >= self.in_features else q.mT

    def _product(self, x: Tensor, vectors: Tensor, signs: Tensor) -> Tensor:
        r, n = vectors.shape[-2:]
        if self.out_features >= self.in_features:  # x D (first r columns of H₁⋯H_r)ᵀ
            return householder_product(F.pad(x * signs.unsqueeze(-2), (0, n - r)), vectors.flip(-2))
        return householder_product(x, vectors)[..., :r] * signs.unsqueeze(-2)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        tall = weight if self.out_features >= self.in_features else weight.mT
        u, _, vh = torch.linalg.svd(tall, full_matrices=False)
        vectors, signs = reflections(u @ vh)
        return {"vectors": vectors, "signs": signs}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        vectors, signs = draw_reflections(raw["vectors"].shape, generator, raw["vectors"])
        raw["vectors"].copy_(vectors)
        raw["signs"].copy_(signs)

    def _violation(self, weight: Tensor) -> Tensor:
        return orthogonality_error(weight)

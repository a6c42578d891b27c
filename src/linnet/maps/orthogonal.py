"""Square matrices with AᵀA = I."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.maps.abstract.invertible import Invertible
from linnet.maps.math.householder import (
    draw_reflections,
    greedy_reflections,
    householder_product,
    newton_schulz_step,
    orthogonality_error,
    reflections,
)


class OrthogonalLinear(Invertible):
    """y = x A + b with AᵀA = I, whatever the optimizer does.

    W = H_k⋯H₁ D, a product of k reflections and a fixed diagonal D of ±1. With k = n every orthogonal matrix of the
    determinant (−1)ᵏ det D is reached; ``reset_parameters`` draws D too (both determinants, W uniform over O(n)),
    ``assign`` sets it. A matrix that is not orthogonal is assigned as its polar factor, the nearest orthogonal one.
    With fewer reflectors the layer is cheaper and less expressive, and D = diag(1, ..., 1, ±1); ``assign`` is exact for
    what such a layer can be, and otherwise reflects one by one the k axes that W moves farthest, which need not give
    the nearest.

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

    family = "orthogonal"
    promise = "AᵀA = I"
    square = True
    fixed = ("signs",)

    vectors: nn.Parameter
    signs: Tensor

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
        self.reflectors = reflectors
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        k = n if self.reflectors is None else check_positive(reflectors=self.reflectors)[0]
        if k > n:
            raise ValueError(f"reflectors must be at most in_features={n}, got {k}")
        return {"vectors": (k, n), "signs": (n,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"reflectors": 2}]

    def _weight(self, vectors: Tensor, signs: Tensor) -> Tensor:
        identity = torch.eye(self.in_features, device=vectors.device, dtype=vectors.dtype)
        # I H₁⋯H_k is Wᵀ but for D; the step against rounding keeps W orthogonal for nearly parallel vectors too.
        q = householder_product(identity.expand(*vectors.shape[:-2], -1, -1), vectors)
        return newton_schulz_step(q.mT) * signs.unsqueeze(-2)

    def _product(self, x: Tensor, vectors: Tensor, signs: Tensor) -> Tensor:
        return householder_product(x * signs.unsqueeze(-2), vectors)  # x D H₁⋯H_k

    def _solve(self, y: Tensor, raw: dict[str, Tensor]) -> Tensor:
        rows = y.unsqueeze(-2)  # (*, [beings,] 1, n): a row of its own for each matrix
        if self.beings is None:  # one matrix for all rows
            rows = y.reshape(-1, self.in_features)
        x = householder_product(rows.to(raw["vectors"].dtype), raw["vectors"].flip(-2)) * raw["signs"].unsqueeze(-2)
        return (x.reshape(y.shape) if self.beings is None else x.squeeze(-2)).to(y.dtype)

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        return self._weight(**raw).mT

    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        return raw["signs"].new_zeros(self.leading)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        u, _, vh = torch.linalg.svd(weight)
        q, k = u @ vh, self.vectors.shape[-2]
        # With k = n reflections any orthogonal matrix is reached, and D takes the signs that QR leaves. With fewer, D
        # differs from I in one sign at most, that of the determinant: det W = (−1)ᵏ det D.
        if k == self.in_features:
            vectors, signs = reflections(q)
        else:
            signs = torch.ones_like(q[..., 0])
            signs[..., -1] = torch.linalg.det(q).sign() * (-1) ** k
            vectors = greedy_reflections(q * signs.unsqueeze(-2), k)
        return {"vectors": vectors.flip(-2), "signs": signs}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        vectors, signs = raw["vectors"], raw["signs"]
        k, n = vectors.shape
        uniform, leading = draw_reflections((n, n), generator, vectors)
        vectors.copy_(uniform[:k].flip(0))
        signs.copy_(leading)
        # `assign` must be able to tell D from W: by the determinant it finds one sign
        if k < n:
            signs[:-1] = 1

    def _violation(self, weight: Tensor) -> Tensor:
        return orthogonality_error(weight)

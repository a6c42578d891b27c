"""What the maps with bounded singular values have in common: a core that is diagonal."""

from abc import abstractmethod

import torch
from torch import Tensor

from linnet.maps.abstract.invertible import Invertible
from linnet.maps.math.intervals import outside
from linnet.maps.math.svd import svd_matrix, svd_product

__all__ = ["DiagonalCore"]


class DiagonalCore(Invertible, catalogue=False):
    """A = U diag(s) Vᵀ with U and V products of reflections: what the layers of this file share.

    A class names its raw tensors in ``_weight`` and writes ``_parts``: raw -> (vectors of U, s, vectors of V).
    """

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw tensors -> reflection vectors u, (..., k, in), signed values s, (..., r), and v, (..., l, out)."""

    def _product(self, x: Tensor, **raw: Tensor) -> Tensor:
        return svd_product(x, *self._parts(**raw))

    def forward(self, input: Tensor) -> Tensor:
        return self._matrix_free(input, self._product)

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        u, s, v = self._parts(**raw)
        return svd_matrix(v, 1 / s, u)

    def logabsdet(self) -> Tensor:
        """log |det A|, () or (beings,), differentiable, in at least float32.

        Raises:
            ValueError: in_features != out_features, or the interval contains 0.
        """
        self._check_invertible()
        return self._logabsdet(self._wide_raw())

    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        return self._parts(**raw)[1].abs().log().sum(-1)

    def _check_invertible(self) -> None:
        if self.in_features != self.out_features or self.sigma_min <= 0 <= self.sigma_max:
            raise ValueError(
                "An inverse and a determinant need in_features == out_features and an interval without 0, "
                f"got {self.in_features} -> {self.out_features}, [{self.sigma_min:g}, {self.sigma_max:g}]"
            )

    def _violation(self, weight: Tensor) -> Tensor:
        return outside(torch.linalg.svdvals(weight), self.sigma_min, self.sigma_max)

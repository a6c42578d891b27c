"""What the maps with bounded singular values have in common: a core that is diagonal."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from linnet.maps.abstract.invertible import Invertible
from linnet.maps.math.intervals import angle_of, check_interval, draw_angles, outside, sine_to_interval
from linnet.maps.math.svd import draw_svd, svd_factors, svd_matrix, svd_product


class DiagonalCore(Invertible, catalogue=False):
    """A = U diag(s) Vᵀ with U and V products of reflections, and s in an interval.

    A class names its raw tensors in ``_weight`` and gives their shapes. If they are not u_vectors, v_vectors, angles
    and signs, it writes ``_parts`` (raw -> vectors of U, s, vectors of V), ``_assign`` and ``_draw`` too.
    """

    lowest: ClassVar[float] = 0.0
    """How low sigma_min may be."""

    sigma_min: float
    sigma_max: float

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max, lowest=self.lowest)
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw tensors -> reflection vectors u, (..., k, in), signed values s, (..., r), and v, (..., l, out)."""
        s = raw["signs"] * sine_to_interval(raw["angles"], self.sigma_min, self.sigma_max)
        return raw["u_vectors"], s, raw["v_vectors"]

    def _product(self, x: Tensor, **raw: Tensor) -> Tensor:
        return svd_product(x, *self._parts(**raw))

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        raw = self.raw_tensors()
        u, v, s = svd_factors(weight, raw["u_vectors"].shape[-2], raw["v_vectors"].shape[-2])
        angles = angle_of(s.abs(), self.sigma_min, self.sigma_max, raw["angles"].dtype)
        return {"u_vectors": u, "v_vectors": v, "angles": angles, "signs": torch.where(s < 0, -1.0, 1.0)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        draw_svd(raw["u_vectors"], raw["v_vectors"], raw["signs"], generator)
        draw_angles(raw["angles"], generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return outside(torch.linalg.svdvals(weight), self.sigma_min, self.sigma_max)

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        # (V diag(s) Uᵀ)⁻¹ = U diag(1/s) Vᵀ
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
        # U and V are orthogonal: |det A| is the product of the |s|
        return self._parts(**raw)[1].abs().log().sum(-1)

    def _check_invertible(self) -> None:
        if self.in_features != self.out_features or self.sigma_min <= 0 <= self.sigma_max:
            raise ValueError(
                "An inverse and a determinant need in_features == out_features and an interval without 0, "
                f"got {self.in_features} and {self.out_features}, [{self.sigma_min:g}, {self.sigma_max:g}]"
            )

"""Matrices whose spectral norm is bounded, with a certificate."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.core.measures import tolerance
from linnet.maps.math.intervals import angle_of, draw_angles, outside, sine_to_interval
from linnet.maps.math.svd import draw_svd, svd_factors, svd_matrix, svd_product


class ContractiveLinear(LinearMap):
    """y = x A + b with ‖A‖₂ <= bound: no two outputs are farther apart than ``bound`` times their inputs.

    A = U diag(± s) Vᵀ, U and V products of min(in, out) reflections, s a sine of the angles scaled to [0, bound]. So
    every such matrix is reached, orthogonal ones included, which a matrix divided by an upper bound of its norm cannot
    promise; and it costs less than the certified upper bounds, made of repeated products of n x n matrices. Any matrix
    is assigned with its singular values cut off at ``bound``, the nearest in every unitarily invariant norm.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        bound: the largest norm, > 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - u_vectors: ([beings,] r, in_features), with r = min(in_features, out_features)
        - v_vectors: ([beings,] r, out_features)
        - angles: ([beings,] r)
        - signs: ([beings,] r), a buffer

    Raises:
        ValueError: bound is not a finite number > 0.

    Example:
        >>> layer = ContractiveLinear(30, 20)
        >>> x, y = torch.randn(8, 30), torch.randn(8, 30)
        >>> bool(((layer(x) - layer(y)).norm(dim=-1) <= layer.lipschitz_bound() * (x - y).norm(dim=-1)).all())
        True

    Reference:
        J. Zhang, Q. Lei, I. S. Dhillon, Stabilizing gradients for deep neural networks via efficient SVD
        parameterization, 2018, arXiv 1803.09327.
    """

    family = "singular-values"
    promise = "‖A‖₂ <= bound"
    fixed = ("signs",)

    u_vectors: nn.Parameter
    v_vectors: nn.Parameter
    angles: nn.Parameter
    signs: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bound: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.bound = float(bound)
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound must be a finite number > 0, got {bound!r}")
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        r = min(self.in_features, self.out_features)
        return {"u_vectors": (r, self.in_features), "v_vectors": (r, self.out_features), "angles": (r,), "signs": (r,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"bound": 0.3}]

    def lipschitz_bound(self) -> Tensor:
        """An upper bound of ‖A‖₂ that A attains up to rounding, at most ``bound`` but for that, () or (beings,).

        It is the largest singular value, known from the parameters, and 100 eps ``bound`` for rounding. Differentiable.
        """
        wide = torch.promote_types(self.angles.dtype, torch.float32)
        largest = sine_to_interval(self.angles.to(wide), 0.0, self.bound).amax(-1)
        return largest + tolerance(self.angles.dtype) * self.bound

    def _weight(self, u_vectors: Tensor, v_vectors: Tensor, angles: Tensor, signs: Tensor) -> Tensor:
        return svd_matrix(u_vectors, signs * sine_to_interval(angles, 0.0, self.bound), v_vectors)

    def _product(self, x: Tensor, u_vectors: Tensor, v_vectors: Tensor, angles: Tensor, signs: Tensor) -> Tensor:
        return svd_product(x, u_vectors, signs * sine_to_interval(angles, 0.0, self.bound), v_vectors)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        u, v, s = svd_factors(weight, self.u_vectors.shape[-2], self.v_vectors.shape[-2])
        angles = angle_of(s.abs(), 0.0, self.bound, self.angles.dtype)
        return {"u_vectors": u, "v_vectors": v, "angles": angles, "signs": torch.where(s < 0, -1.0, 1.0)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        draw_svd(raw["u_vectors"], raw["v_vectors"], raw["signs"], generator)
        draw_angles(raw["angles"], generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return outside(torch.linalg.svdvals(weight), 0.0, self.bound)

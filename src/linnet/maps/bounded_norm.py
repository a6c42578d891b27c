"""Matrices whose induced norm lies in an interval."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.intervals import angle_of, check_interval, outside, sine_to_interval


class BoundedNormLinear(LinearMap):
    """y = x A + b with sigma_min <= ‖A‖_p <= sigma_max, the induced norm of A for p = 1, 2, inf, or Frobenius' ("fro").

    ‖A‖₁ is the largest column sum of |A|, ‖A‖_∞ the largest row sum, ‖A‖₂ the largest singular value; A is
    (in_features, out_features). A = s D / ‖D‖_p, with s a sine of ``angle`` scaled to the interval, so every such
    matrix is reached and the norm can be learned without a dead end at the bounds. For p = 2 the norm is computed
    exactly, by an SVD, for an upper bound would leave out matrices near sigma_max and break sigma_min; that is slow
    above n = 256, where :class:`ContractiveLinear` and :class:`SVDLinear` are faster. Any matrix is assigned as itself
    scaled to the nearest admitted norm; 0, where sigma_min > 0, becomes a multiple of I. Fresh matrices are nn.Linear's
    so scaled, a fiftieth of the interval away from its ends.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sigma_min: lower bound of the norm, >= 0.
        sigma_max: upper bound of the norm, > 0.
        p: which norm: 1, 2, inf or "fro".

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - direction: ([beings,] out_features, in_features), the matrix Dᵀ
        - angle: ([beings,] 1)

    Raises:
        ValueError: not 0 <= sigma_min <= sigma_max, or both 0; or p is none of the four.

    Example:
        >>> layer = BoundedNormLinear(5, 3, sigma_min=2.0, sigma_max=3.0, p=1)
        >>> bool(2.0 <= layer.weight.mT.abs().sum(0).max() <= 3.0)
        True

    Reference:
        R. A. Horn, C. R. Johnson, Matrix analysis, 2012, section 5.6 (induced norms).
    """

    family = "singular-values"
    promise = "sigma_min <= ‖A‖_p <= sigma_max"

    direction: nn.Parameter
    angle: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        p: float | str = 2,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max)
        if p not in (1, 2, math.inf, "fro"):
            raise ValueError(f"p must be 1, 2, inf or 'fro', got {p!r}")
        self.p = p
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"direction": (self.out_features, self.in_features), "angle": (1,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"p": 1}, {"p": math.inf, "sigma_min": 0.5}, {"p": "fro", "sigma_max": 3.0}]

    def _norm(self, weight: Tensor) -> Tensor:
        """‖A‖_p of W = Aᵀ, (..., out, in) -> (..., 1)."""
        if self.p == 2:  # svdvals takes another algorithm, with other bits, where no gradient is asked for
            return torch.linalg.svd(weight, full_matrices=False)[1][..., :1]
        order: Any = self.p
        return torch.linalg.matrix_norm(weight.mT, ord=order).unsqueeze(-1)

    def _weight(self, direction: Tensor, angle: Tensor) -> Tensor:
        largest = direction.detach().abs().amax((-2, -1), keepdim=True)
        identity = torch.eye(self.out_features, self.in_features, device=direction.device, dtype=direction.dtype)
        zero = (largest == 0).to(direction.dtype)
        # Entries of at most 1: no norm overflows or vanishes. A direction of zeros has no norm: I takes its place.
        d = direction / (largest + zero) + zero * identity
        return (sine_to_interval(angle, self.sigma_min, self.sigma_max) / self._norm(d)).unsqueeze(-1) * d

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        norm = self._norm(weight)
        direction = weight / torch.where(norm > 0, norm, 1.0).unsqueeze(-1)
        return {"direction": direction, "angle": angle_of(norm, self.sigma_min, self.sigma_max, self.angle.dtype)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        bound = 1 / math.sqrt(self.in_features)
        direction = raw["direction"].uniform_(-bound, bound, generator=generator)
        edge = (self.sigma_max - self.sigma_min) / 50
        norm = self._norm(direction.double()).clamp(self.sigma_min + edge, self.sigma_max - edge)
        raw["angle"].copy_(angle_of(norm, self.sigma_min, self.sigma_max, direction.dtype))

    def _violation(self, weight: Tensor) -> Tensor:
        return outside(self._norm(weight), self.sigma_min, self.sigma_max)

"""Skew-symmetric matrices with damping: damped rotations in continuous time."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.intervals import check_interval, sigmoid_raw, sigmoid_to_interval
from linnet.maps.math.triangles import antimirror, skew_part, strict_upper


class DampedSkewSymmetricLinear(LinearMap):
    """y = x A + b with A = S − γI, S = −Sᵀ and γ in [sigma_min, sigma_max], so that Re λ = −γ for every eigenvalue.

    In continuous time, ẋ = x A, the state decays at the rate γ; the sign is therefore minus. ``sign=1`` gives
    A = S + γI, which is what the class of this name does in neuromancer, and grows. γ is one learned number.

    Any other matrix is assigned as the nearest of the structure: its skew part, and the mean of its diagonal moved
    into the interval.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        sigma_min: the smallest damping γ, at least 0.
        sigma_max: the largest damping γ.
        sign: −1 for A = S − γI, 1 for A = S + γI.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - upper: ([beings,] n(n-1)/2)
        - damping: ([beings,] 1)

    Raises:
        ValueError: in_features != out_features, or not 0 <= sigma_min < sigma_max, or sign is neither −1 nor 1.

    Example:
        >>> layer = DampedSkewSymmetricLinear(4, 4)
        >>> bool((layer.eigvals().real <= -0.0999).all())
        True

    Reference:
        B. Chang, M. Chen, E. Haber, E. H. Chi, AntisymmetricRNN, 2019, arXiv 1902.09689.
    """

    family = "stable"
    promise = "A = S ± γI, S = −Sᵀ, γ in [sigma_min, sigma_max]"
    square = True
    decays = ("upper",)

    upper: nn.Parameter
    damping: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_min: float = 0.1,
        sigma_max: float = 0.5,
        sign: int = -1,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max, strict=True)
        if sign not in (-1, 1):
            raise ValueError(f"sign must be -1 or 1, got {sign!r}")
        self.sign = sign
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {"upper": (n * (n - 1) // 2,), "damping": (1,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"sigma_min": 0.0, "sigma_max": 2.0, "sign": 1}]

    def _weight(self, upper: Tensor, damping: Tensor) -> Tensor:
        # W = Aᵀ = −S ± γI: the skew part changes its sign, the damping does not
        gamma = self.sign * sigmoid_to_interval(damping, self.sigma_min, self.sigma_max)  # (..., 1)
        return torch.diag_embed(gamma.expand(*gamma.shape[:-1], self.in_features)) - antimirror(upper, self.in_features)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        gamma = self.sign * weight.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        return {
            "upper": strict_upper(skew_part(weight.mT)),
            "damping": sigmoid_raw(gamma, self.sigma_min, self.sigma_max),
        }

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        super()._draw({"upper": raw["upper"]}, generator)
        raw["damping"].normal_(generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        scale = weight.abs().amax((-2, -1)).clamp_min(self.sigma_max)
        diagonal = self.sign * weight.diagonal(dim1=-2, dim2=-1)
        outside = torch.maximum(self.sigma_min - diagonal, diagonal - self.sigma_max).amax(-1).clamp_min(0)
        uneven = diagonal.amax(-1) - diagonal.amin(-1)
        lopsided = (weight + weight.mT).abs().triu(1).amax((-2, -1))
        return torch.maximum(torch.maximum(outside, uneven), lopsided) / scale

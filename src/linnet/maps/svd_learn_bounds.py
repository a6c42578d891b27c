"""Matrices whose singular values stay in an interval that is learned."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.maps.abstract.diagonal_core import DiagonalCore
from linnet.maps.math.intervals import angle_of, draw_angles, sine_to_interval
from linnet.maps.math.svd import draw_svd, svd_factors, svd_matrix


class SVDLinearLearnBounds(DiagonalCore):
    """y = x A + b with lo <= singular values of A <= hi, both bounds learned, sigma_min <= lo <= hi <= sigma_max.

    As :class:`SVDLinear`; the first of ``bound_angles`` places lo in [sigma_min, sigma_max], the second places hi in
    [lo, sigma_max]. Fresh bounds lie one hundredth inside the cap. ``assign`` clamps the singular values to the cap,
    the nearest, and sets the bounds around them, a tenth of the way to the cap.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sigma_min: the least that lo can become, >= 0.
        sigma_max: the most that hi can become, > 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - u_vectors: ([beings,] r, in_features), with r = min(in_features, out_features)
        - v_vectors: ([beings,] r, out_features)
        - angles: ([beings,] r)
        - signs: ([beings,] r), a buffer
        - bound_angles: ([beings,] 2)

    Raises:
        ValueError: not 0 <= sigma_min <= sigma_max, or both 0.

    Example:
        >>> layer = SVDLinearLearnBounds(8, 8)
        >>> low, high = layer.bounds
        >>> bool(0.1 <= low <= high <= 1.0)
        True

    Reference:
        J. Zhang, Q. Lei, I. S. Dhillon, Stabilizing gradients for deep neural networks via efficient SVD
        parameterization, 2018, arXiv 1803.09327.
    """

    family = "singular-values"
    promise = "sigma_min <= lo <= singular values of A <= hi <= sigma_max"
    fixed = ("signs",)

    u_vectors: nn.Parameter
    v_vectors: nn.Parameter
    angles: nn.Parameter
    signs: Tensor
    bound_angles: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, m = self.in_features, self.out_features
        r = min(n, m)
        return {"u_vectors": (r, n), "v_vectors": (r, m), "angles": (r,), "signs": (r,), "bound_angles": (2,)}

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The learned bounds lo and hi, each () or (beings,), differentiable."""
        low, high = self._bounds(self.bound_angles)
        return low.squeeze(-1), high.squeeze(-1)

    def _bounds(self, bound_angles: Tensor) -> tuple[Tensor, Tensor]:
        low = sine_to_interval(bound_angles[..., :1], self.sigma_min, self.sigma_max)
        return low, sine_to_interval(bound_angles[..., 1:], low, self.sigma_max)

    def _weight(
        self, u_vectors: Tensor, v_vectors: Tensor, angles: Tensor, signs: Tensor, bound_angles: Tensor
    ) -> Tensor:
        raw = {"u_vectors": u_vectors, "v_vectors": v_vectors, "angles": angles, "signs": signs}
        return svd_matrix(*self._parts(**raw, bound_angles=bound_angles))

    def _parts(self, **raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = raw["signs"] * sine_to_interval(raw["angles"], *self._bounds(raw["bound_angles"]))
        return raw["u_vectors"], s, raw["v_vectors"]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        u, v, s = svd_factors(weight, self.u_vectors.shape[-2], self.v_vectors.shape[-2])
        values, dtype = s.abs().clamp(self.sigma_min, self.sigma_max), self.angles.dtype
        # Bounds exactly at the extreme values would put these at ends of the interval, where the sine is flat.
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        low, high = low + (self.sigma_min - low) / 10, high + (self.sigma_max - high) / 10
        # Each angle is computed from the bounds that the rounded angles before it give.
        first = angle_of(low, self.sigma_min, self.sigma_max, dtype)
        low = sine_to_interval(first, self.sigma_min, self.sigma_max)
        second = angle_of(high, low, self.sigma_max, dtype)
        angles = angle_of(values, low, sine_to_interval(second, low, self.sigma_max), dtype)
        signs = torch.where(s < 0, -1.0, 1.0)
        bound_angles = torch.cat([first, second], -1)
        return {"u_vectors": u, "v_vectors": v, "angles": angles, "signs": signs, "bound_angles": bound_angles}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        draw_svd(raw["u_vectors"], raw["v_vectors"], raw["signs"], generator)
        draw_angles(raw["angles"], generator)
        inside = math.asin(0.98)  # one hundredth of the interval away from its end
        raw["bound_angles"].copy_(torch.tensor([-inside, inside]))

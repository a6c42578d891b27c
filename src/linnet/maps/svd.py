"""Matrices whose singular values stay in an interval.

A = U diag(s) Vᵀ with U and V products of reflections: the interval is kept whatever the parameters become, and
x → ((x U) s) Vᵀ is evaluated without forming A.
"""

from typing import Any

from torch import Tensor, nn

from linnet.maps.abstract.diagonal_core import DiagonalCore
from linnet.maps.math.svd import svd_matrix


class SVDLinear(DiagonalCore):
    """y = x A + b with all min(in, out) singular values of A in [sigma_min, sigma_max], whatever the optimizer does.

    A = U diag(± s) Vᵀ, U and V products of min(in, out) reflections, s a sine of the angles scaled to the interval.
    Every such matrix is reached; for a square A the sign of its determinant is fixed by the signs, which
    ``reset_parameters`` draws and ``assign`` sets. Fresh singular values are uniform over the interval. Any matrix is
    assigned with its singular values clamped to the interval, the nearest in every unitarily invariant norm. Weight
    decay on the angles pulls singular values to the middle of the interval and leaves U and V alone.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sigma_min: lower bound, >= 0.
        sigma_max: upper bound, > 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - u_vectors: ([beings,] r, in_features), with r = min(in_features, out_features)
        - v_vectors: ([beings,] r, out_features)
        - angles: ([beings,] r)
        - signs: ([beings,] r), a buffer

    Raises:
        ValueError: not 0 <= sigma_min <= sigma_max, or both 0.

    Example:
        >>> layer = SVDLinear(30, 20, sigma_min=0.5)
        >>> s = layer.svdvals()
        >>> bool(s.min() > 0.49), bool(s.max() < 1.01)
        (True, True)

    Reference:
        J. Zhang, Q. Lei, I. S. Dhillon, Stabilizing gradients for deep neural networks via efficient SVD
        parameterization, 2018, arXiv 1803.09327.
    """

    family = "singular-values"
    promise = "sigma_min <= singular values of A <= sigma_max"
    fixed = ("signs",)

    u_vectors: nn.Parameter
    v_vectors: nn.Parameter
    angles: nn.Parameter
    signs: Tensor

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        r = min(self.in_features, self.out_features)
        return {"u_vectors": (r, self.in_features), "v_vectors": (r, self.out_features), "angles": (r,), "signs": (r,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"sigma_min": 0.5, "sigma_max": 2.0}]

    def _weight(self, u_vectors: Tensor, v_vectors: Tensor, angles: Tensor, signs: Tensor) -> Tensor:
        return svd_matrix(*self._parts(u_vectors=u_vectors, v_vectors=v_vectors, angles=angles, signs=signs))

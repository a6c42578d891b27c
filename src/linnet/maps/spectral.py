"""Matrices with singular values in an interval, and as many reflections as asked for."""

from typing import Any

import torch
from torch import Tensor, nn

from linnet.maps.abstract.diagonal_core import DiagonalCore
from linnet.maps.math.svd import check_reflectors, svd_matrix


class SpectralLinear(DiagonalCore):
    """y = x A + b with the singular values of A in [sigma_min, sigma_max], and as many reflections as asked for.

    As :class:`SVDLinear`, A = U diag(± s) Vᵀ, but the numbers of reflections in U and in V are options: they set the
    cost and the set of U and V that are reached, not the rank: there are min(in, out) singular values always. With
    min(in, out) reflectors each, every matrix with such singular values is reached and ``assign`` gives the nearest.
    With fewer, ``assign`` keeps the largest singular values with their vectors, as many as there are reflectors on
    both sides, and of the rest the diagonal; that need not be the nearest, even for a matrix that the layer can be.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        n_U_reflectors: reflections in U, at most in_features; None means min(in_features, out_features).
        n_V_reflectors: reflections in V, at most out_features; None means min(in_features, out_features).
        sigma_min: lower bound, >= 0.
        sigma_max: upper bound, > 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - u_vectors: ([beings,] n_U_reflectors, in_features)
        - v_vectors: ([beings,] n_V_reflectors, out_features)
        - angles: ([beings,] min(in_features, out_features))
        - signs: ([beings,] min(in_features, out_features)), a buffer

    Raises:
        ValueError: not 0 <= sigma_min <= sigma_max, or both 0; or too many reflectors.

    Example:
        >>> layer = SpectralLinear(64, 64, n_U_reflectors=8, n_V_reflectors=8, sigma_min=0.5)
        >>> bool((layer.svdvals() > 0.49).all())
        True

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

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        n_U_reflectors: int | None = None,
        n_V_reflectors: int | None = None,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.n_U_reflectors, self.n_V_reflectors = n_U_reflectors, n_V_reflectors
        super().__init__(
            in_features,
            out_features,
            bias,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            beings=beings,
            device=device,
            dtype=dtype,
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, m = self.in_features, self.out_features
        r = min(n, m)
        n_u = check_reflectors("n_U_reflectors", self.n_U_reflectors, n, r)
        n_v = check_reflectors("n_V_reflectors", self.n_V_reflectors, m, r)
        return {"u_vectors": (n_u, n), "v_vectors": (n_v, m), "angles": (r,), "signs": (r,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        # fewer reflectors than min(in, out) keep the contract but for an exact assign
        return [{}, {"in_features": 6, "out_features": 4, "n_U_reflectors": 6, "sigma_max": 2.0}]

    def _weight(self, u_vectors: Tensor, v_vectors: Tensor, angles: Tensor, signs: Tensor) -> Tensor:
        return svd_matrix(*self._parts(u_vectors=u_vectors, v_vectors=v_vectors, angles=angles, signs=signs))

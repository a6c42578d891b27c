"""Stable matrices of discrete time: eigenvalues inside the unit disc."""

from typing import Any

import torch
from torch import Tensor

from linnet.maps.abstract.stable import StableInDisc
from linnet.maps.math.bases import rounding_margin


class SchurStableLinear(StableInDisc):
    """y = x A + b with every eigenvalue of A in the disc |λ| <= bound < 1: the system x ← x A forgets its start.

    A = S⁻¹KS with ‖K‖₂ < bound·(1 − max_cond² eps) and cond(S) <= max_cond; every such matrix is reached, so A itself
    may be up to max_cond times larger than its eigenvalues. ``assign`` takes a stable matrix exactly if it finds S
    among the norms of its eigenvectors and of its Lyapunov functions. Otherwise it first scales the matrix down
    to the radius, then clips what of S and K is out of bounds, which need not give the nearest.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        bound: the largest modulus of an eigenvalue, 0 < bound < 1.
        max_cond: the largest condition number of the basis S, above 1.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - core, vectors: ([beings,] n, n)
        - scales: ([beings,] n)

    Raises:
        ValueError: in_features != out_features, bound is not in (0, 1), or max_cond is not in (1, 1024].

    Example:
        >>> layer = SchurStableLinear(8, 8, bound=0.9)
        >>> bool(layer.eigvals().abs().max() <= 0.9)
        True

    Reference:
        N. Gillis, M. Karow, P. Sharma, Approximating the nearest stable discrete-time system, 2019, arXiv 1802.08033.
    """

    family = "stable"
    promise = "ρ(A) <= bound"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bound: float = 0.99,
        max_cond: float = 100.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 < bound < 1:
            raise ValueError(f"bound must lie in (0, 1), got {bound}")
        self.bound = self._radius = bound
        self.max_cond, self._margin = max_cond, rounding_margin(max_cond)
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"bound": 0.5, "max_cond": 10.0}]

    def _weight(self, vectors: Tensor, scales: Tensor, core: Tensor) -> Tensor:
        return self._matrix(vectors, scales, core)

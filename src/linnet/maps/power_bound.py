"""Matrices whose spectral radius is bounded."""

import math
from typing import Any

import torch
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.maps.abstract.stable import StableInDisc
from linnet.maps.math.bases import rounding_margin
from linnet.maps.math.spectral_radius import radius_estimate


class PowerBoundLinear(StableInDisc):
    """y = x A + b with the spectral radius ρ(A) <= max_p, always.

    A = S⁻¹KS with ‖K‖₂ < max_p·(1 − max_cond² eps) and cond(S) <= max_cond, as in :class:`SchurStableLinear`, for a
    bound of any size. Nothing is penalized; ``pwr_iters`` is the number of powers that :meth:`spectral_radius` takes.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        max_p: the largest modulus of an eigenvalue, above 0.
        pwr_iters: the power k in the estimate ‖Aᵏ‖^(1/k) of the spectral radius.
        max_cond: the largest condition number of the basis S, above 1.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - core, vectors: ([beings,] n, n)
        - scales: ([beings,] n)

    Raises:
        ValueError: in_features != out_features, max_p <= 0, pwr_iters < 1, or max_cond is not in (1, 1024].

    Example:
        >>> layer = PowerBoundLinear(8, 8, max_p=2.0)
        >>> bool(layer.eigvals().abs().max() <= 2), bool(layer.spectral_radius() >= layer.eigvals().abs().max())
        (True, True)

    Reference:
        N. Gillis, M. Karow, P. Sharma, Approximating the nearest stable discrete-time system, 2019, arXiv 1802.08033;
        I. Gelfand, Normierte Ringe, 1941 (the estimate).
    """

    family = "stable"
    promise = "ρ(A) <= max_p"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        max_p: float = 1,
        pwr_iters: int = 200,
        max_cond: float = 100.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 < max_p < math.inf:
            raise ValueError(f"max_p must be a finite number > 0, got {max_p}")
        self.max_p = self._radius = max_p
        self.pwr_iters = check_positive(pwr_iters=pwr_iters)[0]
        self.max_cond, self._margin = max_cond, rounding_margin(max_cond)
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"max_p": 2.5, "pwr_iters": 20, "max_cond": 10.0}]

    def _weight(self, vectors: Tensor, scales: Tensor, core: Tensor) -> Tensor:
        return self._matrix(vectors, scales, core)

    def spectral_radius(self) -> Tensor:
        """An estimate of ρ(A) without eigenvalues: ‖Aᵏ‖_F^(1/k), k = pwr_iters, never too small, ([beings]).

        Differentiable, where ρ itself is not; it approaches ρ like (√n·max_cond)^(1/k).
        """
        return radius_estimate(self.weight, self.pwr_iters)

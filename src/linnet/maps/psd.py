"""Symmetric matrices without negative eigenvalues."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.triangles import symmetric_part

# Halvings of an interval of float64 numbers: all its digits.
BISECTIONS = 100


def floor_of(largest: Tensor, epsilon: float, condition: float | None) -> Tensor:
    """μ such that eigenvalues in [0, largest], raised by μ, are at least epsilon, with a ratio of at most condition."""
    if condition is None:
        return torch.full_like(largest, epsilon)
    return (largest / (condition - 1)).clamp_min(epsilon)


def clip_ratio(values: Tensor, epsilon: float, condition: float | None) -> Tensor:
    """The nearest numbers to ``values``, (..., n), that lie in [m, condition·m] for some m >= epsilon.

    The squared distance is convex in m with the derivative Σ(m − λ)₊ − condition Σ(λ − condition·m)₊ (up to a factor
    2), whose zero is found by bisection.
    """
    if condition is None:
        return values.clamp_min(epsilon)
    # The derivative rises with m and is >= 0 at the largest value: its zero is below, or the least m admitted is best.
    low = torch.full_like(values[..., :1], epsilon)
    high = values.amax(-1, keepdim=True).clamp_min(epsilon)
    for _ in range(BISECTIONS):
        m = (low + high) / 2
        over = (values - condition * m).clamp_min(0).sum(-1, keepdim=True)
        rising = (m - values).clamp_min(0).sum(-1, keepdim=True) > condition * over
        low, high = torch.where(rising, low, m), torch.where(rising, m, high)
    return values.clamp_min(low).minimum(condition * low)


class PSDLinear(LinearMap):
    """y = x A + b with A = Aᵀ and every eigenvalue of A at least epsilon.

    A = F Fᵀ + μI with μ = epsilon; with a ``condition`` μ is the larger of epsilon and λ_max(F Fᵀ)/(condition − 1), so
    that λ_max(A)/λ_min(A) <= condition. Every matrix of the structure is reached. Any other is assigned as the nearest
    in the Frobenius norm.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        epsilon: the smallest eigenvalue allowed, at least 0.
        condition: the largest ratio of two eigenvalues, greater than 1; None for no bound.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - factor: ([beings,] n, n)

    Raises:
        ValueError: in_features != out_features, epsilon < 0, or condition <= 1.

    Example:
        >>> layer = PSDLinear(4, 4, epsilon=0.5)
        >>> bool((torch.linalg.eigvalsh(layer.weight) > 0.499).all())
        True

    Reference:
        N. J. Higham, Computing a nearest symmetric positive semidefinite matrix, 1988; M. Tanaka, K. Nakata, Positive
        definite matrix approximation with condition number constraint, 2014.
    """

    family = "symmetric"
    promise = "A = Aᵀ, λ >= epsilon, λ_max/λ_min <= condition"
    square = True
    decays = ("factor",)

    factor: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        epsilon: float = 0.0,
        condition: float | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number >= 0, got {epsilon}")
        if condition is not None and not 1 < condition < math.inf:
            raise ValueError(f"condition must be None or a finite number > 1, got {condition}")
        self.epsilon, self.condition = epsilon, condition
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"factor": (self.in_features, self.in_features)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"epsilon": 0.1}, {"epsilon": 0.01, "condition": 20.0}]

    def _weight(self, factor: Tensor) -> Tensor:
        gram = symmetric_part(factor @ factor.mT)
        if self.condition is None:
            largest = gram[..., 0, 0]  # any number: without a condition the floor is epsilon
        else:
            # eigvalsh takes another algorithm, with other bits, where no gradient is asked for
            largest = torch.linalg.eigh(gram).eigenvalues[..., -1].clamp_min(0)
        # (largest + μ)/(0 + μ) <= condition for μ = largest/(condition − 1)
        floor = floor_of(largest, self.epsilon, self.condition)[..., None]
        return gram + torch.diag_embed(floor.expand(*floor.shape[:-1], self.in_features))

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        values, vectors = torch.linalg.eigh(symmetric_part(weight))
        values = clip_ratio(values, self.epsilon, self.condition)
        # With μ = λ_max(F Fᵀ)/(condition − 1) the largest eigenvalue of A is condition·μ.
        of_gram = values[..., -1:] if self.condition is None else values[..., -1:] * (1 - 1 / self.condition)
        floor = floor_of(of_gram, self.epsilon, self.condition)
        return {"factor": vectors * (values - floor).clamp_min(0).sqrt().unsqueeze(-2)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        # F Fᵀ of Gaussian F with variance s²/n changes the norm by √2 s² on average: 1/√3 as in nn.Linear
        raw["factor"].normal_(0, math.sqrt(1 / math.sqrt(6) / self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        values = torch.linalg.eigvalsh(symmetric_part(weight))
        low, high = values[..., 0], values[..., -1]
        # eigenvalues round relative to ‖A‖₂, which in a large matrix is far above its largest entry
        scale = torch.maximum(-low, high).clamp_min(max(self.epsilon, torch.finfo(weight.dtype).tiny))
        wrong = torch.maximum((weight - weight.mT).abs().amax((-2, -1)), self.epsilon - low)
        if self.condition is not None:
            wrong = torch.maximum(wrong, high / self.condition - low)
        return wrong.clamp_min(0) / scale

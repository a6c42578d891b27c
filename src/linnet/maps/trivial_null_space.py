"""Matrices with a trivial null space: only 0 is mapped to 0."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap


class TrivialNullSpaceLinear(LinearMap):
    """y = x A + b with x A = 0 only for x = 0: every singular value of A is at least epsilon, so no input is lost.

    A = [GᵀG + epsilon I, F] for a square G, or one of ``rank`` rows, and any F. GᵀG is positive semidefinite, so
    ‖x A‖ >= ‖x (GᵀG + epsilon I)‖ >= epsilon ‖x‖. Any matrix is assigned with its first in_features columns replaced by
    the nearest of that form, in the Frobenius norm: symmetric, all eigenvalues at least epsilon, all but ``rank`` of
    them equal to it. Fresh outputs have nn.Linear's scale, unless epsilon alone exceeds it.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; out_features >= in_features.
        rank: number of rows of G, at most in_features; None means in_features.
        epsilon: the least that a singular value can become, > 0.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - root: ([beings,] rank, in_features), the matrix G
        - rest: ([beings,] out_features - in_features, in_features), the matrix Fᵀ

    Raises:
        ValueError: out_features < in_features, rank is not in 1..in_features, or epsilon is not a finite number > 0.

    Example:
        >>> layer = TrivialNullSpaceLinear(4, 6)
        >>> bool(layer.svdvals().min() > 0.0999)
        True

    Reference:
        S. M. Richards, F. Berkenkamp, A. Krause, The Lyapunov neural network, 2018, arXiv 1808.00924, equation 2.
    """

    family = "rank"
    promise = "singular values of A >= epsilon, so x A = 0 only for x = 0"

    root: nn.Parameter
    rest: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int | None = None,
        epsilon: float = 0.1,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.epsilon = float(epsilon)
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number > 0, got {epsilon!r}")
        self.rank = rank
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, m = self.in_features, self.out_features
        if m < n:
            raise ValueError(
                f"out_features must be at least in_features={n} (a narrower A maps some x != 0 to 0), got {m}"
            )
        r = n if self.rank is None else check_positive(rank=self.rank)[0]
        if r > n:
            raise ValueError(f"rank must be at most in_features={n}, got {r}")
        return {"root": (r, n), "rest": (m - n, n)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [
            {"in_features": 5, "out_features": 7},
            {"in_features": 6, "out_features": 6, "rank": 2, "epsilon": 0.5},
        ]

    def _weight(self, root: Tensor, rest: Tensor) -> Tensor:
        # A = [GᵀG + epsilon I, F], and ‖xA‖² = ‖x(GᵀG + epsilon I)‖² + ‖xF‖²: F can only add to the singular values.
        gram = root.mT @ root
        gram = (gram + gram.mT) / 2 + self.epsilon * torch.eye(root.shape[-1], device=root.device, dtype=root.dtype)
        return torch.cat([gram, rest], -2)  # (out, in)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        n, r = self.in_features, self.root.shape[-2]
        # F is free. Of the square block, G with r rows can raise r eigenvalues above epsilon: the r largest are kept.
        top, rest = weight[..., :n, :], weight[..., n:, :]
        values, vectors = torch.linalg.eigh((top + top.mT) / 2)  # ascending
        excess = values[..., -r:] - self.epsilon
        # A row of G that is 0 would have no gradient.
        smallest = torch.finfo(self.root.dtype).eps * values.abs().amax(-1, keepdim=True).clamp_min(self.epsilon)
        root = torch.maximum(excess, smallest).sqrt().unsqueeze(-1) * vectors[..., -r:].mT  # (r, n)
        return {"root": root, "rest": rest}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        (r, n), bound = raw["root"].shape, 1 / math.sqrt(self.in_features)
        # With entries of variance c/r in G, a column of GᵀG + epsilon I has a mean square norm of about
        # (c + epsilon)² + (n + 1) c²/r; nn.Linear's is 1/3.
        a, b, free = 1 + (n + 1) / r, self.epsilon, 1 / 3 - self.epsilon**2
        c = (math.sqrt(b**2 + a * free) - b) / a if free > 0 else 0.0
        raw["root"].normal_(0, math.sqrt(max(c, 0.05) / r), generator=generator)
        raw["rest"].uniform_(-bound, bound, generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        s = torch.linalg.svdvals(weight)
        return (self.epsilon - s[..., -1]).clamp_min(0) / s[..., 0].clamp_min(self.epsilon)

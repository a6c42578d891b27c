"""Constant fan-in: every output has equally many connections."""

from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.sparse.wiring.wiring import draw_in_groups, revive


@dataclass(frozen=True)
class ConstantFanIn:
    """Every output has equally many inputs, drawn evenly; no input is left without a connection if that is possible.

    Args:
        fan_in: inputs of each output; None: as many connections as the sparsity says, spread so that the fan-ins differ
            by at most one, at random.

    Raises:
        ValueError: fan_in is no positive integer, or exceeds in_features.

    Example:
        >>> indices = ConstantFanIn()(4, 6, 12, torch.Generator().manual_seed(0))
        >>> torch.bincount(indices[0]).tolist()
        [3, 3, 3, 3]

    Reference:
        M. Lasby, A. Golubeva, U. Evci, M. Nica, Y. Ioannou, Dynamic sparse training with structured sparsity, 2023,
        arXiv 2305.02299.
    """

    fan_in: int | None = None

    def __post_init__(self) -> None:
        if self.fan_in is not None:
            check_positive(fan_in=self.fan_in)

    def nnz(self, out_features: int, in_features: int) -> int | None:
        """fan_in · out."""
        if self.fan_in is None:
            return None
        if self.fan_in > in_features:
            raise ValueError(f"fan_in must be at most in_features={in_features}, got {self.fan_in}")
        return self.fan_in * out_features

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        few, more = divmod(nnz, out_features)
        fan_in = torch.full((out_features,), few, device="cpu")
        fan_in[torch.randperm(out_features, generator=generator, device="cpu")[:more]] += 1
        row, col = draw_in_groups(torch.full_like(fan_in, in_features), fan_in, generator)
        return torch.stack([row, revive(col, in_features, generator)])

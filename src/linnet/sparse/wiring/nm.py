"""N:M sparsity: n of every m consecutive inputs are connected."""

from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.sparse.csr import counts
from linnet.sparse.wiring.wiring import draw_in_groups, revive


@dataclass(frozen=True)
class NM:
    """N:M sparsity: of every m consecutive inputs, each output has connections to n.

    Args:
        n: connections of each group.
        m: inputs of each group; in_features must be a multiple of it.

    Raises:
        ValueError: n or m is no positive integer, n exceeds m, or in_features is no multiple of m.

    Example:
        >>> NM(n=2, m=4).nnz(out_features=10, in_features=16)
        80

    Reference:
        A. Zhou, Y. Ma, J. Zhu, J. Liu, Z. Zhang, K. Yuan, W. Sun, H. Li, Learning N:M fine-grained structured sparse
        neural networks from scratch, 2021, arXiv 2102.04010.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        check_positive(n=self.n, m=self.m)
        if self.n > self.m:
            raise ValueError(f"n must be at most m, got n={self.n}, m={self.m}")

    def nnz(self, out_features: int, in_features: int) -> int:
        """n · in / m · out."""
        if in_features % self.m:
            raise ValueError(f"in_features must be a multiple of m={self.m}, got {in_features}")
        return out_features * in_features // self.m * self.n

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        across = in_features // self.m
        groups = torch.full((out_features * across,), self.m, device="cpu")
        group, place = draw_in_groups(groups, torch.full_like(groups, self.n), generator)
        row, col = group // across, group % across * self.m + place
        # What a dead input takes over must come from its own group of inputs, so that the pattern stays.
        order = torch.argsort(col // self.m, stable=True)
        row, col = row[order], col[order]
        parts = col.view(across, -1) % self.m  # (groups of inputs, connections)
        dead = (counts(parts, self.m) == 0).any(-1).nonzero().squeeze(1)
        for i in dead.tolist() if out_features * self.n >= self.m else ():
            parts[i] = revive(parts[i], self.m, generator)
        return torch.stack([row, (parts + torch.arange(across, device="cpu").unsqueeze(1) * self.m).flatten()])

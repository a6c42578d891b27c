"""Uniform: every set of connections is equally likely."""

from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.sparse.wiring.wiring import draw_cells, revive


@dataclass(frozen=True)
class Uniform:
    """Every set of ``nnz`` connections is equally likely, except that no unit is left without one.

    The connections are drawn without replacement, in O(nnz) time and memory. If this leaves outputs without a
    connection, each of them takes one over from a random output that has several, which keeps its input; then each
    input left without one takes one over in the same way, which keeps its output. So there is no dead unit if
    nnz >= max(in_features, out_features), and as few as possible if not. All other connections stay where they fell; at
    ordinary densities no unit is dead to begin with, nothing is moved, and the draw is exactly uniform.

    Example:
        >>> Uniform()(4, 6, 10, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 10])
    """

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        cells = draw_cells(out_features * in_features, nnz, generator)
        row = revive(cells // in_features, out_features, generator)
        col = revive(cells % in_features, in_features, generator)
        return torch.stack([row, col])

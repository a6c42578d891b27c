"""Erdős-Rényi: ε (in + out) connections."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.core.checks import is_number
from linnet.sparse.wiring.uniform import Uniform


@dataclass(frozen=True)
class ErdosRenyi:
    """ε (in + out) connections, placed as by :class:`Uniform`: a random bipartite graph.

    Args:
        epsilon: ε; None: as many connections as the sparsity says.

    Raises:
        ValueError: epsilon is not positive.

    Example:
        >>> ErdosRenyi(epsilon=4).nnz(out_features=50, in_features=100)
        600

    Reference:
        D. C. Mocanu, E. Mocanu, P. Stone, P. H. Nguyen, M. Gibescu, A. Liotta, Scalable training of artificial neural
        networks with adaptive sparse connectivity inspired by network science, 2018, arXiv 1707.04780.
    """

    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.epsilon is not None and not (is_number(self.epsilon) and 0 < self.epsilon < math.inf):
            raise ValueError(f"epsilon must be positive and finite, got {self.epsilon!r}")

    def nnz(self, out_features: int, in_features: int) -> int | None:
        """ε (in + out), at least 1, at most all."""
        if self.epsilon is None:
            return None
        return max(1, min(round(self.epsilon * (in_features + out_features)), in_features * out_features))

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        return Uniform()(out_features, in_features, nnz, generator)

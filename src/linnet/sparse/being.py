"""One being of a sparse population as a single map."""

from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.being import Being
from linnet.core.linear_map import LinearMap


class SparseBeing(Being):
    """A :class:`Being` whose product is the sparse one.

    Args:
        population: the map that has the beings.
        index: which being.
        single: a map of the same kind and sizes without beings; its own tensors are never read.
    """

    def __init__(self, population: LinearMap, index: int, single: nn.Module) -> None:
        super().__init__(population, index)
        self._single = (single,)  # inside a tuple it is not registered as a child

    @property
    def weight(self) -> Tensor:
        single: LinearMap = self._single[0]  # type: ignore[assignment]
        with torch.nn.utils.stateless._reparametrize_module(single, self._own()):
            return single.weight

    def forward(self, input: Tensor) -> Tensor:
        return torch.func.functional_call(self._single[0], self._own(), (input,))

    def _own(self) -> dict[str, Tensor]:
        """The tensors of this being; a tensor without an axis of beings is shared."""
        population: Any = self._source[0]
        own = {name: parameter[self.index] for name, parameter in population.named_parameters()}
        for name, buffer in population.named_buffers():
            own[name] = buffer[self.index] if population.apart and buffer.dim() else buffer
        return own

"""A stream of random numbers for each being: what dropout draws from, so that no being's noise depends on another's."""

import torch
from torch import Tensor

from linnet.wide.random import advance, streams, uniform

__all__ = ["Noise"]


class Noise:
    """The streams of some beings.

    Args:
        states: one number for each being; drawing moves them on in place, so that they alone say what comes next.

    Shape:
        - states: (beings,) int64

    Example:
        >>> noise = Noise(Noise.states(torch.tensor([3, 4])))
        >>> noise.kept(5, 0.5, torch.float32).shape
        torch.Size([2, 5])
    """

    def __init__(self, states: Tensor) -> None:
        self._states = states

    @staticmethod
    def states(seeds: Tensor) -> Tensor:
        """Fresh states from seeds, (beings,) int64."""
        return streams(seeds, 0)

    def kept(self, count: int, p: float, dtype: torch.dtype) -> Tensor:
        """0 with probability p and else 1 / (1 − p), (beings, count): what dropout multiplies with."""
        drawn = uniform(self._states, count)
        advance(self._states, count)
        return (drawn >= p).to(dtype).mul_(0.0 if p == 1 else 1 / (1 - p))

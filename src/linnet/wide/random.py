"""Random numbers by counter: element e of stream i is a pure function of (keys, i, e), whatever else is drawn.

Any part of a population can draw its own numbers, in any order, in pieces or on another process, and they are the same.
"""

import math

import torch
from torch import Tensor

__all__ = ["Noise", "advance", "at_once", "bits", "normal", "streams", "uniform"]

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed number: torch's int64 wraps around
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, by: int) -> Tensor:
    """x >> by with zeros from the left."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The output function of SplitMix64, a bijection of 64 bits that lets every input bit flip every output bit."""
    x = _shift(x, 30).bitwise_xor_(x).mul_(_FIRST)
    x = _shift(x, 27).bitwise_xor_(x).mul_(_SECOND)
    return _shift(x, 31).bitwise_xor_(x)


def streams(beings: Tensor, *keys: int) -> Tensor:
    """The state of one stream for each being: beings (n,) int64 and any number of keys -> (n,) int64.

    Example:
        >>> a, b = streams(torch.tensor([0, 1]), 7, 3), streams(torch.tensor([1]), 7, 3)
        >>> bool(a[1] == b[0])
        True
    """
    state = torch.zeros_like(beings)
    for key in keys:
        state = _mix(state + _GOLDEN + key)
    return _mix(state + _GOLDEN * (beings + 1))


def bits(streams: Tensor, count: int) -> Tensor:
    """``count`` words of 64 random bits of each stream, (n,) -> (n, count) int64: SplitMix64.

    Reference:
        G. L. Steele, D. Lea, C. H. Flood, Fast splittable pseudorandom number generators, 2014.
    """
    steps = torch.arange(1, count + 1, device=streams.device) * _GOLDEN
    return _mix(streams[:, None] + steps)


PIECE = 2**16
"""Random numbers drawn at a time: fewer cost calls, more leave the cache."""


def at_once(count: int) -> int:
    """How many streams of ``count`` numbers to draw from at a time."""
    return max(1, PIECE // max(1, count))


def advance(streams: Tensor, count: int) -> None:
    """Move streams on in place, past the words that :func:`uniform` or :func:`normal` make of ``count`` numbers."""
    steps = torch.full_like(streams, -(-count // 2))  # as a tensor: int64 wraps around
    streams.add_(steps * _GOLDEN)


def _halves(streams: Tensor, count: int) -> Tensor:
    """``count`` words of 32 random bits of each stream, (n,) -> (n, count) int32: both halves of every word."""
    return bits(streams, -(-count // 2)).view(torch.int32)[:, :count]


def uniform(streams: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """U[0, 1) numbers of 24 bits, (n,) -> (n, count).

    Example:
        >>> x = uniform(streams(torch.arange(3), 0), 1000)
        >>> x.shape, bool(((x >= 0) & (x < 1)).all())
        (torch.Size([3, 1000]), True)
    """
    return (_halves(streams, count) >> 8).to(dtype).mul_(2.0**-24).add_(0.5)


def normal(streams: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """N(0, 1) numbers, √2 erf⁻¹(u) of u uniform in (−1, 1), (n,) -> (n, count): at most 5.4 in size in float32.

    Example:
        >>> normal(streams(torch.arange(3), 0), 5).shape
        torch.Size([3, 5])
    """
    u = _halves(streams, count).to(dtype).add_(0.5).mul_(2.0**-31 * (1 - 2.0**-24))  # never ±1, also where it rounds
    return u.erfinv_().mul_(math.sqrt(2))


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

"""Counter-based random numbers: element e of stream i is a pure function of (keys, i, e), independent of other draws.

Any part of a population can draw its numbers in any order, in pieces or in another process, and gets the same numbers.
"""

import math

import torch
from torch import Tensor

# SplitMix64 (see bits): ⌊2⁶⁴/φ⌋ made odd, and the multipliers of its mixing function. torch has no full uint64, so that
# the constants are signed numbers of the same bits; int64 products and sums wrap around modulo 2⁶⁴.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, by: int) -> Tensor:
    """The logical shift x >> by: int64's own shift copies the sign bit, the mask clears the copies."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The output function of SplitMix64: a bijection of 64 bits in which every input bit affects every output bit."""
    x = _shift_right(x, 30).bitwise_xor_(x).mul_(_MULTIPLIER_1)
    x = _shift_right(x, 27).bitwise_xor_(x).mul_(_MULTIPLIER_2)
    return _shift_right(x, 31).bitwise_xor_(x)


def streams(beings: Tensor, *keys: int) -> Tensor:
    """The initial state of the stream of each being: beings (n,) int64 and any number of keys -> (n,) int64.

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
    """``count`` words of 64 random bits of each stream, (n,) -> (n, count) int64: word e is mix(state + e · golden).

    Reference:
        G. L. Steele, D. Lea, C. H. Flood, Fast splittable pseudorandom number generators, 2014.
    """
    steps = torch.arange(1, count + 1, device=streams.device) * _GOLDEN
    return _mix(streams[:, None] + steps)


PIECE = 2**16
"""Random numbers drawn at a time: with fewer the call overhead dominates, more do not fit in the cache."""


def at_once(count: int) -> int:
    """The number of streams of ``count`` numbers to draw from at a time."""
    return max(1, PIECE // max(1, count))


def advance(streams: Tensor, count: int) -> None:
    """Advance streams in place past the words that :func:`uniform` or :func:`normal` use for ``count`` numbers."""
    steps = torch.full_like(streams, -(-count // 2))  # as a tensor: int64 wraps around
    streams.add_(steps * _GOLDEN)


def _halves(streams: Tensor, count: int) -> Tensor:
    """``count`` words of 32 random bits of each stream, (n,) -> (n, count) int32: the two halves of 64-bit words."""
    return bits(streams, -(-count // 2)).view(torch.int32)[:, :count]


def uniform(streams: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2⁻²⁴, (n,) -> (n, count).

    Example:
        >>> x = uniform(streams(torch.arange(3), 0), 1000)
        >>> x.shape, bool(((x >= 0) & (x < 1)).all())
        (torch.Size([3, 1000]), True)
    """
    # k = h >> 8 is uniform in [−2²³, 2²³): float32, of 24 bits, holds k · 2⁻²⁴ + 1/2 exactly
    return (_halves(streams, count) >> 8).to(dtype).mul_(2.0**-24).add_(0.5)


def normal(streams: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """N(0, 1) numbers √2 erf⁻¹(u), u uniform in (−1, 1), (n,) -> (n, count): at most 5.4 in absolute value in float32.

    Example:
        >>> normal(streams(torch.arange(3), 0), 5).shape
        torch.Size([3, 5])
    """
    # the factor 1 − 2⁻²⁴ keeps |u| < 1 where float32 rounds h + 1/2 up to 2³¹: erf⁻¹(±1) is infinite
    u = _halves(streams, count).to(dtype).add_(0.5).mul_(2.0**-31 * (1 - 2.0**-24))
    return u.erfinv_().mul_(math.sqrt(2))


class Noise:
    """The random streams of some beings.

    Args:
        states: the state of each stream; drawing advances it in place, and it alone determines the next numbers.

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
        """Initial states from seeds, (beings,) int64."""
        return streams(seeds, 0)

    def kept(self, count: int, p: float, dtype: torch.dtype) -> Tensor:
        """The factors of dropout, (beings, count): 0 with probability p, else 1 / (1 − p)."""
        drawn = uniform(self._states, count)
        advance(self._states, count)
        return (drawn >= p).to(dtype).mul_(0.0 if p == 1 else 1 / (1 - p))

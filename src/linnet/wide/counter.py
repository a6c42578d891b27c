"""Random numbers by counter: element e of stream i is a pure function of (keys, i, e), whatever else is drawn.

Any part of a population can draw its own numbers, in any order, in pieces or on another process, and they are the same.
"""

import math

import torch
from torch import Tensor

__all__ = ["advance", "bits", "normal", "streams", "uniform"]

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


def advance(streams: Tensor, count: int) -> None:
    """Move streams on in place, past the words that :func:`uniform` or :func:`normal` make of ``count`` numbers."""
    steps = torch.full_like(streams, -(-count // 2))  # as a tensor: int64 wraps around
    streams.add_(steps * _GOLDEN)


def uniform(streams: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """U[0, 1) numbers of 24 bits, (n,) -> (n, count).

    Example:
        >>> x = uniform(streams(torch.arange(3), 0), 1000)
        >>> x.shape, bool(((x >= 0) & (x < 1)).all())
        (torch.Size([3, 1000]), True)
    """
    words = bits(streams, -(-count // 2))  # (n, count / 2)
    halves = torch.stack([_shift(words, 40), words & 0xFFFFFF], -1).flatten(1)
    return halves[:, :count].to(dtype) * 2.0**-24


def normal(streams: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """N(0, 1) numbers, (n,) -> (n, count).

    Example:
        >>> normal(streams(torch.arange(3), 0), 5).shape
        torch.Size([3, 5])

    Reference:
        G. E. P. Box, M. E. Muller, A note on the generation of random normal deviates, 1958.
    """
    words = bits(streams, -(-count // 2))
    radius = (_shift(words, 32).to(dtype) + 0.5) * 2.0**-32  # (0, 1]
    radius = radius.log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = (words & 0xFFFFFFFF).to(dtype) * (2 * math.pi * 2.0**-32)
    return torch.stack([angle.cos() * radius, angle.sin_() * radius], -1).flatten(1)[:, :count]

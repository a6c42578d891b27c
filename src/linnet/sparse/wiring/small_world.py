"""Small worlds: the probability of a connection falls with the distance of its units."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.sparse.wiring.wiring import draw_in_groups


@dataclass(frozen=True)
class SmallWorld:
    """Units on a line, connected with a probability that falls with their distance d: P = min(1, c (d + 1)^−λ).

    Both sides are spread evenly along a line as long as the longer side; d is the distance there, rounded. Every unit
    of the longer side is connected to its nearest one of the shorter side (between equal sides that is the diagonal),
    so that no unit is without a connection if nnz >= max(in_features, out_features). The other connections are drawn so
    that each pair has its probability and their number is exact, in O(nnz + in + out) time and memory. With fewer
    connections than that, as many units as possible have one.

    Args:
        exponent: λ; None: c is 1 and λ is such that nnz connections are expected, as in sparselinear.
        ring: whether the line is closed to a ring.

    Raises:
        ValueError: exponent is negative or not finite.

    Example:
        >>> row, col = SmallWorld()(100, 100, 500, torch.Generator().manual_seed(0))
        >>> float((row - col).abs().double().mean()) < 20  # uniform: 33
        True

    Reference:
        D. J. Watts, S. H. Strogatz, Collective dynamics of 'small-world' networks, 1998; J. M. Kleinberg, Navigation in
        a small world, 2000 (probability by distance).
    """

    exponent: float | None = None
    ring: bool = False

    def __post_init__(self) -> None:
        if self.exponent is not None and not 0 <= self.exponent < math.inf:
            raise ValueError(f"exponent must be a finite number >= 0, got {self.exponent!r}")

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        long, short = max(out_features, in_features), min(out_features, in_features)
        nearest = torch.arange(long, device="cpu").mul_(2).add_(1).mul_(short) // (2 * long)  # (long,)
        if nnz < long:
            spread = _spread(nnz, long, short, nearest)
            return torch.stack([nearest[spread], spread] if out_features == short else [spread, nearest[spread]])
        centre = torch.arange(short, device="cpu").mul_(2).add_(1).mul_(long) // (2 * short)  # (short,)
        # All pairs (l, s) of one offset l − c_s have the same distance, hence the same probability. So it is enough to
        # say how many connections each such class has, of O(in + out) classes, and to draw that many of its pairs
        # uniformly: no table of all in · out pairs is made.
        offset, low, size = self._classes(centre, long)
        # The nearest pairs, the backbone, are already connected: they are left out of their classes.
        step = torch.arange(long, device="cpu") - centre[nearest]
        step = step % long if self.ring else step + long - 1
        taken = torch.bincount(step, minlength=offset.shape[0])
        expected = self._expected(self._distance(offset, long), size - taken, nnz - long)
        wanted = _rounded(expected, size - taken, nnz - long, generator)
        group, place = draw_in_groups(size - taken, wanted, generator)
        # A place counts the pairs of its class that are left, in order of their short unit.
        unit = _skipping(group, place, low, step, nearest, size, short)
        far = centre[unit] + offset[group]
        short_side = torch.cat([nearest, unit])
        long_side = torch.cat([torch.arange(long, device="cpu"), far % long])
        return torch.stack([short_side, long_side] if out_features == short else [long_side, short_side])

    def _classes(self, centre: Tensor, long: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs by offset l − c_s: the offsets, and for each the first short unit that has one there, and how many."""
        if self.ring:
            offset = torch.arange(long, device="cpu")
            return offset, torch.zeros_like(offset), torch.full_like(offset, centre.shape[0])
        offset = torch.arange(1 - long, long, device="cpu")
        low = torch.searchsorted(centre, -offset)
        return offset, low, torch.searchsorted(centre, long - offset) - low

    def _distance(self, offset: Tensor, long: int) -> Tensor:
        return torch.minimum(offset, long - offset) if self.ring else offset.abs()

    def _expected(self, distance: Tensor, size: Tensor, total: int) -> Tensor:
        """The expected number of connections in each class, of ``size`` pairs at this distance; together ``total``."""
        # Σ_d size_d · P(d) falls with λ and rises with c: bisection finds λ for c = 1, or c for a given λ. If c = 1
        # gives too many at every λ (each pair at distance 0 has P = 1), all are scaled down.
        log = (distance.double() + 1).log()
        if self.exponent is None:
            power = _root(lambda x: float((size * torch.exp(-x * log)).sum()) - total, 0.0, 64.0)
            share = torch.exp(-power * log)
            expected = size * share
            return expected * (total / expected.sum()) if float(expected.sum()) > total else expected
        fall = torch.exp(-self.exponent * log)
        scale = _root(lambda x: total - float((size * (math.exp(x) * fall).clamp_max(1)).sum()), -800.0, 800.0)
        return size * (math.exp(scale) * fall).clamp_max(1)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls from positive to negative crosses zero, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _rounded(expected: Tensor, size: Tensor, total: int, generator: torch.Generator | None) -> Tensor:
    """Whole numbers with these expectations that add up to ``total``, none above its size: systematic sampling."""
    # With E_i = e_1 + … + e_i and one u ~ U(0, 1), n_i = ⌊E_i + u⌋ − ⌊E_{i−1} + u⌋ is ⌊e_i⌋ or ⌈e_i⌉ and has the mean
    # e_i, and the n_i add up to ⌊E + u⌋ = E (W. G. Madow, L. H. Madow, On the theory of systematic sampling, 1944).
    ends = expected.clamp_max(size.double()).cumsum(0)
    ends = ends * (total / max(float(ends[-1]), 1e-300))
    start = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
    marks = (ends + start).floor().long()
    marks[-1] = total  # what rounding left over
    wanted = torch.minimum(marks.clamp_max(total).diff(prepend=torch.zeros(1, dtype=torch.int64, device="cpu")), size)
    missing = total - int(wanted.sum())
    while missing > 0:  # a class is full: the likeliest ones that have room take what is left
        room = (wanted < size).nonzero().squeeze(1)
        order = room[expected[room].argsort(descending=True, stable=True)][:missing]
        wanted[order] += 1
        missing -= order.shape[0]
    return wanted


def _skipping(
    group: Tensor, place: Tensor, low: Tensor, step: Tensor, nearest: Tensor, size: Tensor, short: int
) -> Tensor:
    """The short unit of a place in its class, counted without the pairs of the backbone."""
    keys = (step * short + nearest).sort().values  # the backbone, by class and short unit
    first = torch.searchsorted(keys, group * short)  # the first of its class
    last = torch.searchsorted(keys, (group + 1) * short)
    unit = low[group] + place
    # Each pair of the backbone at or before the unit pushes it on by one; the k-th is passed if it is <= unit + k.
    bias = keys - torch.arange(keys.shape[0], device="cpu")
    passed = torch.searchsorted(bias, group * short + unit - first, right=True)
    passed = torch.minimum(torch.maximum(passed, first), last) - first
    return unit + passed


def _spread(nnz: int, long: int, short: int, nearest: Tensor) -> Tensor:
    """Units of the long side, at equal distances, so that their nearest ones are as many as possible: (nnz,)."""
    # With nnz <= short, the first long unit of nnz short ones; else that of every short one, and of the others some.
    if nnz <= short:
        unit = torch.arange(nnz, device="cpu") * short // nnz
        return torch.searchsorted(nearest, unit)
    firsts = torch.searchsorted(nearest, torch.arange(short, device="cpu"))
    others = torch.ones(long, dtype=torch.bool, device="cpu").index_fill(0, firsts, False).nonzero().squeeze(1)
    rest = nnz - short
    return torch.cat([firsts, others[torch.arange(rest, device="cpu") * others.shape[0] // rest]])

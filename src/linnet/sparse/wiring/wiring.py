"""What a wiring is, and the random draws that several share.

A wiring is any callable ``(out_features, in_features, nnz, generator) -> indices``, (2, nnz), with row 0 the outputs
and row 1 the inputs. Those of this library are frozen dataclasses. A wiring that decides on the number of connections
itself has a method ``nnz(out_features, in_features) -> int | None``; None: as many as the sparsity says.
"""

import math
from numbers import Real
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Wiring(Protocol):
    """A rule that places ``nnz`` connections, all different, between inputs and outputs."""

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Indices (2, nnz), row 0 in 0..out_features-1, row 1 in 0..in_features-1, drawn on the CPU."""


def draw_in_groups(sizes: Tensor, wanted: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """``wanted[g]`` different places of 0..sizes[g]-1 for each group g, every set of them equally likely.

    Repetitions are drawn again, in all groups at once: rejection keeps every set equally likely. In a group that is
    more than half full most draws would be repetitions; there the places that are left out are drawn instead.

    Returns:
        The group and the place of each, (wanted.sum(),), by rising group.
    """
    rare = torch.minimum(wanted, sizes - wanted)  # what is drawn: the places themselves, or those that are left out
    starts = F.pad(sizes.cumsum(0), (1, 0))
    cells = torch.empty(0, dtype=torch.int64, device="cpu")
    missing = rare
    while bool((missing > 0).any()):
        group = torch.arange(sizes.shape[0], device="cpu").repeat_interleave(missing)
        share = torch.rand(group.shape[0], generator=generator, dtype=torch.float64, device="cpu")
        drawn = starts[group] + (share * sizes[group]).long()
        cells = torch.cat([cells, drawn]).unique()
        found = torch.bincount(torch.searchsorted(starts, cells, right=True) - 1, minlength=sizes.shape[0])
        missing = rare - found
    full = 2 * wanted > sizes
    if bool(full.any()):
        inverted = full.nonzero().squeeze(1)
        length = sizes[inverted]
        which = torch.arange(inverted.shape[0], device="cpu").repeat_interleave(length)
        every = torch.arange(int(length.sum()), device="cpu") - (length.cumsum(0) - length)[which]
        every = every + starts[inverted][which]
        group = torch.searchsorted(starts, cells, right=True) - 1
        kept = every[~torch.isin(every, cells[full[group]], assume_unique=True)]
        cells = torch.cat([cells[~full[group]], kept]).sort().values
    group = torch.searchsorted(starts, cells, right=True) - 1
    return group, cells - starts[group]


def draw_cells(total: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """``size`` different cells of 0..total-1, rising, every set of them equally likely: (size,), in O(size)."""
    # A few more are drawn than wanted, and a random few of those are taken out again. No step distinguishes one cell
    # from another, so by symmetry all sets of a size are equally likely, whatever the number that was drawn.
    if total <= 2**12:
        return torch.randperm(total, generator=generator, device="cpu")[:size].sort().values
    margin = 5 * math.sqrt(size) + 10  # that five standard deviations do not suffice is left to the loop
    cells = torch.empty(0, dtype=torch.int64, device="cpu")
    while cells.shape[0] < size:
        if 4 * size >= total:  # toss a coin for each
            share = (size + margin) / total
            cells = (torch.rand(total, generator=generator, device="cpu") < share).nonzero().squeeze(1)
        else:  # draw with replacement
            # n draws leave a cell out with probability (1 − 1/total)ⁿ ≈ exp(−n / total): n for ``size`` different ones.
            draws = math.ceil(-total * math.log1p(-size / total) + margin)
            # In two digits, because randint of a range that is not small against 2³² is not quite uniform.
            digit = math.isqrt(total - 1) + 1
            high, low = (torch.randint(digit, (draws,), generator=generator, device="cpu") for _ in range(2))
            cells = (high * digit + low).unique()
            cells = cells[cells < total]
    surplus = draw_cells(cells.shape[0], cells.shape[0] - size, generator)
    return cells[torch.ones_like(cells, dtype=torch.bool).index_fill(0, surplus, False)]


def revive(unit: Tensor, units: int, generator: torch.Generator | None = None) -> Tensor:
    """The unit of each connection, (nnz,) -> the same, with dead units having taken over connections of others."""
    # A dead unit has no connection. Each takes one over from a unit that has several, as long as there is any; which
    # connection is random, and every unit keeps one.
    dead = (torch.bincount(unit, minlength=units) == 0).nonzero().squeeze(1)
    if not dead.numel():
        return unit
    nnz = unit.shape[0]
    order = torch.randperm(nnz, generator=generator, device="cpu")
    # Going through the connections in this order, each unit keeps the first of its own.
    first = unit.new_full((units,), nnz).scatter_reduce(0, unit[order], torch.arange(nnz, device="cpu"), "amin")
    spare = torch.ones_like(unit, dtype=torch.bool).index_fill(0, first[first < nnz], False)
    taken = order[spare][: dead.shape[0]]
    chosen = dead[torch.randperm(dead.shape[0], generator=generator, device="cpu")[: taken.shape[0]]]
    return unit.index_copy(0, taken, chosen)


def count(sparsity: float, out_features: int, in_features: int) -> int:
    """The number of connections of a sparsity: round((1 − sparsity) · in · out).

    Raises:
        ValueError: sparsity is not in [0, 1), or no connection is left.
        TypeError: sparsity is not a number.
    """
    if not isinstance(sparsity, Real):
        raise TypeError(f"sparsity must be a number in [0, 1), got {sparsity!r}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity!r}")
    nnz = round((1 - sparsity) * in_features * out_features)
    if nnz == 0:
        raise ValueError(
            f"A sparse layer must have a connection, got sparsity={sparsity}, which leaves none of "
            f"{in_features} x {out_features}"
        )
    return nnz

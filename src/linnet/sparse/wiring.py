"""Where connections start: rules that draw them, and connections given by hand.

A wiring is any callable ``(out_features, in_features, nnz, generator) -> indices``, (2, nnz), with row 0 the outputs
and row 1 the inputs. Those of this library are frozen dataclasses.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Uniform", "Wiring", "count", "given"]


class Wiring(Protocol):
    """A rule that places ``nnz`` connections, all different, between inputs and outputs."""

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Indices (2, nnz), row 0 in 0..out_features-1, row 1 in 0..in_features-1, drawn on the CPU."""


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


def draw_cells(total: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """``size`` different cells of 0..total-1, rising, every set of them equally likely: (size,), in O(size).

    A few more are drawn than wanted, and a random few of those are taken out again; no step treats one cell otherwise
    than another.
    """
    if total <= 2**12:
        return torch.randperm(total, generator=generator, device="cpu")[:size].sort().values
    margin = 5 * math.sqrt(size) + 10  # that five standard deviations do not suffice is left to the loop
    cells = torch.empty(0, dtype=torch.int64, device="cpu")
    while cells.shape[0] < size:
        if 4 * size >= total:  # toss a coin for each
            share = (size + margin) / total
            cells = (torch.rand(total, generator=generator, device="cpu") < share).nonzero().squeeze(1)
        else:  # draw with replacement
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
        raise TypeError(f"sparsity must be a number in [0, 1), however: {sparsity!r}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), however: {sparsity!r}")
    nnz = round((1 - sparsity) * in_features * out_features)
    if nnz == 0:
        raise ValueError(
            f"A sparse layer must have a connection, however: sparsity={sparsity} leaves none of "
            f"{in_features} x {out_features}"
        )
    return nnz


def given(connectivity: Any, out_features: int, in_features: int) -> Tensor:
    """Connections in any form that SparseLinear accepts -> indices, (2, nnz), int64, on the CPU.

    Raises:
        ValueError: wrong shape or dtype.
        TypeError: it is none of the accepted forms.
    """
    matrix = (out_features, in_features)
    if hasattr(connectivity, "tocoo"):  # a SciPy matrix
        coo = connectivity.tocoo()
        places = torch.stack([torch.tensor(axis, dtype=torch.int64, device="cpu") for axis in (coo.row, coo.col)])
        connectivity = torch.sparse_coo_tensor(places, torch.ones_like(places[0]), coo.shape, check_invariants=False)
    if not isinstance(connectivity, Tensor):
        raise TypeError(
            "connectivity must be None, a (2, nnz) LongTensor, a boolean mask, a sparse tensor, a SciPy matrix or a "
            f"wiring object such as Uniform(), however: {connectivity!r:.60}"
        )
    shape = tuple(connectivity.shape)
    if connectivity.layout != torch.strided or connectivity.dtype == torch.bool:
        if shape != matrix:
            raise ValueError(
                f"connectivity given as a matrix must have shape (out_features, in_features) = {matrix}, "
                f"however: {shape}"
            )
        coo = connectivity.detach().to_sparse_coo()
        if coo.sparse_dim() != 2:
            raise ValueError(f"connectivity must be sparse in both axes, however: in {coo.sparse_dim()} of 2")
        return coo.coalesce().indices().cpu()
    if len(shape) != 2 or shape[0] != 2 or connectivity.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            "connectivity must be a (2, nnz) LongTensor or a boolean (out_features, in_features) mask, "
            f"however: {shape} {connectivity.dtype}"
        )
    return connectivity.detach().to("cpu", torch.int64)

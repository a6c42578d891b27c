"""Where connections start: rules that draw them, and connections given by hand.

A wiring is any callable ``(out_features, in_features, nnz, generator) -> indices``, (2, nnz), with row 0 the outputs
and row 1 the inputs. Those of this library are frozen dataclasses. One that decides itself how many connections there
are has a method ``nnz(out_features, in_features) -> int | None``; None: as many as the sparsity says.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.core.being import check_positive
from linnet.sparse.csr import counts

__all__ = [
    "NM",
    "Blocks",
    "ConstantFanIn",
    "ErdosRenyi",
    "Uniform",
    "Wiring",
    "count",
    "draw_cells",
    "draw_in_groups",
    "given",
]


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
        if self.epsilon is not None and not (_is_number(self.epsilon) and 0 < self.epsilon < math.inf):
            raise ValueError(f"epsilon must be positive and finite, however: {self.epsilon!r}")

    def nnz(self, out_features: int, in_features: int) -> int | None:
        """ε (in + out), at least 1, at most all."""
        if self.epsilon is None:
            return None
        return max(1, min(round(self.epsilon * (in_features + out_features)), in_features * out_features))

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        return Uniform()(out_features, in_features, nnz, generator)


@dataclass(frozen=True)
class ConstantFanIn:
    """Every output has equally many inputs, drawn evenly; no input is left without a connection if that is possible.

    Args:
        fan_in: inputs of each output; None: as many connections as the sparsity says, spread so that the fan-ins differ
            by at most one, at random.

    Raises:
        ValueError: fan_in is no positive integer, or exceeds in_features.

    Example:
        >>> indices = ConstantFanIn()(4, 6, 12, torch.Generator().manual_seed(0))
        >>> torch.bincount(indices[0]).tolist()
        [3, 3, 3, 3]

    Reference:
        M. Lasby, A. Golubeva, U. Evci, M. Nica, Y. Ioannou, Dynamic sparse training with structured sparsity, 2023,
        arXiv 2305.02299.
    """

    fan_in: int | None = None

    def __post_init__(self) -> None:
        if self.fan_in is not None:
            check_positive(fan_in=self.fan_in)

    def nnz(self, out_features: int, in_features: int) -> int | None:
        """fan_in · out."""
        if self.fan_in is None:
            return None
        if self.fan_in > in_features:
            raise ValueError(f"fan_in must be at most in_features={in_features}, however: {self.fan_in}")
        return self.fan_in * out_features

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        few, more = divmod(nnz, out_features)
        fan_in = torch.full((out_features,), few, device="cpu")
        fan_in[torch.randperm(out_features, generator=generator, device="cpu")[:more]] += 1
        row, col = draw_in_groups(torch.full_like(fan_in, in_features), fan_in, generator)
        return torch.stack([row, revive(col, in_features, generator)])


@dataclass(frozen=True)
class Blocks:
    """Connections in dense blocks on the grid of blocks; the last block holds what is left of nnz.

    The blocks are placed as by :class:`Uniform`: every row and every column of blocks has one if there are enough.
    Blocks at the border may be smaller.

    Args:
        size: of a block, one number or (outputs, inputs).

    Raises:
        ValueError: a size is no positive integer.

    Example:
        >>> indices = Blocks(size=2)(4, 6, 8, torch.Generator().manual_seed(0))
        >>> mask = torch.zeros(4, 6, dtype=torch.int64).index_put_(tuple(indices), torch.tensor(1))
        >>> sorted(mask.unfold(0, 2, 2).unfold(1, 2, 2).sum((-1, -2)).flatten().tolist())
        [0, 0, 0, 0, 4, 4]

    Reference:
        S. Gray, A. Radford, D. P. Kingma, GPU kernels for block-sparse weights, 2017.
    """

    size: int | tuple[int, int] = 16

    def __post_init__(self) -> None:
        sizes = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if len(sizes) != 2:
            raise ValueError(f"size must be one number or (outputs, inputs), however: {self.size!r}")
        check_positive(outputs=sizes[0], inputs=sizes[1])

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        rows, cols = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        down, across = -(-out_features // rows), -(-in_features // cols)
        needed = min(down * across, -(-nnz // (rows * cols)))
        while True:  # border blocks are smaller: then it takes more of them
            blocks = Uniform()(down, across, needed, generator)
            blocks = blocks[:, torch.randperm(needed, generator=generator, device="cpu")]
            height = (out_features - blocks[0] * rows).clamp_max(rows)
            width = (in_features - blocks[1] * cols).clamp_max(cols)
            area = height * width
            if int(area.sum()) >= nnz:
                break
            needed = min(down * across, needed + max(1, (nnz - int(area.sum())) // (rows * cols)))
        which = torch.arange(needed, device="cpu").repeat_interleave(area)[:nnz]
        inside = torch.arange(nnz, device="cpu") - (area.cumsum(0) - area)[which]
        row = blocks[0][which] * rows + inside // width[which]
        return torch.stack([row, blocks[1][which] * cols + inside % width[which]])


@dataclass(frozen=True)
class NM:
    """N:M sparsity: of every m consecutive inputs, each output has connections to n.

    Args:
        n: connections of each group.
        m: inputs of each group; in_features must be a multiple of it.

    Raises:
        ValueError: n or m is no positive integer, n exceeds m, or in_features is no multiple of m.

    Example:
        >>> NM(n=2, m=4).nnz(out_features=10, in_features=16)
        80

    Reference:
        A. Zhou, Y. Ma, J. Zhu, J. Liu, Z. Zhang, K. Yuan, W. Sun, H. Li, Learning N:M fine-grained structured sparse
        neural networks from scratch, 2021, arXiv 2102.04010.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        check_positive(n=self.n, m=self.m)
        if self.n > self.m:
            raise ValueError(f"n must be at most m, however: n={self.n}, m={self.m}")

    def nnz(self, out_features: int, in_features: int) -> int:
        """n · in / m · out."""
        if in_features % self.m:
            raise ValueError(f"in_features must be a multiple of m={self.m}, however: {in_features}")
        return out_features * in_features // self.m * self.n

    def __call__(
        self, out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None
    ) -> Tensor:
        across = in_features // self.m
        groups = torch.full((out_features * across,), self.m, device="cpu")
        group, place = draw_in_groups(groups, torch.full_like(groups, self.n), generator)
        row, col = group // across, group % across * self.m + place
        # What a dead input takes over must come from its own group of inputs, so that the pattern stays.
        order = torch.argsort(col // self.m, stable=True)
        row, col = row[order], col[order]
        parts = col.view(across, -1) % self.m  # (groups of inputs, connections)
        dead = (counts(parts, self.m) == 0).any(-1).nonzero().squeeze(1)
        for i in dead.tolist() if out_features * self.n >= self.m else ():
            parts[i] = revive(parts[i], self.m, generator)
        return torch.stack([row, (parts + torch.arange(across, device="cpu").unsqueeze(1) * self.m).flatten()])


def draw_in_groups(sizes: Tensor, wanted: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """``wanted[g]`` different places of 0..sizes[g]-1 for each group g, every set of them equally likely.

    Groups that are nearly full are drawn by what they leave out; repetitions are drawn again, in all groups at once.

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


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


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

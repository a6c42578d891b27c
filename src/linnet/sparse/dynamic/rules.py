"""Rules of dynamic sparse training: when to rewire, which connections to drop and where to grow new ones.

A rule is a frozen dataclass. It sees one map at a time, as :class:`Connections`, and returns the cells to be connected
from now on. :mod:`linnet.sparse.dynamic.update` carries weights and optimizer state along.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.sparse.csr import top
from linnet.sparse.wiring.wiring import draw_cells


@dataclass(frozen=True)
class Connections:
    """What a rule sees: the connections of one map, and ways to look at the gradient of the loss elsewhere.

    A cell is row · in_features + column.

    Attributes:
        cells: the connections, rising, (nnz,), int64.
        values: their weights, (nnz,).
        total: in_features · out_features.
        first: the number of connections that the layer was made with.
        generator: random numbers of this map and this step, on the CPU; the same on every process.
        steepest: ``(k, besides) -> cells``, the k cells with the largest |dL/dW| outside the cells ``besides``.
        slope: ``cells -> |dL/dW|`` there.
    """

    cells: Tensor
    values: Tensor
    total: int
    first: int
    generator: torch.Generator
    steepest: Callable[[int, Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]

    def strongest(self, size: int) -> Tensor:
        """The cells of the ``size`` connections with the largest |w|, rising; of equal ones those of lower index."""
        return self.cells[top(self.values.abs(), size)]


@dataclass(frozen=True)
class Rule(ABC):
    """When and how connections are rewired.

    Steps are optimizer steps in which the layer had a gradient, counted from 1. A rule rewires at step t if t is a
    multiple of ``every`` and t < ``until``.

    Args:
        every: steps from one rewiring to the next.
        until: the step at which rewiring ends; None: never, or after three quarters of ``Rewiring(total_steps=)``.
    """

    every: int = 100
    until: int | None = None

    replaces_step: ClassVar[bool] = False
    """Whether a step that rewires takes no gradient step: the optimizer leaves all of its parameters alone."""
    sees_gradient: ClassVar[bool] = False
    """Whether ``move`` calls ``steepest`` or ``slope``, for which inputs and output gradients are kept."""
    keeps_count: ClassVar[bool] = True
    """Whether there are as many connections afterwards as before."""

    def __post_init__(self) -> None:
        check_positive(every=self.every, **({} if self.until is None else {"until": self.until}))

    def due(self, step: int) -> bool:
        """Whether this step rewires."""
        return step % self.every == 0 and (self.until is None or step < self.until)

    @abstractmethod
    def move(self, now: Connections, step: int) -> Tensor:
        """The cells to be connected from now on, rising, (nnz,); equally many for every map of a population."""

    def ending(self, total_steps: int) -> Self:
        """This rule, with an end after three quarters of the training if it has none."""
        return self if self.until is not None else replace(self, until=max(1, total_steps * 3 // 4))


def cells_elsewhere(total: int, size: int, taken: Tensor, generator: torch.Generator) -> Tensor:
    """``size`` different cells of 0..total-1, rising, none in ``taken``, which rises; every set is equally likely."""
    # Drawn in O(size + taken) on the CPU, by rank among the free cells, of which f(i) = taken_i − i lie below the i-th
    # taken one. The free cell of rank r is r + #{i : f(i) ≤ r}; f rises, so that a binary search counts.
    rank = draw_cells(total - taken.shape[0], size, generator).to(taken.device)
    free_before = taken - torch.arange(taken.shape[0], device=taken.device)
    return rank + torch.searchsorted(free_before, rank, right=True)


def check_share(**shares: float) -> None:
    """Refuse a share that is no number in [0, 1]."""
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share!r}")


@dataclass(frozen=True)
class _Cosine(Rule):
    """Drop the share f(t) = α/2 · (1 + cos(π t / until)) of the connections, those with the smallest |w|."""

    alpha: float = 0.3

    replaces_step = True
    sees_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(alpha=self.alpha)

    def fraction(self, step: int) -> float:
        """f(t); without an end α."""
        return self.alpha if self.until is None else self.alpha / 2 * (1 + math.cos(math.pi * step / self.until))

    def move(self, now: Connections, step: int) -> Tensor:
        nnz = now.cells.shape[0]
        k = int(self.fraction(step) * nnz)
        if k == 0:
            return now.cells
        kept = now.strongest(nnz - k)
        # The dropped ones may grow again at once, as in the reference implementation: only the kept ones are left out.
        return torch.cat([kept, self.grown(now, k, kept)]).sort().values

    @abstractmethod
    def grown(self, now: Connections, k: int, kept: Tensor) -> Tensor:
        """k cells that are not among the kept ones."""


@dataclass(frozen=True)
class RigL(_Cosine):
    """Drop the k = ⌊f(t) · nnz⌋ connections with the smallest |w|, grow k where |dL/dW| is largest.

    f(t) = α/2 · (1 + cos(π t / until)); without an end f = α. A connection that is dropped and grown in one step keeps
    its weight and its optimizer state; a new one starts with 0 in both. In a step that rewires, the optimizer takes no
    gradient step, as in the paper's reference implementation. That adds random noise to |w|, which this one does not:
    of equal ones the lower index is kept. The gradient is computed in pieces of O(nnz) entries, but for every place:
    where in · out is too large for that, use :class:`GSE`.

    Args:
        every, until: as in :class:`Rule`; the paper has 100 and three quarters of the training.
        alpha: the share that is dropped at the beginning.

    Raises:
        ValueError: ``every`` or ``until`` is no positive integer, or ``alpha`` is not in [0, 1].

    Example:
        >>> rule = RigL(every=100, until=1000, alpha=0.3)
        >>> [round(rule.fraction(t), 3) for t in (100, 500, 900)]
        [0.293, 0.15, 0.007]
        >>> [rule.due(t) for t in (1, 100, 1000)]
        [False, True, False]

    Reference:
        U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, Rigging the lottery: making all tickets winners, 2020,
        arXiv 1911.11134.
    """

    def grown(self, now: Connections, k: int, kept: Tensor) -> Tensor:
        return now.steepest(k, kept)


@dataclass(frozen=True)
class GSE(_Cosine):
    """Drop as :class:`RigL`, grow where |dL/dW| is largest among randomly drawn candidates: work and memory O(nnz).

    The candidates are drawn uniformly from all places that are not kept. GSE is for layers so large that the gradient
    of every place cannot be computed.

    Args:
        every, until, alpha: as in :class:`RigL`.
        candidates: their number, as a multiple of nnz; never fewer than are grown.

    Raises:
        ValueError: as in :class:`RigL`, or ``candidates`` is not positive.

    Example:
        >>> GSE(every=50, candidates=2.0)
        GSE(every=50, until=None, alpha=0.3, candidates=2.0)

    Reference:
        M. Heddes, N. Srinivasa, T. Givargis, A. Nicolau, Always-sparse training by growing connections with guided
        stochastic exploration, 2024, arXiv 2401.06898.
    """

    candidates: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.candidates < math.inf:
            raise ValueError(f"candidates must be positive and finite, got {self.candidates!r}")

    def grown(self, now: Connections, k: int, kept: Tensor) -> Tensor:
        free = now.total - kept.shape[0]
        size = min(free, max(k, int(self.candidates * now.cells.shape[0])))
        drawn = cells_elsewhere(now.total, size, kept, now.generator)
        return drawn[top(now.slope(drawn), k)]


@dataclass(frozen=True)
class SET(Rule):
    """Drop the share ζ of the positive weights nearest to 0, and of the negative ones; grow as many at random.

    New connections are drawn uniformly from all places that are not kept, and start with weight 0. Weights of 0 count
    as positive. The optimizer takes its gradient step as always, after the rewiring.

    Args:
        every, until: as in :class:`Rule`; the paper rewires once an epoch, to the end of the training.
        zeta: the share ζ.

    Raises:
        ValueError: ``every`` or ``until`` is no positive integer, or ``zeta`` is not in [0, 1].

    Example:
        >>> SET(every=200)
        SET(every=200, until=None, zeta=0.3)

    Reference:
        D. C. Mocanu, E. Mocanu, P. Stone, P. H. Nguyen, M. Gibescu, A. Liotta, Scalable training of artificial neural
        networks with adaptive sparse connectivity inspired by network science, 2018, arXiv 1707.04780.
    """

    zeta: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(zeta=self.zeta)

    def move(self, now: Connections, step: int) -> Tensor:
        negative = now.values < 0
        signs = []
        for sign in (negative, ~negative):
            cells, size = now.cells[sign], int(sign.sum())
            signs.append(cells[top(now.values[sign].abs(), size - int(self.zeta * size))])
        kept = torch.cat(signs).sort().values
        k = now.cells.shape[0] - kept.shape[0]
        return torch.cat([kept, cells_elsewhere(now.total, k, kept, now.generator)]).sort().values


@dataclass(frozen=True)
class GradualMagnitude(Rule):
    """Prune the smallest |w| so that the sparsity is s_t = s_f + (s_i − s_f)(1 − (t − begin)/(until − begin))³.

    s_i is the sparsity that the layer was made with. The layer shrinks: ``values`` stays the same Parameter and gets
    shorter, and so does its state in the optimizer. DistributedDataParallel cannot follow that: the step raises
    ValueError.

    Args:
        every: steps from one pruning to the next.
        until: the step of the last pruning, which reaches s_f; None: three quarters of ``Rewiring(total_steps=)``.
        sparsity: s_f.
        begin: the step at which pruning begins.

    Raises:
        ValueError: ``until`` does not come after ``begin``, or ``sparsity`` is not in [0, 1).

    Example:
        >>> rule = GradualMagnitude(every=100, until=1000, sparsity=0.9)
        >>> [round(rule.sparsity_at(t, 0.5), 3) for t in (0, 100, 500, 1000)]
        [0.5, 0.608, 0.85, 0.9]

    Reference:
        M. Zhu, S. Gupta, To prune, or not to prune: exploring the efficacy of pruning for model compression, 2017,
        arXiv 1710.01878.
    """

    sparsity: float = 0.9
    begin: int = 0

    keeps_count = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.sparsity!r}")
        if self.begin < 0 or (self.until is not None and self.until <= self.begin):
            raise ValueError(
                f"Pruning must end after it begins, at 0 or later, got begin={self.begin}, until={self.until}"
            )

    def due(self, step: int) -> bool:
        if self.until is None:
            raise ValueError("Gradual pruning must have an end; give until=, or total_steps= to Rewiring")
        return step == self.until or (step % self.every == 0 and self.begin <= step < self.until)

    def sparsity_at(self, step: int, first: float) -> float:
        """s_t, for a layer made with sparsity ``first``."""
        until = self.begin + 1 if self.until is None else self.until
        progress = min(1.0, max(0.0, (step - self.begin) / (until - self.begin)))
        return self.sparsity + (first - self.sparsity) * (1 - progress) ** 3

    def move(self, now: Connections, step: int) -> Tensor:
        wanted = round((1 - self.sparsity_at(step, 1 - now.first / now.total)) * now.total)
        return now.strongest(min(now.cells.shape[0], max(1, wanted)))

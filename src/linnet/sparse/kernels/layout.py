"""Samples as columns: the layout in which products with a sparse matrix are fast, some at a time so that they stay in
the cache, in memory that a thread uses again and again."""

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["Columns", "samples_at_a_time", "widths", "workspace"]

KEPT = 2**20
"""Numbers that a thread keeps, three times, as memory for its products."""


def samples_at_a_time(nnz: int, units: int, best: int) -> int:
    """How many columns a product takes at a time: ``best``, which was measured, or more if a product is hardly a call.

    Above 2²² numbers it is fewer, so that memory stays small.
    """
    wanted = max(best, min(256, 2**21 // max(nnz, 1)))
    return max(min(wanted, 2**22 // units) // 8 * 8, 8)


def widths(batch: int, step: int) -> Iterator[tuple[int, int]]:
    """Pieces of a batch, where each starts and its width: multiples of 8, for which torch's products are fast."""
    eights = batch // 8
    pieces = -(-8 * eights // step)
    for i in range(pieces):
        start, end = 8 * (i * eights // pieces), 8 * ((i + 1) * eights // pieces)
        yield start, end - start
    if batch % 8:
        yield 8 * eights, 8


class Workspace(threading.local):
    """Memory that a thread keeps between products: fresh memory costs more than what is computed in it."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, torch.dtype], Tensor] = {}

    def take(self, slot: int, size: int, like: Tensor) -> Tensor:
        """At least ``size`` numbers; at most as many as are kept for good are."""
        if size > KEPT or like.device.type != "cpu":
            return like.new_empty(size)
        space = self.kept.get((slot, like.dtype))
        if space is None or space.shape[0] < size:
            with torch.inference_mode(False):  # what is made inside could not be written to outside
                space = self.kept[slot, like.dtype] = torch.empty(size, dtype=like.dtype, device="cpu")
        return space


workspace = Workspace()


class Columns:
    """Samples as columns, some at a time.

    Args:
        parts: the samples of each map, (batch, n).
        step: how many samples at a time.
        slot: which memory of the workspace serves all of them in turn.
        kept: memory for all of them instead, as :meth:`keep` makes it.
        filled: whether they already lie there.
    """

    def __init__(
        self, parts: Sequence[Tensor], step: int, slot: int, kept: Tensor | None = None, filled: bool = False
    ) -> None:
        self.parts, self.step, self.slot, self.kept, self.filled = parts, step, slot, kept, filled
        self.batch, self.n = parts[0].shape
        self.rows = len(parts) * self.n
        self.space: Tensor | None = None

    @staticmethod
    def keep(part: Tensor) -> Tensor:
        """Memory for all samples of one map, (batch, n)."""
        batch, n = part.shape
        return part.new_empty(n * (batch + -batch % 8))

    def empty(self, start: int, width: int) -> Tensor:
        """(maps · n, width), contiguous."""
        if self.kept is not None:
            return self.kept[self.rows * start : self.rows * (start + width)].view(self.rows, width)
        if self.space is None:
            self.space = workspace.take(self.slot, self.rows * min(self.step, self.batch + 7), self.parts[0])
        return self.space[: self.rows * width].view(self.rows, width)

    def pairs(self, start: int, columns: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each map its columns, (n, count), and the samples from ``start`` on that they hold, (count, n)."""
        width = columns.shape[1]
        count = min(width, self.batch - start)
        for i, part in enumerate(self.parts):
            own = columns if len(self.parts) == 1 else columns[i * self.n : (i + 1) * self.n]
            yield (
                own if count == width else own[:, :count],
                part if count == self.batch else part[start : start + count],
            )

    def read(self, start: int, width: int) -> Tensor:
        """The samples from ``start`` on, (maps · n, width); beyond the last one zeros."""
        columns = self.empty(start, width)
        if self.filled:
            return columns
        if start + width > self.batch:
            columns.zero_()
        for own, part in self.pairs(start, columns):
            own.copy_(part.T)  # two axes to two axes: for that torch has a fast transpose
        return columns

    def write(self, start: int, columns: Tensor) -> None:
        """(maps · n, width) -> the samples from ``start`` on."""
        for own, part in self.pairs(start, columns):
            part.copy_(own.T)

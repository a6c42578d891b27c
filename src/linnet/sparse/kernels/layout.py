"""Samples as columns: the layout in which products with a sparse matrix are fast.

For Y = W X with W sparse, entry (i, j) of W adds w_ij times row j of X to row i of Y. With a sample in each column
these rows are contiguous, and every entry of W is one vector operation over the samples; with a sample in each row it
would be as many single numbers, each on a cache line of its own. So samples, (batch, n), are transposed on the way in
and out: some at a time, so that they stay in the cache, and in memory that a thread uses again and again.
"""

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LEFT, RESULT, RIGHT = range(3)
"""The memory of a workspace: what a product reads, what it gives, and the second thing that a sampled one reads."""
KEPT = 2**20
"""Numbers that a thread keeps as memory for its products, in each of the three places."""


def widths(batch: int, samples: int) -> Iterator[tuple[int, int]]:
    """Pieces of a batch, where each starts and its width: multiples of 8, for which torch's products are fast."""
    # The pieces are equally wide up to 8, at most ``samples``, since a narrow last one would cost a whole call. What is
    # left of the batch is a last piece of 8 columns that are filled up with zeros. One sample stays alone.
    if samples == 1:
        yield from ((start, 1) for start in range(batch))
        return
    eights = batch // 8
    pieces = -(-8 * eights // samples)
    for i in range(pieces):
        start, end = 8 * (i * eights // pieces), 8 * ((i + 1) * eights // pieces)
        yield start, end - start
    if batch % 8:
        yield 8 * eights, 8


class Workspace(threading.local):
    """Memory that a thread keeps between products: the page faults of fresh memory cost more than the products."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, torch.dtype], Tensor] = {}

    def take(self, place: int, size: int, like: Tensor) -> Tensor:
        """At least ``size`` numbers; kept if they are few, else fresh. Only the current product may use them."""
        if size > KEPT or like.device.type != "cpu":
            return like.new_empty(size)
        space = self.kept.get((place, like.dtype))
        if space is None or space.shape[0] < size:
            with torch.inference_mode(False):  # an inference tensor could not be written to in other modes
                space = self.kept[place, like.dtype] = torch.empty(size, dtype=like.dtype, device="cpu")
        return space


workspace = Workspace()


class Columns:
    """Samples as columns, some at a time.

    Args:
        parts: the samples of each map, (batch, n).
        samples: how many at a time.
        place: which memory of the workspace serves all of them in turn.
        kept: memory for all of them instead, as :meth:`keep` makes it.
        filled: whether they already lie there.
    """

    def __init__(
        self, parts: Sequence[Tensor], samples: int, place: int, kept: Tensor | None = None, filled: bool = False
    ) -> None:
        self.parts, self.samples, self.place, self.kept, self.filled = parts, samples, place, kept, filled
        self.batch, self.n = parts[0].shape
        self.rows = len(parts) * self.n
        self.space: Tensor | None = None

    @staticmethod
    def keep(part: Tensor) -> Tensor | None:
        """Memory for all samples of one map, (batch, n), so that backward need not transpose them; None if large."""
        # Many samples are transposed twice instead of held twice.
        batch, n = part.shape
        return part.new_empty(n * (batch + -batch % 8)) if part.numel() <= KEPT else None

    def empty(self, start: int, width: int) -> Tensor:
        """(maps · n, width), contiguous."""
        if self.kept is not None:
            return self.kept[self.rows * start : self.rows * (start + width)].view(self.rows, width)
        if self.space is None:
            # A piece is at most `samples` wide, and at most the batch rounded up to a multiple of 8.
            self.space = workspace.take(self.place, self.rows * min(self.samples, self.batch + 7), self.parts[0])
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
        if start + width > self.batch:  # left over from another product, NaN would spread: 0 · NaN is NaN
            columns.zero_()
        for own, part in self.pairs(start, columns):
            own.copy_(part.T)  # two axes to two axes: for that torch has a fast transpose
        return columns

    def write(self, start: int, columns: Tensor) -> None:
        """(maps · n, width) -> the samples from ``start`` on."""
        for own, part in self.pairs(start, columns):
            part.copy_(own.T)

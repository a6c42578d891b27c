"""Blocks: connections fill dense blocks of the matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.sparse.wiring.uniform import Uniform


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
            raise ValueError(f"size must be one number or (outputs, inputs), got {self.size!r}")
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

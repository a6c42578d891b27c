"""Products with a sparse matrix in operations of torch: :mod:`linnet.sparse.kernels.ops` makes operators of them.

Each follows :func:`linnet.sparse.kernels.choice.choose_kernel`, and takes the structure as CSR alone: whoever wants the
product with Wᵀ gives the structure of Wᵀ.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.sparse.csr import csr_tensor
from linnet.sparse.kernels.choice import Choice, Kernel, Operation, choose_kernel, maps_at_a_time
from linnet.sparse.kernels.layout import LEFT, RESULT, RIGHT, Columns, widths, workspace


class Matrix(NamedTuple):
    """A matrix in CSR form, without axes of maps."""

    crow: Tensor
    col: Tensor
    values: Tensor
    columns: int

    @property
    def rows(self) -> int:
        return self.crow.shape[0] - 1

    def tensor(self) -> Tensor:
        """As a CSR tensor of torch, on the same storage."""
        return csr_tensor(*self)

    def choice(self, batch: int, operation: Operation = Operation.PRODUCT) -> Choice:
        """How a product with so many samples is computed."""
        crow, _, values, columns = self
        return choose_kernel(
            operation, crow.shape[0] - 1, columns, values.shape[0], batch, device=values.device.type, dtype=values.dtype
        )


def column_product(matrix: Matrix, kernel: Kernel, width: int) -> Callable[[Tensor], Tensor]:
    """The product with a matrix from the left, (columns, width) -> (rows, width), for widths up to the given one."""
    if kernel is Kernel.EMBEDDING_BAG:
        # Row i of the result is the sum of the rows of `right` that output i is connected to, each times its weight:
        # bag i of an embedding of those rows, whose offsets are crow and whose indices are col.
        crow, col, values, _ = matrix
        return lambda right: torch.embedding_bag(right, col, crow, False, 0, False, values, True)[0]
    left, rows = matrix.tensor(), matrix.rows
    space = workspace.take(RESULT, rows * width, matrix.values)

    def product(right: Tensor) -> Tensor:
        result = space[: rows * right.shape[1]].view(rows, right.shape[1])
        return torch.addmm(result, left, right, beta=0, out=result)  # with beta = 0 what lies there is not read

    return product


def blocks(values: Tensor, crow: Tensor, col: Tensor, columns: int) -> Iterator[tuple[slice, Matrix]]:
    """The maps as block-diagonal matrices on the storage of ``values``: each with the slice of maps that it holds."""
    # With W = diag(W₁, …, W_k) one product computes those of k maps, whose samples lie below each other as columns: row
    # pointers of map b are raised by b · nnz, columns by b · columns. Maps that are worth a call each stay alone.
    maps, nnz = values.shape
    size = maps_at_a_time(crow.shape[-1] - 1, columns, nnz)
    for start in range(0, maps, size):
        some = slice(start, min(start + size, maps))
        count = some.stop - start
        own_crow, own_col = (crow, col) if col.dim() == 1 else (crow[some], col[some])
        if count > 1:
            block = torch.arange(count, device=col.device, dtype=col.dtype).unsqueeze(1)  # (count, 1)
            own_crow = F.pad((own_crow[..., 1:] + nnz * block).flatten(), (1, 0))
            own_col = own_col + columns * block
        yield some, Matrix(own_crow.flatten(), own_col.flatten(), values[some].flatten(), count * columns)


def multiply_into(
    matrix: Matrix, x: Sequence[Tensor], y: Sequence[Tensor], choice: Choice, kept: Tensor | None = None
) -> None:
    """y = x Wᵀ for each map on the diagonal of W: (batch, columns), written to (batch, rows)."""
    if choice.kernel is Kernel.NOTHING:
        return
    if choice.kernel is Kernel.CSR_VECTOR:
        found = torch.mv(matrix.tensor(), x[0][0] if len(x) == 1 else torch.cat(list(x), 1)[0])
        for part, own in zip(y, found.split(y[0].shape[1]), strict=True):
            part[0] = own
        return
    batch, samples = x[0].shape[0], choice.samples
    inputs, outputs = Columns(x, samples, LEFT, kept), Columns(y, samples, RESULT)
    product = column_product(matrix, choice.kernel, min(samples, batch + 7))
    for start, width in widths(batch, samples):
        outputs.write(start, product(inputs.read(start, width)))  # written at once: the next product has its memory


def multiply_one(matrix: Matrix, x: Tensor, choice: Choice, kept: Tensor | None = None) -> Tensor:
    """y = x Wᵀ for one map: (batch, columns) -> (batch, rows); ``kept`` takes x as columns."""
    if choice.kernel is Kernel.CSR_VECTOR:
        return torch.mv(matrix.tensor(), x[0]).unsqueeze_(0)
    y = x.new_empty(x.shape[0], matrix.rows)
    multiply_into(matrix, (x,), (y,), choice, kept)
    return y


def add_sampled(matrix: Matrix, g: Sequence[Tensor], x: Sequence[Tensor]) -> None:
    """Add gᵀ x to the entries of a matrix, at its places: (batch, rows), (batch, columns) of each map."""
    batch = g[0].shape[0]
    kernel, samples = matrix.choice(batch, Operation.SAMPLED_PRODUCT)
    if kernel is Kernel.NOTHING:
        return
    left, right, entries = Columns(g, samples, LEFT), Columns(x, samples, RESULT), matrix.tensor()
    for start, width in widths(batch, samples):
        torch.sparse.sampled_addmm(entries, left.read(start, width), right.read(start, width).T, out=entries)


def multiply_and_add_sampled(
    transposed: Matrix, matrix: Matrix, g: Tensor, x: Tensor, choice: Choice, kept: Tensor | None
) -> Tensor:
    """h = g W, and gᵀ x added to the entries of ``matrix``: one map, one pass over g, which both take as columns.

    Args:
        transposed: Wᵀ, for h.
        matrix: at the places of W, for gᵀ x.
        g: (batch, rows).
        x: (batch, columns).
        choice: of the forward product, which is by columns.
        kept: x as columns, if the forward has kept them.
    """
    h = torch.empty_like(x, memory_format=torch.contiguous_format)
    batch, samples = g.shape[0], choice.samples
    left, result = Columns((g,), samples, LEFT), Columns((h,), samples, RESULT)
    right = Columns((x,), samples, RIGHT, kept, kept is not None)
    product, entries = column_product(transposed, choice.kernel, min(samples, batch + 7)), matrix.tensor()
    for start, width in widths(batch, samples):
        columns = left.read(start, width)
        result.write(start, product(columns))
        torch.sparse.sampled_addmm(entries, columns, right.read(start, width).T, out=entries)
    return h


def multiply(values: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """x Wᵀ for W in CSR form: (maps, nnz), (maps, batch, columns) -> (maps, batch, rows)."""
    y = x.new_empty(*x.shape[:2], crow.shape[-1] - 1)
    for some, matrix in blocks(values.contiguous(), crow, col, x.shape[2]):
        multiply_into(matrix, x[some].unbind(0), y[some].unbind(0), matrix.choice(x.shape[1]))
    return y


def sample(g: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """gᵀ x at the places of a CSR structure: (maps, batch, rows), (maps, batch, columns) -> (maps, nnz)."""
    entries = x.new_zeros(x.shape[0], col.shape[-1])
    for some, matrix in blocks(entries, crow, col, x.shape[2]):  # they lie on the storage of `entries`
        add_sampled(matrix, g[some].unbind(0), x[some].unbind(0))
    return entries

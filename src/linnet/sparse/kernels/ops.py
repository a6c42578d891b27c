"""Products with a matrix of few entries: three operators of torch that are each other's derivatives.

With W (out, in) given by its non-zero entries `values`, for each of the maps of a population at once:

* :func:`sparse_mm`          y = x Wᵀ
* :func:`sparse_mm_t`        h = g W
* :func:`sparse_sampled_mm`  v = the entries of gᵀ x at the places of the non-zeros

All are bilinear, and the derivatives of each are the two others, so that they may be differentiated any number of
times. They take, leading axes and all,

* values (maps, nnz), in CSR order; x (maps, batch, in); g (maps, batch, out), all float32 or all float64;
* the structure, one for all or with an axis of maps in front one for each: W in CSR form, crow (out + 1) and col
  (nnz), and Wᵀ in CSR form, ccol (in + 1), row (nnz), and perm (nnz), the place in `values` of each of its entries.

What runs is torch's sum of weighted rows (``embedding_bag``: FBGEMM, on x86 in float32) or its CSR product (MKL), and
its sampled product; all are fast only with the batch along the last axis, see :mod:`linnet.sparse.kernels.layout`.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.sparse.kernels.layout import KEPT, Columns, samples_at_a_time, widths, workspace

__all__ = ["WATCHED", "affine", "product", "sparse_mm", "sparse_mm_t", "sparse_sampled_mm"]

TILE = 2**16  # numbers that stay in the second-level cache, and entries below which a product is mostly overhead
WATCHED: dict[int, Callable[[Tensor, Tensor], None]] = {}
"""Who wants to see g and x wherever a backward pass computes the gradient of `values`, by the address of `col`."""
_AVX = torch.backends.cpu.get_cpu_capability().startswith("AVX")
_lock = threading.Lock()
_warned = False


def watched(col: Tensor, g: Tensor, x: Tensor) -> None:
    """Show g and x, (maps, batch, ·), to whoever watches the layer that these connections belong to."""
    if WATCHED and (watcher := WATCHED.get(col.data_ptr())) is not None:
        watcher(g, x)


def csr(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> Tensor:
    """A CSR tensor on the given storage; torch's notice that CSR tensors are in beta, once a process, is held back."""
    global _warned
    if not _warned:
        with _lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
            empty = torch.zeros(1, dtype=torch.int64, device="cpu")
            torch.sparse_csr_tensor(empty, empty[:0], empty[:0], (0, 0), check_invariants=False)
            _warned = True
    size = (*crow.shape[:-1], crow.shape[-1] - 1, columns)
    return torch.sparse_csr_tensor(crow, col, values, size, check_invariants=False)


class Matrix(NamedTuple):
    """A matrix in CSR form, without axes of maps."""

    crow: Tensor
    col: Tensor
    values: Tensor
    columns: int

    def csr(self) -> Tensor:
        return csr(*self)

    def units(self) -> int:
        return max(self.columns, self.crow.shape[0] - 1)

    def step(self) -> int:
        """How many samples a product takes at a time; measured."""
        best = (64 if self.columns <= 2048 else 32) if quick(self.values) else (32 if self.units() <= 2048 else 16)
        return samples_at_a_time(self.values.shape[0], self.units(), best)


def quick(values: Tensor) -> bool:
    """Whether ``embedding_bag`` is fast: where FBGEMM, which torch has on x86, adds up rows in registers."""
    return values.dtype == torch.float32 and values.device.type == "cpu" and _AVX


def times(matrix: Matrix, width: int) -> Callable[[Tensor], Tensor]:
    """The product with a matrix from the left: (columns, width) -> (rows, width)."""
    if width > 8 and quick(matrix.values):  # row i of the result: the rows of `right` that it is connected to, weighted
        crow, col, values, _ = matrix
        return lambda right: torch.embedding_bag(right, col, crow, False, 0, False, values, True)[0]
    left, rows = matrix.csr(), matrix.crow.shape[0] - 1
    space = workspace.take(1, rows * width, matrix.values)

    def product(right: Tensor) -> Tensor:
        result = space[: rows * right.shape[1]].view(rows, right.shape[1])
        return torch.addmm(result, left, right, beta=0, out=result)

    return product


def blocks(values: Tensor, crow: Tensor, col: Tensor, columns: int) -> Iterator[tuple[slice, Matrix]]:
    """The maps as block-diagonal matrices on the storage of ``values``: each with the slice of maps that it holds.

    One matrix for as many maps as together make a product worth its overhead; large maps stay alone.
    """
    maps, nnz = values.shape
    size = max(1, TILE // max(nnz, crow.shape[-1], columns))
    for start in range(0, maps, size):
        some = slice(start, min(start + size, maps))
        count = some.stop - start
        own_crow, own_col = (crow, col) if col.dim() == 1 else (crow[some], col[some])
        if count > 1:
            block = torch.arange(count, device=col.device, dtype=col.dtype).unsqueeze(1)  # (count, 1)
            own_crow = F.pad((own_crow[..., 1:] + nnz * block).flatten(), (1, 0))
            own_col = own_col + columns * block
        yield some, Matrix(own_crow.flatten(), own_col.flatten(), values[some].flatten(), count * columns)


def apply(matrix: Matrix, x: Sequence[Tensor], y: Sequence[Tensor], kept: Tensor | None = None) -> None:
    """y = x Wᵀ for each map on the diagonal of W: (batch, columns), written to (batch, rows)."""
    batch = x[0].shape[0]
    if batch == 0:
        return
    if batch == 1:
        found = torch.mv(matrix.csr(), x[0][0] if len(x) == 1 else torch.cat(list(x), 1)[0])
        for part, own in zip(y, found.split(y[0].shape[1]), strict=True):
            part[0] = own
        return
    step = matrix.step()
    inputs, outputs = Columns(x, step, 0, kept), Columns(y, step, 1)
    product = times(matrix, min(step, batch + 7))
    for start, width in widths(batch, step):
        outputs.write(start, product(inputs.read(start, width)))


def add_sampled(matrix: Matrix, g: Sequence[Tensor], x: Sequence[Tensor]) -> None:
    """Add gᵀ x to the entries of a matrix, at its places: (batch, rows), (batch, columns) of each map."""
    batch = g[0].shape[0]
    step = samples_at_a_time(matrix.values.shape[0], matrix.units(), 64)
    left, right, entries = Columns(g, step, 0), Columns(x, step, 1), matrix.csr()
    for start, width in widths(batch, step) if batch > 1 else [(0, 1)]:
        torch.sparse.sampled_addmm(entries, left.read(start, width), right.read(start, width).T, out=entries)


def apply_and_add_sampled(
    transposed: Matrix, matrix: Matrix, g: Tensor, x: Tensor, h: Tensor, kept: Tensor | None
) -> None:
    """:func:`apply` for h = g W and :func:`add_sampled` for gᵀ x, one map, which share g as columns."""
    step = matrix.step()
    left, right, result = Columns((g,), step, 0), Columns((x,), step, 2, kept, kept is not None), Columns((h,), step, 1)
    product, entries = times(transposed, min(step, g.shape[0] + 7)), matrix.csr()
    for start, width in widths(g.shape[0], step):
        columns = left.read(start, width)
        result.write(start, product(columns))
        torch.sparse.sampled_addmm(entries, columns, right.read(start, width).T, out=entries)


def multiply(values: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """x Wᵀ for W in CSR form: (maps, nnz), (maps, batch, columns) -> (maps, batch, rows)."""
    y = x.new_empty(*x.shape[:2], crow.shape[-1] - 1)
    for some, matrix in blocks(values.contiguous(), crow, col, x.shape[2]):
        apply(matrix, x[some].unbind(0), y[some].unbind(0))
    return y


def sample(g: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """gᵀ x at the places of a CSR structure: (maps, batch, rows), (maps, batch, columns) -> (maps, nnz)."""
    entries = x.new_zeros(x.shape[0], col.shape[-1])
    for some, matrix in blocks(entries, crow, col, x.shape[2]):  # they lie on the storage of `entries`
        add_sampled(matrix, g[some].unbind(0), x[some].unbind(0))
    return entries


# ---------------------------------------------------------------------- the operators


@torch.library.custom_op("linnet::sparse_mm", mutates_args=())
def sparse_mm(values: Tensor, x: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor) -> Tensor:
    """y = x Wᵀ: (maps, nnz), (maps, batch, in) -> (maps, batch, out)."""
    return multiply(values, x, crow, col)


@torch.library.custom_op("linnet::sparse_mm_t", mutates_args=())
def sparse_mm_t(
    values: Tensor, g: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor
) -> Tensor:
    """h = g W: (maps, nnz), (maps, batch, out) -> (maps, batch, in)."""
    transposed = values.index_select(1, perm) if perm.dim() == 1 else values.gather(1, perm.long())
    return multiply(transposed, g, ccol, row)


@torch.library.custom_op("linnet::sparse_sampled_mm", mutates_args=())
def sparse_sampled_mm(
    g: Tensor, x: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor
) -> Tensor:
    """v = gᵀ x at the non-zeros: (maps, batch, out), (maps, batch, in) -> (maps, nnz)."""
    watched(col, g, x)
    return sample(g, x, crow, col)


@sparse_mm.register_fake
def _(values: Tensor, x: Tensor, crow: Tensor, *structure: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], crow.shape[-1] - 1)


@sparse_mm_t.register_fake
def _(values: Tensor, g: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, *structure: Tensor) -> Tensor:
    return g.new_empty(*g.shape[:2], ccol.shape[-1] - 1)


@sparse_sampled_mm.register_fake
def _(g: Tensor, x: Tensor, crow: Tensor, col: Tensor, *structure: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], col.shape[-1])


for operator in (sparse_mm, sparse_mm_t, sparse_sampled_mm):  # as the layer does: half precision is computed in float32
    for device in ("cpu", "cuda"):
        operator.register_autocast(device, torch.float32)


# ---------------------------------------------------------------------- derivatives

Operator = Callable[..., Tensor]


def _differentiable(operator: Any, by_first: Operator, by_second: Operator) -> Operator:
    """``operator`` with the gradients ``by_first(second, upstream)`` and ``by_second(first, upstream)``.

    They are registered with the operator, which is what runs and what graphs contain. Only torch.func.grad and its kin
    know no derivatives but those of an autograd.Function; it is slower, and used inside them alone.
    """

    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        first, second, *structure = ctx.saved_tensors
        need_first, need_second = ctx.needs_input_grad[:2]
        gradients = (
            by_first(second, upstream, *structure) if need_first else None,
            by_second(first, upstream, *structure) if need_second else None,
        )
        return (*gradients, *(None for _ in structure))

    operator.register_autograd(backward, setup_context=setup_context)
    members = {"forward": operator, "setup_context": setup_context, "backward": backward}
    static = {name: staticmethod(member) for name, member in members.items()}
    function: Any = type(operator._name, (torch.autograd.Function,), {**static, "generate_vmap_rule": True})

    def apply(*args: Tensor) -> Tensor:
        return function.apply(*args) if torch._C._are_functorch_transforms_active() else operator(*args)

    apply.__doc__ = f"{operator._name}, differentiable any number of times, inside torch.func too."
    return apply


product: Operator = _differentiable(
    sparse_mm, lambda x, g, *s: product_sampled(g, x, *s), lambda v, g, *s: product_t(v, g, *s)
)
product_t: Operator = _differentiable(
    sparse_mm_t, lambda g, h, *s: product_sampled(g, h, *s), lambda v, h, *s: product(v, h, *s)
)
product_sampled: Operator = _differentiable(
    sparse_sampled_mm, lambda x, v, *s: product(v, x, *s), lambda g, v, *s: product_t(v, g, *s)
)


# ---------------------------------------------------------------------- one map, in eager mode


def affine_without_gradient(
    x: Tensor, values: Tensor, bias: Tensor | None, structure: Sequence[Tensor], kept: Tensor | None = None
) -> Tensor:
    crow, col = structure[:2]
    matrix = Matrix(crow, col, values, x.shape[1])
    if x.shape[0] == 1:
        y = torch.mv(matrix.csr(), x[0]).unsqueeze_(0)
    else:
        y = x.new_empty(x.shape[0], crow.shape[0] - 1)
        apply(matrix, (x,), (y,), kept)
    return y if bias is None else y.add_(bias)


class _Affine(torch.autograd.Function):
    """y = x Wᵀ + b for one map: the operators above without their dispatch, and one backward for all gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, *structure: Tensor) -> Tensor:
        kept = Columns.keep(x) if ctx.needs_input_grad[1] and 1 < x.shape[0] and x.numel() <= KEPT else None
        ctx.save_for_backward(x, values, kept, *structure)
        return affine_without_gradient(x, values, bias, structure, kept)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, kept, *structure = ctx.saved_tensors
        of_x, of_values, of_bias = ctx.needs_input_grad[:3]
        h = v = None
        if torch.is_grad_enabled():  # gradients of gradients
            h = product_t(values[None], g[None], *structure)[0] if of_x else None
            v = product_sampled(g[None], x[None], *structure)[0] if of_values else None
        else:
            crow, col, ccol, row, perm = structure
            transposed = matrix = None
            if of_x:
                h = torch.empty_like(x, memory_format=torch.contiguous_format)
                transposed = Matrix(ccol, row, values.index_select(0, perm), g.shape[1])
            if of_values:
                watched(col, g[None], x[None])
                v = torch.zeros_like(values)
                matrix = Matrix(crow, col, v, x.shape[1])  # on the storage of v
            if transposed is not None and h is not None and matrix is not None and g.shape[0] > 1:
                apply_and_add_sampled(transposed, matrix, g, x, h, kept)
            else:
                if transposed is not None and h is not None:
                    apply(transposed, (g,), (h,))
                if matrix is not None:
                    add_sampled(matrix, (g,), (x,))
        return (h, v, g.sum(0) if of_bias else None, *[None] * len(structure))


def affine(x: Tensor, values: Tensor, bias: Tensor | None, structure: Sequence[Tensor]) -> Tensor:
    """y = x Wᵀ + b for one map, (batch, in), (nnz,), (out,) -> (batch, out): the fast path of eager mode.

    :func:`product` is its reference.
    """
    if torch.is_grad_enabled():
        return _Affine.apply(x, values, bias, *structure)
    return affine_without_gradient(x, values, bias, structure)


# ---------------------------------------------------------------------- vmap


def _more_samples(operator: Operator) -> Callable[..., tuple[Tensor, int]]:
    """The batching rule of a product: inputs alone become more samples; everything else becomes more maps."""
    more_maps = _more_maps(operator)

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
        values, x, *structure = args
        if in_dims[1] is None or any(dim is not None for dim in (in_dims[0], *in_dims[2:])):
            return more_maps(info, in_dims, *args)
        x = x.movedim(in_dims[1], 1)  # (maps, v, batch, in)
        y = operator(values, x.flatten(1, 2), *structure)
        return y.unflatten(1, x.shape[1:3]), 1

    return rule


def _more_maps(operator: Operator) -> Callable[..., tuple[Tensor, int]]:
    """The batching rule by which the new axis and that of the maps become one."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
        v = info.batch_size
        moved = [
            tensor.expand(v, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(args, in_dims, strict=True)
        ]
        maps = moved[0].shape[1]
        if args[2].dim() == 1 and all(dim is None for dim in in_dims[2:]):
            structure = list(args[2:])  # still one for all
        else:
            each = [tensor if tensor.dim() == 3 else tensor.unsqueeze(1).expand(-1, maps, -1) for tensor in moved[2:]]
            structure = [tensor.flatten(0, 1) for tensor in each]
        return operator(*(tensor.flatten(0, 1) for tensor in moved[:2]), *structure).unflatten(0, (v, maps)), 0

    return rule


sparse_mm.register_vmap(_more_samples(sparse_mm))
sparse_mm_t.register_vmap(_more_samples(sparse_mm_t))
sparse_sampled_mm.register_vmap(_more_maps(sparse_sampled_mm))

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

What runs is the CSR product of torch, which is fast only on matrices with the batch along the last axis.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["WATCHED", "product", "sparse_mm", "sparse_mm_t", "sparse_sampled_mm"]

TILE = 2**16  # numbers that stay in the second-level cache, and entries below which a product is mostly overhead
WATCHED: dict[int, Callable[[Tensor, Tensor], None]] = {}
"""Who wants to see g and x wherever a backward pass computes the gradient of `values`, by the address of `col`."""
_lock = threading.Lock()
_warned = False


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


def blocks(values: Tensor, crow: Tensor, col: Tensor, columns: int) -> Iterator[tuple[slice, Tensor]]:
    """The maps as block-diagonal CSR matrices on the storage of ``values``: each with the slice of maps that it holds.

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
        yield some, csr(own_crow.flatten(), own_col.flatten(), values[some].flatten(), count * columns)


def parts(x: Tensor, step: int) -> Sequence[Tensor]:
    """(maps, batch, n) -> pieces of at most ``step`` samples."""
    return x.split(step, 1) if x.shape[1] > step else (x,)


def columnwise(x: Tensor) -> Tensor:
    """(maps, batch, n) -> (maps · n, batch), contiguous."""
    return x.mT.contiguous().flatten(0, 1)


def multiply(values: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """x Wᵀ for W in CSR form: (maps, nnz), (maps, batch, columns) -> (maps, batch, rows)."""
    maps, batch, columns = x.shape
    y = x.new_empty(maps, batch, crow.shape[-1] - 1)
    for some, matrix in blocks(values.contiguous(), crow, col, columns):
        step = max(32, TILE // matrix.shape[1])  # samples at a time: their tile of x stays in the cache
        for x_part, y_part in zip(parts(x[some], step), parts(y[some], step), strict=True):
            right = columnwise(x_part)
            if right.shape[1] == 1:
                result = torch.mv(matrix, right[:, 0])
            else:
                result = right.new_empty(matrix.shape[0], right.shape[1])
                torch.addmm(result, matrix, right, beta=0, out=result)
            y_part.copy_(result.view(y_part.mT.shape).mT)
    return y


def sample(g: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """gᵀ x at the places of a CSR structure: (maps, batch, rows), (maps, batch, columns) -> (maps, nnz)."""
    entries = x.new_zeros(x.shape[0], col.shape[-1])
    for some, matrix in blocks(entries, crow, col, x.shape[2]):
        step = max(64, 2 * TILE // max(matrix.shape))
        for g_part, x_part in zip(parts(g[some], step), parts(x[some], step), strict=True):
            batch = x_part.shape[1]
            spare = -batch % 8 if batch > 1 and x.dtype == torch.float32 else 0  # torch is slow on a rest of 2 to 7
            left, right = (columnwise(F.pad(t, (0, 0, 0, spare)) if spare else t) for t in (g_part, x_part))
            torch.sparse.sampled_addmm(matrix, left, right.mT, out=matrix)  # adds to `entries`
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
    if WATCHED and (watcher := WATCHED.get(col.data_ptr())) is not None:
        watcher(g, x)
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

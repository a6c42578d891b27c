"""Products with a sparse matrix as operators of torch: three that are each other's derivatives.

With W (out, in) given by its non-zero entries `values`, for each of the maps of a population at once:

* :func:`sparse_mm`          y = x Wᵀ
* :func:`sparse_mm_t`        h = g W
* :func:`sparse_sampled_mm`  v = the entries of gᵀ x at the places of the non-zeros

All are bilinear, and the derivatives of each are the two others, so that they may be differentiated any number of
times. They take, leading axes and all,

* values (maps, nnz), in CSR order; x (maps, batch, in); g (maps, batch, out), all float32 or all float64;
* the structure, one for all or with an axis of maps in front one for each: W in CSR form, crow (out + 1) and col
  (nnz), and Wᵀ in CSR form, ccol (in + 1), row (nnz), and perm (nnz), the place in `values` of each of its entries.

What runs inside is :mod:`linnet.sparse.kernels.products`; exported programs name the operators, which must not change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from linnet.sparse.kernels.layout import Columns
from linnet.sparse.kernels.products import Matrix, add_sampled, multiply, multiply_and_add_sampled, multiply_one, sample

OBSERVERS: dict[int, Callable[[Tensor, Tensor], None]] = {}
"""Who is shown g and x wherever a backward pass computes the gradient of `values`, by the address of `col`.

Rewiring needs dL/dW = gᵀ x outside the connections too. Module hooks would not do: they see g only after the layer's
own backward, miss functional calls, and break graphs of torch.compile.
"""


def show(col: Tensor, g: Tensor, x: Tensor) -> None:
    """Show g and x, (maps, batch, ·), to the observer of the layer that these connections belong to."""
    if OBSERVERS and (observer := OBSERVERS.get(col.data_ptr())) is not None:
        observer(g, x)


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
    show(col, g, x)
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


# Half precision is computed in float32, as the layer does it: sums of many products lose too much in half precision,
# and torch has no sparse kernels for it.
for operator in (sparse_mm, sparse_mm_t, sparse_sampled_mm):
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


# With upstream gradients ȳ, h̄, v̄, and V̄ the matrix that has the entries v̄ at the connections:
#
#   y_ki = Σ_j w_ij x_kj     dL/dw_ij = Σ_k ȳ_ki x_kj = (ȳᵀ x)_ij     dL/dx = ȳ W
#   h_kj = Σ_i g_ki w_ij     dL/dw_ij = Σ_k g_ki h̄_kj = (gᵀ h̄)_ij     dL/dg = h̄ Wᵀ
#   v_ij = Σ_k g_ki x_kj     dL/dg = x V̄ᵀ                             dL/dx = g V̄
#
# So each derivative is one of the three products again, and none of them needs a matrix that is dense.
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


class _Affine(torch.autograd.Function):
    """y = x Wᵀ + b for one map: the operators above without their dispatch, and one backward for all gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, *structure: Tensor) -> Tensor:
        crow, col = structure[:2]
        matrix = Matrix(crow, col, values, x.shape[1])
        ctx.choice = choice = matrix.choice(x.shape[0])
        kept = Columns.keep(x) if choice.kernel.by_columns and ctx.needs_input_grad[1] else None
        ctx.save_for_backward(x, values, kept, *structure)
        y = multiply_one(matrix, x, choice, kept)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, kept, *structure = ctx.saved_tensors
        of_x, of_values, of_bias = ctx.needs_input_grad[:3]
        h = v = None
        if torch.is_grad_enabled():  # gradients of gradients: the operators know theirs
            h = product_t(values[None], g[None], *structure)[0] if of_x else None
            v = product_sampled(g[None], x[None], *structure)[0] if of_values else None
        else:
            crow, col, ccol, row, perm = structure
            if of_x:
                transposed = Matrix(ccol, row, values.index_select(0, perm), g.shape[1])
            if of_values:
                show(col, g[None], x[None])
                v = torch.zeros_like(values)
                sampled = Matrix(crow, col, v, x.shape[1])  # on the storage of v
            if of_x and of_values and ctx.choice.kernel.by_columns:
                h = multiply_and_add_sampled(transposed, sampled, g, x, ctx.choice, kept)
            else:
                if of_x:
                    h = multiply_one(transposed, g, transposed.choice(g.shape[0]))
                if of_values:
                    add_sampled(sampled, (g,), (x,))
        return (h, v, g.sum(0) if of_bias else None, *[None] * len(structure))


def affine(x: Tensor, values: Tensor, bias: Tensor | None, structure: Sequence[Tensor]) -> Tensor:
    """y = x Wᵀ + b for one map, (batch, in), (nnz,), (out,) -> (batch, out): the fast path of eager mode.

    :func:`product` is its reference.
    """
    if torch.is_grad_enabled():
        return _Affine.apply(x, values, bias, *structure)
    crow, col = structure[:2]
    matrix = Matrix(crow, col, values, x.shape[1])
    y = multiply_one(matrix, x, matrix.choice(x.shape[0]))
    return y if bias is None else y.add_(bias)


# ---------------------------------------------------------------------- vmap


def _more_samples(operator: Operator) -> Callable[..., tuple[Tensor, int]]:
    """The batching rule of a product: inputs alone become more samples; everything else becomes more maps."""
    # Where only x has the new axis, W is the same for all of it, and its entries are read once for v · batch samples.
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
    """The batching rule by which the new axis, v, and that of the maps become one: v · maps maps."""
    # What lacks the new axis is expanded, which costs no memory until it is flattened. The structure stays one for all
    # if it was, and has no new axis; else each of the v · maps maps gets a copy of its own.

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

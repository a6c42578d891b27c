"""The axis of beings in arguments and results: move it to the front and back, split and join trees of tensors."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Dims = int | None | tuple[Any, ...]
"""The axis of beings of all tensors, None if all beings share the input, or an entry for each positional argument."""


def checked_dims(in_dims: Any) -> Dims:
    """Return ``in_dims`` unchanged, or raise a TypeError."""
    for dim in in_dims if isinstance(in_dims, tuple) else (in_dims,):
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
            raise TypeError(f"in_dims must be an int, None, or a tuple of them, got {in_dims!r}")
    return in_dims


def checked_range(start: int, stop: int, beings: int) -> tuple[int, int]:
    """Return ``start`` and ``stop`` of a part unchanged, or raise a ValueError."""
    if not 0 <= start < stop <= beings:
        raise ValueError(f"A part must satisfy 0 <= start < stop <= {beings} (beings), got {start=} and {stop=}")
    return start, stop


def beings_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], dims: Dims, beings: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move the axis of beings of every tensor to the front; expand a tensor that all beings share."""
    if not isinstance(dims, tuple):
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):  # the common case: no walk over a tree
            return (_in_front(args[0], dims, beings),), kwargs
        return tree_map(partial(_in_front, dim=dims, beings=beings), (args, kwargs))
    if len(dims) != len(args) or any(isinstance(x, Tensor) for x in tree_flatten(kwargs)[0]):
        raise ValueError(
            f"in_dims={dims} must have one entry for each positional argument, and tensors must be passed by position, "
            f"got {len(args)} positional arguments and the keywords {sorted(kwargs)}"
        )
    each = zip(dims, args, strict=True)
    return tuple(tree_map(partial(_in_front, dim=dim, beings=beings), x) for dim, x in each), kwargs


def _in_front(x: Any, dim: int | None, beings: int) -> Any:
    if not isinstance(x, Tensor):
        return x
    if dim is None:
        return x.unsqueeze(0).expand(beings, *x.shape)
    if not -x.dim() <= dim < x.dim() or x.shape[dim] not in (1, beings):
        raise ValueError(
            f"An input of a population must have size beings={beings} (or 1, shared by all beings) at dim {dim}, "
            f"got shape {tuple(x.shape)}; set in_dims=, or pass x.unsqueeze({dim}) to share x"
        )
    x = x.movedim(dim, 0)
    return x if len(x) == beings else x.expand(beings, *x.shape[1:])


def beings_at(out: Any, dim: int) -> Any:
    """Move the axis of beings of every result from the front to ``dim``."""
    return _move_to(out, dim) if isinstance(out, Tensor) else tree_map(partial(_move_to, dim=dim), out)


def _move_to(y: Any, dim: int) -> Any:
    if not isinstance(y, Tensor) or dim == 0:
        return y
    if not -y.dim() <= dim < y.dim():
        raise ValueError(
            f"An output of a population must have an axis out_dims={dim} for the beings, "
            f"got an output of shape {tuple(y.shape[1:])} from each being"
        )
    return y.movedim(0, dim)


def unsqueezed(tree: Any) -> Any:
    """Put an axis of beings, of size 1, in front of every tensor of one being."""
    return tree_map(lambda x: x.unsqueeze(0) if isinstance(x, Tensor) else x, tree)


def squeezed(tree: Any) -> Any:
    """The inverse of :func:`unsqueezed`."""
    return tree_map(lambda y: y.squeeze(0) if isinstance(y, Tensor) else y, tree)


def split_tensors(tree: Any) -> tuple[list[Tensor], Callable[[Iterable[Tensor]], Any]]:
    """Return the tensors of a tree, and a function that rebuilds the tree with other tensors."""
    leaves, spec = tree_flatten(tree)

    def rebuilt(tensors: Iterable[Tensor]) -> Any:
        given = iter(tensors)
        return tree_unflatten([next(given) if isinstance(x, Tensor) else x for x in leaves], spec)

    return [x for x in leaves if isinstance(x, Tensor)], rebuilt


def checked_results(out: Any) -> Any:
    """Return the results of a member unchanged, or raise a TypeError for an object that could hide tensors."""
    return tree_map(_result, out)


def _result(value: Any) -> Any:
    plain = Tensor | bool | int | float | complex | str | torch.dtype | torch.device
    if value is not None and not isinstance(value, plain):
        raise TypeError(
            f"A member must return tensors, numbers, strings or None in tuples, lists and dicts, "
            f"got {type(value).__name__}"
        )
    return value


def join_results(outs: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Join the results of several parts of a population, leaf by leaf."""
    flat = [tree_flatten(checked_results(out)) for out in outs]
    spec = flat[0][1]
    if any(other != spec for _, other in flat):
        raise ValueError(f"All beings must return the same structure, got {sorted({str(s) for _, s in flat})}")
    columns = zip(*(values for values, _ in flat), strict=True)
    return tree_unflatten([_join_column(list(column), join) for column in columns], spec)


def _join_column(column: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    if isinstance(column[0], Tensor):
        return join(column)
    if any(value != column[0] for value in column):
        raise ValueError(f"A result that is not a tensor must be the same for all beings, got {column!r:.80}")
    return column[0]

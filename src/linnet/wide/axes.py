"""The arguments and results of a population of any module: where the axis of beings is, what they may hold."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

__all__ = [
    "Dims",
    "checked_dims",
    "checked_range",
    "dropped",
    "joined",
    "lifted",
    "moved",
    "placed",
    "results",
    "split",
]

Dims = int | None | tuple[Any, ...]
"""One place for all tensors, None where all beings are given the same, or an entry for each positional argument."""


def checked_dims(in_dims: Any) -> Dims:
    """``in_dims`` as it is, or a TypeError."""
    for dim in in_dims if isinstance(in_dims, tuple) else (in_dims,):
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
            raise TypeError(f"in_dims must be an int, None, or a tuple of them, got {in_dims!r}")
    return in_dims


def checked_range(start: int, stop: int, beings: int) -> tuple[int, int]:
    """``start`` and ``stop`` of a part as they are, or a ValueError."""
    if not 0 <= start < stop <= beings:
        raise ValueError(f"A part must be some beings of 0..{beings - 1}, got {start} to {stop}")
    return start, stop


def moved(
    args: tuple[Any, ...], kwargs: dict[str, Any], dims: Dims, beings: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Every tensor with the axis of beings in front; one that all share is expanded."""
    if not isinstance(dims, tuple):
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):  # what mostly comes, without a walk
            return (_in_front(args[0], dims, beings),), kwargs
        return tree_map(partial(_in_front, dim=dims, beings=beings), (args, kwargs))
    if len(dims) != len(args) or any(isinstance(x, Tensor) for x in tree_flatten(kwargs)[0]):
        raise ValueError(
            f"in_dims={dims} has one entry for each positional argument, and no tensor may come by name, "
            f"got {len(args)} positional and {sorted(kwargs)} by name"
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
            f"An input of the population must have the axis of beings={beings} (or 1 for one given to all) "
            f"at dim {dim}, got {tuple(x.shape)} (in_dims= says where, x.unsqueeze({dim}) gives x to all)"
        )
    x = x.movedim(dim, 0)
    return x if len(x) == beings else x.expand(beings, *x.shape[1:])


def placed(out: Any, dim: int) -> Any:
    """Results with the axis of beings in front -> with that axis at ``dim``."""
    return _at(out, dim) if isinstance(out, Tensor) else tree_map(partial(_at, dim=dim), out)


def _at(y: Any, dim: int) -> Any:
    if not isinstance(y, Tensor) or dim == 0:
        return y
    if not -y.dim() <= dim < y.dim():
        raise ValueError(
            f"An output of the population must have an axis {dim} for the beings, got each being "
            f"gives {tuple(y.shape[1:])} (out_dims= says where the beings come)"
        )
    return y.movedim(0, dim)


def lifted(tree: Any) -> Any:
    """The tensors of one being -> with an axis of beings, of size 1, in front."""
    return tree_map(lambda x: x.unsqueeze(0) if isinstance(x, Tensor) else x, tree)


def dropped(tree: Any) -> Any:
    """The inverse of :func:`lifted`."""
    return tree_map(lambda y: y.squeeze(0) if isinstance(y, Tensor) else y, tree)


def split(tree: Any) -> tuple[list[Tensor], Callable[[Iterable[Tensor]], Any]]:
    """The tensors of a tree, and how to put others in their places."""
    leaves, spec = tree_flatten(tree)

    def rebuilt(tensors: Iterable[Tensor]) -> Any:
        given = iter(tensors)
        return tree_unflatten([next(given) if isinstance(x, Tensor) else x for x in leaves], spec)

    return [x for x in leaves if isinstance(x, Tensor)], rebuilt


def results(out: Any) -> Any:
    """What a member returned, as it is, unless something in it could hold tensors that nobody sees."""
    return tree_map(_result, out)


def _result(value: Any) -> Any:
    plain = Tensor | bool | int | float | complex | str | torch.dtype | torch.device
    if value is not None and not isinstance(value, plain):
        raise TypeError(
            f"A member must return tensors and plain values, in tuples, lists and dicts, got a {type(value).__name__}"
        )
    return value


def joined(outs: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Results of some beings each -> those of all, place by place."""
    flat = [tree_flatten(results(out)) for out in outs]
    spec = flat[0][1]
    if any(other != spec for _, other in flat):
        raise ValueError(f"All beings must return the same structure, got {sorted({str(s) for _, s in flat})}")
    columns = zip(*(values for values, _ in flat), strict=True)
    return tree_unflatten([_one(list(column), join) for column in columns], spec)


def _one(column: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    if isinstance(column[0], Tensor):
        return join(column)
    if any(value != column[0] for value in column):
        raise ValueError(f"What is no tensor must be the same for all beings, got a forward returned {column!r:.80}")
    return column[0]

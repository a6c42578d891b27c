"""with_maps_replaced: a copy of a model in which plain modules replace the maps."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from linnet.convert.constrain import Constrained, remove_constraints
from linnet.convert.lazy import LazyMap
from linnet.convert.replace import check_not_widened
from linnet.core.being import Being
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap
from linnet.decoupled.base import Decoupled


def with_maps_replaced(model: nn.Module, convert: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """A copy of ``model`` in which ``convert(name, map)`` replaces each map, and each view of one being.

    Tensors that :func:`linnet.constrain` parametrized become plain parameters, and decoupled modules become their
    network. Shared tensors stay shared.
    """
    check_not_widened(model)
    parts = list(_parts(model))
    inside = {module.map for _, module in parts if isinstance(module, Constrained)}
    new: dict[nn.Module, nn.Module] = {}
    for name, module in parts:
        if isinstance(module, LazyMap):
            raise ValueError(f"{name or 'The model'} is lazy and its size is not known yet; run one batch first")
        if isinstance(module, LinearMap | Being) and module not in inside:
            new[module] = convert(name, module)
    # deepcopy does not copy objects in the memo: the old matrices never exist twice
    memo: dict[int, Any] = {id(module): plain for module, plain in new.items()} | _tie(new)
    for module in model.modules():  # nn.LSTM keeps constrained tensors with a graph, which deepcopy refuses
        memo |= {id(t): t.detach() for t in getattr(module, "_flat_weights", []) if t is not None and not t.is_leaf}
    for _, module in parts:
        if isinstance(module, Decoupled):
            memo[id(module)] = copy.deepcopy(module.network, memo)
    copied = copy.deepcopy(model, memo=memo)
    for module in list(copied.modules()):
        if nn.utils.parametrize.is_parametrized(module):
            remove_constraints(module)
    return copied


def _parts(model: nn.Module, prefix: str = "", seen: set[nn.Module] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """``named_modules()``, without the gradient sources of decoupled modules: only their network."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield prefix, model
    inner = {"network": model.network} if isinstance(model, Decoupled) else model._modules
    for name, child in inner.items():
        if child is not None:
            yield from _parts(child, f"{prefix}.{name}" if prefix else name, seen)


def _tie(new: dict[nn.Module, nn.Module]) -> dict[int, Any]:
    """Tie the new layers of maps that share tensors; return a dict from ids of old tensors to the new tensors."""
    first: dict[Any, Any] = {}
    memo: dict[int, Any] = {}
    for old, plain in new.items():
        if not isinstance(old, LinearMap) or not isinstance(plain, nn.Linear):
            continue
        raw = list(old.raw_tensors().values())
        own = {id(tensor) for tensor in (*old._parameters.values(), *old._buffers.values())}
        if any(isinstance(tensor, nn.Parameter) for tensor in raw) and all(id(tensor) in own for tensor in raw):
            other = first.setdefault((type(old), *map(id, raw)), plain)
            if torch.equal(other.weight, plain.weight):
                plain.weight = other.weight
            if isinstance(old, Linear):
                memo[id(raw[0])] = plain.weight
        if old.bias is not None and id(old.bias) in own:
            memo.setdefault(id(old.bias), plain.bias)
            plain.bias = memo[id(old.bias)]
    return memo

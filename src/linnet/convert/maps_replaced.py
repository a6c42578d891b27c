"""A copy of a model with every map replaced by something plain."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from linnet.convert.constrain import Constrained, release
from linnet.convert.lazy import LazyMap
from linnet.convert.replace import refuse_widened
from linnet.core.being import Being
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap
from linnet.decoupled.base import Decoupled

__all__ = ["with_maps_replaced"]


def with_maps_replaced(model: nn.Module, convert: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """A copy of ``model`` with each map, and each view of one being, replaced by ``convert(name, map)``.

    Tensors that :func:`linnet.constrain` gave to other modules become plain parameters, and of a network in stages
    only the network remains. Tensors that are shared stay so.
    """
    refuse_widened(model)
    parts = list(_parts(model))
    inside = {module.map for _, module in parts if isinstance(module, Constrained)}
    new: dict[nn.Module, nn.Module] = {}
    for name, module in parts:
        if isinstance(module, LazyMap):
            raise ValueError(f"A model must know its sizes, got {name or 'it'} is lazy (run one batch first)")
        if isinstance(module, LinearMap | Being) and module not in inside:
            new[module] = convert(name, module)
    # What stands in the memo is not copied: the old matrices never exist twice.
    memo: dict[int, Any] = {id(module): plain for module, plain in new.items()} | _shared(new)
    for module in model.modules():  # nn.LSTM keeps the tensors of its last forward, which cannot be copied
        memo |= {id(t): t.detach() for t in getattr(module, "_flat_weights", []) if t is not None and not t.is_leaf}
    for _, module in parts:
        if isinstance(module, Decoupled):
            memo[id(module)] = copy.deepcopy(module.network, memo)
    copied = copy.deepcopy(model, memo=memo)
    for module in list(copied.modules()):
        if nn.utils.parametrize.is_parametrized(module):
            release(module)
    return copied


def _parts(model: nn.Module, prefix: str = "", seen: set[nn.Module] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """As ``named_modules()``, but of a network in stages only the network, not what predicts its gradients."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield prefix, model
    inner = {"network": model.network} if isinstance(model, Decoupled) else model._modules
    for name, child in inner.items():
        if child is not None:
            yield from _parts(child, f"{prefix}.{name}" if prefix else name, seen)


def _shared(new: dict[nn.Module, nn.Module]) -> dict[int, Any]:
    """Tie the new layers of maps that share their tensors; id of an old tensor -> the new one that is the same."""
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

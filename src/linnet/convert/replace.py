"""The door in: nn.Linear -> any layer (replace), in any model."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from linnet.convert.constrain import Constrained
from linnet.convert.lazy import LazyMap
from linnet.core.catalogue import find_layer
from linnet.core.checks import hooked
from linnet.core.conversion import from_linear
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap
from linnet.modules.pointwise import Pointwise, as_linear, is_pointwise
from linnet.sparse.linear import SparseLinear
from linnet.wide.widen import Wide

__all__ = ["Replacement", "Replacements", "children", "linear_layers", "refuse_widened", "replace", "swap", "ties"]

Where = str | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Replacement:
    """One layer that :func:`replace` swapped: its name, what it is now, how far its matrix moved, and what it was.

    ``moved`` is ‖W_new − W‖_F / ‖W‖_F; None where the new layer was drawn afresh, or will be at its first input.
    ``was`` is the class and sizes of the old layer, such as ``"Linear(6, 3)"``.
    """

    name: str
    layer: nn.Module
    moved: float | None
    was: str = ""


class Replacements(list[Replacement]):
    """What was swapped: a list that prints as a table.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> print(replace(model, "low-rank", from_weights=False, rank=1))
        name  from          to             moved
        0     Linear(4, 4)  LowRankLinear  drawn
        2     Linear(4, 2)  LowRankLinear  drawn
    """

    def __str__(self) -> str:
        rows = [("name", "from", "to", "moved")]
        for swap in self:
            moved = "drawn" if swap.moved is None else f"{swap.moved:.3g}"
            rows.append((swap.name, swap.was, _kind(swap.layer), moved))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def replace(
    model: nn.Module,
    layer: str | type[LinearMap],
    where: Where = "*",
    *,
    from_weights: bool = True,
    convolutions: bool = False,
    **options: Any,
) -> Replacements:
    """Swap every matching nn.Linear in ``model``, in place, for a layer of another kind.

    A module used in several places is replaced by one module used in the same places, and layers that share their
    weight by layers that share all of theirs, each with its own bias. An nn.LazyLinear becomes the layer at its first
    input, drawn afresh. If any replacement fails, the model is left as it was.

    Args:
        model: the model to change.
        layer: a layer class, or a name of the catalogue.
        where: a pattern for the qualified name (``"encoder.*"``), or a function of (name, module).
        from_weights: take over weight and bias (the nearest matrix of the structure); False draws afresh.
        convolutions: whether 1×1 convolutions (stride 1, one group, no padding) match too, as maps between channels;
            they become a :class:`linnet.Pointwise`.
        **options: options of the layer.

    Returns:
        What was swapped, in the order of ``model.named_modules()``; printed, it is a table.

    Raises:
        ValueError: nothing matches, the model itself is the match, a match cannot become such a layer (a square one,
            say), or a match shares a tensor with what does not match, such as the embedding of a language model, which
            the swap would silently untie.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [swap.name for swap in replace(model, "orthogonal", where="0")]
        ['0']
    """
    cls = find_layer(layer) if isinstance(layer, str) else layer
    if not (isinstance(cls, type) and issubclass(cls, LinearMap)):
        raise TypeError(f"layer must be a LinearMap class or a name of the catalogue, got {layer!r}")
    matches = linear_layers(model, where, convolutions)
    if not matches:
        convolved = not convolutions and linear_layers(model, where, True)
        hint = " (1×1 convolutions match with convolutions=True)" if convolved else ""
        raise ValueError(f"where must match at least one nn.Linear of the model, got {where!r} matches none{hint}")
    return swap(model, matches, lambda name, old: (cls, options, from_weights))


def swap(
    model: nn.Module,
    matches: dict[nn.Module, str],
    choose: Callable[[str, nn.Module], tuple[type[LinearMap], dict[str, Any], bool]],
) -> Replacements:
    """Swap layers of ``model``, in place, each for what ``choose(name, layer)`` says: all of them or none.

    Args:
        model: the model to change.
        matches: what :func:`linear_layers` found.
        choose: the class, its options, and whether it takes over the weights.
    """
    shared = ties(model, matches)
    readers = _read_elsewhere(model)
    choices = {old: choose(name, old) for old, name in matches.items()}
    maps: dict[nn.Module, Any] = {}
    swaps: dict[nn.Module, Replacement] = {}
    for old, name in matches.items():
        cls, options, from_weights = choices[old]
        first = shared.get((old, "weight"))
        try:
            if first is None:
                maps[old], moved = _converted(cls, old, from_weights, options)
            else:
                if choices[first] != choices[old]:
                    raise ValueError(f"it must become what {matches[first]} becomes, got they share one weight")
                maps[old], moved = _tied(maps[first], old, from_weights), swaps[first].moved
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name} ({old}) cannot become {cls.__name__}: {error}") from error
        if old in readers and maps[old].weight.layout != torch.strided:
            raise ValueError(
                f"{name} cannot become {cls.__name__}: nn.MultiheadAttention reads its weight and needs a dense one "
                "(leave it out)"
            )
        new = Pointwise(maps[old], axes).train(old.training) if (axes := is_pointwise(old)) else maps[old]
        swaps[old] = Replacement(name, new, moved, f"{type(old).__name__}({_sizes(old)})")
    for (old, tensor), first in shared.items():
        if tensor == "bias":
            maps[old].bias = maps[first].bias
    for parent, child, old in list(children(model)):
        if old in swaps:
            setattr(parent, child, swaps[old].layer)
            if isinstance(maps[old], LinearMap) and maps[old].weight.layout != torch.strided:
                _leave_fused_path(model, parent)
    return Replacements(swaps.values())


def _leave_fused_path(model: nn.Module, parent: nn.Module) -> None:
    """Keep torch's encoder from handing a sparse weight to its fused operation of eval mode, which takes dense ones."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0  # of the conditions for the fused path the one that is a mere flag
        for encoder in model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(parent is layer for layer in encoder.layers):
                encoder.use_nested_tensor = False


def children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) for every place in the tree, shared modules in each of their places."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child


def _read_elsewhere(model: nn.Module) -> set[nn.Module]:
    """Layers whose weight another module reads instead of calling them."""
    return {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}


def linear_layers(model: nn.Module, where: Where, convolutions: bool = False) -> dict[nn.Module, str]:
    """Every single linear layer that ``where`` accepts under any of its names, with the first such name."""
    refuse_widened(model)
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        single = isinstance(module, nn.Linear) or (isinstance(module, Linear) and module.beings is None)
        single = single or (convolutions and is_pointwise(module) > 0)
        if not single or module in found:
            continue
        if fnmatchcase(name, where) if isinstance(where, str) else where(name, module):
            found[module] = name
    if model in found:
        raise ValueError(
            "replace changes the layers inside a model, got the model is itself the layer (use from_linear)"
        )
    return found


def ties(model: nn.Module, matches: dict[nn.Module, str]) -> dict[tuple[nn.Module, str], nn.Module]:
    """(match, "weight" or "bias") -> the match before it that has the same tensor."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append((module, key, matches.get(module, name)))
    order = {module: i for i, module in enumerate(matches)}
    found: dict[tuple[nn.Module, str], nn.Module] = {}
    for places in owners.values():
        if len(places) < 2 or not any(module in matches for module, _, _ in places):
            continue
        names = " and ".join(f"{name}.{key}" for _, key, name in places)
        if any(module not in matches for module, _, _ in places) or len({key for _, key, _ in places}) > 1:
            own = next(f"{name}.{key}" for module, key, name in places if module in matches)
            raise ValueError(
                f"A layer to be replaced must own its tensors alone or share them with others to be replaced, got "
                f"{names} are one tensor (leave it out by where=, or untie it first: "
                f"{own} = nn.Parameter({own}.detach().clone()))"
            )
        if any(isinstance(module, LazyModuleMixin) for module, _, _ in places):
            raise ValueError(f"Layers that share a tensor must know its size, got {names} are lazy")
        first, *others = sorted(places, key=lambda place: order[place[0]])
        found |= {(module, key): first[0] for module, key, _ in others}
    return found


def refuse_widened(model: nn.Module) -> None:
    """A ValueError for a model that holds the layers of a widened module."""
    for name, module in model.named_modules():
        inside = module.modules() if isinstance(module, Wide) else ()
        if any(isinstance(part, nn.Linear | LinearMap | Constrained) for part in inside):
            raise ValueError(
                "The layers of a widened module have the tensors of all beings and cannot be converted, got "
                f"{name or 'the model'} is one (convert the member before widen, or its beings, "
                "which unstack gives, before stack)"
            )


def _refuse_lost(old: Any) -> None:
    """What a layer does beyond its formula would be lost."""
    linear = isinstance(old, nn.Linear)
    kind: Any = nn.Linear if linear else next(cls for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(old, cls))
    own = type(old).forward is not kind.forward
    if nn.utils.parametrize.is_parametrized(old):
        raise ValueError("its tensors must be its own, got they are parametrized (remove_parametrizations first)")
    if own or (not linear and type(old)._conv_forward is not kind._conv_forward):
        formula = "x Wᵀ + b" if linear else "a convolution"
        raise ValueError(f"it must compute {formula}, got {type(old).__name__} has a forward of its own")
    lazy = isinstance(old, LazyModuleMixin)  # its own hooks tell it its size
    if hooked(old) if not lazy else len(old._forward_pre_hooks) > 1 or old._forward_hooks or old._backward_hooks:
        raise ValueError("it must have no hooks, got it has some, which would be lost")


def _converted(
    cls: type[LinearMap], old: Any, from_weights: bool, options: dict[str, Any]
) -> tuple[LinearMap | LazyMap, float | None]:
    """The new map of a layer, and how far its matrix moved."""
    if isinstance(old, Linear):
        old = old.to_linear()
    if not (isinstance(old, nn.Linear) or is_pointwise(old)):
        raise TypeError(f"it must be an nn.Linear, got {type(old).__name__}")
    _refuse_lost(old)
    factory: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, LazyModuleMixin):
        if not isinstance(old, nn.Linear):
            raise ValueError("its size must be known, got it is lazy (run one batch first)")
        lazy = LazyMap(cls, old.out_features, old.bias is not None, options=options, **factory)
        lazy.weight = old.weight  # type: ignore[assignment]
        return lazy.train(old.training), None
    if is_pointwise(old):
        old = as_linear(old)
    if from_weights:
        new, moved = from_linear(cls, old, options)
        return new, float(moved)
    return cls(old.in_features, old.out_features, old.bias is not None, **factory, **options).train(old.training), None


def _tied(first: LinearMap, old: Any, from_weights: bool) -> LinearMap:
    """A map with the tensors of ``first``, in the place of a layer with a bias of its own."""
    if isinstance(first, SparseLinear) and first.rule is not None:
        raise ValueError("connections that move must be those of one layer, got it shares its weight")
    new = copy.deepcopy(first, {id(tensor): tensor for tensor in (*first.parameters(), *first.buffers())})
    if old.bias is None:
        new.bias = None
    else:
        bound = first.in_features**-0.5
        drawn = old.bias.detach().clone() if from_weights else torch.empty_like(old.bias).uniform_(-bound, bound)
        new.bias = nn.Parameter(drawn, old.bias.requires_grad)
    return new.train(old.training)


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, Pointwise):
        return f"Pointwise({_kind(layer.layer)})"
    return f"{layer.kind.__name__} (lazy)" if isinstance(layer, LazyMap) else type(layer).__name__


def _sizes(layer: Any) -> str:
    return (
        f"{layer.in_channels}, {layer.out_channels}"
        if is_pointwise(layer)
        else (f"{layer.in_features or '?'}, {layer.out_features}")
    )

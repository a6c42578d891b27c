"""replace: swap the nn.Linear layers of any model for layers of another class."""

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

Where = str | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Replacement:
    """One layer that :func:`replace` swapped: its name, the new layer, how far its matrix moved, and the old layer.

    ``moved`` is ‖W_new − W‖_F / ‖W‖_F; None if the new layer is drawn, now or at its first input. ``was`` is the class
    and the sizes of the old layer, such as ``"Linear(6, 3)"``.
    """

    name: str
    layer: nn.Module
    moved: float | None
    was: str = ""


class Replacements(list[Replacement]):
    """The list of replaced layers; it prints as a table.

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
            rows.append((swap.name, swap.was, _class_label(swap.layer), moved))
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
    """Replace every matching nn.Linear in ``model``, in place, by a layer of another class.

    One module replaces a module that is used in several places. Layers that share their weight become layers that share
    all raw parameters, each with its own bias. An nn.LazyLinear becomes the layer at its first input, newly drawn. If a
    replacement fails, the model stays unchanged.

    Args:
        model: the model to change.
        layer: a layer class, or a name of the catalogue.
        where: a pattern for the qualified name (``"encoder.*"``), or a function of (name, module).
        from_weights: whether the layer takes the weight (the nearest matrix of the structure) and the bias; False
            draws them.
        convolutions: whether 1×1 convolutions (stride 1, one group, no padding) match too, as maps between channels;
            they become a :class:`linnet.Pointwise`.
        **options: options of the layer.

    Returns:
        The replaced layers, in the order of ``model.named_modules()``; the list prints as a table.

    Raises:
        ValueError: nothing matches, the model itself is the match, a match cannot become such a layer (for example a
            square one), or a match shares a tensor with a module that does not match, such as the embedding of a
            language model, and the replacement would silently untie them.

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
        hint = "; pass convolutions=True to match 1×1 convolutions" if convolved else ""
        raise ValueError(f"where must match at least one nn.Linear of the model, got {where!r}{hint}")
    return swap(model, matches, lambda name, old: (cls, options, from_weights))


def swap(
    model: nn.Module,
    matches: dict[nn.Module, str],
    choose: Callable[[str, nn.Module], tuple[type[LinearMap], dict[str, Any], bool]],
) -> Replacements:
    """Replace layers of ``model`` in place by those that ``choose(name, layer)`` selects: all layers or none.

    Args:
        model: the model to change.
        matches: the layers to replace, from :func:`linear_layers`.
        choose: returns the class, its options, and whether the new layer takes the weights.
    """
    shared = ties(model, matches)
    readers = _read_by_attention(model)
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
                    raise ValueError(f"it shares its weight with {matches[first]}; both must become the same layer")
                maps[old], moved = _sharing(maps[first], old, from_weights), swaps[first].moved
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name} ({old}) cannot become {cls.__name__}: {error}") from error
        if old in readers and maps[old].weight.layout != torch.strided:
            raise ValueError(
                f"{name} cannot become {cls.__name__}: nn.MultiheadAttention reads its weight, which must be dense; "
                "exclude it with where= or exclude="
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
                _disable_fused_path(model, parent)
    return Replacements(swaps.values())


def _disable_fused_path(model: nn.Module, parent: nn.Module) -> None:
    """Disable the fused eval-mode operation of torch's transformer encoder, which takes dense weights only."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0  # the fused path needs a value > 0; nothing else reads this flag
        for encoder in model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(parent is layer for layer in encoder.layers):
                encoder.use_nested_tensor = False


def children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) for every place in the tree; a shared module occurs at each of its places."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child


def _read_by_attention(model: nn.Module) -> set[nn.Module]:
    """Layers that nn.MultiheadAttention does not call: it reads their weight."""
    return {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}


def linear_layers(model: nn.Module, where: Where, convolutions: bool = False) -> dict[nn.Module, str]:
    """Every linear layer without beings that ``where`` accepts under any of its names, with the first such name."""
    check_not_widened(model)
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        single = isinstance(module, nn.Linear) or (isinstance(module, Linear) and module.beings is None)
        single = single or (convolutions and is_pointwise(module) > 0)
        if not single or module in found:
            continue
        if fnmatchcase(name, where) if isinstance(where, str) else where(name, module):
            found[module] = name
    if model in found:
        raise ValueError("The model is itself the layer to replace; use the from_linear method of the layer class")
    return found


def ties(model: nn.Module, matches: dict[nn.Module, str]) -> dict[tuple[nn.Module, str], nn.Module]:
    """From (match, "weight" or "bias") to the first match with the same tensor; a ValueError if others share it."""
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
                f"A layer to replace may share its tensors only with other layers to replace; {names} are one tensor "
                f"(exclude the layer with where= or exclude=, or untie it first: "
                f"{own} = nn.Parameter({own}.detach().clone()))"
            )
        if any(isinstance(module, LazyModuleMixin) for module, _, _ in places):
            raise ValueError(f"Lazy layers cannot share a tensor; {names} are one tensor (run one batch first)")
        first, *others = sorted(places, key=lambda place: order[place[0]])
        found |= {(module, key): first[0] for module, key, _ in others}
    return found


def check_not_widened(model: nn.Module) -> None:
    """Raise a ValueError if a model contains a widened module with linear layers."""
    for name, module in model.named_modules():
        inside = module.modules() if isinstance(module, Wide) else ()
        if any(isinstance(part, nn.Linear | LinearMap | Constrained) for part in inside):
            raise ValueError(
                f"The layers of a widened module have the tensors of all beings and cannot be converted; "
                f"{name or 'the model'} is widened (convert the member before widen(), or the modules of unstack() "
                "before stack())"
            )


def _check_convertible(old: Any) -> None:
    """Raise a ValueError if a layer does more than its formula, which would be lost: hooks, its own forward."""
    linear = isinstance(old, nn.Linear)
    kind: Any = nn.Linear if linear else next(cls for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(old, cls))
    own = type(old).forward is not kind.forward
    if nn.utils.parametrize.is_parametrized(old):
        raise ValueError("it is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first")
    if own or (not linear and type(old)._conv_forward is not kind._conv_forward):
        formula = "x Wᵀ + b" if linear else "a convolution"
        raise ValueError(f"{type(old).__name__} has its own forward; only {formula} can be converted")
    lazy = isinstance(old, LazyModuleMixin)  # torch's lazy modules have hooks that infer their size
    if hooked(old) if not lazy else len(old._forward_pre_hooks) > 1 or old._forward_hooks or old._backward_hooks:
        raise ValueError("it has hooks, which would be lost; remove them first")


def _converted(
    cls: type[LinearMap], old: Any, from_weights: bool, options: dict[str, Any]
) -> tuple[LinearMap | LazyMap, float | None]:
    """The new map of a layer, and the distance by which its matrix moved."""
    if isinstance(old, Linear):
        old = old.to_linear()
    if not (isinstance(old, nn.Linear) or is_pointwise(old)):
        raise TypeError(f"it must be an nn.Linear, got {type(old).__name__}")
    _check_convertible(old)
    factory: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, LazyModuleMixin):
        if not isinstance(old, nn.Linear):
            raise ValueError("it is lazy and its size is not known yet; run one batch first")
        lazy = LazyMap(cls, old.out_features, old.bias is not None, options=options, **factory)
        lazy.weight = old.weight  # type: ignore[assignment]
        return lazy.train(old.training), None
    if is_pointwise(old):
        old = as_linear(old)
    if from_weights:
        new, moved = from_linear(cls, old, options)
        return new, float(moved)
    return cls(old.in_features, old.out_features, old.bias is not None, **factory, **options).train(old.training), None


def _sharing(first: LinearMap, old: Any, from_weights: bool) -> LinearMap:
    """A map that shares the raw tensors of ``first`` and has its own bias."""
    if isinstance(first, SparseLinear) and first.rule is not None:
        raise ValueError("a layer under dynamic sparse training cannot share its weight; untie the layers first")
    new = copy.deepcopy(first, {id(tensor): tensor for tensor in (*first.parameters(), *first.buffers())})
    if old.bias is None:
        new.bias = None
    else:
        bound = first.in_features**-0.5
        drawn = old.bias.detach().clone() if from_weights else torch.empty_like(old.bias).uniform_(-bound, bound)
        new.bias = nn.Parameter(drawn, old.bias.requires_grad)
    return new.train(old.training)


def _class_label(layer: nn.Module) -> str:
    if isinstance(layer, Pointwise):
        return f"Pointwise({_class_label(layer.layer)})"
    return f"{layer.kind.__name__} (lazy)" if isinstance(layer, LazyMap) else type(layer).__name__


def _sizes(layer: Any) -> str:
    return (
        f"{layer.in_channels}, {layer.out_channels}"
        if is_pointwise(layer)
        else (f"{layer.in_features or '?'}, {layer.out_features}")
    )

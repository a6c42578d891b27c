"""Doors in and out: nn.Linear -> any layer (replace), any layer -> plain nn.Linear (bake), ONNX."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from linnet.beings import Being
from linnet.catalogue import find_layer
from linnet.constrain import Constrained, release
from linnet.linear import Linear, LinearMap
from linnet.recurrent import hooked
from linnet.sparse.export import GatherScatter
from linnet.sparse.layer import SparseLinear
from linnet.wide.widen import Wide

__all__ = ["Replacement", "bake", "linear_layers", "replace", "swap", "to_onnx"]

LARGEST_DENSE = 2**24
"""Entries up to which a sparse matrix is dense in an ONNX file."""

Where = str | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Replacement:
    """One layer that :func:`replace` swapped: its name, what it is now, and how far its matrix moved.

    ``moved`` is ‖W_new − W‖_F / ‖W‖_F; None where the new layer was drawn afresh.
    """

    name: str
    layer: nn.Module
    moved: float | None


def replace(
    model: nn.Module,
    layer: str | type[LinearMap],
    where: Where = "*",
    *,
    from_weights: bool = True,
    **options: Any,
) -> list[Replacement]:
    """Swap every matching nn.Linear in ``model``, in place, for a layer of another kind.

    A module used in several places is replaced by one module used in the same places. If any replacement fails, the
    model is left as it was.

    Args:
        model: the model to change.
        layer: a layer class, or a name of the catalogue.
        where: a pattern for the qualified name (``"encoder.*"``), or a function of (name, module).
        from_weights: take over weight and bias (the nearest matrix of the structure); False draws afresh.
        **options: options of the layer.

    Returns:
        What was swapped, in the order of ``model.named_modules()``.

    Raises:
        ValueError: nothing matches, the model itself is the match, a match cannot become such a layer (a square one,
            say), or a match shares its weight with another module, which the swap would silently untie.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [swap.name for swap in replace(model, "orthogonal", where="0")]
        ['0']
    """
    cls = find_layer(layer) if isinstance(layer, str) else layer
    if not (isinstance(cls, type) and issubclass(cls, LinearMap)):
        raise TypeError(f"layer must be a LinearMap class or a name of the catalogue, however: {layer!r}")
    matches = linear_layers(model, where)
    if not matches:
        raise ValueError(f"where must match at least one nn.Linear of the model, however: {where!r} matches none")
    return swap(model, matches, lambda name, old: (cls, options, from_weights))


def swap(
    model: nn.Module,
    matches: dict[nn.Module, str],
    choose: Callable[[str, nn.Module], tuple[type[LinearMap], dict[str, Any], bool]],
) -> list[Replacement]:
    """Swap layers of ``model``, in place, each for what ``choose(name, layer)`` says: all of them or none.

    Args:
        model: the model to change.
        matches: what :func:`linear_layers` found.
        choose: the class, its options, and whether it takes over the weights.
    """
    _refuse_ties(model, matches)
    readers = _read_elsewhere(model)
    swaps: dict[nn.Module, Replacement] = {}
    for old, name in matches.items():
        cls, options, from_weights = choose(name, old)
        try:
            new, moved = _converted(cls, old, from_weights, options)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name} ({old}) cannot become {cls.__name__}: {error}") from error
        if old in readers and new.weight.layout != torch.strided:
            raise ValueError(
                f"{name} cannot become {cls.__name__}: nn.MultiheadAttention reads its weight and needs a dense one "
                "(leave it out)"
            )
        swaps[old] = Replacement(name, new, moved)
    for parent, child, old in list(_children(model)):
        if old in swaps:
            setattr(parent, child, swaps[old].layer)
            if swaps[old].layer.weight.layout != torch.strided:
                _leave_fused_path(model, parent)
    return list(swaps.values())


def _leave_fused_path(model: nn.Module, parent: nn.Module) -> None:
    """Keep torch's encoder from handing a sparse weight to its fused operation of eval mode, which takes dense ones."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0  # of the conditions for the fused path the one that is a mere flag
        for encoder in model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(parent is layer for layer in encoder.layers):
                encoder.use_nested_tensor = False


def bake(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every map is a plain nn.Linear with equal outputs, every constrained tensor plain.

    Raises:
        ValueError: the model holds a population (whose nets ``to_linears()`` gives), by name.

    Example:
        >>> from linnet import OrthogonalLinear
        >>> bake(nn.Sequential(OrthogonalLinear(3, 3), nn.ReLU()))
        Sequential(
          (0): Linear(in_features=3, out_features=3, bias=True)
          (1): ReLU()
        )
    """

    def plain(name: str, module: nn.Module) -> nn.Module:
        if isinstance(module, LinearMap) and module.beings is not None:
            place = f"{name!r} is" if name else "it is"
            raise ValueError(
                f"bake needs single maps, however: {place} a population of {module.beings} "
                "(to_linears() gives its nn.Linears, get_single(i) one of them)"
            )
        return module.to_linear()  # type: ignore[operator]

    return _with_maps(model, plain)


def to_onnx(
    model: nn.Module,
    args: Tensor | tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
) -> None:
    """Write ``model``, in eval mode and with every matrix baked to a constant, as an ONNX file.

    Exporters see neither custom operators nor LAPACK; baked, every layer is a matrix product. A sparse layer is dense
    in the file, unless it would have more than 2²⁴ entries: then its connections are stored, inputs are gathered and
    products scattered. Needs the ``export`` extra.

    Args:
        model: the model; it is left as it was.
        args: example input, or a tuple of them.
        path: the file to write.
        dynamic_batch: whether dim 0 of every input may vary.
    """

    def constant(name: str, module: nn.Module) -> nn.Module:
        if isinstance(module, SparseLinear) and module.in_features * module.out_features > LARGEST_DENSE:
            return GatherScatter(module)
        if isinstance(module, LinearMap) and module.beings is not None:
            return Linear.from_linears(module.to_linears())
        return module.to_linear()  # type: ignore[operator]

    inputs = args if isinstance(args, tuple) else (args,)
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if dynamic_batch else None
    baked = _with_maps(model, constant).eval().requires_grad_(False)
    with warnings.catch_warnings():  # the exporter and its dependencies use what they themselves call deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(baked, inputs, path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)


def _with_maps(model: nn.Module, convert: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """A copy of ``model`` with each map, and each view of one being, replaced by ``convert(name, map)``.

    Tensors that :func:`linnet.constrain` gave to other modules become plain parameters.
    """
    _refuse_widened(model)
    inside = {module.map for module in model.modules() if isinstance(module, Constrained)}
    # What stands in the memo is not copied: the old matrices never exist twice.
    memo: dict[int, Any] = {
        id(module): convert(name, module)
        for name, module in model.named_modules()
        if isinstance(module, LinearMap | Being) and module not in inside
    }
    for module in model.modules():  # nn.LSTM keeps the tensors of its last forward, which cannot be copied
        memo |= {id(t): t.detach() for t in getattr(module, "_flat_weights", []) if t is not None and not t.is_leaf}
    copied = copy.deepcopy(model, memo=memo)
    for module in list(copied.modules()):
        if nn.utils.parametrize.is_parametrized(module):
            release(module)
    return copied


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) for every place in the tree, shared modules in each of their places."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child


def _read_elsewhere(model: nn.Module) -> set[nn.Module]:
    """Layers whose weight another module reads instead of calling them."""
    return {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}


def linear_layers(model: nn.Module, where: Where) -> dict[nn.Module, str]:
    """Every single linear layer that ``where`` accepts under any of its names, with the first such name."""
    _refuse_widened(model)
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        single = isinstance(module, nn.Linear) or (isinstance(module, Linear) and module.beings is None)
        if not single or module in found:
            continue
        if fnmatchcase(name, where) if isinstance(where, str) else where(name, module):
            found[module] = name
    if model in found:
        raise ValueError(
            "replace changes the layers inside a model, however: the model is itself the layer (use from_linear)"
        )
    return found


def _refuse_ties(model: nn.Module, matches: dict[nn.Module, str]) -> None:
    owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((f"{name}.{key}", module))
    for places in owners.values():
        if len(places) > 1 and any(module in matches for _, module in places):
            names = " and ".join(name for name, _ in places)
            raise ValueError(f"A layer to be replaced must own its tensors alone, however: {names} are one tensor")


def _refuse_widened(model: nn.Module) -> None:
    for name, module in model.named_modules():
        inside = module.modules() if isinstance(module, Wide) else ()
        if any(isinstance(part, nn.Linear | LinearMap | Constrained) for part in inside):
            raise ValueError(
                "The layers of a widened module have the tensors of all beings and cannot be converted, however: "
                f"{name or 'the model'} is one (convert the member before widen, or its beings, "
                "which unstack gives, before stack)"
            )


def _refuse_lost(old: nn.Linear) -> None:
    """What an nn.Linear does beyond x Wᵀ + b would be lost."""
    if nn.utils.parametrize.is_parametrized(old):
        raise ValueError("its tensors must be its own, however: they are parametrized (remove_parametrizations first)")
    if type(old).forward is not nn.Linear.forward:
        raise ValueError(f"it must compute x Wᵀ + b, however: {type(old).__name__} has a forward of its own")
    if hooked(old):
        raise ValueError("it must have no hooks, however: it has some, which would be lost")


def _converted(
    cls: type[LinearMap], old: nn.Module, from_weights: bool, options: dict[str, Any]
) -> tuple[LinearMap, float | None]:
    if isinstance(old, nn.modules.lazy.LazyModuleMixin):
        raise ValueError("its size must be known, however: it is lazy and has not seen an input yet")
    if isinstance(old, Linear):
        old = old.to_linear()
    if not isinstance(old, nn.Linear):
        raise TypeError(f"it must be an nn.Linear, however: {type(old).__name__}")
    _refuse_lost(old)
    if from_weights:
        new = cls._like([old], None, options)  # from_linear, and how far it moved
        return new, float(new._take(old.weight, old.bias))
    factory: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    return cls(old.in_features, old.out_features, old.bias is not None, **factory, **options).train(old.training), None

"""Doors out: any layer -> plain nn.Linear (bake), ONNX."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from linnet.convert.constrain import Constrained, release
from linnet.convert.lazy import LazyMap
from linnet.convert.replace import children, refuse_widened
from linnet.core.being import LARGEST_DENSE, Being
from linnet.core.linear_map import Linear, LinearMap
from linnet.decoupled.base import Decoupled
from linnet.modules.blocks import MLP
from linnet.modules.pointwise import Pointwise
from linnet.sparse.gather_scatter import GatherScatter
from linnet.sparse.linear import SparseLinear

__all__ = ["bake", "to_onnx"]

LARGEST_DENSE_FILE = 2**24
"""Entries up to which a sparse matrix is dense in an ONNX file."""


def bake(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in plain torch modules with equal outputs: x Wᵀ + b with W computed once and for all.

    Each map is an ``nn.Linear``, each :class:`linnet.Pointwise` the convolution it came from, each constrained tensor
    a plain parameter; layers that share their tensors share them still. A :class:`linnet.MLP` is an ``nn.Sequential``.
    Of :class:`linnet.DNI`, :class:`linnet.Unlocked` and :class:`linnet.TruncatedBPTT` the network alone remains, which
    is what they are in eval mode: the names in ``state_dict`` lose their ``network.``. What is no linear map stays:
    :class:`linnet.RNN` and :class:`linnet.RNNCell`, whose two maps in each cell are nn.Linears, and
    :class:`linnet.KWinners`. A map with noise becomes the matrix of its eval mode.

    Args:
        model: the model; it is left as it was.

    Returns:
        The copy. What learned goes on learning, without the structure.

    Raises:
        ValueError: by name: a population (``to_linears()`` gives its nets, ``get_single(i)`` one of them), a sparse
            layer that would have more than 10⁸ entries (keep the layer, or export it with :func:`linnet.to_onnx`), a
            lazy layer (run one batch first), a widened module (``unstack`` gives its nets).

    Example:
        >>> from linnet import OrthogonalLinear
        >>> bake(nn.Sequential(OrthogonalLinear(3, 3), nn.ReLU()))
        Sequential(
          (0): Linear(in_features=3, out_features=3, bias=True)
          (1): ReLU()
        )
    """

    def plain(name: str, module: nn.Module) -> nn.Module:
        place = f"{name!r} is" if name else "it is"
        if isinstance(module, LinearMap) and module.beings is not None:
            raise ValueError(
                f"bake needs single maps, however: {place} a population of {module.beings} "
                "(to_linears() gives its nn.Linears, get_single(i) one of them)"
            )
        source = module._source[0] if isinstance(module, Being) else module
        if isinstance(source, SparseLinear) and (entries := source.in_features * source.out_features) > LARGEST_DENSE:
            raise ValueError(
                f"bake makes dense matrices of at most {LARGEST_DENSE:,} entries, however: {place} a sparse layer of "
                f"{source.in_features} x {source.out_features}, {entries:,} (bake the parts of the model around it and "
                "keep the layer; to_onnx exports it by its connections, to_csr() gives its matrix)"
            )
        return module.to_linear().train(module.training)  # type: ignore[operator]

    return _without_shells(_with_maps(model, plain))


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
        if isinstance(module, SparseLinear) and module.in_features * module.out_features > LARGEST_DENSE_FILE:
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

    Tensors that :func:`linnet.constrain` gave to other modules become plain parameters, and of a network in stages
    only the network remains. Tensors that are shared stay so.
    """
    refuse_widened(model)
    parts = list(_parts(model))
    inside = {module.map for _, module in parts if isinstance(module, Constrained)}
    new: dict[nn.Module, nn.Module] = {}
    for name, module in parts:
        if isinstance(module, LazyMap):
            raise ValueError(f"A model must know its sizes, however: {name or 'it'} is lazy (run one batch first)")
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


def _without_shells(model: nn.Module) -> nn.Module:
    """Convolutions for :class:`Pointwise`, nn.Sequential for :class:`MLP`, in place where there is a place."""
    new: dict[nn.Module, nn.Module] = {}
    weights: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, Pointwise) and isinstance(module.layer, nn.Linear):
            new[module] = convolution = module.to_convolution()
            for key in ("weight", "bias"):  # those of tied layers stay tied
                if (own := getattr(module.layer, key)) is not None:
                    setattr(convolution, key, weights.setdefault(own, getattr(convolution, key)))
        elif type(module) is MLP:
            module.__class__ = nn.Sequential  # type: ignore[assignment]
            del module.carriers
    for parent, child, old in list(children(model)):
        if old in new:
            setattr(parent, child, new[old])
    return new.get(model, model)

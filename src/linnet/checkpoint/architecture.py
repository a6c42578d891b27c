"""What a model is made of, in plain values, and the model again: what lets a checkpoint rebuild its network.

Described are the layers of linnet, its blocks, MLP, ``nn.Sequential`` and the usual modules of torch between them: all
from the tables here, by name, so that nothing that stands in a file is ever imported or called.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.being import Spread
from linnet.core.catalogue import catalogue
from linnet.core.linear_map import LinearMap
from linnet.modules.blocks import MLP, FixedRandom, Parallel, Repeat, Residual, fixed
from linnet.modules.recurrent import RNN, RNNCell
from linnet.sparse import (
    GSE,
    NM,
    SET,
    ActivationSparsity,
    Blocks,
    ConstantFanIn,
    ErdosRenyi,
    GradualMagnitude,
    KWinners,
    RigL,
    SmallWorld,
    SparseLinear,
    Uniform,
)
from linnet.sparse.csr import check_structure, rows_of
from linnet.wide.wide_deep import EachBeing, WideDeep
from linnet.wide.wide_linear import WideLinear
from linnet.wide.widen import Wide

ACTIVATIONS = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Tanhshrink),
    *(nn.LogSigmoid, nn.Softshrink, nn.Hardshrink, nn.Softmax, nn.LogSoftmax),
)
MODULES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *ACTIVATIONS,
        *(nn.Linear, nn.Flatten, nn.Unflatten, nn.Dropout, nn.AlphaDropout),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
        *(nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
        *(Spread, KWinners, ActivationSparsity),
    )
}
"""Modules that keep each argument of their constructor under its name."""
BLOCKS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    cls.__name__: (cls, attributes)
    for cls, attributes in (
        (nn.Sequential, ()),
        (nn.ModuleList, ()),
        (MLP, ("carriers",)),
        (Residual, ()),
        (Parallel, ("merge",)),
        (Repeat, ("times",)),
        (FixedRandom, ("uniform",)),
        (RNNCell, ("input_size", "hidden_size", "beings", "nonlinearity")),
        (RNN, ("num_layers", "batch_first", "dropout", "input_size", "hidden_size", "beings")),
        (WideDeep, ("beings", "input_size", "hidden_size", "depth", "output_size")),
    )
}
"""Modules that are nothing but their parts and these plain attributes."""
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "silu": F.silu,
}
RECORDS: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (Uniform, ErdosRenyi, SmallWorld, ConstantFanIn, Blocks, NM, RigL, SET, GSE, GradualMagnitude)
}
"""Wirings and rules: frozen dataclasses of plain values."""
DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
SIZES = ("in_features", "out_features", "beings", "num_features", "num_layers", "depth", "times", "groups")
SMALLEST_LIMIT = 2**16
"""A size in a file may be as large as the file has numbers, and this at least: IdentityLinear has none."""


class _Unknown(Exception):
    """Something that no table has."""


# ---------------------------------------------------------------------- model -> description


def described(model: nn.Module) -> dict[str, Any] | None:
    """The model in plain values, or None: a part is of a kind that no table here has, is hooked, or ties tensors.

    Example:
        >>> described(nn.Sequential(nn.Tanh()))
        {'block': 'Sequential', 'attributes': {}, 'modules': {'0': {'module': 'Tanh', 'arguments': {}}}}
    """
    owners: dict[int, nn.Module] = {}
    for module in model.modules():
        for tensor in module.parameters(recurse=False):
            if owners.setdefault(id(tensor), module) is not module:
                return None
    try:
        return _described(model, "", {})
    except _Unknown:
        return None


def _described(module: nn.Module, path: str, seen: dict[nn.Module, str]) -> dict[str, Any]:
    if module in seen:
        return {"same": seen[module]}
    seen[module] = path
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise _Unknown(path)
    cls = type(module)
    node: dict[str, Any]
    if isinstance(module, EachBeing):
        node = _described_each(module, path)
    elif isinstance(module, LinearMap) and _layers().get(cls.__name__) is cls:
        node = {
            "layer": cls.__name__,
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias is not None,
            "beings": module.beings,
            "options": {name: _plain(value) for name, value in module.options().items()},
        }
    elif MODULES.get(cls.__name__) is cls:
        node = {"module": cls.__name__, "arguments": {name: _argument(module, name) for name in _arguments(cls)}}
    elif BLOCKS.get(cls.__name__, (None,))[0] is cls:
        attributes = {name: _plain(getattr(module, name)) for name in BLOCKS[cls.__name__][1]}
        parts = {
            name: None if part is None else _described(part, f"{path}.{name}" if path else name, seen)
            for name, part in module._modules.items()
        }
        node = {"block": cls.__name__, "attributes": attributes, "modules": parts}
    else:
        raise _Unknown(path)
    own = dict(module.named_parameters(recurse=False))
    if dtypes := {str(tensor.dtype) for tensor in own.values()} or _buffer_dtypes(module):
        if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
            raise _Unknown(path)
        node["dtype"] = dtypes.pop()
    if frozen := [name for name, tensor in own.items() if not tensor.requires_grad]:
        node["frozen"] = frozen
    return node


def _described_each(each: EachBeing, path: str) -> dict[str, Any]:
    if isinstance(each.function, Wide):
        return {"each": _described(each.function.single(0), path, {}), "beings": each.beings}
    for name, function in FUNCTIONS.items():
        if each.function is function:
            return {"each": name, "beings": each.beings}
    raise _Unknown(path)


def _layers() -> dict[str, type[nn.Module]]:
    """The layers of linnet, not those that others have put into the catalogue."""
    known: list[type[nn.Module]] = [*catalogue().values(), WideLinear]
    return {cls.__name__: cls for cls in known if cls.__module__.startswith("linnet.")}


def _buffer_dtypes(module: nn.Module) -> set[str]:
    """Of a layer whose only tensors are buffers, as in FixedRandom; other modules keep the dtype they start with."""
    if not isinstance(module, LinearMap):
        return set()
    return {str(tensor.dtype) for tensor in module.buffers(recurse=False) if tensor.is_floating_point()}


def _arguments(cls: type[nn.Module]) -> list[str]:
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    found = inspect.signature(cls).parameters.items()
    return [name for name, one in found if one.kind in named and name not in ("device", "dtype")]


def _argument(module: nn.Module, name: str) -> Any:
    value: Any = getattr(module, name, _Unknown)
    if name in ("bias", "weight") and (value is None or isinstance(value, Tensor)):
        return value is not None
    if name == "num_parameters" or (isinstance(value, Tensor) and value.dim() == 0):
        return int(value) if name == "num_parameters" else float(value)
    return _plain(value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else _plain(tuple(value))
    if RECORDS.get(type(value).__name__) is type(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"record": type(value).__name__, "fields": fields}
    if isinstance(value, Tensor) and value.shape[-2:-1] == (2,):
        return "given"  # connections: they are in the state
    raise _Unknown(type(value).__name__)


# ---------------------------------------------------------------------- description -> model


def built(description: Mapping[str, Any], state: Mapping[str, Any]) -> nn.Module:
    """The model that :func:`described` described, freshly drawn.

    It is first built without memory and compared with the state that shall be loaded, so that a description which asks
    for more than the file holds costs nothing.

    Args:
        description: what :func:`described` gave.
        state: the state_dict, of which the shapes are compared.

    Raises:
        ValueError, TypeError, LookupError, RecursionError: the description is not what ``described`` makes, or the
            model would have other tensors than the state.
    """
    limit = max(SMALLEST_LIMIT, sum(value.numel() for value in state.values() if isinstance(value, Tensor)))
    try:
        sketch = _Builder(state, limit, "meta").build(description)
    except (RuntimeError, AttributeError, OverflowError) as error:
        raise ValueError(f"the model cannot be built ({type(error).__name__}: {error})") from error
    tensors = [*sketch.parameters(), *sketch.buffers()]
    if sum(tensor.numel() for tensor in tensors) > 4 * limit:
        raise ValueError("the model would have more numbers than the file")
    if different := sketch.state_dict().keys() ^ state.keys():
        raise ValueError(f"the model and its state differ in {sorted(different)[:5]}")
    return _Builder(state, limit, "cpu").build(description)


class _Builder:
    """Builds a model from its description.

    Args:
        state: the state_dict that will be loaded: it knows connections and how many there are.
        limit: the largest size that is believed.
        device: where.
    """

    def __init__(self, state: Mapping[str, Any], limit: int, device: str) -> None:
        self.state, self.limit, self.device = state, limit, device
        self.seen: dict[str, nn.Module] = {}

    def build(self, node: Mapping[str, Any], path: str = "") -> nn.Module:
        if "same" in node:
            return self.seen[node["same"]]
        kinds = {"each": self._each, "layer": self._layer, "module": self._module, "block": self._block}
        (kind,) = kinds.keys() & node.keys()
        module = self.seen[path] = kinds[kind](node, path)
        if "dtype" in node and kind != "block":
            module.to(DTYPES[node["dtype"]])
        for name in node.get("frozen", ()):
            module.get_parameter(name).requires_grad_(False)
        return module

    def _each(self, node: Mapping[str, Any], path: str) -> nn.Module:
        self._check({"beings": node["beings"]})
        inside = node["each"]
        if isinstance(inside, str):
            return EachBeing(FUNCTIONS[inside], node["beings"])
        with torch.device(self.device):
            return EachBeing(_Builder({}, self.limit, self.device).build(inside), node["beings"])

    def _layer(self, node: Mapping[str, Any], path: str) -> nn.Module:
        cls: Any = _layers()[node["layer"]]
        options = {name: self._value(value) for name, value in node["options"].items()}
        self._check(options | {name: node[name] for name in ("in_features", "out_features", "beings")})
        first = {} if cls is not SparseLinear else self._connections(options, node, path)
        population = {} if node["beings"] is None else {"beings": node["beings"]}
        sizes = (node["in_features"], node["out_features"], node["bias"])
        made: nn.Module = cls._empty(*sizes, **population, device=self.device, **(options | first))
        for name in first.keys() & {"sparsity"}:
            setattr(made, name, options[name])
        return made

    def _connections(self, options: Mapping[str, Any], node: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The options that make as many connections as the state has, and given ones where it has them."""
        crow, col = (self.state[f"{path}.{name}" if path else name] for name in ("crow", "col"))
        if options["connectivity"] != "given":
            return {"sparsity": 1 - col.shape[-1] / (node["in_features"] * node["out_features"])}
        check_structure(crow, col, node["in_features"])
        rows = torch.stack([rows_of(one, col.shape[-1]) for one in crow.reshape(-1, crow.shape[-1])])
        return {"connectivity": torch.stack([rows.reshape(col.shape), col], -2).long(), "sparsity": 0.9}

    def _module(self, node: Mapping[str, Any], path: str) -> nn.Module:
        arguments = {name: self._value(value) for name, value in node["arguments"].items()}
        self._check(arguments)
        with torch.device(self.device):
            return MODULES[node["module"]](**arguments)

    def _block(self, node: Mapping[str, Any], path: str) -> nn.Module:
        cls, attributes = BLOCKS[node["block"]]
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        self._check(node["attributes"])
        for name in attributes:
            setattr(module, name, self._value(node["attributes"][name]))
        for name, part in node["modules"].items():
            where = f"{path}.{name}" if path else name
            module.add_module(name, None if part is None else self.build(part, where))
        if cls is FixedRandom:
            fixed(module.layer)  # type: ignore[arg-type]
        return module

    def _check(self, values: Mapping[str, Any]) -> None:
        for name in SIZES:
            size = values.get(name)
            if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= self.limit):
                raise ValueError(f"{name} must be an integer up to {self.limit}, got {size!r}")

    def _value(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._value(item) for item in value)
        if not isinstance(value, dict):
            return value
        return RECORDS[value["record"]](**{name: self._value(field) for name, field in value["fields"].items()})

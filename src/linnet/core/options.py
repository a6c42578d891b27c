"""The options of a map: what its constructor has beyond the arguments of every map."""

import inspect
from typing import Any

from linnet.core.protocols import Map

SHARED = {"self", "in_features", "out_features", "bias", "beings", "device", "dtype"}


def own_options(layer: Map) -> dict[str, Any]:
    """The options by name, as the layer's attributes hold them."""
    return {name: getattr(layer, name) for name in _arguments(layer) if name not in SHARED}


def summary(layer: Map) -> str:
    """What stands between the parentheses of ``repr(layer)``: the sizes, and each option that is not the default."""
    arguments = _arguments(layer)
    parts = [f"in_features={layer.in_features}", f"out_features={layer.out_features}", f"bias={layer.bias is not None}"]
    shown = {name: repr(value) for name, value in layer.options().items()}
    parts += [f"{name}={text}" for name, text in shown.items() if text != repr(arguments[name].default)]
    parts += [] if layer.beings is None else [f"beings={layer.beings}"]
    return ", ".join(parts)


def _arguments(layer: Map) -> Any:
    return inspect.signature(type(layer).__init__).parameters

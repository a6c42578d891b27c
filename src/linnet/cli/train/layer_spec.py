"""A kind of layer to train with, given as text: ``name[:option=value,...]``."""

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.catalogue import catalogue, find_layer
from linnet.core.checks import check_positive
from linnet.modules.blocks import MLP
from linnet.wide.losses import per_being

WIDE_BEINGS = 8
_NOT_OPTIONS = ("self", "in_features", "out_features", "device", "dtype")


@dataclass(frozen=True)
class LayerSpec:
    """One kind of layer to train with."""

    text: str  # how it was asked for, and its name in every result
    kind: Callable[..., nn.Module]  # the class
    options: dict[str, Any]  # keyword arguments of the class

    @property
    def beings(self) -> int | None:
        """None for one network, n for a population of n."""
        return self.options.get("beings")

    @property
    def class_name(self) -> str:
        """The public name of the class, for one of linnet's wherever it is defined."""
        module = self.kind.__module__
        return f"{'linnet' if module.startswith('linnet.') else module}.{self.kind.__qualname__}"

    def build(self, features: int, hidden: int, classes: int, depth: int, device: torch.device | str) -> MLP:
        """The network, freshly drawn: the same for all kinds but for the layer."""
        return MLP(features, hidden, classes, depth=depth, layer=self.kind, device=device, **self.options)

    def batch(self, inputs: Tensor) -> Tensor:
        """(batch, features) -> what the network takes; a population takes one batch for all its beings."""
        return inputs if self.beings is None else inputs.unsqueeze(1)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy; of a population the sum over its beings, so that each gets the gradient it would get alone."""
        if self.beings is None:
            return F.cross_entropy(output, targets)
        return per_being(F.cross_entropy)(output, targets).sum()


def parse_layer(text: str) -> LayerSpec:
    """``name[:option=value,...]`` -> the kind of layer.

    ``name`` is one of the catalogue, ``package.module:Class``, or ``wide``, which is ``linear`` with ``beings=8``.
    Values are read as the type that the constructor of the class states.

    Raises:
        ValueError: the layer is unknown (the message gives the nearest names), an option is unknown (it gives the
            valid ones), or a value is not of its type.

    Example:
        >>> parse_layer("wide:beings=4").options
        {'beings': 4}
        >>> parse_layer("orthogonal:reflectors=3").options
        {'reflectors': 3}
    """
    text = text.strip()
    name, _, rest = text.partition(":")
    wide = name == "wide" and "wide" not in catalogue()
    if rest and not wide and name not in catalogue():  # package.module:Class[:options]
        class_name, _, rest = rest.partition(":")
        name = f"{name}:{class_name}"
    kind = find_layer("linear" if wide else name)
    known = layer_options(kind)
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"options of a layer must be written option=value, got {item!r} in {text!r}")
        if key not in known:
            raise ValueError(f"unknown option {key!r} of layer {name!r}; its options are {', '.join(sorted(known))}")
        if key in options:
            raise ValueError(f"option {key!r} is given twice in {text!r}")
        options[key] = _parse_value(f"{name}: {key}", value, *known[key])
    if wide and options.setdefault("beings", WIDE_BEINGS) is None:
        raise ValueError("wide: beings must be a positive integer, got 'none'")
    if "beings" in options and options["beings"] is not None:
        check_positive(beings=options["beings"])
    return LayerSpec(f"wide:beings={WIDE_BEINGS}" if text == "wide" else text, kind, options)


def layer_options(kind: type) -> dict[str, tuple[Any, Any]]:
    """The options of a layer class by name: (type, default), from its constructor's signature.

    A constructor that passes ``**options`` on has those of the next class too.

    Example:
        >>> from linnet import OrthogonalLinear
        >>> layer_options(OrthogonalLinear)["reflectors"]
        (int | None, None)
    """
    options: dict[str, tuple[Any, Any]] = {}
    for base in kind.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters.values()
        if base is kind and [p.name for p in parameters][1:3] != ["in_features", "out_features"]:
            raise ValueError(f"{kind.__name__} must be constructed as {kind.__name__}(in_features, out_features, ...)")
        hints = _hints(constructor)
        for parameter in parameters:
            starred = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if parameter.name not in _NOT_OPTIONS and not starred:
                options.setdefault(parameter.name, (hints.get(parameter.name, Any), parameter.default))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return options


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # a name that is imported for type checkers only
        return {}


def _parse_value(what: str, text: str, hint: Any, default: Any) -> Any:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = list(typing.get_args(hint)) if union else [hint]
    if Any in kinds or object in kinds:
        if default in (None, inspect.Parameter.empty):
            raise ValueError(f"{what} cannot be given as text, got {text!r}")
        kinds = [type(default)]
    choices = [choice for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    for choice in choices:
        if text == str(choice):
            return choice
    if type(None) in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in kinds:
            try:
                value = number(text)
                if abs(value) < 2**63:
                    return value
            except ValueError:
                continue
    if str in kinds:
        return text
    names = {bool: "true or false", type(None): "none", int: "an integer", float: "a number"}
    expected = [names[kind] for kind in kinds if kind in names] + [str(choice) for choice in choices]
    if not expected:
        raise ValueError(f"{what} cannot be given as text, got {text!r}")
    raise ValueError(f"{what} must be {' or '.join(expected)}, got {text!r}")

"""What a run of ``linnet train`` is asked to do: the kinds of layer, given as text, and the settings."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from linnet.cli.data.data_sets import check_data
from linnet.core.catalogue import catalogue, find_layer
from linnet.core.checks import check_positive
from linnet.modules.blocks import MLP

__all__ = ["LayerSpec", "Settings", "differences", "layer_options", "parse_layer", "seeds_of"]

WIDE_BEINGS = 8
_NOT_OPTIONS = ("self", "in_features", "out_features", "device", "dtype")


@dataclass(frozen=True)
class LayerSpec:
    """One kind of layer to train with.

    Attributes:
        text: how it was asked for, and its name in every result.
        kind: the class.
        options: keyword arguments of the class.
    """

    text: str
    kind: Callable[..., nn.Module]
    options: dict[str, Any]

    @property
    def beings(self) -> int | None:
        """None for one network, n for a population of n."""
        return self.options.get("beings")

    def build(self, features: int, hidden: int, classes: int, depth: int, device: torch.device | str) -> MLP:
        """The network, freshly drawn: the same for all kinds but for the layer."""
        return MLP(features, hidden, classes, depth=depth, layer=self.kind, device=device, **self.options)


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
            raise ValueError(f"Options must be written option=value, got {item!r} in --layer {text}")
        if key not in known:
            raise ValueError(f"Options of {name} are {', '.join(sorted(known))}, got {key!r}")
        if key in options:
            raise ValueError(f"An option must be given once, got {key!r} twice in --layer {text}")
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
            raise ValueError(f"A layer must be made as {kind.__name__}(in_features, out_features, ...), got it is not")
        hints = _hints(constructor)
        for parameter in parameters:
            if parameter.name not in _NOT_OPTIONS and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                hint = hints.get(parameter.name, Any)
                options.setdefault(parameter.name, (hint, parameter.default))
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


DECOUPLED = {
    "none": "backpropagation",
    "dni": "synthetic gradients (--decouple dni)",
    "cdni": "synthetic gradients that know the label (--decouple cdni)",
    "local": "local losses (--decouple local)",
    "dfa": "direct feedback of the error (--decouple dfa)",
}
"""How a network can be trained, and how that is called."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run, bit for bit. The defaults are those of the command line.

    One thread is the fastest for networks as small as these, and gives the same bits on every number of cores.

    Raises:
        ValueError: a setting is not what it must be.
    """

    data: str = "digits"
    data_dir: str | None = None
    target: str | None = None
    layers: tuple[str, ...] = ("linear", "symmetric", "orthogonal", "sparse:sparsity=0.9", "wide:beings=8")
    epochs: int = 20
    seed: int = 0
    seeds: int = 3
    hidden: int = 128
    depth: int = 4
    batch_size: int = 64
    lr: float = 2e-3
    device: str = "cpu"
    threads: int = 1
    decouple: str = "none"

    def __post_init__(self) -> None:
        sizes = ("epochs", "seeds", "hidden", "depth", "batch_size", "threads")
        check_positive(**{name: getattr(self, name) for name in sizes})
        if self.hidden > 2**20 or self.threads > 1024:
            raise ValueError(
                f"hidden must be at most 2**20 and threads at most 1024, got {self.hidden} and {self.threads}"
            )
        if isinstance(self.layers, str) or not all(isinstance(text, str) for text in self.layers):
            raise ValueError(f"layers must be a tuple of strings, got {self.layers!r}")
        if self.decouple not in DECOUPLED:
            raise ValueError(f"decouple must be one of {', '.join(DECOUPLED)}, got {self.decouple!r}")
        check_data(self.data, self.data_dir, self.target)
        if not (isinstance(self.seed, int) and 0 <= self.seed <= 2**32 - self.seeds):
            raise ValueError(f"seed must lie in 0..2**32 - seeds, got {self.seed}")
        if not (isinstance(self.lr, float | int) and math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        specs = self.specs()
        if not specs:
            raise ValueError("There must be at least one layer to train, got none given")
        object.__setattr__(self, "layers", tuple(spec.text for spec in specs))
        for text in self.layers:
            if self.layers.count(text) > 1:
                raise ValueError(f"A layer must be given once, got {text} twice")
        self.torch_device()

    def specs(self) -> list[LayerSpec]:
        """The kinds of layer."""
        return [parse_layer(text) for text in self.layers]

    def torch_device(self) -> torch.device:
        """The device, once it is known to be there."""
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = torch.device("meta")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
            known = ["cpu"] + [f"cuda:{i}" for i in range(count)]
            raise ValueError(f"The device must be one of {', '.join(known)} on this machine, got {self.device!r}")
        return device


def seeds_of(settings: Any) -> range:
    """The seeds of a run, in their order; its settings tell the first and how many."""
    return range(settings.seed, settings.seed + settings.seeds)


def differences(mine: Any, theirs: Any) -> list[str]:
    """Where the settings of two runs, dataclasses of one kind, differ, one sentence each."""
    pairs = ((f.name, getattr(mine, f.name), getattr(theirs, f.name)) for f in dataclasses.fields(mine))
    return [f"{name} {_shown(own)}, not {_shown(other)}" for name, own, other in pairs if own != other]


def _shown(value: Any) -> str:
    return " + ".join(value) if isinstance(value, tuple) else str(value)

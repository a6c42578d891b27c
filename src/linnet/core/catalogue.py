"""The catalogue: every layer class by its short name, filled by defining one."""

import difflib
import importlib
import inspect
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from linnet.core.linear_map import LinearMap

__all__ = ["catalogue", "find_layer", "layer_name", "register"]

_CATALOGUE: dict[str, type["LinearMap"]] = {}


def catalogue() -> Mapping[str, type["LinearMap"]]:
    """Every layer class by its short name (``OrthogonalLinear`` is ``"orthogonal"``), in order of definition.

    Example:
        >>> catalogue()["linear"].__name__
        'Linear'
    """
    return MappingProxyType(_CATALOGUE)


def layer_name(class_name: str) -> str:
    """Class name -> short name: drop ``Linear``, then kebab case.

    Example:
        >>> layer_name("OrthogonalLinear"), layer_name("SVDLinearLearnBounds"), layer_name("Linear")
        ('orthogonal', 'svd-learn-bounds', 'linear')
    """
    short = class_name.replace("Linear", "", 1) or class_name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", short).lower()


def register(cls: type["LinearMap"]) -> None:
    """Put a class into the catalogue; defining the same class again (in a notebook, say) replaces it."""
    name = layer_name(cls.__name__)
    known = _CATALOGUE.get(name)
    if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(
            f"Names in the catalogue must be unique, however: {name!r} is "
            f"{known.__module__}.{known.__qualname__} (class {cls.__name__}(LinearMap, catalogue=False) stays out)"
        )
    _CATALOGUE[name] = cls


def find_layer(name: str) -> type["LinearMap"]:
    """The layer class of a short name, or of ``package.module:Class``.

    Raises:
        ValueError: there is no such layer; the message gives the nearest names.

    Example:
        >>> find_layer("symmetric").__name__
        'SymmetricLinear'
    """
    if name in _CATALOGUE:
        return _CATALOGUE[name]
    if ":" not in name:
        nearest = difflib.get_close_matches(name, _CATALOGUE, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else f"known are {', '.join(_CATALOGUE)}"
        raise ValueError(f"A layer must be in the catalogue or a package.module:Class, however: {name!r} ({hint})")
    from linnet.core.linear_map import LinearMap

    module_name, _, class_name = name.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever a module of somebody else's may raise
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"A layer must be importable as package.module:Class, however: {name!r} ({why})") from error
    if not (isinstance(cls, type) and issubclass(cls, LinearMap)) or inspect.isabstract(cls):
        raise ValueError(f"A layer must be a LinearMap class that is not abstract, however: {name!r} is {cls!r}")
    return cls

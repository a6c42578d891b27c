"""The catalogue: every layer class by its short name."""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType

from linnet.core.linear_map import LinearMap
from linnet.core.registry import REGISTRY


def catalogue() -> Mapping[str, type[LinearMap]]:
    """Every layer class by its short name (``OrthogonalLinear`` is ``"orthogonal"``), in order of definition.

    Example:
        >>> catalogue()["linear"].__name__
        'Linear'
    """
    return MappingProxyType(REGISTRY)


def find_layer(name: str) -> type[LinearMap]:
    """The layer class of a short name, or of ``package.module:Class``.

    Raises:
        ValueError: there is no such layer; the message suggests the nearest name.

    Example:
        >>> find_layer("symmetric").__name__
        'SymmetricLinear'
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if ":" not in name:
        for nearest in difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.5):
            raise ValueError(f"unknown layer {name!r}; did you mean {nearest!r}?")
        raise ValueError(f"unknown layer {name!r}; use package.module:Class or one of {', '.join(REGISTRY)}")
    module_name, _, class_name = name.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ValueError(f"cannot import layer {name!r}: {type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, LinearMap)) or inspect.isabstract(cls):
        raise ValueError(f"layer {name!r} must be a subclass of LinearMap that is not abstract, got {cls!r}")
    return cls

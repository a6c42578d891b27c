"""Checks of arguments that many modules share, so that each error has one wording."""

import math
import operator
from numbers import Real
from typing import Any

from torch import Tensor, nn


def check_input(input: Tensor, in_features: int, beings: int | None) -> None:
    """Raise a ValueError for every shape that the contract does not name; nothing is guessed."""
    shape = tuple(input.shape)
    if beings is None:
        if input.dim() < 1 or shape[-1] != in_features:
            raise ValueError(f"The input must have shape (*, in_features={in_features}), got {shape}")
    elif input.dim() < 1 or shape[-1] != in_features or (input.dim() > 1 and shape[-2] != 1 and shape[-2] != beings):
        raise ValueError(
            f"The input of a population must have shape (in_features={in_features},) or "
            f"(*, beings={beings} or 1, in_features={in_features}), got {shape}; "
            "to give one batch to all beings, pass x[:, None] or put linnet.Spread() in front"
        )


def check_matrix(weight: object, shape: tuple[int, ...]) -> None:
    """Raise a TypeError unless ``weight`` is a tensor, a ValueError unless it has the given shape."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, got {type(weight).__name__}")
    if tuple(weight.shape) != shape:
        raise ValueError(f"weight must have shape {shape}, got {tuple(weight.shape)}")


def check_positive(**sizes: Any) -> list[int]:
    """The given sizes as ints, or a ValueError that names the first that is not a positive integer."""
    checked = []
    for name, value in sizes.items():
        try:
            size = operator.index(value)
        except TypeError:
            size = 0
        if isinstance(value, bool) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
        checked.append(size)
    return checked


def is_number(value: object) -> bool:
    """Whether a value is a real number; True and False do not count."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(low: float, **named: Any) -> None:
    """Raise a ValueError that names the first value that is not a finite number >= low."""
    for name, value in named.items():
        if not is_number(value) or not (low <= value < math.inf):
            raise ValueError(f"{name} must be a finite number >= {low:g}, got {value!r}")


def hooked(layer: nn.Module) -> bool:
    """Whether calling ``layer`` does more than its forward."""
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks))

"""A setting, declared once: a field of a settings dataclass that carries its help text and what it may be."""

import math
from collections.abc import Collection
from dataclasses import Field, field, fields
from typing import Any, get_args

from linnet.core.checks import is_number


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[str] = (),
    name: str | None = None,
    metavar: str | None = None,
    shown: str | None = None,
) -> Any:
    """A field of a settings dataclass that is an option of its command.

    Args:
        default: where the option is not given.
        help: what ``--help`` says.
        low: the least number allowed; None: numbers must be positive.
        high: the largest number allowed.
        choices: the words allowed.
        name: of the option, where it is not that of the field; one without dashes is an argument, and shown as it is.
        metavar: what stands for the value in ``--help``.
        shown: the default in words, where it is not ``default``.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     batch_size: int = option(64, "Batch size.")
        >>> Settings().batch_size, option_names(Settings)
        (64, {'batch_size': '--batch-size'})
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "name": name, "shown": shown}
    return field(default=default, metadata=about | {"metavar": metavar or "|".join(choices) or None})


def option_names(kind: type) -> dict[str, str]:
    """What the fields of a settings dataclass are called on the command line."""
    return {each.name: each.metadata["name"] or "--" + each.name.replace("_", "-") for each in fields(kind)}


def check_settings(settings: Any) -> None:
    """Refuse a number or a word that its option does not allow; None is allowed where it is the default.

    Raises:
        ValueError: the message begins with the name of the field.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value is not None or each.default is not None:
            words, allowed = _rule(each, value)
            if not allowed:
                raise ValueError(f"{each.name} must be {words}, got {value!r}")


def _rule(each: Field[Any], value: Any) -> tuple[str, bool]:
    """What a value must be, and whether it is that."""
    low, high, choices = (each.metadata[key] for key in ("low", "high", "choices"))
    kinds = (each.type, *get_args(each.type))
    if choices:
        return f"one of {', '.join(choices)}", value in choices
    if int in kinds:
        start, stop = 1 if low is None else low, 2**31 - 1 if high is None else high
        words = f"a positive integer up to {stop}" if low is None else f"an integer from {low} to {stop}"
        return words, type(value) is int and start <= value <= stop
    if float in kinds:
        words = "positive" if low is None else "" if low == -math.inf else f"at least {low:g}"
        words = " and ".join(filter(None, (words, "finite" if high is None else f"at most {high:g}")))
        inside = is_number(value) and (0 < value if low is None else low <= value) and value <= (high or math.inf)
        return words, inside and math.isfinite(value)
    return "", True

"""Options of a command, each declared once: a field of the settings that carries its help text and its rule."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from linnet.core.checks import is_number

__all__ = [
    "COUNT",
    "FINITE",
    "FRACTION",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SEED",
    "SIZE",
    "THREADS",
    "Rule",
    "check_settings",
    "one_of",
    "option",
    "option_names",
    "whole",
]


@dataclass(frozen=True)
class Rule:
    """What the value of an option must be.

    Attributes:
        words: for the message, after "must be".
        allows: whether a value is that.
        metavar: what stands for the value in ``--help``; None for its type.
    """

    words: str
    allows: Callable[[Any], bool]
    metavar: str | None = None


def whole(words: str, low: int, high: int) -> Rule:
    """An integer from ``low`` to ``high``; True and False are none."""
    return Rule(words, lambda value: type(value) is int and low <= value <= high)


def one_of(*choices: str) -> Rule:
    """One of some words.

    Example:
        >>> one_of("lstm", "gru").words
        'one of lstm, gru'
    """
    return Rule(f"one of {', '.join(choices)}", choices.__contains__, "|".join(choices))


COUNT = whole("a positive integer below 2**31", 1, 2**31 - 1)
SIZE = whole("a positive integer up to 2**20", 1, 2**20)
THREADS = whole("a positive integer up to 1024", 1, 1024)
SEED = whole("an integer from 0 to 2**31 - 1", 0, 2**31 - 1)
FINITE = Rule("finite", lambda value: is_number(value) and math.isfinite(value))
POSITIVE = Rule("positive and finite", lambda value: is_number(value) and 0 < value < math.inf)
NOT_NEGATIVE = Rule("at least 0 and finite", lambda value: is_number(value) and 0 <= value < math.inf)
FRACTION = Rule("above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1)


def option(
    default: Any,
    help: str,
    rule: Rule | None = None,
    *,
    name: str | None = None,
    metavar: str | None = None,
    shown: str | None = None,
) -> Any:
    """A field of a settings dataclass that is an option of its command.

    Args:
        default: where the option is not given.
        help: what ``--help`` says.
        rule: what the value must be; see :func:`check_settings`.
        name: of the option, where it is not that of the field; one without dashes is an argument, and shown as it is.
        metavar: what stands for the value in ``--help``.
        shown: the default in words, where it is not ``default``.

    Example:
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     batch_size: int = option(64, "Batch size.", COUNT)
        >>> Settings().batch_size, option_names(Settings)
        (64, {'batch_size': '--batch-size'})
    """
    metavar = metavar or (rule.metavar if rule else None)
    about = {"help": help, "rule": rule, "name": name, "metavar": metavar, "shown": shown}
    return field(default=default, metadata=about)


def option_names(kind: type) -> dict[str, str]:
    """What the fields of a settings dataclass are called on the command line."""
    return {each.name: each.metadata["name"] or "--" + each.name.replace("_", "-") for each in fields(kind)}


def check_settings(settings: Any) -> None:
    """Refuse a value that breaks the rule of its option; None is allowed where it is the default.

    Raises:
        ValueError: the message begins with the name of the field.
    """
    for each in fields(settings):
        value, rule = getattr(settings, each.name), each.metadata["rule"]
        if rule and not (value is None and each.default is None) and not rule.allows(value):
            raise ValueError(f"{each.name} must be {rule.words}, got {value!r}")

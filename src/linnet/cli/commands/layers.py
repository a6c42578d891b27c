"""``linnet layers``: the catalogue as a table."""

import inspect
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from linnet.cli.errors import user_input
from linnet.cli.progress import say, table
from linnet.cli.train.layer_spec import layer_options
from linnet.core.catalogue import catalogue
from linnet.core.linear_map import LinearMap

SHARED = ("bias", "beings")
"""Options of every layer."""
LARGEST = 2**24


def layers(
    size: Annotated[int, typer.Option(help="Size of the square layer whose parameters are counted.")] = 64,
) -> None:
    """List the layers by family: what each promises, its options and its number of parameters."""
    families: dict[str, list[tuple[str, str, str, str]]] = {}
    with user_input():
        if not 1 <= size <= LARGEST:
            raise ValueError(f"--size must be a positive integer up to {LARGEST}, got {size}")
        for name, kind in catalogue().items():
            family = kind.family.replace("-", " ").capitalize() or "Your own"
            row = (f" {name}", kind.promise, _options(kind) or "–", _parameters(kind, size))
            families.setdefault(family, []).append(row)
    shown = table(("layer", "promise on A", "options", f"parameters\nat {size} × {size}"), (), texts=3)
    shown.columns[0].no_wrap = True
    for family, rows in families.items():
        shown.add_row(f"[bold]{family}[/]")
        for row in rows:
            shown.add_row(*map(escape, row))
    Console().print(shown)
    say(
        "\ny = x A + b. Every layer takes bias=false, and beings=n for a population of n; wide is linear:beings=8.\n"
        "To train with one: linnet train --layer NAME:option=value, or with a class of your own: "
        "--layer package.module:Class"
    )


def _options(kind: type[LinearMap]) -> str:
    """The options that not every layer has, with their defaults."""
    options = {key: default for key, (_, default) in layer_options(kind).items() if key not in SHARED}
    return ", ".join(
        key if default is inspect.Parameter.empty else f"{key}={_short(default)}" for key, default in options.items()
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and len(str(value)) > 8 else str(value)


def _parameters(kind: type[LinearMap], size: int) -> str:
    try:
        layer = kind(size, size, device="meta")
    except ValueError:  # a power of two wanted, say
        return "not this size"
    return f"{sum(parameter.numel() for parameter in layer.parameters()):,}"

"""What a run found: its numbers as JSON, and report.html, one page that needs nothing beside it, no network either."""

import base64
import dataclasses
import json
import math
import platform
import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linnet._version import __version__
from linnet.checkpoint import replacing
from linnet.cli.setting import option_names

_NUMBER = re.compile(r"–|[-+×−]?\d.{0,24}")
_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --page: #ffffff; --soft: #5b6068; --line: #d9dce1; --box: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --page: #16181c; --soft: #a0a6b0; --line: #383c44; --box: #21242a; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 72rem;
  margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p { white-space: pre-line; overflow-wrap: anywhere; max-width: 60rem; }
footer { color: var(--soft); margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; font-size: .9rem; }
pre, code { font: .875rem/1.45 ui-monospace, monospace; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .75rem 1rem;
  overflow-x: auto; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1.25rem .35rem 0;
  border-bottom: 1px solid var(--line); white-space: pre-line; }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; }
th.number, td.number { text-align: right; white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 6px; margin: 1rem 0; }
summary { cursor: pointer; margin: .75rem 0; }
"""


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>
<pre class="command">{command}</pre>
{parts}
{numbers}
<footer>{footer}</footer></body></html>
"""


def write_results(path: Path, results: Any) -> Path:
    """The numbers of a run as strict JSON: one that is not finite becomes null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(results), indent=1, allow_nan=False) + "\n")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(
    out: Path, title: str, command: str, parts: Iterable[str], numbers: Path, settings: Any = None
) -> Path:
    """Write report.html in a run's folder: a title, the command that repeats the run, parts, and every number.

    Args:
        parts: what the functions below give, in their order.
        numbers: the file with every number.
        settings: of the run, a dataclass; None if it has none.
    """
    path = out / "report.html"
    if settings is not None:
        parts = [*parts, heading("How to repeat this run"), _settings(settings)]
    about = ", ".join(f"{name} {value}" for name, value in versions().items())
    page = _PAGE.format(
        title=escape(title),
        style=_STYLE,
        command=escape(command),
        parts="\n".join(parts),
        numbers=_folded(f"Every number: {numbers.name}", numbers.read_text()),
        footer=f"{escape(about)}<br>{escape(platform.platform())}",
    )
    with replacing(path) as temporary:  # a name of a file that is no text in UTF-8 is shown with \x
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def versions() -> dict[str, str]:
    """Of what decides the numbers of a run.

    Example:
        >>> list(versions())
        ['linnet', 'torch', 'numpy', 'python']
    """
    return {
        "linnet": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def command_of(name: str, settings: Any, out: Path) -> str:
    """The command line that repeats a run: the settings that differ from the defaults.

    Example:
        >>> from linnet.cli.train.settings import Settings
        >>> command_of("train", Settings(layers=("linear", "wide:beings=2"), batch_size=32), Path("a run"))
        "linnet train --layer linear --layer wide:beings=2 --batch-size 32 --out 'a run'"
    """
    words = ["linnet", name]
    names = option_names(type(settings))
    for field in dataclasses.fields(settings):
        value, option = getattr(settings, field.name), names[field.name]
        if not option.startswith("--"):  # an argument
            words.append(str(value))
        elif value != field.default:
            for each in value if isinstance(value, tuple) else [value]:
                words += [option] if each is True else [option, str(each)]
    return shlex.join([*words, "--out", str(out)])


def heading(text: str) -> str:
    """A heading."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Text; its lines stay lines."""
    return f"<p>{escape(text)}</p>"


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; a column of numbers is flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(headings))]

    def line(tag: str, texts: Sequence[str]) -> str:
        marks = [' class="number"' if right else "" for right in numeric]
        return "".join(f"<{tag}{mark}>{escape(text)}</{tag}>" for mark, text in zip(marks, texts, strict=True))

    head, body = line("th", headings), "\n".join(f"<tr>{line('td', row)}</tr>" for row in cells)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _settings(settings: Any) -> str:
    """All settings of a run, a dataclass."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    shown = {name: "\n".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
    rows = [(name, "–" if value is None else value) for name, value in shown.items()]
    return f"<details><summary>Settings</summary>{table(('setting', 'value'), rows)}</details>"


def picture(path: Path) -> str:
    """A picture, a file in PNG, as part of the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{content}">'


def _folded(title: str, text: str) -> str:
    """A text that is shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"

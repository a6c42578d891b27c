"""``linnet tour``: the acts one after the other, one table and one picture."""

import math
import shlex
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from linnet.cli import report as html
from linnet.cli.data.data_sets import load_data
from linnet.cli.tour.demos import ACTS, Act

__all__ = ["check_tour", "run_tour"]

TITLE = "What nn.Linear cannot do (digits: 1 797 real images; sunspots: 309 real years)"
COLUMNS = ("claim", "nn.Linear", "linnet", "holds")


def check_tour(out: Path, acts: Sequence[str] = ()) -> None:
    """Make the folder.

    Raises:
        ValueError: an act is unknown, or the folder cannot be written to.
    """
    unknown = [name for name in acts if name not in ACTS]
    if unknown:
        raise ValueError(f"An act must be one of {', '.join(ACTS)}, got {', '.join(unknown)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"The output folder must be writable, got {error}") from error


def run_tour(out: Path, acts: Sequence[str] = (), console: Console | None = None) -> dict[str, Act]:
    """Perform the acts (all by default), print the closing table, write ``tour.png``, ``tour.json`` and
    ``report.html`` into ``out``.

    Raises:
        ValueError: as :func:`check_tour`.
    """
    check_tour(out, acts)
    console = console or Console()
    data = load_data("digits")
    denormals = torch.set_flush_denormal(True)  # a state that fades to 1e-40 would make every step ten times slower
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # most steps are tiny: waking a second thread costs more than it brings
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    performed: dict[str, Act] = {}
    try:
        with Progress(*columns, console=console) as bars:

            def move(bar: TaskID, share: float) -> None:
                bars.update(bar, completed=share)

            for name in acts or ACTS:
                bar = bars.add_task(f"act: {name}", total=1.0)
                performed[name] = ACTS[name](data, partial(move, bar))
    finally:
        torch.set_num_threads(threads)
        if denormals:
            torch.set_flush_denormal(False)
    write(out, performed)
    console.print(table(performed))
    for act in performed.values():
        console.print(f"[dim]{act.claim}:[/] {act.note}.", highlight=False)
    shown = f"Picture: {out / 'tour.png'}   numbers: {out / 'tour.json'}   both: {out / 'report.html'}"
    console.print(shown, highlight=False, soft_wrap=True)
    return performed


def table(performed: dict[str, Act]) -> Table:
    """The closing table: claim, nn.Linear, linnet, and whether the claim came out."""
    closing = Table(title=TITLE, title_justify="left")
    for heading in COLUMNS:
        closing.add_column(heading)
    for act in performed.values():
        verdict = "[green]yes[/]" if act.holds else "[red]NO[/]"
        closing.add_row(act.claim, act.plain, act.linnet, verdict)
    return closing


def write(out: Path, performed: dict[str, Act]) -> None:
    """One panel for each act in ``tour.png``, every number in ``tour.json``, both in ``report.html``."""
    from matplotlib.figure import Figure

    height = math.ceil(len(performed) / 3)
    columns = math.ceil(len(performed) / height)
    figure = Figure(figsize=(5.2 * columns, 4.4 * height), layout="constrained")
    for place, act in enumerate(performed.values()):
        act.draw(figure.add_subplot(height, columns, place + 1))
    figure.savefig(out / "tour.png", dpi=130)
    results = {
        name: {"claim": act.claim, "nn.Linear": act.plain, "linnet": act.linnet, "holds": act.holds, "note": act.note}
        | {"numbers": act.numbers}
        for name, act in performed.items()
    }
    numbers = html.write_results(out / "tour.json", results)
    rows = [(act.claim, act.plain, act.linnet, "yes" if act.holds else "NO") for act in performed.values()]
    parts = [
        html.table(COLUMNS, rows),
        html.picture(out / "tour.png"),
        html.heading("What an honest reader should know"),
        *(html.paragraph(f"{act.claim}: {act.note}.") for act in performed.values()),
    ]
    chosen = [] if list(performed) == list(ACTS) else [word for name in performed for word in ("--act", name)]
    html.write_report(out, TITLE, shlex.join(["linnet", "tour", *chosen, "--out", str(out)]), parts, numbers)

"""``linnet tour``: the demos one after the other, one table and one picture."""

import math
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from linnet.cli import report as html
from linnet.cli.data.data_sets import load_data
from linnet.cli.progress import Progress, say
from linnet.cli.run_folder import check_writable
from linnet.cli.tour.demos import DEMOS, Demo

TITLE = "What nn.Linear cannot do (digits: 1 797 real images; sunspots: 309 real years)"
COLUMNS = ("claim", "nn.Linear", "linnet", "holds")


def check_tour(out: Path, names: Sequence[str] = ()) -> None:
    """Make the folder.

    Raises:
        ValueError: a demo is unknown, or the folder cannot be written to.
    """
    unknown = [name for name in names if name not in DEMOS]
    if unknown:
        raise ValueError(f"--demo must be one of {', '.join(DEMOS)}, got {', '.join(unknown)}")
    check_writable(out)


def run_tour(out: Path, names: Sequence[str] = (), console: Console | None = None) -> dict[str, Demo]:
    """Run demos (all by default), print the table, and write ``tour.png``, ``tour.json`` and ``report.html``.

    Raises:
        ValueError: as :func:`check_tour`.
    """
    check_tour(out, names)
    console = console or Console()
    data = load_data("digits")
    denormals = torch.set_flush_denormal(True)  # a state that fades to 1e-40 would make every step ten times slower
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # most steps are tiny: waking a second thread costs more than it brings
    demos: dict[str, Demo] = {}
    try:
        with Progress(dict.fromkeys(names or DEMOS, 100)) as progress:

            def move(name: str, share: float) -> None:
                progress.show(name, 100 * share)

            for name in names or DEMOS:
                demos[name] = DEMOS[name](data, partial(move, name))
                progress.show(name, 100, line=f"{name}: {demos[name].linnet}")
    finally:
        torch.set_num_threads(threads)
        if denormals:
            torch.set_flush_denormal(False)
    write(out, demos)
    console.print(table(demos))
    for demo in demos.values():
        console.print(f"[dim]{demo.claim}:[/] {demo.note}.", highlight=False)
    say(f"{out}: tour.png, tour.json, report.html", console)
    return demos


def table(demos: dict[str, Demo]) -> Table:
    """The closing table: claim, nn.Linear, linnet, and whether the claim came out."""
    closing = Table(*COLUMNS, title=TITLE, title_justify="left")
    for demo in demos.values():
        closing.add_row(demo.claim, demo.plain, demo.linnet, "[green]yes[/]" if demo.holds else "[red]NO[/]")
    return closing


def write(out: Path, demos: dict[str, Demo]) -> None:
    """One panel for each demo in ``tour.png``, every number in ``tour.json``, both in ``report.html``."""
    height = math.ceil(len(demos) / 3)
    columns = math.ceil(len(demos) / height)
    figure = Figure(figsize=(5.2 * columns, 4.4 * height), layout="constrained")
    for place, demo in enumerate(demos.values()):
        demo.draw(figure.add_subplot(height, columns, place + 1))
    figure.savefig(out / "tour.png", dpi=130)
    results = {
        name: {"claim": demo.claim, "nn.Linear": demo.plain, "linnet": demo.linnet, "holds": demo.holds}
        | {"note": demo.note, "numbers": demo.numbers}
        for name, demo in demos.items()
    }
    numbers = html.write_results(out / "tour.json", results)
    rows = [(demo.claim, demo.plain, demo.linnet, "yes" if demo.holds else "NO") for demo in demos.values()]
    parts = [
        html.table(COLUMNS, rows),
        html.picture(out / "tour.png"),
        html.heading("Notes"),
        *(html.paragraph(f"{demo.claim}: {demo.note}.") for demo in demos.values()),
    ]
    chosen = [] if list(demos) == list(DEMOS) else [word for name in demos for word in ("--demo", name)]
    html.write_report(out, TITLE, shlex.join(["linnet", "tour", *chosen, "--out", str(out)]), parts, numbers)

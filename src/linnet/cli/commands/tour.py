"""``linnet tour``: the demos one after the other."""

from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.errors import user_input


def tour(
    out: Annotated[Path, typer.Option(help="Folder of the picture and the numbers.", metavar="FOLDER")] = Path("tour"),
    demo: Annotated[
        list[str] | None, typer.Option(help="Demo to run. May be repeated.", show_default="all", metavar="DEMO")
    ] = None,
    act: Annotated[list[str] | None, typer.Option(help="Former name of --demo.", hidden=True)] = None,
) -> None:
    """Run short demos on real data of what nn.Linear cannot do, beside nn.Linear."""
    from linnet.cli.tour.tour import check_tour, run_tour

    names = list(dict.fromkeys([*(demo or ()), *(act or ())]))
    with user_input():
        check_tour(out, names)
    run_tour(out, names)

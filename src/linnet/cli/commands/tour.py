"""``linnet tour``: the demos one after the other."""

from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.errors import user_input

__all__ = ["tour"]


def tour(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the numbers.", metavar="FOLDER")] = Path("tour"),
    act: Annotated[
        list[str] | None,
        typer.Option(help="One act only; may be given several times.", show_default="all", metavar="ACT"),
    ] = None,
) -> None:
    """Short acts on real data: things that nn.Linear cannot do, beside nn.Linear."""
    from linnet.cli.tour.tour import check_tour, run_tour

    with user_input():
        check_tour(out, act or ())
    run_tour(out, act or ())

"""How the pictures of all runs look, and how they are saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def save_picture(path: Path, picture: Callable[..., Figure | None], *arguments: Any) -> list[Path]:
    """Draw a picture of some arguments and save it; none is saved if there is nothing to draw."""
    with matplotlib.rc_context(STYLE):
        figure = picture(*arguments)
        if figure is None:
            return []
        figure.savefig(path, dpi=130)
    return [path]

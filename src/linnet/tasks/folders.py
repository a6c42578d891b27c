"""The folder of a run: new for a new one, and what a save that was killed leaves behind in it."""

import os
from pathlib import Path

__all__ = ["check_new", "clear_left_overs"]


def check_new(out: str | os.PathLike[str]) -> None:
    """A new run needs a folder that is not there yet, or holds nothing but the left-overs of a save that was killed.

    Raises:
        ValueError: it is something else.

    Example:
        >>> check_new("not there yet")
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(not path.name.endswith(".tmp") for path in folder.iterdir())):
        raise ValueError(f"The output folder must be new or empty (or --resume given), however: {out} is not")


def clear_left_overs(folder: Path) -> None:
    """Remove what saves that were killed have left in a folder."""
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink(missing_ok=True)  # another process of the run may have been faster

"""The folder of a run: new for a new one, its record, and what a save that was killed leaves behind in it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from linnet.checkpoint import replacing

__all__ = ["check_new", "clear_left_overs", "read_record", "writable", "write_record"]


def check_new(out: str | os.PathLike[str]) -> None:
    """A new run needs a folder that is not there yet, or holds nothing but the left-overs of a save that was killed.

    Raises:
        ValueError: it is something else.

    Example:
        >>> check_new("not there yet")
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(not path.name.endswith(".tmp") for path in folder.iterdir())):
        raise ValueError(f"The output folder must be new or empty (or --resume given), got {out} is not")


def clear_left_overs(folder: Path) -> None:
    """Remove what saves that were killed have left in a folder."""
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink(missing_ok=True)  # another process of the run may have been faster


@contextmanager
def writable(out: str | os.PathLike[str]) -> Iterator[None]:
    """What the operating system refuses in the block is said of the folder."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"The output folder must be writable, got {out} ({error.strerror})") from error


def write_record(folder: Path, settings: Any, data_sha256: str | None) -> None:
    """Make the folder, and run.json in it: what a resumed run is compared with.

    Args:
        folder: of the run.
        settings: of the run, a dataclass.
        data_sha256: fingerprint of its data; None if all of it is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"settings": asdict(settings), "data_sha256": data_sha256}
    with replacing(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """What :func:`write_record` wrote: ``settings`` and ``data_sha256``.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"There must be a run to resume, got {path} ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"The record of a run must be whole, got {path} holds no run to resume ({error})") from error
    if not isinstance(record, dict) or not {"settings", "data_sha256"} <= record.keys():
        raise ValueError(f"The record of a run must be whole, got {path} is not")
    return record

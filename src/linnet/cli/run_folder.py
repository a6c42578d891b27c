"""The folder of a run: new for a new run, with a record of what the run was asked to do, and resumed as recorded."""

import json
import os
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from linnet import checkpoint
from linnet.cli.errors import file_errors

RECORD = "run.json"
STATE = "state.safetensors"
"""Of an evolution, which keeps its settings there."""
Settings = TypeVar("Settings")


def open_folder(
    settings: Any,
    out: str | os.PathLike[str],
    *,
    resume: bool,
    changeable: Collection[str] = (),
    source: str = "",
    data_sha256: str | None = None,
    checkpoints: Iterable[Path] = (),
) -> None:
    """Make the folder of a new run, or check that the run in it is the one to resume.

    A new run needs a folder that is not there yet or empty; left-overs of a save that was killed do not count.

    Args:
        settings: of the run, a dataclass.
        out: the folder.
        resume: whether to resume the run in it.
        changeable: the settings that may differ from those that the run was begun with.
        source: of its data, for the message.
        data_sha256: fingerprint of its data; None if all of it is drawn.
        checkpoints: of the run; those that are there must be whole.

    Raises:
        ValueError: the folder is neither, or it cannot be written to.
    """
    folder = Path(out)
    if not resume:
        with file_errors("write to", folder):
            new = not folder.exists() or (folder.is_dir() and all(path.suffix == ".tmp" for path in folder.iterdir()))
        if not new:
            raise ValueError(f"the output folder must be new or empty, or --resume given, got {out}")
        check_writable(folder)
        return
    before = resume_settings(type(settings), folder)
    pairs = ((each.name, getattr(settings, each.name), getattr(before, each.name)) for each in fields(settings))
    different = [
        f"`{name}` was {_shown(old)}, got {_shown(new)}"
        for name, new, old in pairs
        if new != old and name not in changeable
    ]
    if different:
        raise ValueError(f"cannot resume {out} with other settings: {'; '.join(different)}")
    if _read_record(folder).get("data_sha256") != data_sha256:
        raise ValueError(f"cannot resume {out} on other data: {source} has changed")
    check_writable(folder)
    clear_left_overs(folder)
    for path in filter(Path.exists, checkpoints):
        checkpoint.info(path)


def resume_settings(kind: type[Settings], out: str | os.PathLike[str]) -> Settings:
    """The settings of the run in a folder.

    Raises:
        ValueError: there is no run of this kind, or its record is damaged.
    """
    record = _read_record(Path(out))
    try:
        values = record["settings"].items()
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"cannot resume {out}: it holds no run of this command") from error


def _read_record(folder: Path) -> dict[str, Any]:
    """``settings`` and, where there are data that are not drawn, ``data_sha256``."""
    if (folder / STATE).exists():
        return checkpoint.info(folder / STATE).extra
    path = folder / RECORD
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"no run to resume in {folder}: {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"cannot resume {folder}: {path.name} is damaged ({error})") from error
    if not isinstance(record, dict) or not {"settings", "data_sha256"} <= record.keys():
        raise ValueError(f"cannot resume {folder}: {path.name} is damaged")
    return record


def write_record(folder: Path, settings: Any, data_sha256: str | None) -> None:
    """Write run.json: what a resumed run is compared with."""
    record = {"settings": asdict(settings), "data_sha256": data_sha256}
    with checkpoint.replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def check_writable(folder: Path) -> None:
    """Make a folder, and a file in it.

    Raises:
        ValueError: the operating system refuses.
    """
    with file_errors("write to", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def clear_left_overs(folder: Path) -> None:
    """Remove what saves that were killed have left in a folder."""
    for left_over in folder.rglob(".*.tmp"):
        left_over.unlink(missing_ok=True)  # another process of the run may have been faster


def seeds_of(settings: Any) -> range:
    """The seeds of a run, in their order; its settings tell the first and how many."""
    return range(settings.seed, settings.seed + settings.seeds)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)

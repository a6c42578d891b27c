"""A checkpoint of several files: one of them names the folder of the others, and is written last."""

import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from linnet.checkpoint.atomic import sync
from linnet.checkpoint.file import CheckpointInfo, as_info, bad_file, blaming, opened_checkpoint, save
from linnet.checkpoint.tree import unpack

NAMING = "checkpoint.safetensors"
"""The file of a checkpoint of several processes that names the folder of the others."""


def new_name(kind: str) -> str:
    """A name for :func:`save_naming` that no folder has."""
    return f"{kind}-{secrets.token_hex(6)}"


def save_naming(folder: Path, own: str, *, step: int | None, extra: dict[str, Any]) -> None:
    """Write ``checkpoint.safetensors`` into a folder: from then on what lies in ``own`` beside it is the checkpoint.

    What former saves have left, whole or broken off, is then removed.

    Args:
        folder: of the checkpoint.
        own: name of a folder in it, whose files are on the disk; made by :func:`new_name`.
        step: how far training is.
        extra: what to write; it gets ``own`` as its ``folder``.
    """
    if os.name == "posix":
        sync(folder / own)  # the names of its files
    save(nn.Identity(), folder / NAMING, step=step, rng=False, extra={"folder": own, **extra})
    kind, _, new = own.rpartition("-")
    for former in folder.glob(f"{kind}-{'[0-9a-f]' * len(new)}"):
        if former.name != own:
            shutil.rmtree(former, ignore_errors=True)
    for temporary in folder.glob(f".{NAMING}.*.tmp"):
        temporary.unlink(missing_ok=True)


def load_naming(folder: Path, kind: str, what: str) -> tuple[CheckpointInfo, Path]:
    """What :func:`save_naming` has written, and the folder that it names.

    Args:
        folder: of the checkpoint.
        kind: what the name of the other folder begins with.
        what: it is a checkpoint of, for the message.

    Raises:
        ValueError: the file is damaged, or was not written by :func:`save_naming` for such a folder.
    """
    path = folder / NAMING
    with opened_checkpoint(path) as (description, file):
        with blaming(path):
            extra = unpack(description["extra"], lambda name: file.get_tensor(name).clone())
        found = as_info(description, {}, extra)
    own = extra.get("folder") if isinstance(extra, dict) else None
    if not isinstance(own, str) or re.fullmatch(rf"{kind}-[0-9a-f]{{12}}", own) is None:
        raise bad_file(
            path, f"the file holds a {found.model} and does not describe {what} (folder of its files: {own!r})"
        )
    return found, folder / own

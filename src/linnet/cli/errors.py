"""What ends a command with one line on stderr and no traceback: a mistake of the user, and Ctrl-C."""

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake of the user."""

    code = 2


class Stopped(UserError):
    """Ctrl-C."""

    code = 130


@contextmanager
def user_input(names: Mapping[str, str] | None = None) -> Iterator[None]:
    """What is checked inside comes from the user: a ValueError is their mistake, not ours.

    Args:
        names: options by the names of settings. A setting that a message begins with, or has in backticks, is shown as
            its option.
    """
    try:
        yield
    except ValueError as error:
        known = names or {}
        message = re.sub(r"^\w+|`\w+`", lambda word: known.get(word[0].strip("`"), word[0]), str(error))
        raise UserError(message) from error


@contextmanager
def file_errors(doing: str, path: Path | str) -> Iterator[None]:
    """What goes wrong inside is said of a file or folder: ``cannot read PATH: WHY``."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise ValueError(f"cannot {doing} {path}: {why}") from error


@contextmanager
def interruptible(command: str, folder: Path) -> Iterator[None]:
    """After Ctrl-C, say how to resume the run in a folder."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"stopped; resume with: linnet {command} --resume --out {shlex.quote(str(folder))}") from None

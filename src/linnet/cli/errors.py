"""Mistakes of the user: one line on stderr and exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["UserError", "user_input"]


class UserError(Exception):
    """A mistake of the user: one line on stderr and exit code 2, no traceback."""


@contextmanager
def user_input() -> Iterator[None]:
    """What is checked inside comes from the user: a ValueError is their mistake, not ours."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error

"""What programs of several processes need to agree on; without torch.distributed there is one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["agreeing", "gathered", "rank", "world"]

T = TypeVar("T")


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which one this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(own: T) -> list[T]:
    """What every process gives."""
    if not dist.is_initialized():
        return [own]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, own)
    return found


@contextmanager
def agreeing() -> Iterator[None]:
    """A failure of one process is one of all: none goes on, to wait for it."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must hear of it
        failure = error
    said = gathered(None if failure is None else " ".join(str(failure).split()))
    if failure is not None:
        raise failure
    for number, text in enumerate(said):
        if text is not None:
            raise ValueError(f"All processes must save or load a checkpoint, got process {number} says: {text}")

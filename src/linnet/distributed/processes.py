"""Rank, world size, gathered objects and shared failures of torch.distributed; without it there is one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(own: T) -> list[T]:
    """The objects of all processes, by rank."""
    if not dist.is_initialized():
        return [own]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, own)
    return found


@contextmanager
def agreeing() -> Iterator[None]:
    """Raise an error in all processes if one of them fails inside: otherwise the others would wait for it."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # of any type: the other processes must learn of it
        failure = error
    errors = gathered(None if failure is None else " ".join(str(failure).split()))
    if failure is not None:
        raise failure
    for number, text in enumerate(errors):
        if text is not None:
            raise ValueError(f"Process {number} could not save or load the checkpoint: {text}")

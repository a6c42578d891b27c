"""Several processes in a test, forked from a server that imported torch and linnet once: a start costs little."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

PRELOADED = ["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "linnet", "linnet.testing"]
"""What the server imports; it starts no thread and holds no process group, so that forking it is safe."""


def context() -> Any:
    """How such processes are made, for a test that handles each by itself."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    return torch.multiprocessing.get_context("forkserver")


def start(program: Callable[..., None], *arguments: Any, nprocs: int = 2) -> None:
    """Run ``program(rank, *arguments)`` in each of ``nprocs`` processes; an error in one of them is raised here."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(program, args=arguments, nprocs=nprocs, start_method="forkserver")

"""A training on several processes: each does its share of every batch (DistributedDataParallel), torchrun starts them.

A process that dies takes the others with it; torchrun then starts all of them again, and they go on from the last
checkpoint. What each of them does is in :mod:`linnet.tasks.replica`.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet.sparse import share_wiring

__all__ = ["ALONE", "Replicas", "start"]

RESTARTS = 20
"""How often torchrun starts again what died."""


@dataclass(frozen=True)
class Replicas:
    """The processes of a training.

    Attributes:
        rank: which one this is.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what all of them know."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to train: its gradients will be the mean over the processes."""
        if self.size == 1:
            return model
        share_wiring(model)
        return DistributedDataParallel(model)

    def own(self, rows: Tensor) -> Tensor:
        """The part of a batch that this process does."""
        return rows.tensor_split(self.size)[self.rank]

    def weight(self, own: Tensor, rows: Tensor) -> float:
        """What a mean over the own part of a batch counts, so that the mean over processes is that over the batch."""
        return self.size * len(own) / len(rows)

    def total(self, part: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(part)
        return part


ALONE = Replicas()


def start(nproc: int, out: Path) -> None:
    """Do the run in a folder on several processes, by torchrun, and come back when it is done.

    Args:
        nproc: how many processes.
        out: the folder, made by :func:`linnet.tasks.train.prepare`.

    Raises:
        RuntimeError: the processes died more often than they are started again.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "linnet.tasks.replica", str(out))
    except ChildFailedError as error:
        raise RuntimeError(f"The {nproc} processes of a run must end, however: {error.format_msg()}") from error
    except SignalException as error:
        raise KeyboardInterrupt from error

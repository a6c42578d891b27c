"""A run on several processes, its workers, which torchrun starts; in a training each does its share of every batch.

A worker that dies takes the others with it; torchrun then starts all of them again, and they resume from the last
checkpoint. What each of them runs is :mod:`linnet.cli.worker`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet.sparse import share_wiring

RESTARTS = 20
"""How often torchrun starts again what died."""


@dataclass(frozen=True)
class Workers:
    """The processes of a run, as one of them sees them."""

    rank: int = 0  # of this one
    size: int = 1  # how many there are

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
        # DDP averages gradients over P processes: (1/P) Σ_p w_p ∇mean_p = Σ_p (n_p/n) ∇mean_p with w_p = P n_p / n
        return self.size * len(own) / len(rows)

    def total(self, part: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(part)
        return part


ALONE = Workers()


def join() -> Workers:
    """Meet the other processes, under a name of this attempt's own.

    The store of torchrun outlives an attempt, and in torch 2.13 the addresses of those that died stay in it under the
    names that the new ones look for: who comes first would wait for a dead process.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    workers = Workers(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    store = dist.TCPStore(address, port, is_master=False)
    own = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("gloo", store=own, rank=workers.rank, world_size=workers.size)
    return workers


@contextmanager
def exit_quietly() -> Iterator[None]:
    """After Ctrl-C a worker ends without a traceback: the command that started it says how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)


def start(nproc: int, module: str, out: Path) -> None:
    """Start the workers of a run by torchrun, and return when they are done.

    Each resumes the run in the folder by the function ``work(out, workers)`` of the module.

    Raises:
        RuntimeError: the processes died more often than they are started again.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with TemporaryDirectory() as logs:  # torchrun itself would leave one behind
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=str(os.getpid()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=RESTARTS,
            monitor_interval=0.2,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "linnet.cli.worker", module, str(out))
        except ChildFailedError as error:
            raise RuntimeError(f"a worker died more than {RESTARTS} times: {error.format_msg()}") from error
        except SignalException as error:
            raise KeyboardInterrupt from error

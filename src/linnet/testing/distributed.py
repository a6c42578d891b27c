"""Data-parallel training on two processes: gradients equal those of one process on the joined batch."""

import copy
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from linnet.testing.case import BATCH, Case, ContractError, close, gradient

PROCESSES = 2


def check_ddp(cases: Sequence[Case]) -> None:
    """DistributedDataParallel on two CPU processes, for all cases in one go.

    Starts processes, therefore it is no part of :func:`check_layer`: call it under ``if __name__ == "__main__":``, with
    classes that can be imported. A layer without a parameter to train is passed over; DDP itself refuses it.

    Raises:
        ContractError: it names every case whose gradients differ or that DDP refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        torch.multiprocessing.spawn(_worker, args=(list(cases), str(where)), nprocs=PROCESSES)
        faults = [line for rank in range(PROCESSES) for line in torch.load(where / f"{rank}.pt")]
    if faults:
        raise ContractError("check_ddp: " + "; ".join(faults))


def _worker(rank: int, cases: list[Case], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    faults = []
    for case in cases:
        try:
            _compare(case, rank)
        except Exception as error:  # the other cases go on
            faults.append(f"{case} on rank {rank}: {type(error).__name__}: {error}")
    torch.save(faults, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _compare(case: Case, rank: int) -> None:
    dtype = torch.float64
    alone = case.layer(dtype=dtype)
    if not any(parameter.requires_grad for parameter in alone.parameters()):
        return
    own = copy.deepcopy(alone)
    if rank > 0:
        own.reset_parameters()  # DDP must broadcast what rank 0 holds
    together = DistributedDataParallel(own)
    pair = [(together, torch.optim.SGD(own.parameters(), lr=0.1)), (alone, torch.optim.SGD(alone.parameters(), lr=0.1))]
    for step in range(2):  # DDP reports unused parameters in the second
        x = case.randn(PROCESSES * BATCH, *case.leading, case.in_features, dtype=dtype, seed=step)
        half = x[rank * BATCH : (rank + 1) * BATCH]
        for (model, optimizer), batch in zip(pair, (half, x), strict=True):
            optimizer.zero_grad()
            _loss(model, batch).backward()
        for name, parameter in own.named_parameters():
            close(f"gradient of {name}", gradient(name, parameter), gradient(name, alone.get_parameter(name)))
        for _, optimizer in pair:
            optimizer.step()


def _loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()

"""Decoupled networks under DistributedDataParallel: the sources of all processes learn the same, from all batches."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet.decoupled.sources.source import Source

__all__ = ["averaged", "share_sources", "shared"]

GROUPS: WeakKeyDictionary[Source, Any] = WeakKeyDictionary()
"""The processes with which a source learns, for those that were shared; beside them, for groups cannot be copied."""


def share_sources(model: nn.Module, process_group: Any = None) -> None:
    """Make the gradient sources of a model learn from the batches of all processes. Call it before wrapping in DDP.

    The sources get the first process's state, then average what they learn from: with equal batches on all processes
    they are those of one process on the joined batch. DistributedDataParallel leaves them alone.

    Args:
        model: a network with :class:`linnet.DNI` in it, built with ``example=``.
        process_group: as for DistributedDataParallel; None: all processes.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
        ValueError: a source has not been built yet.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("share_sources needs torch.distributed to be initialised (init_process_group), got not")
    left_out = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    for name, source in model.named_modules():
        if isinstance(source, Source):
            if not source.sized:
                raise ValueError(f"Sources must be built before they are shared (example=), got {name} is not")
            GROUPS[source] = process_group
            for key, tensor in (*source.named_parameters(), *source.named_buffers()):
                dist.broadcast(tensor.detach(), group_src=0, group=process_group)
                left_out.add(f"{name}.{key}" if name else key)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(left_out))


def shared(source: Source) -> bool:
    """Whether the source learns together with those of other processes."""
    return source in GROUPS


def averaged(source: Source, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The mean over the processes with which the source learns; without any the tensors themselves."""
    if not shared(source):
        return tensors
    group = GROUPS[source]
    found = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in found])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    parts = iter(flat.split([tensor.numel() for tensor in found]))
    return [None if tensor is None else next(parts).view_as(tensor) for tensor in tensors]

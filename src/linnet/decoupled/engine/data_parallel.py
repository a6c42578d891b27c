"""share_sources: gradient sources under DistributedDataParallel learn from the batches of all processes."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet.decoupled.sources.source import Source

GROUPS: WeakKeyDictionary[Source, Any] = WeakKeyDictionary()
"""The process group of each shared source; outside the sources, since process groups cannot be copied."""


def share_sources(model: nn.Module, process_group: Any = None) -> None:
    """Make the gradient sources of a model learn from the batches of all processes. Call it before wrapping in DDP.

    The sources get the state of the first process and average what they learn from. With batches of equal size they
    equal the sources of one process on the joined batch. DistributedDataParallel ignores their parameters and buffers.

    Args:
        model: a module that contains :class:`linnet.DNI`, built with ``example=``.
        process_group: the group of DistributedDataParallel; None is all processes.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialized.
        ValueError: a source is not built yet.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("torch.distributed is not initialized; call init_process_group() first")
    left_out = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    for name, source in model.named_modules():
        if isinstance(source, Source):
            if not source.sized:
                raise ValueError(f"The source {name} is not built yet; give DNI example= before share_sources()")
            GROUPS[source] = process_group
            for key, tensor in (*source.named_parameters(), *source.named_buffers()):
                dist.broadcast(tensor.detach(), group_src=0, group=process_group)
                left_out.add(f"{name}.{key}" if name else key)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(left_out))


def is_shared(source: Source) -> bool:
    """Whether the source learns together with the sources of other processes."""
    return source in GROUPS


def averaged(source: Source, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The mean of the tensors over the processes that share the source; unchanged if the source is not shared."""
    if not is_shared(source):
        return tensors
    group = GROUPS[source]
    found = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in found])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    parts = iter(flat.split([tensor.numel() for tensor in found]))
    return [None if tensor is None else next(parts).view_as(tensor) for tensor in tensors]

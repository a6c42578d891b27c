"""Sparse layers under DistributedDataParallel."""

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from linnet.sparse.linear import SparseLinear


def share_wiring(model: nn.Module, process_group: Any = None) -> None:
    """Give all processes the connections of the first one, once, instead of before every forward.

    DistributedDataParallel broadcasts all buffers before every forward; for a sparse layer that is several times as
    much as its gradient. Call this before wrapping the model: the buffers of its sparse layers are then left out.
    Dynamic layers keep the same connections on all processes, which take the same decisions and compare a hash of the
    connections. Without this call everything works too, but slower.

    Args:
        model: the model that will be wrapped.
        process_group: as for DistributedDataParallel; None: all processes.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialized.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("torch.distributed is not initialized; call init_process_group() first")
    left_out = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLinear):
            for key, buffer in layer.named_buffers(recurse=False):
                dist.broadcast(buffer, group_src=0, group=process_group)
                left_out.add(f"{name}.{key}" if name else key)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(left_out))

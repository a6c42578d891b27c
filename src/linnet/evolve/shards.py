"""Shards: a population sharded across processes. Each process holds some beings and receives only the rows it needs.

The processes are started by torchrun or anything else that initializes torch.distributed. The results equal those of
one process.
"""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from linnet.core.checks import check_positive

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def check_shards(beings: int, block: int, world: int) -> None:
    """Raise a ValueError unless each of ``world`` processes gets the same number of whole blocks of beings."""
    if beings % (world * block):
        raise ValueError(
            f"The number of beings must be a multiple of {world} · {block} (processes · block), got {beings}"
        )


class Shards:
    """The beings of each process: process r holds beings r · local to (r + 1) · local − 1.

    Args:
        beings: number of beings of the whole population.
        block: number of consecutive beings that stay in one process, for example those whose environments share a seed.

    Raises:
        ValueError: torch.distributed is not initialized, or ``beings`` is not a multiple of processes · block.
    """

    def __init__(self, beings: int, block: int = 1) -> None:
        if not dist.is_initialized():
            raise ValueError("torch.distributed is not initialized; call init_process_group() first")
        self.beings, self.block = check_positive(beings=beings, block=block)
        self.world, self.rank = dist.get_world_size(), dist.get_rank()
        check_shards(beings, block, self.world)
        self.local = beings // self.world

    @property
    def start(self) -> int:
        """The first being of this process."""
        return self.rank * self.local

    @property
    def stop(self) -> int:
        """One past the last being of this process."""
        return self.start + self.local

    def whole(self, rows: Tensor) -> Tensor:
        """Gather the rows of all beings in every process, (local, ...) -> (beings, ...)."""
        return self.joined(rows).full_tensor()

    def joined(self, rows: Tensor) -> "DTensor":
        """A DTensor of all beings whose local part is the rows of this process, (local, ...) -> (beings, ...)."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        mesh = DeviceMesh(rows.device.type, list(range(self.world)))
        return DTensor.from_local(rows.detach().contiguous(), mesh, [Shard(0)])

    def own(self, rows: Tensor) -> Tensor:
        """Select the rows of this process from those of all beings, (beings, ...) -> (local, ...)."""
        return rows[self.start : self.stop]

    def moved(self, rows: list[Tensor], parents: Tensor) -> list[Tensor]:
        """The new rows of this process when being i becomes a copy of ``parents[i]``.

        Args:
            rows: tensors of this process, (local, ...) each.
            parents: the parents of all beings, (beings,), the same in every process.
        """
        home = parents // self.local  # the process that holds the parent of each being
        # wanted[r]: which of our beings have a parent in process r; asked[r]: which beings of process r have one here
        wanted = [self.own(home) == r for r in range(self.world)]
        asked = [home[r * self.local : (r + 1) * self.local] == self.rank for r in range(self.world)]
        sent = [parents[r * self.local : (r + 1) * self.local][mask] - self.start for r, mask in enumerate(asked)]
        places = torch.cat([mask.nonzero().squeeze(1) for mask in wanted])
        counts = [len(index) for index in sent], [int(mask.sum()) for mask in wanted]
        found = []
        for tensor in rows:
            out = tensor.detach().index_select(0, torch.cat(sent).to(tensor.device))
            received = torch.empty_like(tensor)
            dist.all_to_all_single(received, out.contiguous(), counts[1], counts[0])
            new = torch.empty_like(received)
            new[places.to(tensor.device)] = received
            found.append(new)
        return found

    def spread(self, tensor: Tensor, being: int) -> Tensor:
        """Broadcast a tensor from the process that holds ``being``; the others pass a tensor of that shape."""
        dist.broadcast(tensor, being // self.local)
        return tensor

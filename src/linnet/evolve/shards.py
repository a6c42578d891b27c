"""A population over several processes: each holds some beings, and only what it needs of the others is sent.

Started by torchrun or anything that starts torch.distributed; the result is that of one process.
"""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from linnet.core.checks import check_positive

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Shards", "check_shards"]


def check_shards(beings: int, block: int, world: int) -> None:
    """A ValueError unless every one of ``world`` processes would hold as many whole blocks of beings."""
    if beings % (world * block):
        raise ValueError(
            f"The beings must be whole blocks in every process, a multiple of {world} · {block}, got {beings}"
        )


class Shards:
    """Who holds which beings: process r those from r · local to (r + 1) · local − 1.

    Args:
        beings: of the whole population.
        block: beings that are never parted, those whose environments share a seed, say.

    Raises:
        ValueError: torch.distributed has not been started, or the beings of a process would not be whole blocks.
    """

    def __init__(self, beings: int, block: int = 1) -> None:
        if not dist.is_initialized():
            raise ValueError("Shards need torch.distributed, got init_process_group has not been called")
        self.beings, self.block = check_positive(beings=beings, block=block)
        self.world, self.rank = dist.get_world_size(), dist.get_rank()
        check_shards(beings, block, self.world)
        self.local = beings // self.world

    @property
    def start(self) -> int:
        """The number of the first being of this process."""
        return self.rank * self.local

    @property
    def stop(self) -> int:
        """The number behind that of the last."""
        return self.start + self.local

    def whole(self, rows: Tensor) -> Tensor:
        """The rows of all beings from those of this process, (local, ...) -> (beings, ...), in every process."""
        return self.joined(rows).full_tensor()

    def joined(self, rows: Tensor) -> "DTensor":
        """The rows of this process as its part of a DTensor of all beings, (local, ...) -> (beings, ...)."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        mesh = DeviceMesh(rows.device.type, list(range(self.world)))
        return DTensor.from_local(rows.detach().contiguous(), mesh, [Shard(0)])

    def own(self, rows: Tensor) -> Tensor:
        """The rows of this process from those of all beings, (beings, ...) -> (local, ...)."""
        return rows[self.start : self.stop]

    def moved(self, rows: list[Tensor], parents: Tensor) -> list[Tensor]:
        """What stands in the rows of this process after being i has become a copy of ``parents[i]``.

        Args:
            rows: tensors of this process, (local, ...) each.
            parents: of all beings, (beings,), the same in every process.
        """
        home = parents // self.local  # the process that holds the parent of each
        wanted = [self.own(home) == r for r in range(self.world)]  # by whom, of what we need
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
        """A tensor of the process that holds a being, in every process; the others give one of that shape."""
        dist.broadcast(tensor, being // self.local)
        return tensor

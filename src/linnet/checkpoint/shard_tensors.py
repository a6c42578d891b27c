"""The tensors of a sharded checkpoint: what each process writes, and what it reads into."""

import copy
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from linnet.checkpoint.matching import optimizer_shapes
from linnet.checkpoint.tree import check_storable
from linnet.wide.population import genes_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from linnet.evolve.shards import Shards


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint: that of all processes, and whether they hold its rows by being."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    by_being: bool


class Store:
    """Names the tensors of a process for ``pack``, and keeps them as ``dcp`` is to write them."""

    def __init__(self, rows: list[Tensor], shards: "Shards | None") -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        self._keep: list[Tensor] = []  # alive, so that no id is used twice
        self._shards = shards
        self._rows = {row.data_ptr() for row in rows if row.numel()}
        self._parted: set[str] = set()

    def __call__(self, tensor: Tensor, name: str) -> str:
        if id(tensor) in self._names:
            return self._names[id(tensor)]
        plain = tensor.detach()
        held = plain.to_local() if is_sharded(plain) else plain
        check_storable(held, name)
        while name in self.tensors:
            name += "'"
        self._names[id(tensor)] = name
        self._keep.append(tensor)
        if self._shards is not None and held.data_ptr() in self._rows:
            self._parted.add(name)
            plain = self._shards.joined(plain)
        if not plain.numel():  # dcp writes no parts of nothing
            plain = torch.zeros(plain.shape, dtype=plain.dtype)
        self.tensors[name] = plain if is_sharded(plain) else plain.resolve_conj().resolve_neg().contiguous()
        return name

    def digest(self, parameters: set[str]) -> str:
        """Of what must be the same on all processes: what there is, and the numbers that training has made."""
        sha = hashlib.sha256(repr(self.described()).encode())
        for name, tensor in self.tensors.items():
            if not is_sharded(tensor) and (name in parameters or name.startswith("optimizer.")):
                sha.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def described(self) -> dict[str, Any]:
        return {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), name in self._parted]
            for name, tensor in self.tensors.items()
        }


class Blanks:
    """Tensors of zeros to read into, laid out over the processes as those of a model and its optimizer are."""

    def __init__(
        self,
        entries: dict[str, Entry],
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        shards: "Shards | None",
    ) -> None:
        self.wanted: dict[str, Tensor] = {}
        self._made: dict[str, Tensor] = {}
        self._entries, self._shards = entries, shards
        self._own = {f"model.{key}": own for key, own in model.state_dict().items() if isinstance(own, Tensor)}
        groups = [] if optimizer is None else optimizer.param_groups
        self._parameters = [parameter for group in groups for parameter in group["params"]]

    def on_meta(self, name: str) -> Tensor:
        """What the tensor is on this process, without its numbers."""
        entry = self._entries[name]
        return torch.empty(self._local(entry), dtype=entry.dtype, device="meta")

    def put(self, name: str) -> Tensor:
        """A blank, which :attr:`wanted` names for ``dcp``."""
        if name not in self._made:
            entry, like = self._entries[name], self._like(name)
            if like is not None and is_sharded(like) and tuple(like.shape) == entry.shape:
                blank = torch.zeros_like(like, dtype=entry.dtype)
            else:
                # moments go where load_state_dict wants them, which leaves the numbers of steps on the CPU
                device = like.device if like is not None and name.startswith("model.") else torch.device("cpu")
                blank = torch.zeros(self._local(entry), dtype=entry.dtype, device=device)
            shards = self._parting(entry)
            self._made[name] = blank
            self.wanted[name] = blank if shards is None else shards.joined(blank)
        return self._made[name]

    def _local(self, entry: Entry) -> tuple[int, ...]:
        shards = self._parting(entry)
        return entry.shape if shards is None else (shards.local, *entry.shape[1:])

    def _parting(self, entry: Entry) -> "Shards | None":
        """Who holds which rows of it; None: this process holds all."""
        return self._shards if entry.by_being else None

    def _like(self, name: str) -> Tensor | None:
        """The tensor of this process that tells the layout: the one to fill, or the parameter of a moment."""
        moment = re.match(r"optimizer\.state\.(\d+)\.", name)
        if moment is None:
            return self._own.get(name)
        return self._parameters[int(moment[1])]


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_shapes(optimizer: torch.optim.Optimizer, model: nn.Module, shards: "Shards | None") -> list[list[list[int]]]:
    """The shapes of the parameters of each group, of all beings."""
    shapes = optimizer_shapes(optimizer)
    if shards is not None:
        for shape in _of_genes(shapes, optimizer, model):
            shape[0] = shards.beings
    return shapes


def local_shapes(shapes: Any, optimizer: torch.optim.Optimizer, model: nn.Module, shards: "Shards | None") -> Any:
    """What :func:`whole_shapes` has saved, as it is on this process."""
    if shards is not None and isinstance(shapes, list):
        shapes = copy.deepcopy(shapes)
        for shape in _of_genes(shapes, optimizer, model):
            if isinstance(shape, list) and shape[:1] == [shards.beings]:
                shape[0] = shards.local
    return shapes


def _of_genes(shapes: list[Any], optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[Any]:
    genes = genes_of(model)
    for group, own in zip(optimizer.param_groups, shapes, strict=False):
        if isinstance(own, list):
            yield from (shape for parameter, shape in zip(group["params"], own, strict=False) if parameter in genes)

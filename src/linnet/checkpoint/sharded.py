"""Sharded checkpoints: each process writes and reads what it holds, by ``torch.distributed.checkpoint``; no pickle.

The folder holds ``checkpoint.safetensors``, an ordinary checkpoint of :mod:`linnet.checkpoint` that describes all, and
beside it a folder of safetensors files, one for each process that wrote any. The description is written last, and names
that folder and the SHA-256 of each file in it: until then the former checkpoint stands.
"""

import copy
import hashlib
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet.checkpoint.file import (
    NAMING,
    CheckpointInfo,
    bad_file,
    blaming,
    load_naming,
    named,
    new_name,
    save_naming,
)
from linnet.checkpoint.matching import (
    check_model,
    check_optimizer,
    class_name,
    optimizer_shapes,
    place_like,
    undone_on_error,
)
from linnet.checkpoint.tree import check_generators, check_storable, generator_states, pack, set_generators, unpack
from linnet.distributed.processes import agreeing, gathered, rank, world
from linnet.wide.population import genes_of, rows_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from linnet.evolve.shards import Shards

__all__ = ["load_sharded", "save_sharded"]

KIND = "shards"
_MEMBERS: dict[str, Any] = {  # of the description, and their types
    "processes": int,
    "beings": int | None,
    "files": dict,
    "tensors": dict,
    "model_class": str,
    "optimizer_class": str | None,
    "optimizer_shapes": list | None,
    "model": dict,
    "optimizer": dict | None,
    "rng": list | None,
    "extra": object,
}


def save_sharded(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    step: int | None = None,
    rng: bool = True,
    extra: Any = None,
    shards: "Shards | None" = None,
) -> None:
    """Write model, optimizer, step and generator states of all processes into a folder: all of it or nothing.

    Of a DTensor, as FSDP2 makes them, each process writes its part; what all processes hold is written once. Every
    process must call it; without torch.distributed it works too, and writes one file.

    Args:
        model: wrapped by DistributedDataParallel or ``fully_shard``, or neither.
        folder: of the checkpoint, seen by all processes; a former checkpoint in it stays until this one is complete.
        optimizer: its ``state_dict()`` is saved too.
        step: how far training is.
        rng: whether to save the states of the random generators, which differ by process.
        extra: as in :func:`linnet.save`; that of the first process.
        shards: where processes hold a population together: each writes its beings.

    Raises:
        TypeError: something is of a kind that cannot be stored without pickle; the message names it.
        ValueError: a parameter is no DTensor, but differs between the processes. (Of a buffer, the running mean of a
            norm, say, that of the first process is saved, as DistributedDataParallel has it.)

    Example:
        In a program that torchrun starts::

            fully_shard(model)
            ...
            linnet.save_sharded(model, "checkpoint", optimizer=optimizer, step=step)
    """
    from torch.distributed.checkpoint import DefaultSavePlanner, HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as write

    model, folder = _unwrapped(model), Path(folder)
    with agreeing():
        store = _Store([] if shards is None else rows_of(model, optimizer), shards)
        trees = {
            "model": pack(model.state_dict(keep_vars=True), "model", store),
            "optimizer": None if optimizer is None else pack(optimizer.state_dict(), "optimizer", store),
        }
        shapes = None if optimizer is None else _whole_shapes(optimizer, model, shards)
        pack(extra, "extra", lambda tensor, name: name)  # what cannot be stored is found before anything is written
        digest = store.digest({f"model.{name}" for name, _ in model.named_parameters(remove_duplicate=False)})
    if len(set(gathered(digest))) > 1:
        raise ValueError(
            "What is no DTensor must be the same on all processes, got their parameters differ "
            "(a population that is parted by being needs shards=)"
        )
    own = gathered(new_name(KIND))[0]
    place = folder / own
    try:
        with agreeing():
            place.mkdir(parents=True, exist_ok=True)
        with _as_dcp():
            write(
                store.tensors,
                storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True),
                planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
                no_dist=not dist.is_initialized(),
            )
        with agreeing():
            digests = {path.name: _sha256(path) for path in _share(sorted(place.iterdir()))}
        files = {name: sha for part in gathered(digests) for name, sha in part.items()}
        generators = gathered(generator_states()) if rng else None
    except BaseException:
        if rank() == 0:
            shutil.rmtree(place, ignore_errors=True)
        raise
    description = {
        "processes": world(),
        "beings": None if shards is None else shards.beings,
        "files": files,
        "tensors": store.described(),
        "model_class": class_name(model),
        "optimizer_class": None if optimizer is None else class_name(optimizer),
        "optimizer_shapes": shapes,
        **trees,
        "rng": generators,
        "extra": extra,
    }
    with agreeing():  # once it is named, nothing may remove it
        if rank() == 0:
            save_naming(folder, own, step=step, extra=description)


def load_sharded(
    folder: str | os.PathLike[str],
    *,
    into: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    rng: bool = True,
    shards: "Shards | None" = None,
) -> CheckpointInfo:
    """Read what :func:`save_sharded` wrote, on as many processes as you like: all or nothing.

    Each process reads what it holds. Every process must call it; without torch.distributed it reads all.

    Args:
        folder: of the checkpoint.
        into: the model to fill, sharded as it will be trained, however it was when it was saved.
        optimizer: the optimizer to fill, of the parameters of ``into``; None leaves a saved one unread.
        rng: whether to set the random generators to the saved states, if there are any.
        shards: where processes hold a population together: ``into`` are the beings of this one.

    Returns:
        What the checkpoint holds, as from :func:`linnet.load`; shapes are those of whole tensors.

    Raises:
        ValueError: the checkpoint is incomplete, altered or not from linnet, the model or the optimizer does not fit,
            or the states of the generators are those of another number of processes (``rng=False`` leaves them be).
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as read

    model, path = _unwrapped(into), Path(folder) / NAMING
    with agreeing():
        found, place = load_naming(path.parent, KIND, "a sharded one")
        description = found.extra
        _check_files(description, place, path)
    if len(set(gathered(found.sha256))) > 1:
        raise ValueError(f"All processes must see one checkpoint, got {os.fspath(path)!r} differs between them")
    with agreeing():
        reader = HuggingFaceStorageReader(str(place))
        entries = _entries(description, reader, path)
        if shards is not None and description["beings"] != shards.beings:
            held = "none that is parted" if description["beings"] is None else f"one of {description['beings']}"
            raise ValueError(f"The checkpoint must hold a population of {shards.beings} beings, got {held}")
        generators = description["rng"]
        if rng and generators is not None:
            if len(generators) != world():
                raise ValueError(
                    f"The generators must be those of {world()} processes, got {len(generators)} were saved "
                    "(rng=False leaves them as they are)"
                )
            with blaming(path):
                check_generators(generators[rank()])
        blanks = _Blanks(entries, model, optimizer, shards)
        with blaming(path):
            saved = named(unpack(description["model"], blanks.on_meta))
        check_model(saved, model, path)
        if optimizer is not None:
            shapes = _local_shapes(description["optimizer_shapes"], optimizer, model, shards)
            check_optimizer({**description, "optimizer_shapes": shapes}, optimizer, model, path)
        with blaming(path):
            state = unpack(description["model"], blanks.put)
            moments = None if optimizer is None else unpack(description["optimizer"], blanks.put)
    with _as_dcp():
        read(blanks.wanted, storage_reader=reader, no_dist=not dist.is_initialized())
    with undone_on_error(model, optimizer, path), agreeing():
        model.load_state_dict(state)
        if optimizer is not None and moments is not None:
            place_like(moments["param_groups"], optimizer.param_groups)
            optimizer.load_state_dict(moments)
    if rng and generators is not None:
        set_generators(generators[rank()])
    return CheckpointInfo(
        model=description["model_class"],
        shapes={name.removeprefix("model."): e.shape for name, e in entries.items() if name.startswith("model.")},
        optimizer=description["optimizer_class"],
        step=found.step,
        rng=generators is not None,
        extra=description["extra"],
        linnet_version=found.linnet_version,
        torch_version=found.torch_version,
        sha256=found.sha256,
        network=into,
    )


# ---------------------------------------------------------------------- the tensors


@dataclass(frozen=True)
class _Entry:
    """A tensor of the checkpoint: that of all processes, and whether they hold its rows by being."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parted: bool


class _Store:
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
        held = plain.to_local() if _is_sharded(plain) else plain
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
        self.tensors[name] = plain if _is_sharded(plain) else plain.resolve_conj().resolve_neg().contiguous()
        return name

    def digest(self, parameters: set[str]) -> str:
        """Of what must be the same on all processes: what there is, and the numbers that training has made."""
        sha = hashlib.sha256(repr(self.described()).encode())
        for name, tensor in self.tensors.items():
            if not _is_sharded(tensor) and (name in parameters or name.startswith("optimizer.")):
                sha.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def described(self) -> dict[str, Any]:
        return {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), name in self._parted]
            for name, tensor in self.tensors.items()
        }


class _Blanks:
    """Tensors of zeros to read into, laid out over the processes as those of a model and its optimizer are."""

    def __init__(
        self,
        entries: dict[str, _Entry],
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
            if like is not None and _is_sharded(like) and tuple(like.shape) == entry.shape:
                blank = torch.zeros_like(like, dtype=entry.dtype)
            else:
                # moments go where load_state_dict wants them, which leaves the numbers of steps on the CPU
                device = like.device if like is not None and name.startswith("model.") else torch.device("cpu")
                blank = torch.zeros(self._local(entry), dtype=entry.dtype, device=device)
            shards = self._parting(entry)
            self._made[name] = blank
            self.wanted[name] = blank if shards is None else shards.joined(blank)
        return self._made[name]

    def _local(self, entry: _Entry) -> tuple[int, ...]:
        shards = self._parting(entry)
        return entry.shape if shards is None else (shards.local, *entry.shape[1:])

    def _parting(self, entry: _Entry) -> "Shards | None":
        """Who holds which rows of it; None: this process holds all."""
        return self._shards if entry.parted else None

    def _like(self, name: str) -> Tensor | None:
        """The tensor of this process that tells the layout: the one to fill, or the parameter of a moment."""
        moment = re.match(r"optimizer\.state\.(\d+)\.", name)
        if moment is None:
            return self._own.get(name)
        return self._parameters[int(moment[1])]


def _is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _whole_shapes(optimizer: torch.optim.Optimizer, model: nn.Module, shards: "Shards | None") -> list[list[list[int]]]:
    """The shapes of the parameters of each group, of all beings."""
    shapes = optimizer_shapes(optimizer)
    if shards is not None:
        for shape in _of_genes(shapes, optimizer, model):
            shape[0] = shards.beings
    return shapes


def _local_shapes(shapes: Any, optimizer: torch.optim.Optimizer, model: nn.Module, shards: "Shards | None") -> Any:
    """What :func:`_whole_shapes` has saved, as it is on this process."""
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


# ---------------------------------------------------------------------- checks of what is read


def _check_files(description: dict[str, Any], place: Path, path: Path) -> None:
    """A ValueError unless all that the description names is found in the folder of the shards, unaltered."""
    if any(not isinstance(description.get(key, ...), kind) for key, kind in _MEMBERS.items()):
        raise bad_file(path, "it does not describe a sharded one")
    files = description["files"]
    there = sorted(place.iterdir()) if place.is_dir() else []
    if {one.name for one in there} != set(files):
        raise bad_file(path, f"{place} must hold the {len(files)} files that it names and holds {len(there)}")
    for one in _share(there):
        if _sha256(one) != files[one.name]:
            raise bad_file(path, f"{one} is truncated or altered (its SHA-256 differs)")


def _entries(description: dict[str, Any], reader: Any, path: Path) -> dict[str, _Entry]:
    """The tensors that the description names, once the shards are found to hold all of each of them."""
    with blaming(path):
        there = reader.read_metadata()
        size = sum(one.stat().st_size for one in Path(reader.path).iterdir())
        entries = {}
        for name, (dtype, shape, parted) in description["tensors"].items():
            kind, whole = getattr(torch, dtype), tuple(shape)
            held = there.state_dict_metadata[name]
            parts = sum(math.prod(chunk.sizes) for chunk in held.chunks)
            if tuple(held.size) != whole or held.properties.dtype != kind or parts != math.prod(whole):
                raise ValueError(f"{name} is not what its shards hold")
            entries[name] = _Entry(kind, whole, bool(parted))
            size -= parts * kind.itemsize
        if size < 0:
            raise ValueError("it names more numbers than its shards hold")
        return entries


def _share(paths: list[Path]) -> list[Path]:
    """Which files this process is to read through."""
    return paths[rank() :: world()]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------- dcp


@contextmanager
def _as_dcp() -> Iterator[None]:
    """``dcp`` gathers the failures of all processes in an exception of its own: raise the first as it was.

    It also warns when there is one process, which here is no mistake.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error

"""Sharded checkpoints: each process writes and reads what it holds, by ``torch.distributed.checkpoint``; no pickle.

The folder holds ``checkpoint.safetensors``, an ordinary checkpoint of :mod:`linnet.checkpoint` that describes all, and
beside it a folder of safetensors files, one for each process that wrote any. The description is written last, and names
that folder and the SHA-256 of each file in it: until then the former checkpoint stands.
"""

import hashlib
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from linnet.checkpoint.file import CheckpointInfo, bad_file, blaming, named
from linnet.checkpoint.folder import NAMING, load_naming, new_name, save_naming
from linnet.checkpoint.matching import check_model, check_optimizer, class_name, place_like, undone_on_error
from linnet.checkpoint.shard_tensors import Blanks, Entry, Store, local_shapes, whole_shapes
from linnet.checkpoint.tree import check_generators, generator_states, pack, set_generators, unpack
from linnet.distributed.processes import agreeing, gathered, rank, world
from linnet.wide.population import rows_of

if TYPE_CHECKING:
    from linnet.evolve.shards import Shards


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
        store = Store([] if shards is None else rows_of(model, optimizer), shards)
        trees = {
            "model": pack(model.state_dict(keep_vars=True), "model", store),
            "optimizer": None if optimizer is None else pack(optimizer.state_dict(), "optimizer", store),
        }
        shapes = None if optimizer is None else whole_shapes(optimizer, model, shards)
        pack(extra, "extra", lambda tensor, name: name)  # what cannot be stored is found before anything is written
        digest = store.digest({f"model.{name}" for name, _ in model.named_parameters(remove_duplicate=False)})
    if len(set(gathered(digest))) > 1:
        raise ValueError(
            "parameters that are no DTensors must be equal on all processes; "
            "a population distributed by being needs shards="
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
        found, place = load_naming(path.parent, KIND, "a sharded checkpoint")
        description = found.extra
        _check_files(description, place, path)
    if len(set(gathered(found.sha256))) > 1:
        raise ValueError(f"all processes must read the same checkpoint, got different contents of {os.fspath(path)!r}")
    with agreeing():
        reader = HuggingFaceStorageReader(str(place))
        entries = _entries(description, reader, path)
        if shards is not None and description["beings"] != shards.beings:
            held = "none that is distributed" if description["beings"] is None else f"one of {description['beings']}"
            raise ValueError(f"the checkpoint must hold a population of {shards.beings} beings, got {held}")
        generators = description["rng"]
        if rng and generators is not None:
            if len(generators) != world():
                raise ValueError(
                    f"the checkpoint must hold the generator states of {world()} processes, got {len(generators)}; "
                    "pass rng=False to leave the generators as they are"
                )
            with blaming(path):
                check_generators(generators[rank()])
        blanks = Blanks(entries, model, optimizer, shards)
        with blaming(path):
            saved = named(unpack(description["model"], blanks.on_meta))
        check_model(saved, model, path)
        if optimizer is not None:
            shapes = local_shapes(description["optimizer_shapes"], optimizer, model, shards)
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


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _check_files(description: dict[str, Any], place: Path, path: Path) -> None:
    """A ValueError unless all that the description names is found in the folder of the shards, unaltered."""
    if any(not isinstance(description.get(key, ...), kind) for key, kind in _MEMBERS.items()):
        raise bad_file(path, "the file does not describe a sharded checkpoint")
    files = description["files"]
    there = sorted(place.iterdir()) if place.is_dir() else []
    if {one.name for one in there} != set(files):
        raise bad_file(path, f"{place} must hold the {len(files)} files that the description names, got {len(there)}")
    for one in _share(there):
        if _sha256(one) != files[one.name]:
            raise bad_file(path, f"{one} is truncated or altered (SHA-256 mismatch)")


def _entries(description: dict[str, Any], reader: Any, path: Path) -> dict[str, Entry]:
    """The tensors that the description names, once the shards are found to hold all of each of them."""
    with blaming(path):
        there = reader.read_metadata()
        size = sum(one.stat().st_size for one in Path(reader.path).iterdir())
        entries = {}
        for name, (dtype, shape, by_being) in description["tensors"].items():
            kind, whole = getattr(torch, dtype), tuple(shape)
            held = there.state_dict_metadata[name]
            parts = sum(math.prod(chunk.sizes) for chunk in held.chunks)
            if tuple(held.size) != whole or held.properties.dtype != kind or parts != math.prod(whole):
                raise ValueError(f"the shards do not hold {name} as described")
            entries[name] = Entry(kind, whole, bool(by_being))
            size -= parts * kind.itemsize
        if size < 0:
            raise ValueError("the description names more numbers than the shards hold")
        return entries


def _share(paths: list[Path]) -> list[Path]:
    """Which files this process is to read through."""
    return paths[rank() :: world()]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _as_dcp() -> Iterator[None]:
    """``dcp`` gathers the failures of all processes in an exception of its own: raise the first as it was.

    ``dcp`` also warns when there is one process, which is no mistake here, and until 2.10 of what it calls itself.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
        try:
            yield
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error

"""Checkpoints: model, optimizer, step and random generators in one safetensors file, written atomically; no pickle.

The file is an ordinary safetensors file. The metadata of its header has one entry, ``linnet``, a JSON object: the
description of everything that is not a tensor, with ``{"$tensor": name}`` where a tensor belongs. The first member of
that object is the SHA-256 of the whole file, computed with zeros in place of the digest itself, so that any altered
byte is found.
"""

import hashlib
import json
import operator
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from linnet._version import __version__
from linnet.checkpoint.architecture import built, described
from linnet.checkpoint.matching import (
    check_model,
    check_optimizer,
    class_name,
    optimizer_shapes,
    place_like,
    undone_on_error,
)
from linnet.checkpoint.tree import Box, check_generators, generator_states, set_generators, unpack

__all__ = [
    "NAMING",
    "CheckpointInfo",
    "bad_file",
    "blaming",
    "info",
    "load",
    "load_naming",
    "named",
    "new_name",
    "replacing",
    "save",
    "save_naming",
]

FORMAT_VERSION = 1
NAMING = "checkpoint.safetensors"
"""The file of a checkpoint of several processes that names the folder of the others."""
_START = b'{"__metadata__":{"linnet":"{\\"sha256\\":\\"'  # how the header of every checkpoint begins
_ZEROS = b"0" * 64
_LONGEST_HEADER = 100_000_000  # the limit of safetensors
_MEMBERS: dict[str, Any] = {  # of the description, in order, and their types
    "sha256": str,
    "format_version": int,
    "linnet_version": str,
    "torch_version": str,
    "model_class": str,
    "optimizer_class": str | None,
    "optimizer_shapes": list | None,
    "step": int | None,
    "model": dict,
    "optimizer": dict | None,
    "rng": dict | None,
    "extra": object,
}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds.

    Attributes:
        model: class of the saved model.
        shapes: shape of each entry of its state_dict, by key.
        optimizer: class of the saved optimizer, or None.
        step: the ``step`` that was saved, or None.
        rng: whether the states of the random generators were saved.
        extra: the ``extra`` that was saved; from :func:`info` its tensors are on the meta device.
        linnet_version, torch_version: what wrote the file.
        sha256: digest of the file.
        network: the model that :func:`load` filled or built; None from :func:`info`.
    """

    model: str
    shapes: dict[str, tuple[int, ...]]
    optimizer: str | None
    step: int | None
    rng: bool
    extra: Any
    linnet_version: str
    torch_version: str
    sha256: str
    network: nn.Module | None = None


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    step: int | None = None,
    rng: bool = True,
    extra: Any = None,
) -> None:
    """Write model, optimizer, step and generator states to ``path``: all of it or, on any failure, nothing.

    A file that is already there stays until the new one is complete on the disk.

    Args:
        model: its ``state_dict()`` is saved; tied tensors are stored once.
        path: the file to write.
        optimizer: its ``state_dict()`` is saved too.
        step: how far training is.
        rng: whether to save the states of torch's generators (CPU, and CUDA if in use), NumPy's and ``random``'s.
        extra: anything made of dicts, lists, tuples, strings, numbers, None and tensors; the state_dict of a
            learning rate scheduler, say.

    Raises:
        TypeError: something is of a kind that cannot be stored without pickle; the message names it.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/model.safetensors", step=7, extra={"note": "hello"})
        ...     found = load(f"{folder}/model.safetensors", into=nn.Linear(3, 2))
        >>> found.step, found.extra, found.shapes
        (7, {'note': 'hello'}, {'weight': (2, 3), 'bias': (2,)})
    """

    tree = {
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "rng": generator_states() if rng else None,
        "extra": extra,
    }
    box = Box()
    description = {
        "sha256": _ZEROS.decode(),
        "format_version": FORMAT_VERSION,
        "linnet_version": __version__,
        "torch_version": torch.__version__,
        "model_class": class_name(model),
        "optimizer_class": None if optimizer is None else class_name(optimizer),
        "optimizer_shapes": None if optimizer is None else optimizer_shapes(optimizer),
        "step": None if step is None else operator.index(step),
        "architecture": box.put(described(model), "architecture"),
        **{name: box.put(value, name) for name, value in tree.items()},
    }
    text = json.dumps(description, allow_nan=False, separators=(",", ":"))
    data = safetensors.torch.save(box.tensors, metadata={"linnet": text})
    at = 8 + len(_START)
    if data[8:at] != _START:
        raise RuntimeError("safetensors wrote a header of an unknown layout")
    view, digest = memoryview(data), hashlib.sha256(data).hexdigest().encode()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines((view[:at], digest, view[at + 64 :]))


def load(
    path: str | os.PathLike[str],
    *,
    into: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    rng: bool = True,
) -> CheckpointInfo:
    """Read what :func:`save` wrote, into a model and an optimizer of the same kind or a new model: all or nothing.

    Everything is checked before anything is changed; a failure on the way puts the model and the optimizer back.

    Args:
        path: the file.
        into: the model to fill, on any device. None builds it from the description in the file, on the CPU, if it is
            made of linnet's layers and blocks, ``nn.Sequential`` and the usual modules of torch between them.
        optimizer: the optimizer to fill, of the parameters of ``into``; None leaves a saved one unread.
        rng: whether to set the random generators to the saved states, if there are any. States of CUDA devices
            that this machine does not have are left out.

    Returns:
        What the file holds, with ``extra`` on the CPU; the model is its ``network``.

    Raises:
        ValueError: the file is truncated, altered, not from linnet or of a newer format, the model or the optimizer
            does not fit (the message names what is missing, unexpected or of another shape or dtype), or there is no
            ``into`` and the file does not describe its model.

    Example:
        >>> import tempfile
        >>> from linnet import MLP
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(MLP(4, 8, 2, layer="symmetric", depth=3), f"{folder}/model.safetensors")
        ...     net = load(f"{folder}/model.safetensors").network
        >>> [type(module).__name__ for module in net]
        ['Linear', 'ReLU', 'SymmetricLinear', 'ReLU', 'Linear']
    """
    with _opened(path) as (description, file):

        def copied(name: str) -> Tensor:
            return file.get_tensor(name).clone()  # not a view of the file

        with blaming(path):
            model = named(unpack(description["model"], file.get_tensor))
            generators, extra, state = (unpack(description[name], copied) for name in ("rng", "extra", "optimizer"))
            if rng and generators is not None:
                check_generators(generators)
        if into is None:
            if optimizer is not None:
                raise ValueError("An optimizer is one of the parameters of a model, got it is given without into")
            into = _rebuilt(description, model, path)
        check_model(model, into, path)
        if optimizer is not None:
            check_optimizer(description, optimizer, into, path)
        with undone_on_error(into, optimizer, path):
            into.load_state_dict(model)
            if optimizer is not None:
                place_like(state["param_groups"], optimizer.param_groups)
                optimizer.load_state_dict(state)
        if rng and generators is not None:
            set_generators(generators)
        return _as_info(description, model, extra, into)


def _rebuilt(description: dict[str, Any], state: dict[str, Any], path: str | os.PathLike[str]) -> nn.Module:
    architecture = description.get("architecture")
    if architecture is None:
        raise ValueError(
            f"Without into= a file must describe its model, got {os.fspath(path)!r} holds a "
            f"{description['model_class']} that has parts of its own (make the model and load into it)"
        )

    def none(name: str) -> Tensor:
        raise ValueError(f"there are no tensors in a description, not {name!r} either")

    with blaming(path), torch.random.fork_rng():
        return built(unpack(architecture, none), state)


def info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """What a checkpoint holds, without loading a tensor; the digest of the file is verified.

    Raises:
        ValueError: the file is truncated, altered, not from linnet or of a newer format.
    """
    with _opened(path) as (description, file):

        def on_meta(name: str) -> Tensor:
            return file.get_tensor(name).to("meta")  # mapped, not read

        with blaming(path):
            model, extra = named(unpack(description["model"], on_meta)), unpack(description["extra"], on_meta)
        return _as_info(description, model, extra)


def new_name(kind: str) -> str:
    """A name for :func:`save_naming` that no folder has."""
    return f"{kind}-{secrets.token_hex(6)}"


def save_naming(folder: Path, own: str, *, step: int | None, extra: dict[str, Any]) -> None:
    """Write ``checkpoint.safetensors`` into a folder: from then on what lies in ``own`` beside it is the checkpoint.

    What former saves have left, whole or broken off, is then removed.

    Args:
        folder: of the checkpoint.
        own: name of a folder in it, whose files are on the disk; made by :func:`new_name`.
        step: how far training is.
        extra: what to write; it gets ``own`` as its ``folder``.
    """
    if os.name == "posix":
        _sync(folder / own)  # the names of its files
    save(nn.Identity(), folder / NAMING, step=step, rng=False, extra={"folder": own, **extra})
    kind, _, new = own.rpartition("-")
    for former in folder.glob(f"{kind}-{'[0-9a-f]' * len(new)}"):
        if former.name != own:
            shutil.rmtree(former, ignore_errors=True)
    for temporary in folder.glob(f".{NAMING}.*.tmp"):
        temporary.unlink(missing_ok=True)


def load_naming(folder: Path, kind: str, what: str) -> tuple[CheckpointInfo, Path]:
    """What :func:`save_naming` has written, and the folder that it names.

    Args:
        folder: of the checkpoint.
        kind: what the name of the other folder begins with.
        what: it is a checkpoint of, for the message.

    Raises:
        ValueError: the file is damaged, or was not written by :func:`save_naming` for such a folder.
    """
    path = folder / NAMING
    with _opened(path) as (description, file):
        with blaming(path):
            extra = unpack(description["extra"], lambda name: file.get_tensor(name).clone())
        found = _as_info(description, {}, extra)
    own = extra.get("folder") if isinstance(extra, dict) else None
    if not isinstance(own, str) or re.fullmatch(rf"{kind}-[0-9a-f]{{12}}", own) is None:
        raise bad_file(
            path, f"it is that of a {found.model} and does not describe {what}, whose files would lie in {own!r}"
        )
    return found, folder / own


# ---------------------------------------------------------------------- files


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary beside ``path`` to write to; it takes the place of ``path`` when the block ends, whole or not at all.

    The bytes are on the disk before the name changes, and the name before the block is left; an exception removes the
    temporary and leaves what was there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/a.txt") as temporary:
        ...         _ = temporary.write_text("hello")
        ...     Path(f"{folder}/a.txt").read_text()
        'hello'
    """
    target = Path(os.path.realpath(path))  # through a symbolic link, as open() would
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """The description of a checkpoint and its open safetensors file, once both are found to be whole."""
    with open(path, "rb") as file:
        description = _verified_description(file, path)
    try:
        opened = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise bad_file(path, str(error)) from error
    with opened as tensors:
        if not (tensors.metadata() or {}).get("linnet", "").startswith(f'{{"sha256":"{description["sha256"]}"'):
            raise bad_file(path, "replaced while it was being read")
        yield description, tensors


def _verified_description(file: BufferedReader, path: str | os.PathLike[str]) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    header = file.read(max(0, min(int.from_bytes(prefix, "little"), size - 8, _LONGEST_HEADER)))
    if not header.startswith(_START):
        raise bad_file(path, "its header is not that of one")
    at = len(_START)
    stored = header[at : at + 64]
    try:
        description = json.loads(json.loads(header)["__metadata__"]["linnet"])
        version = description["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise bad_file(path, f"its header is truncated or altered ({type(error).__name__})") from error
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise bad_file(path, f"its format {version} is newer than {FORMAT_VERSION}, the newest that this linnet reads")
    sha = hashlib.sha256(prefix + header[:at] + _ZEROS + header[at + 64 :])
    if hashlib.file_digest(file, lambda: sha).hexdigest().encode() != stored:
        raise bad_file(path, "it is truncated or altered (its SHA-256 differs)")
    if version != FORMAT_VERSION or any(not isinstance(description.get(k, ...), t) for k, t in _MEMBERS.items()):
        raise bad_file(path, "its description is incomplete")
    return description


def named(state: Any) -> dict[str, Any]:
    """The state of a model, once it is found to be a dict of names."""
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise TypeError("the state of its model is no dict of names")
    return state


@contextmanager
def blaming(path: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong with the content of a file becomes a ValueError that names the file."""
    try:
        yield
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
        safetensors.SafetensorError,
    ) as error:
        raise bad_file(path, f"its content is wrong ({type(error).__name__}: {error})") from error


def bad_file(path: str | os.PathLike[str], fact: str) -> ValueError:
    """The error to raise."""
    return ValueError(f"{os.fspath(path)!r} must be a whole linnet checkpoint, got {fact}")


def _as_info(
    description: dict[str, Any], model: dict[str, Any], extra: Any, network: nn.Module | None = None
) -> CheckpointInfo:
    return CheckpointInfo(
        model=description["model_class"],
        shapes={key: tuple(value.shape) for key, value in model.items() if isinstance(value, Tensor)},
        optimizer=description["optimizer_class"],
        step=description["step"],
        rng=description["rng"] is not None,
        extra=extra,
        linnet_version=description["linnet_version"],
        torch_version=description["torch_version"],
        sha256=description["sha256"],
        network=network,
    )

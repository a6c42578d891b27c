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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from linnet._version import __version__
from linnet.checkpoint.architecture import built, described
from linnet.checkpoint.atomic import replacing
from linnet.checkpoint.matching import (
    check_model,
    check_optimizer,
    class_name,
    optimizer_shapes,
    place_like,
    undone_on_error,
)
from linnet.checkpoint.tree import Box, check_generators, generator_states, set_generators, unpack

FORMAT_VERSION = 1
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
    with opened_checkpoint(path) as (description, file):

        def copied(name: str) -> Tensor:
            return file.get_tensor(name).clone()  # not a view of the file

        with blaming(path):
            model = named(unpack(description["model"], file.get_tensor))
            generators, extra, state = (unpack(description[name], copied) for name in ("rng", "extra", "optimizer"))
            if rng and generators is not None:
                check_generators(generators)
        if into is None:
            if optimizer is not None:
                raise ValueError("optimizer needs into, the model whose parameters it holds")
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
        return as_info(description, model, extra, into)


def _rebuilt(description: dict[str, Any], state: dict[str, Any], path: str | os.PathLike[str]) -> nn.Module:
    architecture = description.get("architecture")
    if architecture is None:
        raise ValueError(
            f"{os.fspath(path)!r} does not describe its {description['model_class']}, which has modules of its own; "
            "build the model and pass it as into="
        )

    def none(name: str) -> Tensor:
        raise ValueError(f"the description of the model names a tensor, {name!r}")

    with blaming(path), torch.random.fork_rng():
        return built(unpack(architecture, none), state)


def info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """What a checkpoint holds, without loading a tensor; the digest of the file is verified.

    Raises:
        ValueError: the file is truncated, altered, not from linnet or of a newer format.
    """
    with opened_checkpoint(path) as (description, file):

        def on_meta(name: str) -> Tensor:
            return file.get_tensor(name).to("meta")  # mapped, not read

        with blaming(path):
            model, extra = named(unpack(description["model"], on_meta)), unpack(description["extra"], on_meta)
        return as_info(description, model, extra)


@contextmanager
def opened_checkpoint(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """The description of a checkpoint and its open safetensors file, once both are found to be whole."""
    with open(path, "rb") as file:
        description = _verified_description(file, path)
    try:
        opened = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise bad_file(path, str(error)) from error
    with opened as tensors:
        if not (tensors.metadata() or {}).get("linnet", "").startswith(f'{{"sha256":"{description["sha256"]}"'):
            raise bad_file(path, "the file was replaced while it was read")
        yield description, tensors


def _verified_description(file: BufferedReader, path: str | os.PathLike[str]) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    header = file.read(max(0, min(int.from_bytes(prefix, "little"), size - 8, _LONGEST_HEADER)))
    if not header.startswith(_START):
        raise bad_file(path, "the header is not that of a checkpoint")
    at = len(_START)
    stored = header[at : at + 64]
    try:
        description = json.loads(json.loads(header)["__metadata__"]["linnet"])
        version = description["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise bad_file(path, f"the header is truncated or altered ({type(error).__name__})") from error
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise bad_file(
            path, f"format {version} is newer than {FORMAT_VERSION}, the newest that linnet {__version__} reads"
        )
    sha = hashlib.sha256(prefix + header[:at] + _ZEROS + header[at + 64 :])
    if hashlib.file_digest(file, lambda: sha).hexdigest().encode() != stored:
        raise bad_file(path, "the file is truncated or altered (SHA-256 mismatch)")
    if version != FORMAT_VERSION or any(not isinstance(description.get(k, ...), t) for k, t in _MEMBERS.items()):
        raise bad_file(path, "the description is incomplete")
    return description


def named(state: Any) -> dict[str, Any]:
    """The state of a model, checked to be a dict with string keys."""
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise TypeError("the state of the model must be a dict with string keys")
    return state


@contextmanager
def blaming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever the content of a file raises into a ValueError that names the file."""
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
        raise bad_file(path, f"invalid content ({type(error).__name__}: {error})") from error


def bad_file(path: str | os.PathLike[str], fact: str) -> ValueError:
    """The error for a file that is no checkpoint."""
    return ValueError(f"{os.fspath(path)!r} is not a valid linnet checkpoint: {fact}")


def as_info(
    description: dict[str, Any], model: dict[str, Any], extra: Any, network: nn.Module | None = None
) -> CheckpointInfo:
    """What a description says, as users see it."""
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

"""What a checkpoint is made of: trees of plain values and tensors, and the states of the random generators."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(value: Any, name: str, store: Callable[[Tensor, str], str]) -> Any:
    """A tree as JSON that refers to its tensors by the names that ``store(tensor, name)`` gives them.

    Raises:
        TypeError: something is of a kind that cannot be stored without pickle; the message names it.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Tensor):
        return {"$tensor": store(value, name)}
    if isinstance(value, list):
        return [pack(item, f"{name}.{i}", store) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": pack(list(value), name, store)}
    if isinstance(value, Mapping):
        items = {key: pack(item, f"{name}.{key}", store) for key, item in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in items) and type(value) is not Counter:
            return items
        pairs = [[pack(key, name, store), item] for key, item in items.items()]
        return {"$counter" if type(value) is Counter else "$dict": pairs}
    raise TypeError(
        f"{name} must be a dict, list, tuple, string, number, None or tensor to be saved, got a {type(value).__name__}"
    )


def check_storable(tensor: Tensor, name: str) -> None:
    """A TypeError unless safetensors can hold it."""
    if type(tensor) is not Tensor or tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        what = "on the meta device" if tensor.is_meta else f"a {type(tensor).__name__}, layout {tensor.layout}"
        raise TypeError(f"{name} must be a plain dense tensor to be saved, got {what}")
    if tensor.dtype == torch.complex128:
        raise TypeError(f"{name} must have a dtype that safetensors stores, got torch.complex128")


class Box:
    """The tensors of a checkpoint by name; :meth:`put` turns a tree into JSON that refers to them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}  # the name under which a stretch of memory is stored already
        self._storages: set[int] = set()
        self._keep: list[Tensor] = []  # alive, so that no address is used twice

    def put(self, value: Any, name: str) -> Any:
        return pack(value, name, self._store)

    def _store(self, tensor: Tensor, name: str) -> str:
        plain = tensor.detach()
        check_storable(plain, name)
        stretch = (plain.device, plain.data_ptr(), plain.shape, plain.stride(), plain.dtype, plain.is_conj())
        if plain.numel() and stretch in self._names:
            return self._names[stretch]
        while name in self.tensors:
            name += "'"
        host = plain.resolve_conj().resolve_neg().cpu().contiguous()
        if host.untyped_storage().data_ptr() in self._storages:
            host = host.clone()  # another view of memory that is stored already
        self._storages.add(host.untyped_storage().data_ptr())
        self._names[stretch] = name
        self._keep.append(plain)
        self.tensors[name] = host
        return name


def unpack(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The inverse of :func:`pack`: JSON -> the tree, with ``tensor(name)`` where a tensor belongs.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: the JSON is not what ``pack`` makes.
    """
    if isinstance(value, list):
        return [unpack(item, tensor) for item in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if not kind.startswith("$"):
        return {key: unpack(item, tensor) for key, item in value.items()}
    (content,) = value.values()
    if kind == "$tensor":
        return tensor(content)
    if kind == "$float":
        return float(content)
    if kind == "$tuple":
        return tuple(unpack(content, tensor))
    if kind in ("$dict", "$counter"):
        pairs = {unpack(key, tensor): unpack(item, tensor) for key, item in content}
        return Counter(pairs) if kind == "$counter" else pairs
    raise ValueError(f"unknown kind {kind!r}")


def generator_states() -> dict[str, Any]:
    """States of the default generators: torch's (CPU, and CUDA if it is in use), NumPy's and that of ``random``."""
    numpy_state: Any = np.random.get_state(legacy=False)
    if "key" in numpy_state["state"]:
        numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": numpy_state,
        "python": random.getstate(),
    }


def check_generators(saved: Any) -> None:
    """Try the states on generators of our own.

    Raises:
        ValueError: one of them is not a state.
    """
    try:
        torch.Generator().set_state(saved["torch"].clone())
        numpy_state = _numpy_state(saved["numpy"])
        words = numpy_state["state"]
        if "key" in words and not (words["key"].shape == (624,) and 0 <= words["pos"] <= 624):
            raise ValueError(
                "the state of NumPy's Mersenne twister must have 624 words"
            )  # NumPy itself would read beyond them
        np.random.RandomState().set_state(numpy_state)
        random.Random().setstate(saved["python"])
        if any(state.dtype != torch.uint8 for state in saved["cuda"]):
            raise TypeError("a CUDA state must be bytes")
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise ValueError(f"invalid generator states ({error})") from error


def set_generators(saved: dict[str, Any]) -> None:
    """Set the default generators; states of CUDA devices that are not there are left out."""
    torch.set_rng_state(saved["torch"].clone())
    for device, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state.clone(), device)
    np.random.set_state(_numpy_state(saved["numpy"]))
    random.setstate(saved["python"])


def _numpy_state(saved: dict[str, Any]) -> dict[str, Any]:
    state = saved["state"]
    key = {"key": state["key"].numpy().astype(np.uint32)} if "key" in state else {}
    return {**saved, "state": {**state, **key}}

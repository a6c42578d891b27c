"""Whether what a checkpoint holds fits a model and an optimizer, and putting both back if loading fails late."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def class_name(thing: object) -> str:
    """The public name of a thing's class: ``linnet.WideAdam``, ``torch.optim.adamw.AdamW``."""
    return public_name(f"{type(thing).__module__}.{type(thing).__qualname__}")


def public_name(path: str) -> str:
    """Module path and name of a class -> the name that users import, which stays where linnet's modules move.

    linnet 0.1.0 saved module paths, ``linnet.wide.optim.WideAdam``; they are read as ``linnet.WideAdam``. Classes of
    :mod:`linnet.compat` share their names with others and keep their paths.

    Example:
        >>> public_name("linnet.wide.optim.WideAdam"), public_name("torch.optim.adamw.AdamW")
        ('linnet.WideAdam', 'torch.optim.adamw.AdamW')
    """
    inside = path.startswith("linnet.") and not path.startswith("linnet.compat.")
    return f"linnet.{path.rpartition('.')[2]}" if inside else path


def optimizer_shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    """The shapes of the parameters of each group."""
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_model(saved: dict[str, Any], model: nn.Module, path: str | os.PathLike[str]) -> None:
    """A ValueError that names what is missing, unexpected or different in a state."""
    own = model.state_dict()
    faults = []
    if missing := [key for key in own if key not in saved and not _loads_itself(model, key)]:
        faults.append(f"missing in the file: {_listed(missing)}")
    if unexpected := [key for key in saved if key not in own and not _loads_itself(model, key)]:
        faults.append(f"not in the model: {_listed(unexpected)}")
    different = []
    for key in (key for key in own if key in saved):
        theirs, ours = saved[key], own[key]
        if isinstance(theirs, Tensor) != isinstance(ours, Tensor):
            different.append(f"{key} (of another kind)")
        elif isinstance(ours, Tensor) and not nn.parameter.is_lazy(ours):
            if ours.is_meta:
                raise ValueError(f"model must have real tensors, got {key} on the meta device")
            if theirs.shape != ours.shape and not _loads_itself(model, key):
                different.append(f"{key} ({tuple(theirs.shape)} in the file, {tuple(ours.shape)} in the model)")
            elif theirs.dtype != ours.dtype:
                different.append(f"{key} ({theirs.dtype} in the file, {ours.dtype} in the model)")
    if different:
        faults.append(f"different: {_listed(different)}")
    if faults:
        raise ValueError(f"model does not fit the checkpoint {os.fspath(path)!r}: {'; '.join(faults)}")


_STRICT = (
    nn.Module._load_from_state_dict,
    nn.modules.batchnorm._NormBase._load_from_state_dict,  # it forgives what torch 0.4 did not save; linnet always did
)


def _loads_itself(model: nn.Module, key: str) -> bool:
    """Whether a module on the way to ``key`` has a loader or a hook of its own, which then decides what fits it."""
    module: nn.Module | None = model
    for part in key.split("."):
        if module is None:
            break
        if type(module)._load_from_state_dict not in _STRICT or module._load_state_dict_pre_hooks:
            return True
        module = module._modules.get(part)
    return False


def check_optimizer(
    description: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module, path: str | os.PathLike[str]
) -> None:
    """A ValueError unless the file holds the state of such an optimizer, for parameters of these shapes."""
    rule = f"optimizer does not fit the checkpoint {os.fspath(path)!r}: "
    if description["optimizer"] is None:
        raise ValueError(f"{rule}the file holds no optimizer")
    if public_name(description["optimizer_class"] or "") != class_name(optimizer):
        raise ValueError(f"{rule}the file holds a {description['optimizer_class']}, got a {class_name(optimizer)}")
    if not _same_shapes(description["optimizer_shapes"], optimizer, model):
        raise ValueError(f"{rule}its parameter groups differ in number or in the shapes of their parameters")


def _same_shapes(saved: Any, optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether the groups hold parameters of the saved shapes.

    A module that loads itself decides on those of its own, which it may change: those of a pruned sparse layer, say.
    """
    free = {id(parameter) for key, parameter in model.named_parameters() if _loads_itself(model, key)}
    try:
        return all(
            id(parameter) in free or shape == list(parameter.shape)
            for group, shapes in zip(optimizer.param_groups, saved, strict=True)
            for parameter, shape in zip(group["params"], shapes, strict=True)
        )
    except (TypeError, ValueError):  # other numbers of them
        return False


@contextmanager
def undone_on_error(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, path: str | os.PathLike[str]
) -> Iterator[None]:
    """Put model and optimizer back as they were if the block fails: a module's own loading hooks may refuse late."""
    state = {k: v for k, v in model.state_dict().items() if not nn.parameter.is_lazy(v)}
    before = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    kept = None if optimizer is None else (optimizer.state, optimizer.param_groups)
    try:
        yield
    except BaseException as error:
        model.load_state_dict(before, strict=False)  # a module may have grown tensors on the way
        if optimizer is not None and kept is not None:
            optimizer.state, optimizer.param_groups = kept
        if isinstance(error, (AttributeError, LookupError, RuntimeError, TypeError, ValueError)):
            reason = " ".join(str(error).split())
            raise ValueError(f"the checkpoint {os.fspath(path)!r} could not be loaded: {reason}") from error
        raise


def place_like(saved_groups: list[dict[str, Any]], groups: list[dict[str, Any]]) -> None:
    """Tensors among the options (a learning rate, say) go to the device of those that they replace."""
    for saved, group in zip(saved_groups, groups, strict=True):
        for name, value in saved.items():
            if isinstance(value, Tensor):
                own = group.get(name)
                saved[name] = value.clone().to(own.device if isinstance(own, Tensor) else "cpu")

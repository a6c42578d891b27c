"""What all hand-written backwards share: where they may run, and gradients of gradients.

Each fused function stands beside a reference, the same function in operations that autograd sees. The fused one serves
ordinary forwards and backwards in eager mode; everything else (compilation, export, the transforms of torch.func,
forward-mode differentiation, backward with create_graph) goes through the reference.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def eager() -> bool:
    """Whether a function may run fused: no tracing, no transform, no forward-mode differentiation is at work."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
    )


def through_reference(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor], wanted: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of ``reference`` at ``inputs``, where ``wanted``, as functions that can be differentiated again."""
    aliases = [tensor.view_as(tensor) for tensor in inputs]  # hooks on the inputs themselves must not run twice
    some = [alias for alias, wants in zip(aliases, wanted, strict=True) if wants]
    found = iter(torch.autograd.grad(reference(*aliases), some, grad, create_graph=True))
    return tuple(next(found) if wants else None for wants in wanted)


def autocast_off(device_type: str) -> Any:
    """A context without autocast; one that does nothing where it is off."""
    active = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if active else nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """A floating tensor of less than 32 bits as float32, any other as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor

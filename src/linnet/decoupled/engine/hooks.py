"""Forward hooks at the cuts of a network, dry runs without side effects, and sources built at first use."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from linnet.decoupled.engine.forward_pass import replaced, tensors
from linnet.decoupled.engine.places import cuts_by_call
from linnet.decoupled.sources.source import Source

Visit = Callable[[str, list[Tensor]], list[Tensor]]
"""Called as (name of the cut, floating-point outputs of the module) -> the tensors that replace them."""


@contextmanager
def hook_cuts(network: nn.Module, names: Iterable[str], visit: Visit) -> Iterator[set[str]]:
    """Replace the output at each cut by the result of ``visit``; yields the names of the cuts reached so far.

    The hooks are removed when the context ends.
    """
    calls = cuts_by_call(network, names)
    count = dict.fromkeys(calls, 0)
    reached: set[str] = set()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        own = calls[module]
        if count[module] == len(own):
            cut, times = (
                " and ".join(repr(name) for name in own if name),
                "once" if len(own) == 1 else f"{len(own)} times",
            )
            raise ValueError(f"The module before the cut {cut} must be called {times} in a forward, got one call more")
        name = own[count[module]]
        count[module] += 1
        if name is None:
            return None
        reached.add(name)
        given = list(tensors(output))
        floating = [i for i, h in enumerate(given) if h.is_floating_point() and h.dim() > 0]
        if not floating:
            found = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"The module {name!r} before a cut must return a floating tensor (batch, *, features), got {found}"
            )
        for i, x in zip(floating, visit(name, [given[i] for i in floating]), strict=True):
            given[i] = x
        return replaced(output, iter(given))

    with ExitStack() as stack:
        for module in calls:
            stack.enter_context(module.register_forward_hook(hook))
        yield reached


@contextmanager
def seeded_for(key: str) -> Iterator[None]:
    """Seed the CPU generator for what is built at this cut, independent of earlier draws; restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed((torch.initial_seed() + crc32(key.encode())) % 2**63)
        yield


def on_device_of(source: Source, network: nn.Module) -> Source:
    """Move a source to the device and the dtype of the network."""
    for parameter in network.parameters():
        return source.to(parameter.device, parameter.dtype if parameter.is_floating_point() else None)
    return source


def build_source(source: Source, key: str, h: Tensor, image_axes: int | None) -> Source:
    """Build the source of a cut, unless it is built already, for the activations that it sees first.

    Args:
        source: the source.
        key: key of the cut, which seeds the random numbers.
        h: the activations.
        image_axes: number of axes of an image, see :func:`~linnet.decoupled.engine.places.image_axes`.
    """
    source.axis = 1 if h.dim() == image_axes else -1
    if not source.sized:
        with seeded_for(key):
            source.size(h)
    return source


@contextmanager
def without_side_effects(network: nn.Module) -> Iterator[Callable[[tuple[Any, ...], dict[str, Any]], Any]]:
    """Yield a function that calls the network in eval mode; modes, buffers and random state are restored afterwards."""
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    cuda = {tensor.device for tensor in (*network.parameters(), *buffers.values()) if tensor.is_cuda}
    network.eval()
    try:
        with torch.random.fork_rng(devices=list(cuda)):
            yield lambda args, kwargs: torch.func.functional_call(network, buffers, args, kwargs)
    finally:
        for module, mode in modes.items():
            module.training = mode

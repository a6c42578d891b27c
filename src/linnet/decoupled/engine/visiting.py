"""Running a network with something done to the outputs of chosen modules; running it without a trace."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from linnet.decoupled.engine.forward_pass import replaced, tensors
from linnet.decoupled.engine.places import plan
from linnet.decoupled.sources.source import Source

__all__ = ["drawn_for", "placed", "ready", "untouched", "visiting"]

Visit = Callable[[str, list[Tensor]], list[Tensor]]
"""Called as (name of the cut, floating tensors that the module gave) -> the tensors to go on with."""


@contextmanager
def visiting(network: nn.Module, names: Iterable[str], visit: Visit) -> Iterator[set[str]]:
    """Replace the output at each cut by what ``visit`` makes of it; gives the names of the cuts reached so far.

    The hooks live as long as the context: outside of it the network is untouched.
    """
    calls = plan(network, names)
    count = dict.fromkeys(calls, 0)
    reached: set[str] = set()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        own = calls[module]
        if count[module] == len(own):
            raise ValueError(f"A module before a cut must be called once in a forward, got {own} again")
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
                f"A module before a cut must give a floating tensor (batch, *, features), got {name!r} gives {found}"
            )
        for i, x in zip(floating, visit(name, [given[i] for i in floating]), strict=True):
            given[i] = x
        return replaced(output, iter(given))

    with ExitStack() as stack:
        for module in calls:
            stack.enter_context(module.register_forward_hook(hook))
        yield reached


@contextmanager
def drawn_for(key: str) -> Iterator[None]:
    """Random numbers on the CPU for what is built at this place: equal for one seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed((torch.initial_seed() + crc32(key.encode())) % 2**63)
        yield


def placed(source: Source, network: nn.Module) -> Source:
    """The source on the device of the network, in its dtype."""
    for parameter in network.parameters():
        return source.to(parameter.device, parameter.dtype if parameter.is_floating_point() else None)
    return source


def ready(source: Source, key: str, h: Tensor, image_axes: int | None) -> Source:
    """The source of a cut, built by what it sees first.

    Args:
        source: of the cut.
        key: of the cut, for the random numbers.
        h: the activations.
        image_axes: how many axes they have if they are images, see :func:`~linnet.decoupled.engine.places.convolved`.
    """
    source.axis = 1 if h.dim() == image_axes else -1
    if not source.sized:
        with drawn_for(key):
            source.size(h)
    return source


@contextmanager
def untouched(network: nn.Module) -> Iterator[Callable[[tuple[Any, ...], dict[str, Any]], Any]]:
    """Gives a way to call the network, in eval mode, after which modes, buffers and random state are as before."""
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

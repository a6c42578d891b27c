"""Default cuts of any network: before every layer but the first, where all paths from the layers below have met."""

import itertools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from linnet.decoupled.engine.forward_pass import tensors
from linnet.decoupled.engine.places import is_layer


@dataclass
class Event:
    """The end of a module's call, or the beginning of a layer's call."""

    module: nn.Module
    nodes: list[Node] | None  # autograd nodes of the floating outputs; None at a beginning


def cuts_by_trace(network: nn.Module, call: Callable[[], Any]) -> list[str]:
    """The modules after which to cut, found by one call of the network.

    Between two layers the cut is as late as possible: after the norm, the activation, the end of the block. A cut is
    valid only if no path bypasses it: every path from the layers below to the output goes through it.

    Raises:
        ValueError: the network has no such place.
    """
    with torch.enable_grad():
        events, calls, outputs = _record(network, call)
    names = {module: name for name, module in network.named_modules() if name}
    above = [get_gradient_edge(tensor).node for tensor in outputs if tensor.requires_grad]
    cuts: list[str] = []
    begins = [i for i, event in enumerate(events) if event.nodes is None]
    for first, second in itertools.pairwise(begins):
        for event in reversed(events[first:second]):
            if event.nodes and calls[event.module] == 1 and event.module in names:
                if names[event.module] not in cuts and _all_paths_meet(above, event.nodes):
                    cuts.append(names[event.module])
                    break
    if not cuts:
        raise ValueError(
            f"{type(network).__name__} has no place between two layers that every path goes through; "
            "name the modules to cut after, at=[...]"
        )
    return cuts


def _record(network: nn.Module, call: Callable[[], Any]) -> tuple[list[Event], dict[nn.Module, int], list[Tensor]]:
    """Beginnings of layers and ends of all modules, in order; the number of calls of each module; the outputs.

    A layer is a module with parameters that calls no other module with parameters.
    """
    events: list[Event] = []
    calls = dict.fromkeys(network.modules(), 0)
    open_layers: list[Event] = []

    def begin(module: nn.Module, args: Any) -> None:
        calls[module] += 1
        if is_layer(module):
            for event in open_layers:  # the open modules call this layer, so that they are no layers themselves
                if event in events:
                    events.remove(event)
            open_layers.append(Event(module, None))
            events.append(open_layers[-1])

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if is_layer(module):
            open_layers.pop()
        found = [h for h in tensors(output) if h.is_floating_point() and h.dim() > 0 and h.requires_grad]
        events.append(Event(module, [get_gradient_edge(h).node for h in found]))

    with ExitStack() as stack:
        for module in network.modules():
            if module is not network:
                stack.enter_context(module.register_forward_pre_hook(begin))
                stack.enter_context(module.register_forward_hook(end))
        output = call()
    return events, calls, list(tensors(output))


def _all_paths_meet(above: Iterable[Node], cut: list[Node]) -> bool:
    """Whether no node below the cut reaches the output on a path around the cut."""
    return not (_reached(above, set(cut)) & _reached(cut, set()))


def _reached(start: Iterable[Node], stop: set[Node]) -> set[Node]:
    found: set[Node] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if node in found or node in stop:
            continue
        found.add(node)
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return found

"""One forward pass through cuts: what lies below a cut gets its gradient at once, without the loss.

At a cut, with h the output of the stage below and x what the stage above receives:

1. the source predicts the gradient g of the loss in h;
2. autograd computes from g, now, the gradients of everything that h came from (parameters, the cut below, the input
   of the network) and frees the graph of the stage;
3. x is a copy of h without history except one node, which holds these gradients.

When ``backward`` reaches that node with the gradient of the loss in x, this gradient becomes the target of the source
and goes no further; the node hands on the gradients of step 2 instead. So they arrive in ``.grad`` by the ordinary
way: they add up over several passes, it does not matter when ``zero_grad`` was called, a pass without a backward
leaves nothing behind, and hooks, inputs of the network and ``torch.autograd.grad`` see them too.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from linnet.decoupled.sources import Prediction, Synthetic

__all__ = ["ForwardPass", "tensors"]


@dataclass
class Claim:
    """What one cut owes in one pass: gradients to what lies below, a lesson to its source."""

    name: str
    source: Synthetic
    prediction: Prediction
    gradients: tuple[Tensor | None, ...]
    target: Tensor | None = None  # the gradient in x, if it came from the next cut and not from the loss
    settled: bool = False

    def settle(self, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if self.settled:
            raise RuntimeError(
                "One forward of a DNI must be followed by at most one backward, for its synthetic gradient stands for "
                f"the whole loss, however: a second one has reached the cut after {self.name!r} (add the losses up)"
            )
        self.settled = True
        target = self.target if gradient is None else gradient
        if target is not None:
            self.source.learn(self.prediction, target)
        gradients = self.gradients
        del self.prediction, self.gradients, self.target  # the loss may live for long
        return gradients


class Cut(torch.autograd.Function):
    """h -> (a copy of h, an anchor); backward hands on the gradients of the claim, whatever comes in.

    The anchor, (0,), ties the next cut to this one, so that backward passes through all of them.
    """

    @staticmethod
    def forward(ctx: Any, claim: Claim, h: Tensor, *below: Tensor) -> tuple[Tensor, Tensor]:
        ctx.claim = claim
        ctx.set_materialize_grads(False)
        return h.clone(), h.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, anchor: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.claim.settle(gradient))


class ForwardPass:
    """The cuts of one forward pass, in the order in which they are reached.

    Args:
        network: to name parameters in error messages.
        inputs: the inputs of the network: what lies before them is not part of any stage.
    """

    def __init__(self, network: nn.Module, inputs: Iterable[Tensor]) -> None:
        self._network = network
        self._inputs = {_edge(tensor): tensor for tensor in inputs if tensor.requires_grad}
        self._open: dict[Node, tuple[Claim, Tensor]] = {}  # cuts that no stage has followed yet
        self._used: dict[Node, str] = {}  # nodes of finished stages -> the place where they ended

    def cut(self, name: str, source: Synthetic, h: Tensor) -> Tensor:
        """The output of the stage below -> the input of the stage above."""
        if not h.requires_grad:
            return h  # nothing below can learn
        lower, others = self._below([h], f"below the cut after {name!r}")
        gradient, prediction = source.predict(h)
        wanted: list[Any] = [*(GradientEdge(node, 0) for node in lower), *others]
        with torch.autocast(h.device.type, enabled=False), _without_hooks(others):
            gradients = torch.autograd.grad(h, wanted, gradient, allow_unused=True)
        for (claim, _), target in zip(lower.values(), gradients[: len(lower)], strict=True):
            claim.target = target
        anchors = [anchor for _, anchor in lower.values()]
        nothing = [torch.zeros_like(anchor) for anchor in anchors]
        claim = Claim(name, source, prediction, (*nothing, *gradients[len(lower) :]))
        x, anchor = Cut.apply(claim, h.detach(), *anchors, *others)
        self._open[_edge(x)[0]] = claim, anchor
        return x

    def close(self, outputs: Iterable[Tensor]) -> None:
        """Check the stage above the last cut."""
        self._below([tensor for tensor in outputs if tensor.requires_grad], "above the last cut")

    def _below(self, tensors: list[Tensor], place: str) -> tuple[dict[Node, tuple[Claim, Tensor]], list[Tensor]]:
        """The open cuts that the graph of the tensors ends at, and the leaves and inputs it ends at."""
        stack: list[tuple[Node | None, int]] = [_edge(tensor) for tensor in tensors]
        cuts: dict[Node, tuple[Claim, Tensor]] = {}
        ends: dict[int, Tensor] = {}
        mine: set[Node] = set()
        while stack:
            edge = stack.pop()
            node = edge[0]
            if node is None or node in mine:
                continue
            if edge in self._inputs:
                ends[id(self._inputs[edge])] = self._inputs[edge]
                continue
            if node in self._used:
                raise self._crossing(node, place)
            mine.add(node)
            if node in self._open:
                cuts[node] = self._open.pop(node)
            elif type(node).__name__ == "AccumulateGrad":
                leaf: Tensor = node.variable  # type: ignore[attr-defined]
                ends[id(leaf)] = leaf
            else:
                stack.extend(node.next_functions)
        self._used.update(dict.fromkeys(mine, place))
        return cuts, list(ends.values())

    def _crossing(self, node: Node, place: str) -> ValueError:
        if type(node).__name__ == "AccumulateGrad":
            leaf = node.variable  # type: ignore[attr-defined]
            named = self._network.named_parameters(remove_duplicate=False)
            names = [name for name, parameter in named if parameter is leaf] or ["a tensor that is none of its own"]
            return ValueError(
                f"A parameter must lie on one side of every cut, however: {' = '.join(names)} is used "
                f"{self._used[node]} and again {place}"
            )
        return ValueError(
            "A connection must not skip over a cut (cut where the branches have met), however: what lies "
            f"{self._used[node]} is used again {place}, through {node.name()}"
        )


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def _edge(tensor: Tensor) -> tuple[Node, int]:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


@contextmanager
def _without_hooks(found: list[Tensor]) -> Iterator[None]:
    """Tensor hooks see a gradient when it arrives in ``.grad``; computing it ahead must not run them a first time."""
    hooked = [(tensor, tensor._backward_hooks) for tensor in found if tensor._backward_hooks]
    for tensor, _ in hooked:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks

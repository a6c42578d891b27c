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

A late source knows g only in backward. The graph of its stage is kept, and step 2 happens when backward reaches the
node. With immediate updates the gradients of the parameters are not kept: their optimizer steps in step 2.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from linnet.decoupled.engine.immediate import Immediate
from linnet.decoupled.sources.source import Source, without_autocast

__all__ = ["ForwardPass", "replaced", "tensors"]


@dataclass(eq=False, repr=False)
class Shared:
    """What all claims of one pass know; they must not hold the pass, whose nodes hold them."""

    scale: float
    scaled: bool  # whether there is a loss scale, with which gradients may overflow
    immediate: Immediate | None
    error: Tensor | None = None  # the gradient of the loss in the output, in backward

    def listen(self, gradient: Tensor) -> None:
        self.error = gradient


@dataclass(eq=False, repr=False)
class Stage:
    """What a gradient below a cut is computed from: the outputs of the stage and where its graph ends."""

    outputs: list[Tensor]
    lower: list[tuple["Claim", list[GradientEdge]]]  # the cuts below, with the edges of what they gave
    leaves: list[Tensor]  # parameters and inputs of the network

    def targets(self, gradients: Sequence[Tensor | None], keep: bool) -> None:
        """From the gradients of the outputs the targets of the cuts below."""
        self._give(self._found(gradients, [edge for _, edges in self.lower for edge in edges], keep))

    def backward(self, gradients: Sequence[Tensor | None], keep: bool) -> tuple[Tensor | None, ...]:
        """From the gradients of the outputs the targets of the cuts below, and the gradients of the leaves."""
        edges: list[Any] = [edge for _, edges in self.lower for edge in edges]
        found = self._found(gradients, [*edges, *self.leaves], keep)
        self._give(found[: len(edges)])
        return found[len(edges) :]

    def _found(self, gradients: Sequence[Tensor | None], wanted: list[Any], keep: bool) -> tuple[Tensor | None, ...]:
        pairs = [(h, g) for h, g in zip(self.outputs, gradients, strict=True) if g is not None]
        if not pairs or not wanted:
            return (None,) * len(wanted)
        with without_autocast(pairs[0][0].device.type), _without_hooks(self.leaves):
            return torch.autograd.grad(
                [h for h, _ in pairs], wanted, [g for _, g in pairs], retain_graph=keep, allow_unused=True
            )

    def _give(self, found: Sequence[Tensor | None]) -> None:
        rest = iter(found)
        for claim, edges in self.lower:
            claim.targets = [next(rest) for _ in edges]


@dataclass(eq=False, repr=False)
class Claim:
    """What one cut owes in one pass: gradients to what lies below, a lesson to its sources."""

    name: str
    sources: list[Source]
    memories: list[Any]
    run: Shared
    gradients: tuple[Tensor | None, ...] = ()  # of the leaves, if they are known
    stage: Stage | None = None  # if it is needed in backward
    targets: list[Tensor | None] = field(default_factory=list)  # those that came from the next cut, not from the loss
    settled: bool = False

    def settle(self, arrived: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        if self.settled:
            raise RuntimeError(
                "One forward of a DNI must be followed by at most one backward, for its synthetic gradient stands for "
                f"the whole loss, got a second one has reached the cut after {self.name!r} (add the losses up)"
            )
        self.settled = True
        if self.run.immediate is not None:
            self.run.immediate.reached_by_backward(self.run)
        ahead = self.targets or [None] * len(arrived)
        targets = [t if g is None else g for g, t in zip(arrived, ahead, strict=True)]
        unscaled = [_scaled(target, 1 / self.run.scale) for target in targets]
        gradients = self.gradients
        if self.stage is not None:
            if all(source.late for source in self.sources):
                gradients = self._late(self.stage, unscaled)
            else:
                self.stage.targets(targets, keep=False)
        try:
            for source, memory, target in zip(self.sources, self.memories, unscaled, strict=True):
                source.learn(memory, target)
        except FloatingPointError:
            if not self.run.scaled:  # else the loss scale was too large, the optimizer will skip this step too
                raise ValueError(
                    f"The gradient at a cut must be finite, got that after {self.name!r} holds NaN or infinity "
                    "(with a GradScaler, give DNI scaler=)"
                ) from None
        del self.memories, self.gradients, self.targets, self.stage  # the loss may live for long
        return gradients

    def _late(self, stage: Stage, targets: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        error = None if self.run.error is None else self.run.error / self.run.scale
        found = [
            source.respond(memory, target, error)
            for source, memory, target in zip(self.sources, self.memories, targets, strict=True)
        ]
        scale = self.run.scale
        gradients = stage.backward([_scaled(g, scale) for g in found], keep=False)
        own = [isinstance(leaf, nn.Parameter) for leaf in stage.leaves]
        mine = [_scaled(g, 1 / scale) for g, is_own in zip(gradients, own, strict=True) if is_own]
        delayed = iter([_scaled(g, scale) for g in self.sources[0].delay(mine)])
        return tuple(next(delayed) if is_own else g for g, is_own in zip(gradients, own, strict=True))


class Cut(torch.autograd.Function):
    """h, ... -> (copies of them, an anchor); backward hands on the gradients of the claim, whatever comes in.

    The anchor, (0,), ties the next cut to this one, so that backward passes through all of them.
    """

    @staticmethod
    def forward(ctx: Any, claim: Claim, count: int, anchors: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.claim, ctx.count = claim, count
        ctx.nothing = [torch.zeros_like(anchor) for anchor in tensors[count : count + anchors]]
        ctx.set_materialize_grads(False)
        return (*(h.clone() for h in tensors[:count]), tensors[0].new_empty(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, None, *([None] * ctx.count), *ctx.nothing, *ctx.claim.settle(arrived[:-1]))


class ForwardPass:
    """The cuts of one forward pass, in the order in which they are reached.

    Args:
        network: to name parameters in error messages.
        inputs: the inputs of the network: what lies before them is not part of any stage.
        context: handed to the sources.
        scale: by how much the loss will be multiplied before backward; None: by nothing.
        immediate: steps the parameters below a cut at once; None: they get their gradients in backward.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Iterable[Tensor],
        context: Tensor | None = None,
        scale: float | None = None,
        immediate: Immediate | None = None,
    ) -> None:
        self._network, self._context = network, context
        self._shared = Shared(1.0 if scale is None else scale, scale is not None, immediate)
        self._inputs = {_edge(tensor): tensor for tensor in inputs if tensor.requires_grad}
        self._open: dict[Node, tuple[Claim, Tensor, list[GradientEdge]]] = {}  # cuts that no stage has followed yet
        self._used: dict[Node, str] = {}  # nodes of finished stages -> the place where they ended
        self._needs_error = False

    def cut(self, name: str, source_of: Callable[[int, Tensor], Source], outputs: list[Tensor]) -> list[Tensor]:
        """The outputs of the stage below -> the inputs of the stage above.

        Args:
            name: of the cut.
            source_of: (number of an output, output) -> its source.
            outputs: what the stage below gives.
        """
        learning = [i for i, h in enumerate(outputs) if h.requires_grad]
        if not learning:
            return outputs  # nothing below can learn
        hs, mine = [outputs[i] for i in learning], [source_of(i, outputs[i]) for i in learning]
        lower, leaves = self._below(hs, f"below the cut after {name!r}")
        stage = Stage(hs, [(claim, edges) for claim, _, edges in lower], leaves)
        predicted = [source.predict(h, self._context) for source, h in zip(mine, hs, strict=True)]
        claim = Claim(name, mine, [memory for _, memory in predicted], self._shared)
        self._needs_error |= any(source.needs_error for source in mine)
        if all(source.late for source in mine):
            claim.stage = stage
        else:
            keep = any(source.true_targets for source in mine)
            gradients = [_scaled(g, self._shared.scale) for g, _ in predicted]
            claim.gradients = stage.backward(gradients, keep)
            claim.stage = stage if keep else None
            if self._shared.immediate is not None:
                leaves, left = self._shared.immediate.step(name, leaves, claim.gradients)
                claim.gradients = tuple(left)
        anchors = [anchor for _, anchor, _ in lower]
        if not anchors and not leaves:  # all have stepped already: x must have a gradient all the same
            anchors = [hs[0].new_empty(0).requires_grad_()]
        *copies, anchor = Cut.apply(claim, len(hs), len(anchors), *(h.detach() for h in hs), *anchors, *leaves)
        edges = [GradientEdge(*_edge(x)) for x in copies]
        self._open[edges[0].node] = claim, anchor, edges
        given = list(outputs)
        for i, x in zip(learning, copies, strict=True):
            given[i] = x
        return given

    def close(self, outputs: Iterable[Tensor]) -> None:
        """Check the stage above the last cut, and listen to the gradient of the loss in the output."""
        learning = [tensor for tensor in outputs if tensor.requires_grad]
        self._below(learning, "above the last cut")
        if self._needs_error:
            if len(learning) != 1:
                raise ValueError(f"Feedback needs a network with one output, got {len(learning)} have a gradient")
            learning[0].register_hook(self._shared.listen)

    def _below(
        self, tensors: list[Tensor], place: str
    ) -> tuple[list[tuple[Claim, Tensor, list[GradientEdge]]], list[Tensor]]:
        """The open cuts that the graph of the tensors ends at, and the leaves and inputs it ends at."""
        stack: list[tuple[Node | None, int]] = [_edge(tensor) for tensor in tensors]
        cuts: dict[Node, tuple[Claim, Tensor, list[GradientEdge]]] = {}
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
        return list(cuts.values()), list(ends.values())

    def _crossing(self, node: Node, place: str) -> ValueError:
        if type(node).__name__ == "AccumulateGrad":
            leaf = node.variable  # type: ignore[attr-defined]
            named = self._network.named_parameters(remove_duplicate=False)
            names = [name for name, parameter in named if parameter is leaf] or ["a tensor that is none of its own"]
            return ValueError(
                f"A parameter must lie on one side of every cut, got {' = '.join(names)} is used "
                f"{self._used[node]} and again {place}"
            )
        return ValueError(
            "A connection must not skip over a cut (cut where the branches have met), got what lies "
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


def replaced(value: Any, new: Iterator[Tensor]) -> Any:
    """The same nested tuples, lists and dicts with other tensors, in the order of :func:`tensors`."""
    if isinstance(value, Tensor):
        return next(new)
    if isinstance(value, dict):
        return type(value)((key, replaced(item, new)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        items = [replaced(item, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _scaled(gradient: Tensor | None, factor: float) -> Tensor | None:
    return gradient if gradient is None or factor == 1 else gradient * factor


def _edge(tensor: Tensor) -> tuple[Node, int]:
    if (node := tensor.grad_fn) is not None:
        return node, tensor.output_nr
    edge = get_gradient_edge(tensor)  # of a leaf
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

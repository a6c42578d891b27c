"""One forward pass through the cuts of a network: each stage below a cut gets its gradient at once, without the loss.

At a cut, h is the output of the stage below and x is the input of the stage above:

1. The source predicts the gradient g = ∂L/∂h of the loss.
2. torch.autograd.grad(h, ..., g) computes from g the gradients of everything that h depends on (parameters, the cut
   below, the input of the network) and frees the graph of the stage.
3. x is a copy of h whose history is one node, :class:`Cut`, which holds these gradients.

When ``backward`` reaches the node with ∂L/∂x, this gradient becomes the target of the source and stops there; the node
returns the gradients of step 2 instead. Autograd adds them to ``.grad`` as usual: they accumulate over several passes,
``zero_grad`` may be called at any time, a pass without a backward changes nothing, and hooks, inputs of the network and
``torch.autograd.grad`` see them.

A late source knows g only in backward. The graph of its stage is kept, and step 2 runs when backward reaches the node.
With immediate updates the optimizer steps the parameters in step 2, and their gradients are not kept.
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


@dataclass(eq=False, repr=False)
class PassState:
    """The state that all cuts of one pass share; autograd nodes hold it, so that it must not hold the ForwardPass."""

    scale: float
    scaled: bool  # whether the loss is scaled, so that gradients may overflow
    immediate: Immediate | None
    error: Tensor | None = None  # the gradient of the loss in the output, in backward

    def record_error(self, gradient: Tensor) -> None:
        self.error = gradient


@dataclass(eq=False, repr=False)
class Stage:
    """The autograd graph of one stage: its outputs, and the cuts and leaves at which the graph ends."""

    outputs: list[Tensor]
    lower: list[tuple["CutState", list[GradientEdge]]]  # the cuts below, with the edges of their outputs
    leaves: list[Tensor]  # parameters and inputs of the network

    def pass_targets(self, gradients: Sequence[Tensor | None], keep: bool) -> None:
        """Compute the targets of the cuts below from the gradients of the outputs."""
        self._set_targets(self._grad(gradients, [edge for _, edges in self.lower for edge in edges], keep))

    def backward(self, gradients: Sequence[Tensor | None], keep: bool) -> tuple[Tensor | None, ...]:
        """Compute the targets of the cuts below and return the gradients of the leaves."""
        edges: list[Any] = [edge for _, edges in self.lower for edge in edges]
        found = self._grad(gradients, [*edges, *self.leaves], keep)
        self._set_targets(found[: len(edges)])
        return found[len(edges) :]

    def _grad(self, gradients: Sequence[Tensor | None], wanted: list[Any], keep: bool) -> tuple[Tensor | None, ...]:
        pairs = [(h, g) for h, g in zip(self.outputs, gradients, strict=True) if g is not None]
        if not pairs or not wanted:
            return (None,) * len(wanted)
        with without_autocast(pairs[0][0].device.type), _without_hooks(self.leaves):
            return torch.autograd.grad(
                [h for h, _ in pairs], wanted, [g for _, g in pairs], retain_graph=keep, allow_unused=True
            )

    def _set_targets(self, found: Sequence[Tensor | None]) -> None:
        rest = iter(found)
        for state, edges in self.lower:
            state.targets = [next(rest) for _ in edges]


@dataclass(eq=False, repr=False)
class CutState:
    """One cut in one pass, from forward to backward: its sources, and the gradients of the stage below.

    ``targets`` are gradients from the source of the next cut, where none arrives from the loss.
    """

    name: str
    sources: list[Source]
    memories: list[Any]
    run: PassState
    gradients: tuple[Tensor | None, ...] = ()  # of the leaves, if known in forward
    stage: Stage | None = None  # if backward needs its graph
    targets: list[Tensor | None] = field(default_factory=list)
    finished: bool = False

    def backward(self, arrived: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Let the sources learn from the gradients that arrive from above; return the gradients of the leaves."""
        if self.finished:
            raise RuntimeError(
                "One forward of a DNI allows at most one backward, since the synthetic gradient stands for the whole "
                f"loss; a second one reached the cut after {self.name!r} (add the losses, then call backward once)"
            )
        self.finished = True
        if self.run.immediate is not None:
            self.run.immediate.enter_backward(self.run)
        ahead = self.targets or [None] * len(arrived)
        targets = [t if g is None else g for g, t in zip(arrived, ahead, strict=True)]
        unscaled = [_scaled(target, 1 / self.run.scale) for target in targets]
        gradients = self.gradients
        if self.stage is not None:
            if all(source.late for source in self.sources):
                gradients = self._late_gradients(self.stage, unscaled)
            else:
                self.stage.pass_targets(targets, keep=False)
        try:
            for source, memory, target in zip(self.sources, self.memories, unscaled, strict=True):
                source.learn(memory, target)
        except FloatingPointError:
            if not self.run.scaled:  # otherwise the loss scale was too large, and the GradScaler skips this step too
                raise ValueError(
                    f"The gradient at the cut after {self.name!r} must be finite, got NaN or infinity "
                    "(with a GradScaler, pass it to DNI as scaler=)"
                ) from None
        del self.memories, self.gradients, self.targets, self.stage  # a user may keep the loss, and with it this object
        return gradients

    def _late_gradients(self, stage: Stage, targets: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
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
    """h, ... -> (copies, an anchor); backward returns the gradients of the CutState, independent of those that arrive.

    The anchor, (0,), is an input of the next cut, so that backward reaches every cut of the pass.
    """

    @staticmethod
    def forward(ctx: Any, state: CutState, count: int, anchors: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.state, ctx.count = state, count
        ctx.nothing = [torch.zeros_like(anchor) for anchor in tensors[count : count + anchors]]
        ctx.set_materialize_grads(False)
        return (*(h.clone() for h in tensors[:count]), tensors[0].new_empty(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, None, *([None] * ctx.count), *ctx.nothing, *ctx.state.backward(arrived[:-1]))


class ForwardPass:
    """The cuts of one forward pass, in the order in which the forward reaches them.

    Args:
        network: the network, whose parameter names stand in error messages.
        inputs: the inputs of the network: the graph before them belongs to no stage.
        context: the context of the sources.
        scale: the factor of the loss before backward; None if the loss is not scaled.
        immediate: steps the parameters below a cut at once; None leaves them their gradients in backward.
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
        self._shared = PassState(1.0 if scale is None else scale, scale is not None, immediate)
        self._inputs = {_edge(tensor): tensor for tensor in inputs if tensor.requires_grad}
        self._open: dict[Node, tuple[CutState, Tensor, list[GradientEdge]]] = {}  # cuts that no stage has followed yet
        self._used: dict[Node, str] = {}  # nodes of finished stages -> where the stage ends
        self._needs_error = False

    def cut(self, name: str, source_of: Callable[[int, Tensor], Source], outputs: list[Tensor]) -> list[Tensor]:
        """The outputs of the stage below -> the inputs of the stage above.

        Args:
            name: name of the cut.
            source_of: (number of an output, output) -> its source.
            outputs: outputs of the stage below.
        """
        learning = [i for i, h in enumerate(outputs) if h.requires_grad]
        if not learning:
            return outputs  # nothing below can learn
        hs, mine = [outputs[i] for i in learning], [source_of(i, outputs[i]) for i in learning]
        lower, leaves = self._below(hs, f"below the cut after {name!r}")
        stage = Stage(hs, [(state, edges) for state, _, edges in lower], leaves)
        predicted = [source.predict(h, self._context) for source, h in zip(mine, hs, strict=True)]
        state = CutState(name, mine, [memory for _, memory in predicted], self._shared)
        self._needs_error |= any(source.needs_error for source in mine)
        if all(source.late for source in mine):
            state.stage = stage
        else:
            keep = any(source.true_targets for source in mine)
            gradients = [_scaled(g, self._shared.scale) for g, _ in predicted]
            state.gradients = stage.backward(gradients, keep)
            state.stage = stage if keep else None
            if self._shared.immediate is not None:
                leaves, left = self._shared.immediate.step(name, leaves, state.gradients)
                state.gradients = tuple(left)
        anchors = [anchor for _, anchor, _ in lower]
        if not anchors and not leaves:  # all parameters have stepped already, but x must still require a gradient
            anchors = [hs[0].new_empty(0).requires_grad_()]
        *copies, anchor = Cut.apply(state, len(hs), len(anchors), *(h.detach() for h in hs), *anchors, *leaves)
        edges = [GradientEdge(*_edge(x)) for x in copies]
        self._open[edges[0].node] = state, anchor, edges
        given = list(outputs)
        for i, x in zip(learning, copies, strict=True):
            given[i] = x
        return given

    def close(self, outputs: Iterable[Tensor]) -> None:
        """Check the stage above the last cut, and register a hook for the gradient of the loss in the output."""
        learning = [tensor for tensor in outputs if tensor.requires_grad]
        self._below(learning, "above the last cut")
        if self._needs_error:
            if len(learning) != 1:
                raise ValueError(
                    f"DirectFeedback needs a network with one output that requires a gradient, got {len(learning)}"
                )
            learning[0].register_hook(self._shared.record_error)

    def _below(
        self, tensors: list[Tensor], place: str
    ) -> tuple[list[tuple[CutState, Tensor, list[GradientEdge]]], list[Tensor]]:
        """The open cuts, and the leaves and inputs, at which the graph of the tensors ends."""
        stack: list[tuple[Node | None, int]] = [_edge(tensor) for tensor in tensors]
        cuts: dict[Node, tuple[CutState, Tensor, list[GradientEdge]]] = {}
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
            names = [name for name, parameter in named if parameter is leaf] or ["a tensor outside the network"]
            return ValueError(
                f"A parameter must be used on one side of every cut; {' = '.join(names)} is used "
                f"{self._used[node]} and again {place}"
            )
        return ValueError(
            f"A connection must not skip over a cut; a tensor computed {self._used[node]} is used again {place}, "
            f"through {node.name()} (cut where the branches have met)"
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
    edge = get_gradient_edge(tensor)  # for a leaf, which has no grad_fn
    return edge.node, edge.output_nr


@contextmanager
def _without_hooks(found: list[Tensor]) -> Iterator[None]:
    """Disable tensor hooks: they run when a gradient arrives in ``.grad``, not when it is computed in advance."""
    hooked = [(tensor, tensor._backward_hooks) for tensor in found if tensor._backward_hooks]
    for tensor, _ in hooked:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks

"""Boundaries between the windows of a sequence: the state passes on, and a predicted gradient comes back.

At a boundary with state h the network continues from a copy of h. In backward, ∂L/∂h from the next window is the target
of the synthesizer, and the window before gets factor · δ(h), the prediction. The prediction at the next boundary is
part of that target: δ(h_t) learns ∂(losses of one window)/∂h_t + factor · δ(h_T) ∂h_T/∂h_t (Jaderberg et al., 2017).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linnet.decoupled.engine.hooks import build_source
from linnet.decoupled.engine.owned_optimizer import with_frozen
from linnet.decoupled.sources.synthetic import Prediction, Synthetic, root_mean_square
from linnet.decoupled.synthesizers.linear import LinearSynthesizer


class Auxiliary(Synthetic):
    """The auxiliary task, loss mean of (synthesizer(h / rms(h)) − δ)²: predict the next synthetic gradient from h."""

    def __init__(self) -> None:
        super().__init__(LinearSynthesizer, None, functools.partial(torch.optim.Adam, lr=1e-3))

    def gradient(self, h: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of the loss in the states, and make one step of the synthesizer.

        Args:
            h: the states, (batch, features).
            target: δ, the prediction at the end of the window that begins with h, in units of its size.
        """
        build_source(self, "auxiliary", h, None)
        named = self._named()
        learning = [parameter for parameter in named.values() if parameter.requires_grad]
        with torch.enable_grad():
            state = h.detach().to(self.rms.dtype).requires_grad_()
            size = root_mean_square(state).clamp_min(torch.finfo(state.dtype).tiny)
            loss = (self._call(state / size) - target).square().mean()
            found, *gradients = torch.autograd.grad(loss, [state, *learning])
        if learning:
            self.owned.step(named, with_frozen(named.values(), gradients))
        return found.to(h.dtype)


@dataclass(eq=False, repr=False)
class Boundary:
    """The boundary between two windows.

    Attributes:
        like: the tensors of the state.
        state: the same numbers, (batch, features).
        memory: the prediction of the source, its gradient times the factor.
        target: the gradient in the state, None until backward reaches the boundary.
    """

    like: Sequence[Tensor]
    state: Tensor
    memory: Prediction
    target: Tensor | None = None


class Boundaries:
    """The boundaries of one forward through a sequence, in order.

    Args:
        source: predicts the gradient in a state.
        factor: factor of the prediction.
        axis: axis of the samples in the tensors of the state.
        auxiliary: the auxiliary task and its weight in the loss; None without a task.
        scale: the factor of the loss before backward; None if the loss is not scaled.
    """

    def __init__(
        self,
        source: Synthetic,
        factor: float,
        axis: int,
        auxiliary: tuple[Auxiliary, float] | None,
        scale: float | None,
    ) -> None:
        self._source, self._factor, self._axis, self._auxiliary = source, factor, axis, auxiliary
        self._scale, self._scaled = 1.0 if scale is None else scale, scale is not None
        self._all: list[Boundary] = []
        self._learned = False

    def cross(self, state: list[Tensor], context: Tensor | None) -> list[Tensor]:
        """The state at the end of a window, or before the first -> the initial state of the next window."""
        return list(Cross.apply(self, self._add(state, context), *state))

    def end(self, output: Tensor, state: list[Tensor], context: Tensor | None) -> Tensor:
        """Make backward from the output of the last window bring the predicted gradient to the last state."""
        last: Tensor = End.apply(self, self._add(state, context), output, *state)
        return last

    def _add(self, state: Sequence[Tensor], context: Tensor | None) -> int:
        like = [tensor.detach() for tensor in state]  # its graph holds nodes that hold this object: no cycle
        h = flat(like, self._axis)
        memory = build_source(self._source, "state", h, None).predict(h, context)[1]
        memory = replace(memory, gradient=memory.gradient * self._factor)
        self._all.append(Boundary(like, h, memory))
        return len(self._all) - 1

    def backward(self, number: int, arrived: Sequence[Tensor | None]) -> list[Tensor]:
        """In backward: the gradient in the state after a boundary -> the gradient in the state before it."""
        here = None if self._learned else self._all[number]
        if here is None or here.target is not None:
            raise RuntimeError(
                "One forward of TruncatedBPTT allows at most one backward, since the synthetic gradient stands for the "
                "whole loss; a second one reached a boundary (add the losses, then call backward once)"
            )
        whole = [torch.zeros_like(t) if g is None else g for t, g in zip(here.like, arrived, strict=True)]
        here.target = flat(whole, self._axis) / self._scale
        gradient = self._source.respond(here.memory, here.target, None) if self._source.late else here.memory.gradient
        if self._auxiliary is not None:
            task, weight = self._auxiliary
            ahead = self._all[number + 1].memory.output if number + 1 < len(self._all) else torch.zeros_like(here.state)
            gradient = gradient + weight * task.gradient(here.state, ahead.detach())
        if number == 0:
            self._learn()
            self._learned = True
            self._all.clear()  # a user may keep the loss, and with it this object
        return self._as_state(gradient, here.like)

    def last_gradient(self, number: int) -> list[Tensor]:
        """In backward: the predicted gradient in the last state."""
        here = self._all[number]
        late = self._source.late
        gradient = self._source.respond(here.memory, None, None) if late else here.memory.gradient
        return self._as_state(gradient, here.like)

    def _learn(self) -> None:
        """Make one step of the source from all boundaries of the sequence."""
        reached = [(b.memory, b.target) for b in self._all if b.target is not None]
        with torch.enable_grad():
            output = torch.stack([memory.output for memory, _ in reached], 1)  # (batch, boundaries, features)
        state = torch.stack([memory.state for memory, _ in reached], 1)
        gradient = torch.stack([memory.gradient for memory, _ in reached], 1)
        stacked = Prediction(state, output, gradient, reached[0][0].versions)
        try:
            self._source.learn(stacked, torch.stack([target for _, target in reached], 1))
        except FloatingPointError:
            if not self._scaled:  # otherwise the loss scale was too large, and the GradScaler skips this step too
                raise ValueError(
                    "The gradient in a state between windows must be finite, got NaN or infinity "
                    "(with a GradScaler, pass it to TruncatedBPTT as scaler=)"
                ) from None

    def _as_state(self, gradient: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        parts, found = (gradient * self._scale).split([t.numel() // gradient.shape[0] for t in like], 1), []
        for part, tensor in zip(parts, like, strict=True):
            samples_first = tensor.movedim(self._axis, 0)  # (batch, *)
            found.append(part.reshape(samples_first.shape).movedim(0, self._axis).to(tensor.dtype))
        return found


class Cross(torch.autograd.Function):
    """state -> state; backward takes the arriving gradient as the target and returns the predicted gradient."""

    @staticmethod
    def forward(ctx: Any, boundaries: Boundaries, number: int, *state: Tensor) -> tuple[Tensor, ...]:
        ctx.boundaries, ctx.number = boundaries, number
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.boundaries.backward(ctx.number, arrived))


class End(torch.autograd.Function):
    """(output, state) -> output; backward returns the predicted gradient of the state."""

    @staticmethod
    def forward(ctx: Any, boundaries: Boundaries, number: int, output: Tensor, *state: Tensor) -> Tensor:
        ctx.boundaries, ctx.number = boundaries, number
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, gradient, *ctx.boundaries.last_gradient(ctx.number))


def flat(state: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors of a state -> (batch, features): all numbers of a sample in one row."""
    rows = [tensor.movedim(axis, 0) for tensor in state]
    return torch.cat([row.reshape(row.shape[0], -1) for row in rows], 1)

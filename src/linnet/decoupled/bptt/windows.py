"""Between two windows of a sequence: the state goes on, a predicted gradient comes back, and the true one teaches."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linnet.decoupled.engine.owned_optimizer import with_frozen
from linnet.decoupled.engine.visiting import ready
from linnet.decoupled.sources.synthetic import Prediction, Synthetic, root_mean_square
from linnet.decoupled.synthesizers.linear import LinearSynthesizer

__all__ = ["Auxiliary", "Boundaries", "flat"]


class Auxiliary(Synthetic):
    """mean of (synthesizer(h / rms(h)) − δ)²: how well a state foretells the synthetic gradient of the next one."""

    def __init__(self) -> None:
        super().__init__(LinearSynthesizer, None, functools.partial(torch.optim.Adam, lr=1e-3))

    def gradient(self, h: Tensor, target: Tensor) -> Tensor:
        """The gradient of this loss in the states, after which the synthesizer makes one step.

        Args:
            h: the states, (batch, features).
            target: δ, the prediction at the end of the window that begins with h, in units of its size.
        """
        ready(self, "auxiliary", h, None)
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
    """One place between two windows.

    Attributes:
        like: the tensors of the state.
        state: the same, (batch, features).
        memory: what the source predicts there, its gradient times the factor.
        target: the gradient in the state, once backward has brought it.
    """

    like: Sequence[Tensor]
    state: Tensor
    memory: Prediction
    target: Tensor | None = None


class Boundaries:
    """The boundaries of one forward through a sequence, in their order.

    Args:
        source: predicts the gradient in a state.
        factor: of what it predicts.
        axis: of the samples in the tensors of the state.
        auxiliary: the auxiliary task, if there is one, and its weight in the loss.
        scale: by how much the loss will be multiplied before backward; None: by nothing.
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
        """The state at the end of a window, or before the first -> the state with which the next begins."""
        return list(Cross.apply(self, self._add(state, context), *state))

    def end(self, output: Tensor, state: list[Tensor], context: Tensor | None) -> Tensor:
        """Let backward from the output of the last window bring the predicted gradient to its last state."""
        last: Tensor = End.apply(self, self._add(state, context), output, *state)
        return last

    def _add(self, state: Sequence[Tensor], context: Tensor | None) -> int:
        like = [tensor.detach() for tensor in state]  # with its graph it would hold the nodes that hold this object
        h = flat(like, self._axis)
        memory = ready(self._source, "state", h, None).predict(h, context)[1]
        memory = replace(memory, gradient=memory.gradient * self._factor)
        self._all.append(Boundary(like, h, memory))
        return len(self._all) - 1

    def settle(self, number: int, arrived: Sequence[Tensor | None]) -> list[Tensor]:
        """In backward: the gradient in the state behind a boundary -> that in the state before it."""
        here = None if self._learned else self._all[number]
        if here is None or here.target is not None:
            raise RuntimeError(
                "One forward through windows must be followed by at most one backward, for a synthetic gradient stands "
                "for the whole loss, got a second one has reached a boundary (add the losses up)"
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
            self._all.clear()  # the loss may live for long
        return self._as_state(gradient, here.like)

    def tail(self, number: int) -> list[Tensor]:
        """In backward: the predicted gradient in the last state."""
        here = self._all[number]
        late = self._source.late
        gradient = self._source.respond(here.memory, None, None) if late else here.memory.gradient
        return self._as_state(gradient, here.like)

    def _learn(self) -> None:
        """One step of the source from all boundaries of the sequence."""
        reached = [(b.memory, b.target) for b in self._all if b.target is not None]
        with torch.enable_grad():
            output = torch.stack([memory.output for memory, _ in reached], 1)  # (batch, boundaries, features)
        state = torch.stack([memory.state for memory, _ in reached], 1)
        gradient = torch.stack([memory.gradient for memory, _ in reached], 1)
        stacked = Prediction(state, output, gradient, reached[0][0].versions)
        try:
            self._source.learn(stacked, torch.stack([target for _, target in reached], 1))
        except FloatingPointError:
            if not self._scaled:  # else the loss scale was too large, the optimizer will skip this step too
                raise ValueError(
                    "The gradient in a state must be finite, got one between windows holds NaN or infinity "
                    "(with a GradScaler, give TruncatedBPTT scaler=)"
                ) from None

    def _as_state(self, gradient: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        parts, found = (gradient * self._scale).split([t.numel() // gradient.shape[0] for t in like], 1), []
        for part, tensor in zip(parts, like, strict=True):
            moved = tensor.movedim(self._axis, 0)  # (batch, *)
            found.append(part.reshape(moved.shape).movedim(0, self._axis).to(tensor.dtype))
        return found


class Cross(torch.autograd.Function):
    """state -> the same; backward: what arrives is the target at the boundary, what goes on is its prediction."""

    @staticmethod
    def forward(ctx: Any, boundaries: Boundaries, number: int, *state: Tensor) -> tuple[Tensor, ...]:
        ctx.boundaries, ctx.number = boundaries, number
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.boundaries.settle(ctx.number, arrived))


class End(torch.autograd.Function):
    """(output, state) -> output; backward: the state gets its predicted gradient."""

    @staticmethod
    def forward(ctx: Any, boundaries: Boundaries, number: int, output: Tensor, *state: Tensor) -> Tensor:
        ctx.boundaries, ctx.number = boundaries, number
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, gradient, *ctx.boundaries.tail(ctx.number))


def flat(state: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors of a state -> (batch, features): all numbers of a sample in a row."""
    rows = [tensor.movedim(axis, 0) for tensor in state]
    return torch.cat([row.reshape(row.shape[0], -1) for row in rows], 1)

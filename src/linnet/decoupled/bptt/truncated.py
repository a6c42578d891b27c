"""TruncatedBPTT: backpropagation through time over short windows, with a synthetic gradient for later windows."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from linnet.core.checks import check_number, check_positive
from linnet.decoupled.base import Decoupled
from linnet.decoupled.bptt.windows import Auxiliary, Boundaries
from linnet.decoupled.engine.forward_pass import replaced, tensors
from linnet.decoupled.engine.hooks import on_device_of
from linnet.decoupled.sources.synthetic import Synthetic
from linnet.modules.recurrent import RNN, RNNCell

Context = Tensor | Callable[[int], Tensor]


class TruncatedBPTT(Decoupled):
    """∂L/∂h_t ≈ ∂(losses of the window)/∂h_t + factor · δ(h_T) ∂h_T/∂h_t, with h_T the state at the end of the window.

    A recurrent network reads a sequence in windows of ``window`` steps. The state passes from window to window, the
    gradient does not: a synthesizer predicts it from the state (and the context). The synthesizer learns from the
    gradient of the next window's losses in this state, which includes the prediction at the end of that window, so that
    it learns about losses beyond the next window. After the end of a sequence the gradient is 0. Without ``gradient=``
    this is ordinary truncated backpropagation through time. The training loop is the ordinary one, with one optimizer
    step for each sequence::

        net = TruncatedBPTT(nn.LSTM(8, 64), window=3, gradient=Synthetic())
        for input, target in data:  # (length, batch, 8)
            opt.zero_grad()
            output, state = net(input)
            criterion(head(output), target).backward()
            opt.step()

    or with one step for each window, which needs the memory of one window only, and suits endless sequences::

        state = None
        for i, (input, target) in enumerate(pieces):
            opt.zero_grad()
            output, state = net(input, state, more=i + 1 < len(pieces))
            criterion(head(output), target).backward()
            opt.step()

    Args:
        network: a cell (of torch or :class:`linnet.RNNCell`), :class:`torch.nn.LSTM`, ``GRU``, ``RNN``,
            :class:`linnet.RNN`, or any module called as ``(input, state)``, or ``(input)`` at the start, that returns
            ``(output, state)``; the state may be nested tuples, lists and dicts of tensors.
        window: number of steps of a window.
        gradient: :class:`Synthetic` (...), which is deep-copied; None ignores the gradient of later windows.
        factor: factor of the synthetic gradient, from 0.1, the paper's, to 1; 0 is truncated backpropagation through
            time.
        auxiliary: weight in the loss of an auxiliary task: to predict, linearly from the state at a boundary, the
            synthetic gradient at the next boundary of the same call, 0 after the last one. Its loss is the mean squared
            error in units of the size of the targets. 0 disables the task.
        batch_first: whether input and output are (batch, length, *). None takes ``batch_first`` of the network, or
            False.
        state_axis: the axis of the samples in each tensor of the state. None is 1 for recurrent networks of torch and
            linnet, (layers, batch, hidden), and 0 for any other module.
        scaler: the ``GradScaler`` of the training loop, if it uses one.

    Shape:
        - input: (length, batch, *), or (batch, length, *)
        - state: the state of the network; None lets the network choose its initial state
        - output: (length, batch, *), or (batch, length, *); for a cell its new states, for an LSTM cell the h
        - last state: the state of the network

    Raises:
        TypeError: an argument is of the wrong type; the network does not return ``(output, state)``.
        ValueError: an argument is out of range. In a training forward: the context is missing, or the state does not
            have the samples along ``state_axis``. In backward: a gradient is not finite and there is no scaler.
        RuntimeError: a second backward through the same forward.

    Note:
        * **Calls.** A call is a sequence from ``state`` to its end. With ``more=True`` the sequence continues in the
          next call: the last state also has a synthetic gradient, which backward from the output of the last window
          brings, and the returned state is detached. A window without a loss can still learn from later windows:
          ``(0 * output.sum()).backward()``. A given state that requires no gradient counts as a boundary too. A given
          state that requires a gradient, such as that of an encoder, gets it as from the network alone.
        * **Context.** ``with net.context(labels):`` conditions the synthesizer, if it takes a context; a function of t
          returns the context of the boundary after t steps of the call.
        * **Mix.** ``Synthetic(mix=λ)`` mixes in the gradient from later windows, as in :class:`DNI`; λ = 1 is full
          backpropagation, which also trains the synthesizer.
        * **Learning.** The synthesizer makes one step for each backward, from all boundaries of the call at once. The
          states change more slowly than those of a feed-forward network: a linear synthesizer with
          ``optim=functools.partial(torch.optim.Adam, lr=3e-3)`` is a good start. The synthesizer can only predict from
          the state and the context. A network that does not remember yet gets no gradient towards remembering, unless a
          curriculum or the context helps; see examples/long_sequences.md.
        * In eval mode, or without gradients, the network runs alone, over the whole sequence. torch.compile excludes
          the training forward; the network inside may be compiled.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net, head = TruncatedBPTT(nn.GRU(1, 16), window=2, gradient=Synthetic()), nn.Linear(16, 1)
        >>> opt = torch.optim.Adam([*net.network.parameters(), *head.parameters()], lr=0.01)
        >>> for step in range(200):  # to recall the first of six numbers at the end
        ...     opt.zero_grad()
        ...     input = torch.rand(6, 32, 1)
        ...     output, state = net(input)
        ...     loss = (head(output[-1]) - input[0]).square().mean()
        ...     loss.backward()
        ...     opt.step()
        >>> output.shape, state.shape
        (torch.Size([6, 32, 16]), torch.Size([1, 32, 16]))

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    def __init__(
        self,
        network: nn.Module,
        window: int,
        gradient: Synthetic | None = None,
        *,
        factor: float = 0.3,
        auxiliary: float = 0.0,
        batch_first: bool | None = None,
        state_axis: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__(network, None)
        (self.window,) = check_positive(window=window)
        if gradient is not None and not isinstance(gradient, Synthetic):
            raise TypeError(f"gradient must be Synthetic(...) or None, got {type(gradient).__name__}")
        if gradient is not None and gradient.true_targets:
            raise ValueError("gradient must have targets='bootstrapped', got Synthetic(targets='true')")
        check_number(0, factor=factor, auxiliary=auxiliary)
        if auxiliary and gradient is None:
            raise ValueError("auxiliary= predicts synthetic gradients and needs gradient=Synthetic(...), got None")
        self.factor, self.auxiliary, self.scaler = float(factor), float(auxiliary), scaler
        self._stepwise = isinstance(network, nn.RNNCellBase | RNNCell)
        self.batch_first = bool(getattr(network, "batch_first", False)) if batch_first is None else batch_first
        self.state_axis = int(isinstance(network, nn.RNNBase | RNN)) if state_axis is None else state_axis
        if gradient is not None:
            self.cuts["state"] = on_device_of(copy.deepcopy(gradient), network)
        if auxiliary:
            self.cuts["auxiliary"] = on_device_of(Auxiliary(), network)
        self._context_at: Callable[[int], Tensor] | None = None

    @contextmanager
    def context(self, context: Context) -> Iterator[None]:
        """Condition the synthesizer for forwards inside this context.

        Args:
            context: integer labels, (batch); or floats, (batch, features); or a function from t to one of these, for
                the boundary after t steps of the call.

        Raises:
            TypeError: context is neither a tensor nor a function.
            ValueError: the source takes no context.
        """
        at = context if callable(context) else lambda t: context
        with super().context(at(0)):
            before, self._context_at = self._context_at, at
            try:
                yield
            finally:
                self._context_at = before

    def diagnostics(self) -> dict[str, Tensor]:
        """The quality of the synthesizer's last predictions, measured before it learned from their targets.

        Returns:
            the scalars ``cosine/state``, of prediction and target; ``norm_ratio/state``, norm of the prediction / norm
            of the target; ``loss/state``, the mean squared error in units of the size of the targets.
        """
        source = self._source()
        if source is None or not float(source.seen) > 0:
            return {}
        return {f"{name}/state": value for name, value in source.measured().items()}

    def extra_repr(self) -> str:
        return f"window={self.window}, factor={self.factor}, auxiliary={self.auxiliary}"

    # ------------------------------------------------------------------ one forward

    def forward(self, input: Tensor, state: Any = None, *, more: bool = False) -> tuple[Tensor, Any]:
        if not isinstance(input, Tensor):
            raise TypeError(f"The input must be a tensor, got {type(input).__name__}")
        known = self._stepwise or isinstance(self.network, nn.RNNBase | RNN)
        if input.dim() < (3 if known else 2) or 0 in input.shape[:2]:
            axes = "(batch, length, *)" if self.batch_first else "(length, batch, *)"
            raise ValueError(
                f"The input must have shape {axes} with at least one step and one sample, got {tuple(input.shape)}"
            )
        if not (self.training and torch.is_grad_enabled()):
            return self._run(input, state)
        return self._training_forward((input, state), {"more": more})

    def _training_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
        (input, state), more = args, kwargs["more"]
        boundaries, time, outputs = self._boundaries(), int(self.batch_first), []
        pieces = input.split(self.window, time)
        if state is not None and not any(tensor.requires_grad for tensor in tensors(state)):
            state = replaced(state, iter([_as_leaf(tensor) for tensor in tensors(state)]))
            state = self._cross(boundaries, state, 0, input)
        for i, piece in enumerate(pieces):
            output, state = self._run(piece, state)
            outputs.append(output)
            if i + 1 < len(pieces):
                state = self._cross(boundaries, state, (i + 1) * self.window, input)
        if more:
            if boundaries is not None and (differentiable := self._differentiable_state(state, input)):
                outputs[-1] = boundaries.end(outputs[-1], differentiable, self._context_of(input.shape[time]))
            state = replaced(state, iter([tensor.detach() for tensor in tensors(state)]))
        return torch.cat(outputs, time), state

    def _cross(self, boundaries: Boundaries | None, state: Any, t: int, input: Tensor) -> Any:
        """The state after a boundary: without its graph, with the gradient that the synthesizer predicts."""
        given = list(tensors(state))
        if boundaries is None:
            return replaced(state, iter([tensor.detach() for tensor in given]))
        differentiable = self._differentiable_state(state, input)
        new = iter(boundaries.cross(differentiable, self._context_of(t)) if differentiable else [])
        return replaced(
            state, iter([next(new) if differentiable and _is_differentiable(tensor) else tensor for tensor in given])
        )

    def _differentiable_state(self, state: Any, input: Tensor) -> list[Tensor]:
        """The floating tensors of a state, checked for their axis of samples; none if no tensor requires a gradient."""
        differentiable = [tensor for tensor in tensors(state) if _is_differentiable(tensor)]
        if not any(tensor.requires_grad for tensor in differentiable):
            return []
        batch, axis = input.shape[1 - int(self.batch_first)], self.state_axis
        for tensor in differentiable:
            if not (-tensor.dim() <= axis < tensor.dim() and tensor.shape[axis] == batch):
                raise ValueError(
                    f"The state must have the {batch} samples of the batch along axis {axis}, got shape "
                    f"{tuple(tensor.shape)}; set state_axis="
                )
        return differentiable

    def _run(self, input: Tensor, state: Any) -> tuple[Tensor, Any]:
        if not self._stepwise:
            found = self.network(input) if state is None else self.network(input, state)
            if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)):
                raise TypeError(f"The network must return (output, state), got {type(found).__name__}")
            return found
        outputs = []
        for x in input.unbind(int(self.batch_first)):
            state = self.network(x, state)
            outputs.append(next(tensors(state)))
        return torch.stack(outputs, int(self.batch_first)), state

    def _context_of(self, t: int) -> Tensor | None:
        return None if self._context_at is None else self._context_at(t)

    # ------------------------------------------------------------------ the source of the gradients

    def _source(self) -> Synthetic | None:
        return cast(Synthetic, self.cuts["state"]) if "state" in self.cuts else None

    def _boundaries(self) -> Boundaries | None:
        source = self._source()
        if source is None:
            return None
        task = cast(Auxiliary, self.cuts["auxiliary"]) if "auxiliary" in self.cuts else None
        scale = None if self.scaler is None else float(self.scaler.get_scale())
        auxiliary = None if task is None else (task, self.auxiliary)
        return Boundaries(source, self.factor, self.state_axis, auxiliary, scale)


def _is_differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() > 0


def _as_leaf(tensor: Tensor) -> Tensor:
    """A leaf that requires a gradient, if the tensor is differentiable."""
    return tensor.detach().requires_grad_() if _is_differentiable(tensor) else tensor

"""Where the gradient at a cut comes from: here, from a synthesizer that learns to predict it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.synthesizers import Synthesizer

__all__ = ["Prediction", "Synthetic", "batch_size", "root_mean_square"]

DECAY = 0.9
"""How much of the running size of the targets each step keeps."""


def batch_size(h: Tensor) -> int:
    """How many samples: the length of the first axis; a vector is one sample."""
    return max(h.shape[0], 1) if h.dim() > 1 else 1


def root_mean_square(x: Tensor) -> Tensor:
    """√(mean of x²), a scalar."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(x.numel(), 1))


@dataclass
class Prediction:
    """What a source remembers from forward, to learn from the target when it comes."""

    state: Tensor  # (batch, *, features): the activations in units of their size
    output: Tensor  # (batch, *, features): what the synthesizer made of them, with its graph
    versions: list[int]  # of the parameters with which it did


class Synthetic(nn.Module):
    """g = rms · synthesizer(h / rms(h)) / batch: activations h -> predicted gradient of a mean loss in them.

    ``rms`` is the running size of the gradients of one sample. Gradients of a mean loss are of size 1/batch and shrink
    by orders of magnitude while the loss falls; in units of their own size they are a regression task of scale 1
    from the first step to the last. The same holds for the activations that the synthesizer reads.

    The synthesizer is built by :meth:`size`, at first use or from a state_dict, and computes in at least float32. Its
    optimizer belongs to this module: the state is in ``state_dict`` as tensors named
    ``optimizer.<parameter>.<key>``, moves with ``.to()``, and the gradients never stay in ``.grad``.

    Args:
        synthesizer: class or factory, called as ``synthesizer(features, hidden_size, features)``.
        hidden_size: handed to it.
        optim: class or factory of the synthesizer's own optimizer, called with a list of parameters.

    Raises:
        TypeError: what they make is not a :class:`Synthesizer` or not an optimizer.
    """

    synthesizer: Synthesizer | None
    rms: Tensor
    seen: Tensor
    features: Tensor

    def __init__(
        self,
        synthesizer: Callable[[int, int | None, int], Synthesizer],
        hidden_size: int | None,
        optim: Callable[[Iterable[nn.Parameter]], Optimizer],
    ) -> None:
        super().__init__()
        self._make, self._hidden_size, self._make_optimizer = synthesizer, hidden_size, optim
        self.register_module("synthesizer", None)
        self.optimizer: Optimizer | None = None
        self._stale = False  # whether the optimizer has to be bound again to parameters that were moved or replaced
        self.register_buffer("rms", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))  # sum of the weights in the running mean, 1 in the end
        self.register_buffer("features", torch.zeros((), dtype=torch.int64))  # 0: not sized yet

    def size(self, features: int, device: torch.device, dtype: torch.dtype) -> Synthesizer:
        """Build the synthesizer for this many features; torch's random state is left as it was."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            synthesizer = self._make(features, self._hidden_size, features)
        if not isinstance(synthesizer, Synthesizer):
            raise TypeError(f"synthesizer must make a Synthesizer, however: {type(synthesizer).__name__}")
        self.synthesizer = synthesizer
        self.features.fill_(features)
        self.to(device, torch.promote_types(dtype, torch.float32))
        self._bound_optimizer(synthesizer)
        return synthesizer

    # ------------------------------------------------------------------ predict in forward, learn in backward

    def predict(self, h: Tensor) -> tuple[Tensor, Prediction]:
        """Activations -> the predicted gradient of the whole loss in them, and what :meth:`learn` will need."""
        synthesizer = self.synthesizer
        if synthesizer is None:
            synthesizer = self.size(h.shape[-1], h.device, h.dtype)
        if h.shape[-1] != synthesizer.input_size:
            raise ValueError(
                f"A synthesizer for {synthesizer.input_size} features needs activations (batch, *, "
                f"{synthesizer.input_size}), however: {tuple(h.shape)}"
            )
        state = h.detach().to(self.rms.dtype)
        state = state / root_mean_square(state).clamp_min(torch.finfo(state.dtype).tiny)
        output = _call(synthesizer, state)
        gradient = output.detach() * (self.rms / batch_size(h))
        return gradient.to(h.dtype), Prediction(state, output, _versions(synthesizer))

    def learn(self, prediction: Prediction, target: Tensor) -> None:
        """One step of the synthesizer towards the gradient that has arrived; none if that is 0 or not finite."""
        if self.synthesizer is None:
            raise RuntimeError("A source must predict before it learns, however: it has not been sized")
        target = target.detach().to(self.rms.dtype) * batch_size(target)
        size = root_mean_square(target)
        if not 0 < float(size) < math.inf:
            return
        self.seen.lerp_(torch.ones_like(self.seen), 1 - DECAY)
        self.rms.lerp_(size, (1 - DECAY) / self.seen)
        if prediction.versions == _versions(self.synthesizer):
            output = prediction.output
        else:  # it has been trained since, by another forward: predict again
            output = _call(self.synthesizer, prediction.state)
        if output.requires_grad:
            with torch.enable_grad():
                loss = (output - target / self.rms).square().mean()
            self._step(self.synthesizer, loss)

    def _step(self, synthesizer: Synthesizer, loss: Tensor) -> None:
        parameters = [p for p in synthesizer.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._bound_optimizer(synthesizer).step()
        for parameter in parameters:
            parameter.grad = None  # so that no other optimizer steps it

    # ------------------------------------------------------------------ the optimizer's state is tensors of this module

    def _bound_optimizer(self, synthesizer: Synthesizer) -> Optimizer:
        """The optimizer of the parameters as they are now, its state on their device and in their dtype."""
        if self.optimizer is None or self._stale:
            fresh = self._make_optimizer(list(synthesizer.parameters()))
            if not isinstance(fresh, Optimizer):
                raise TypeError(f"synthesizer_optim must make an Optimizer, however: {type(fresh).__name__}")
            if self.optimizer is not None:
                state = self.optimizer.state_dict()
                fresh.load_state_dict(state)
                for index, parameter in enumerate(_parameters(fresh)):
                    for key, value in state["state"].get(index, {}).items():
                        if isinstance(value, Tensor) and value.dim() == 0:  # a counter keeps its dtype
                            fresh.state[parameter][key] = fresh.state[parameter][key].to(value.dtype)
            self.optimizer, self._stale = fresh, False
        return self.optimizer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Synthetic":
        super()._apply(lambda tensor: _at_least_float32(fn(tensor)), recurse)
        self._stale = True
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.synthesizer is None:
            return
        optimizer = self._bound_optimizer(self.synthesizer)
        for name, parameter in self.synthesizer.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor):
                    raise TypeError(
                        f"The state of synthesizer_optim must be tensors, however: {key!r} is a {type(value).__name__}"
                    )
                destination[f"{prefix}optimizer.{name}.{key}"] = value if keep_vars else value.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        features = int(state_dict.get(prefix + "features", 0))
        if self.synthesizer is None and features:
            self.size(features, self.rms.device, state_dict[prefix + "rms"].dtype)
        if self.synthesizer is not None:
            optimizer, own = self._bound_optimizer(self.synthesizer), prefix + "optimizer."
            optimizer.state.clear()
            named = dict(self.synthesizer.named_parameters())
            for entry in [entry for entry in state_dict if entry.startswith(own)]:
                name, _, key = entry[len(own) :].rpartition(".")
                if name in named:  # else it stays, and is reported as unexpected
                    optimizer.state[named[name]][key] = state_dict.pop(entry).detach().clone()
            self._stale = True  # what follows may replace the parameters; the state is moved to them at the next use
        super()._load_from_state_dict(state_dict, prefix, *args)


def _call(synthesizer: Synthesizer, state: Tensor) -> Tensor:
    with torch.enable_grad(), torch.autocast(state.device.type, enabled=False):
        output, _ = synthesizer(state, None)
    if not isinstance(output, Tensor) or output.shape != state.shape:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"A synthesizer must return (gradient, hidden) with a gradient of shape {tuple(state.shape)}, as its "
            f"input, however: {found}"
        )
    return output


def _versions(synthesizer: Synthesizer) -> list[int]:
    return [parameter._version for parameter in synthesizer.parameters()]


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor

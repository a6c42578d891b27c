"""Synthetic gradients: a synthesizer that learns to predict the gradient at a cut from the activations there."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from linnet.core.checks import check_positive
from linnet.decoupled.engine.context import attach
from linnet.decoupled.engine.data_parallel import averaged, shared
from linnet.decoupled.engine.owned_optimizer import OptimizerFactory, OwnedOptimizer, Owner, with_frozen
from linnet.decoupled.sources.source import Source, batch_size, without_autocast
from linnet.decoupled.synthesizers.linear import LinearSynthesizer
from linnet.decoupled.synthesizers.synthesizer import FittedSynthesizer, Synthesizer

__all__ = ["Prediction", "Synthetic", "follow", "root_mean_square"]


def adam(parameters: Iterable[torch.nn.Parameter], lr: float = 0.1) -> Optimizer:
    """Adam, the optimizer of a linear synthesizer: a large step, for the network that it follows changes all the time.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> adam(layer.parameters()).param_groups[0]["lr"]
        0.1
    """
    parameters = list(parameters)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=fused)


DECAY = 0.9
"""How much of the running size of the targets each step keeps."""


def moved(x: Tensor, axis: int, to: int) -> Tensor:
    """``x.movedim(axis, to)``; mostly they are the same."""
    return x if axis == to else x.movedim(axis, to)


def root_mean_square(x: Tensor) -> Tensor:
    """√(mean of x²), a scalar."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(x.numel(), 1))


def follow(rms: Tensor, seen: Tensor, size: Tensor) -> bool:
    """Move the running size of the targets towards this one, in place; False if it is 0, which tells nothing.

    Args:
        rms: the running root mean square.
        seen: the sum of the weights in it, 1 in the end.
        size: the root mean square of a target.

    Raises:
        FloatingPointError: the size is not finite.
    """
    if not math.isfinite(length := float(size)):
        raise FloatingPointError("a target is not finite")
    if length > 0:
        weight = DECAY * float(seen) + 1 - DECAY
        seen.fill_(weight)
        rms.lerp_(size, (1 - DECAY) / weight)
    return length > 0


@dataclass
class Prediction:
    """What a source remembers from forward, to learn from the target when it comes."""

    state: Tensor  # (batch, *, features + context): the activations in units of their size
    output: Tensor  # (batch, *, features): what the synthesizer made of them, with its graph
    gradient: Tensor  # (batch, *, features): the prediction, in the units of the loss
    versions: list[int]  # of the parameters with which it did, and how often it had learned


class Synthetic(Owner, Source):
    """g = rms · synthesizer([h / rms(h), context] − mean) / batch: activations h -> predicted gradient of a mean loss.

    ``rms`` is the running size of the gradients of one sample. Gradients of a mean loss are of size 1/batch and shrink
    by orders of magnitude while the loss falls; in units of their own size they are a regression task of scale 1
    from the first step to the last. The same holds for the activations that the synthesizer reads; they come less
    their running ``mean``, without which activations that are all positive make the task a badly conditioned one.

    The synthesizer is built by :meth:`size`, at first use or from a state_dict, and computes in at least float32. Its
    optimizer belongs to this module: the state is in ``state_dict`` as tensors named
    ``optimizer.<parameter>.<key>``, moves with ``.to()``, and the gradients never stay in ``.grad``.

    Args:
        synthesizer: class or factory, called as ``synthesizer(features + context, hidden_size, features)``.
        hidden_size: handed to it.
        optim: class or factory of the synthesizer's own optimizer, called with a list of parameters; its state must
            be tensors.
        context: number of classes, or of context features: the synthesizer is conditioned on what
            ``with net.context(labels):`` gives (cDNI). None: it sees the activations alone.
        mix: λ in [0, 1]: the stage below gets (1 − λ) g + λ · the gradient from above. With λ > 0 it has to wait for
            backward; λ = 1 is backpropagation that trains the synthesizers beside it, to observe or to warm them up.
            It may be changed between steps.
        targets: ``"bootstrapped"``: the synthesizer learns from the gradient that the stage above got, at the next
            cut a synthetic one; ``"true"``: from that of the loss, for which all graphs are kept until backward.

    Raises:
        TypeError: what they make is not a :class:`Synthesizer` or not an optimizer.
        ValueError: an option is out of range.

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    inner = "synthesizer"
    synthesizer: Synthesizer | None
    rms: Tensor
    seen: Tensor
    features: Tensor
    mean: Tensor
    quality: Tensor

    def __init__(
        self,
        synthesizer: Callable[[int, int | None, int], Synthesizer] = LinearSynthesizer,
        hidden_size: int | None = None,
        optim: OptimizerFactory = adam,
        *,
        context: int | None = None,
        mix: float = 0.0,
        targets: str = "bootstrapped",
    ) -> None:
        super().__init__()
        if targets not in ("bootstrapped", "true"):
            raise ValueError(f"targets must be 'bootstrapped' or 'true', got {targets!r}")
        self._make, self._hidden_size = synthesizer, hidden_size
        self._context = None if context is None else check_positive(context=context)[0]
        self.conditioned = context is not None
        self.true_targets = targets == "true"
        self.mix = mix
        self._lessons = 0  # steps since this object was made
        self.register_module("synthesizer", None)
        self.owned = OwnedOptimizer(optim, "the synthesizer's optim")
        self.register_buffer("rms", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))  # sum of the weights in the running mean, 1 in the end
        self.register_buffer("features", torch.zeros((), dtype=torch.int64))  # 0: not sized yet
        self.register_buffer("mean", torch.zeros(0))  # (features + context), of what the synthesizer reads
        self.register_buffer("quality", torch.zeros(3), persistent=False)  # of the last target: see diagnostics

    @property
    def mix(self) -> float:
        """λ, the share of the gradient from above."""
        return self._mix

    @mix.setter
    def mix(self, value: float) -> None:
        if not (isinstance(value, float | int) and 0 <= value <= 1):
            raise ValueError(f"mix must lie in [0, 1], got {value!r}")
        self._mix = float(value)

    @property
    def late(self) -> bool:  # type: ignore[override]
        return self._mix > 0

    @property
    def optimizer(self) -> Optimizer | None:
        """The synthesizer's optimizer, once there is a synthesizer."""
        return self.owned.bound(self._named()) if self.sized and self._named() else None

    def size(self, h: Tensor) -> None:
        self._build(h.shape[self.axis], h.device, h.dtype)

    def _build(self, features: int, device: torch.device, dtype: torch.dtype) -> None:
        with torch.device("cpu"):
            synthesizer = self._make(features + (self._context or 0), self._hidden_size, features)
        if not isinstance(synthesizer, Synthesizer):
            raise TypeError(f"synthesizer must make a Synthesizer, got {type(synthesizer).__name__}")
        self.features.fill_(features)
        self.mean = torch.zeros(features + (self._context or 0))
        self._install(synthesizer, device, dtype)
        if self._named():
            self.owned.bound(self._named())  # refuses now what is no optimizer

    # ------------------------------------------------------------------ predict in forward, learn in backward

    def predict(self, h: Tensor, context: Tensor | None) -> tuple[Tensor | None, Prediction]:
        if not self.sized:
            self.size(h)
        synthesizer = self._synthesizer()
        if h.shape[self.axis] != synthesizer.output_size:
            size = synthesizer.output_size
            shape = f"(batch, *, {size})" if self.axis == -1 else f"(batch, {size}, *)"
            raise ValueError(f"A synthesizer for {size} features needs activations {shape}, got {tuple(h.shape)}")
        if self.axis == -1 and synthesizer.axis == 1:
            raise ValueError(
                f"A {type(synthesizer).__name__} needs images (batch, channels, *), got {tuple(h.shape)} that no "
                "convolution has made"
            )
        state = h.detach().to(self.rms.dtype)
        state = state / self._length(state).clamp_min(torch.finfo(state.dtype).tiny)
        state = moved(state, self.axis, synthesizer.axis)
        if self._context is not None:
            state = attach(state, context, self._context, synthesizer.axis)
        output = self._call(state)
        gradient = (moved(output.detach(), synthesizer.axis, self.axis) * (self.rms / batch_size(h))).to(h.dtype)
        prediction = Prediction(state, output, gradient, self._versions(synthesizer.parameters()))
        return None if self.late else gradient, prediction

    def respond(self, memory: Prediction, target: Tensor | None, error: Tensor | None) -> Tensor:
        if target is None:
            return memory.gradient * (1 - self.mix)
        return target if self.mix == 1 else torch.lerp(memory.gradient, target, self.mix)

    def learn(self, memory: Prediction, target: Tensor | None) -> None:
        """One step of the synthesizer towards the gradient that has arrived; none if that is 0.

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        if target is None:
            return
        synthesizer = self._synthesizer()
        batch = batch_size(target)
        target = target.detach().to(self.rms.dtype)
        size = self._length(target) * batch  # of the gradient of one sample
        if not follow(self.rms, self.seen, size):
            return
        named = self._named()
        if memory.versions == self._versions(named.values()):
            output = memory.output
        else:  # it has been trained since, by another forward: predict again
            output = self._call(memory.state)
        predicted, rms = output.detach(), max(float(self.rms), batch * torch.finfo(target.dtype).tiny)
        target = moved(target, self.axis, synthesizer.axis)
        difference = torch.sub(predicted, target, alpha=batch / rms)  # in units of rms
        self.quality = torch.stack([root_mean_square(difference), root_mean_square(predicted), size / rms])
        if isinstance(synthesizer, FittedSynthesizer):
            moments = synthesizer.moments(self._centred(memory.state), target * (batch / rms))
            synthesizer.fit(cast(list[Tensor], averaged(self, moments)))
        elif output.requires_grad:
            self._descend(output, difference, named)
        else:
            return  # it is frozen: what it reads stays the same too
        centre = moved(memory.state, synthesizer.axis, -1).reshape(-1, len(self.mean)).mean(0)
        (centre,) = cast(list[Tensor], averaged(self, [centre]))
        self.mean.lerp_(centre, (1 - DECAY) / float(self.seen))
        self._lessons += 1

    def _descend(self, output: Tensor, difference: Tensor, named: Mapping[str, torch.nn.Parameter]) -> None:
        """A step of the optimizer down the mean of difference²."""
        learning = [parameter for parameter in named.values() if parameter.requires_grad]
        difference *= 2 / max(difference.numel(), 1)
        found = averaged(self, torch.autograd.grad(output, learning, difference, allow_unused=True))
        self.owned.step(named, with_frozen(named.values(), found))

    def measured(self) -> dict[str, Tensor]:
        """Of the last target: cosine of prediction and target, ratio of their lengths, mean squared error."""
        error, predicted, target = self.quality.unbind()
        dot = (predicted.square() + target.square() - error.square()) / 2
        return {
            "cosine": torch.where(predicted > 0, dot / (predicted * target), 0.0),
            "norm_ratio": predicted / target,
            "loss": error.square(),
        }

    def _call(self, state: Tensor) -> Tensor:
        synthesizer = self._synthesizer()
        with torch.enable_grad(), without_autocast(state.device.type):
            output, _ = synthesizer(self._centred(state), None)
        shape = list(state.shape)
        shape[synthesizer.axis] -= self._context or 0
        if not isinstance(output, Tensor) or list(output.shape) != shape:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"A synthesizer must return (gradient, hidden) with a gradient of shape {tuple(shape)}, as the "
                f"activations, got {found}"
            )
        return output

    def _centred(self, state: Tensor) -> Tensor:
        """What the synthesizer reads: the activations and their context, less the running mean."""
        return state - (self.mean if self._synthesizer().axis == -1 else self.mean.view(-1, *[1] * (state.dim() - 2)))

    def _length(self, x: Tensor) -> Tensor:
        """√(mean of x²), over the batches of all processes if they share this source."""
        length = root_mean_square(x)
        return cast(Tensor, averaged(self, [length.square()])[0]).sqrt() if shared(self) else length

    def _versions(self, parameters: Iterable[torch.nn.Parameter]) -> list[int]:
        """Changes with the parameters; a fused optimizer does not count its steps in their versions."""
        return [self._lessons, *(parameter._version for parameter in parameters)]

    def _synthesizer(self) -> Synthesizer:
        return cast(Synthesizer, self._built())

    def _build_from(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        if features := int(state_dict.get(prefix + "features", 0)):
            self._build(features, self.rms.device, state_dict[prefix + "rms"].dtype)

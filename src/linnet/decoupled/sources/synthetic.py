"""Synthetic: a synthesizer that learns to predict the gradient at a cut from the activations at the cut."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from linnet.core.checks import check_positive
from linnet.decoupled.engine.context import attach
from linnet.decoupled.engine.data_parallel import averaged, is_shared
from linnet.decoupled.engine.owned_optimizer import OptimizerFactory, OwnedOptimizer, Owner, with_frozen
from linnet.decoupled.sources.source import Source, batch_size, without_autocast
from linnet.decoupled.synthesizers.linear import LinearSynthesizer
from linnet.decoupled.synthesizers.synthesizer import FittedSynthesizer, Synthesizer


def adam(parameters: Iterable[torch.nn.Parameter], lr: float = 0.1) -> Optimizer:
    """Adam with a large step, the optimizer of a linear synthesizer, which must follow a network that changes.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> adam(layer.parameters()).param_groups[0]["lr"]
        0.1
    """
    parameters = list(parameters)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=fused)


DECAY = 0.9
"""Weight of the past in the running averages, for each step."""


def move_axis(x: Tensor, axis: int, to: int) -> Tensor:
    """``x.movedim(axis, to)``, without a call where the axes are equal."""
    return x if axis == to else x.movedim(axis, to)


def root_mean_square(x: Tensor) -> Tensor:
    """√(mean of x²), a scalar."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(x.numel(), 1))


def update_running_rms(rms: Tensor, seen: Tensor, size: Tensor) -> bool:
    """Update the running size of the targets in place; return False, without an update, if the size is 0.

    Args:
        rms: the running root mean square.
        seen: the sum of its weights, 1 − DECAYᵗ after t targets.
        size: the root mean square of a target.

    Raises:
        FloatingPointError: the size is not finite.
    """
    if not math.isfinite(length := float(size)):
        raise FloatingPointError("a target must be finite, got NaN or infinity")
    if length > 0:
        # The bias-corrected moving average of Adam, m_t / (1 − dᵗ) with m_t = d m_{t−1} + (1 − d) s_t, as a recursion:
        # r_t = r_{t−1} + (1 − d) / (1 − dᵗ) · (s_t − r_{t−1}).
        weight = DECAY * float(seen) + 1 - DECAY
        seen.fill_(weight)
        rms.lerp_(size, (1 - DECAY) / weight)
    return length > 0


@dataclass
class Prediction:
    """The memory of a source from forward to backward, when the target is known."""

    state: Tensor  # (batch, *, features + context): the activations in units of their size
    output: Tensor  # (batch, *, features): the output of the synthesizer, with its graph
    gradient: Tensor  # (batch, *, features): the prediction, in the units of the loss
    versions: list[int]  # learning steps of the source and versions of the parameters that gave the output


class Synthetic(Owner, Source):
    """g = rms · synthesizer([h / rms(h), context] − mean) / batch: activations h -> predicted gradient of a mean loss.

    ``rms`` is the running size of the gradients of one sample. Gradients of a mean loss are of size 1/batch and shrink
    by orders of magnitude while the loss falls; in units of their own size they are a regression task of scale 1
    during all of training. The same holds for the activations that the synthesizer reads. Their running ``mean`` is
    subtracted, since activations that are all positive make the regression badly conditioned.

    The synthesizer is built by :meth:`size`, at first use or from a state_dict, and computes in at least float32. Its
    optimizer belongs to this module: its state is in ``state_dict`` as tensors named ``optimizer.<parameter>.<key>``
    and moves with ``.to()``; the parameters keep no ``.grad``.

    Args:
        synthesizer: class or factory, called as ``synthesizer(features + context, hidden_size, features)``.
        hidden_size: hidden size of the synthesizer.
        optim: class or factory of the synthesizer's optimizer, called with a list of parameters; its state must be
            tensors.
        context: number of classes, or of context features, for a synthesizer conditioned on the context of
            ``with net.context(labels):`` (cDNI). None reads the activations alone.
        mix: λ in [0, 1]; the stage below gets (1 − λ) g + λ · the gradient from above. With λ > 0 the stage waits for
            backward; λ = 1 is backpropagation that also trains the synthesizers, to observe or warm them up. It may be
            changed between steps.
        targets: ``"bootstrapped"`` learns from the gradient that the stage above got, which at the next cut is
            synthetic; ``"true"`` learns from the gradient of the loss, and keeps all graphs until backward.

    Raises:
        TypeError: a factory does not return a :class:`Synthesizer`, or an optimizer.
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
        self._learning_steps = 0  # since this object was constructed
        self.register_module("synthesizer", None)
        self.owned = OwnedOptimizer(optim, "the synthesizer's optim")
        self.register_buffer("rms", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))  # sum of the weights of the running averages, tends to 1
        self.register_buffer("features", torch.zeros((), dtype=torch.int64))  # 0: not built yet
        self.register_buffer("mean", torch.zeros(0))  # (features + context), running mean of the synthesizer's input
        self.register_buffer("quality", torch.zeros(3), persistent=False)  # of the last target, see measured()

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
        """The synthesizer's optimizer; None before the synthesizer is built."""
        return self.owned.bound(self._named()) if self.sized and self._named() else None

    def size(self, h: Tensor) -> None:
        self._build(h.shape[self.axis], h.device, h.dtype)

    def _build(self, features: int, device: torch.device, dtype: torch.dtype) -> None:
        with torch.device("cpu"):
            synthesizer = self._make(features + (self._context or 0), self._hidden_size, features)
        if not isinstance(synthesizer, Synthesizer):
            raise TypeError(f"synthesizer must return a Synthesizer, got {type(synthesizer).__name__}")
        self.features.fill_(features)
        self.mean = torch.zeros(features + (self._context or 0))
        self._install(synthesizer, device, dtype)
        if self._named():
            self.owned.bound(self._named())  # raises a TypeError now if optim returns no optimizer

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
                f"A {type(synthesizer).__name__} needs images (batch, channels, *) after a convolution, "
                f"got {tuple(h.shape)}"
            )
        state = h.detach().to(self.rms.dtype)
        state = state / self._rms_of(state).clamp_min(torch.finfo(state.dtype).tiny)
        state = move_axis(state, self.axis, synthesizer.axis)
        if self._context is not None:
            state = attach(state, context, self._context, synthesizer.axis)
        output = self._call(state)
        # output is the gradient of one sample's loss in units of rms; a mean loss divides it by the batch size
        gradient = (move_axis(output.detach(), synthesizer.axis, self.axis) * (self.rms / batch_size(h))).to(h.dtype)
        prediction = Prediction(state, output, gradient, self._versions(synthesizer.parameters()))
        return None if self.late else gradient, prediction

    def respond(self, memory: Prediction, target: Tensor | None, error: Tensor | None) -> Tensor:
        if target is None:
            return memory.gradient * (1 - self.mix)
        return target if self.mix == 1 else torch.lerp(memory.gradient, target, self.mix)

    def learn(self, memory: Prediction, target: Tensor | None) -> None:
        """Make one step of the synthesizer towards the target; none if the target is 0.

        Raises:
            FloatingPointError: the target is not finite.
        """
        if target is None:
            return
        synthesizer = self._synthesizer()
        batch = batch_size(target)
        target = target.detach().to(self.rms.dtype)
        size = self._rms_of(target) * batch  # of the gradient of one sample
        if not update_running_rms(self.rms, self.seen, size):
            return
        named = self._named()
        if memory.versions == self._versions(named.values()):
            output = memory.output
        else:  # another backward has trained the synthesizer since this forward: predict again
            output = self._call(memory.state)
        predicted, rms = output.detach(), max(float(self.rms), batch * torch.finfo(target.dtype).tiny)
        target = move_axis(target, self.axis, synthesizer.axis)
        difference = torch.sub(predicted, target, alpha=batch / rms)  # in units of rms
        self.quality = torch.stack([root_mean_square(difference), root_mean_square(predicted), size / rms])
        if isinstance(synthesizer, FittedSynthesizer):
            moments = synthesizer.moments(self._centred(memory.state), target * (batch / rms))
            synthesizer.fit(cast(list[Tensor], averaged(self, moments)))
        elif output.requires_grad:
            self._descend(output, difference, named)
        else:
            return  # the synthesizer is frozen, so that the mean of its input stays fixed too
        centre = move_axis(memory.state, synthesizer.axis, -1).reshape(-1, len(self.mean)).mean(0)
        (centre,) = cast(list[Tensor], averaged(self, [centre]))
        self.mean.lerp_(centre, (1 - DECAY) / float(self.seen))
        self._learning_steps += 1

    def _descend(self, output: Tensor, difference: Tensor, named: Mapping[str, torch.nn.Parameter]) -> None:
        """Make one step of the optimizer on the loss mean(difference²)."""
        learning = [parameter for parameter in named.values() if parameter.requires_grad]
        difference *= 2 / max(difference.numel(), 1)  # ∂ mean(d²) / ∂d = 2 d / n
        found = averaged(self, torch.autograd.grad(output, learning, difference, allow_unused=True))
        self.owned.step(named, with_frozen(named.values(), found))

    def measured(self) -> dict[str, Tensor]:
        """For the last target: cosine of prediction and target, ratio of their norms, mean squared error."""
        error, predicted, target = self.quality.unbind()
        # the norms alone are kept: ⟨p, t⟩ = (‖p‖² + ‖t‖² − ‖p − t‖²) / 2
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
                f"A synthesizer must return (gradient, hidden) with a gradient of shape {tuple(shape)}, the shape of "
                f"the activations, got {found}"
            )
        return output

    def _centred(self, state: Tensor) -> Tensor:
        """The input of the synthesizer: activations and context, minus their running mean."""
        return state - (self.mean if self._synthesizer().axis == -1 else self.mean.view(-1, *[1] * (state.dim() - 2)))

    def _rms_of(self, x: Tensor) -> Tensor:
        """√(mean of x²), over the batches of all processes if they share this source."""
        length = root_mean_square(x)
        return cast(Tensor, averaged(self, [length.square()])[0]).sqrt() if is_shared(self) else length

    def _versions(self, parameters: Iterable[torch.nn.Parameter]) -> list[int]:
        """Numbers that change with the parameters; a fused optimizer does not increase their versions."""
        return [self._learning_steps, *(parameter._version for parameter in parameters)]

    def _synthesizer(self) -> Synthesizer:
        return cast(Synthesizer, self._built())

    def _build_from(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        if features := int(state_dict.get(prefix + "features", 0)):
            self._build(features, self.rms.device, state_dict[prefix + "rms"].dtype)

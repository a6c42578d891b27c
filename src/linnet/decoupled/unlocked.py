"""Unlocked: synthetic inputs and synthetic gradients, so that no stage waits for another in forward or backward."""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.base import Decoupled
from linnet.decoupled.engine.forward_pass import Cut
from linnet.decoupled.engine.hooks import hook_cuts, seeded_for, without_side_effects
from linnet.decoupled.engine.owned_optimizer import OptimizerFactory, OwnedOptimizer, Owner
from linnet.decoupled.engine.places import chain_modules, cuts_by_default, cuts_by_name, image_axes, is_sequential
from linnet.decoupled.sources.source import Source, without_autocast
from linnet.decoupled.sources.synthetic import Synthetic, root_mean_square, update_running_rms
from linnet.decoupled.synthesizers.mlp import MLPSynthesizer
from linnet.decoupled.synthesizers.synthesizer import Synthesizer

ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


class SyntheticInput(Owner):
    """ĥ = rms · model(x): input x of the network -> predicted activations at a cut; rms is their running size.

    Args:
        model: class or factory, called as ``model(features of x, hidden_size, features of h)``.
        hidden_size: hidden size of the model.
        optim: class or factory of the model's optimizer.
    """

    inner = "model"
    model: Synthesizer | None
    rms: Tensor
    seen: Tensor
    shape: Tensor

    def __init__(
        self, model: Callable[[int, int | None, int], Synthesizer], hidden_size: int | None, optim: OptimizerFactory
    ) -> None:
        super().__init__()
        self._make, self._hidden_size = model, hidden_size
        self.register_module("model", None)
        self.register_buffer("rms", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.owned = OwnedOptimizer(optim, "input_optim")
        self.register_buffer("shape", torch.zeros(0, dtype=torch.int64))  # of a sample of x, -1, of a sample of h

    def build(self, x: torch.Size, h: torch.Size, like: Tensor) -> None:
        """Build the model for samples of these shapes."""
        with torch.device("cpu"):
            model = self._make(x.numel(), self._hidden_size, h.numel())
        self.shape = torch.tensor([*x, -1, *h])
        self._install(model, like.device, like.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, *) -> the predicted activations, and the output of the model with its graph."""
        with torch.enable_grad(), without_autocast(x.device.type):
            output, _ = self._built()(x.detach().flatten(1).to(self.rms.dtype), None)
        shape = self.shape.tolist()
        predicted = (output.detach() * self.rms).reshape(-1, *shape[shape.index(-1) + 1 :])
        return predicted.to(x.dtype), output

    def learn(self, output: Tensor, h: Tensor) -> None:
        """Make one step of the model towards the true activations."""
        target = h.detach().flatten(1).to(output.dtype)
        if not update_running_rms(self.rms, self.seen, root_mean_square(target)):
            return
        named = self._named()
        with torch.enable_grad():
            loss = (output - target / self.rms).square().mean()
        self.owned.step(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True))

    def _build_from(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        if sizes := state_dict.get(prefix + "shape", torch.zeros(0)).tolist():
            place = sizes.index(-1)
            like = torch.empty(0, dtype=state_dict[prefix + "rms"].dtype, device=self.shape.device)
            self.build(torch.Size(sizes[:place]), torch.Size(sizes[place + 1 :]), like)


@dataclass(eq=False, repr=False)
class PendingUpdates:
    """One pass from forward to backward: the gradients of the stages that acted, and the data of sources and models."""

    gradients: list[Tensor | None] = field(default_factory=list)
    targets: list[tuple[Source, Any, Tensor | None]] = field(default_factory=list)  # source, memory, target
    inputs: list[tuple[SyntheticInput, Tensor, Tensor]] = field(default_factory=list)  # model, its output, activations
    top: tuple[Source, Any] | None = None  # the source below the top stage: its target is the gradient that arrives

    def backward(self, arrived: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Let sources and input models learn; return the gradients of the stages that acted."""
        if self.top is not None:
            self.targets.append((*self.top, arrived[0]))
        for source, memory, target in self.targets:
            source.learn(memory, target)
        for model, output, h in self.inputs:
            model.learn(output, h)
        gradients = tuple(self.gradients)
        self.targets, self.inputs, self.top, self.gradients = [], [], None, []
        return gradients


class Unlocked(Decoupled):
    """A chain of stages that do not wait for one another: inputs ĥ = I(x) and gradients g = S(h) are both predicted.

    In a training forward every stage acts with probability p, on the activations that a model predicts from the input
    of the network, and gets its gradient from its source at once. The output is that of the top stage. Backward
    distributes the gradients. Then each source learns from the gradient in the predicted input of the stage above, and
    each input model from the activations of the stage below, if that stage acted. A stage that did not act gets no
    gradient. The training loop does not change, see :class:`linnet.DNI`. In eval mode the network runs alone, on the
    true activations, so that the input models must be accurate: wide enough, and with activations of a stable
    distribution (batch norm before each cut).

    Args:
        network: an nn.Sequential.
        optim: the optimizer of the training loop, which must hold every trainable parameter of the network; None skips
            this check.
        at: the modules after which to cut, see :class:`linnet.DNI`.
        probability: p, the probability that a stage acts in a forward.
        gradient: a source that is known in forward (:class:`linnet.Synthetic`, :class:`linnet.LocalLoss`), of which
            each cut gets a deep copy. None is ``Synthetic()``.
        inputs: class or factory of the input models, called as ``inputs(features of x, hidden_size, features of h)``.
        hidden_size: hidden size of the input models; None lets the class choose.
        input_optim: class or factory of the optimizer of each input model; its state must be tensors.

    Shape:
        - input: one tensor (batch, *)
        - output: the shape of the network's output

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the network is not an nn.Sequential, at names an unknown module, p is not in (0, 1], or the source
            waits for backward.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> opt = torch.optim.Adam(net.parameters(), lr=0.01)
        >>> net = Unlocked(net, opt, probability=0.5, gradient=Synthetic(context=3))
        >>> x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        >>> for step in range(5):
        ...     opt.zero_grad()
        ...     with net.context(y):
        ...         output = net(x)
        ...     loss = nn.functional.cross_entropy(output, y)
        ...     loss.backward()
        ...     opt.step()

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    def __init__(
        self,
        network: nn.Module,
        optim: Optimizer | None = None,
        *,
        at: str | Iterable[int | str] | None = None,
        probability: float = 1.0,
        gradient: Source | None = None,
        inputs: Callable[[int, int | None, int], Synthesizer] = MLPSynthesizer,
        hidden_size: int | None = None,
        input_optim: OptimizerFactory = ADAM,
    ) -> None:
        super().__init__(network, optim)
        if not is_sequential(network):
            raise ValueError(
                f"network must be an nn.Sequential, so that its stages can run separately, got {type(network).__name__}"
            )
        if not 0 < probability <= 1:
            raise ValueError(f"probability must lie in (0, 1], got {probability!r}")
        prototype = Synthetic() if gradient is None else gradient
        if not isinstance(prototype, Source):
            raise TypeError(f"gradient must be a gradient source, got {type(prototype).__name__}")
        if not prototype.known_in_forward:
            raise ValueError(
                f"gradient must be known in forward, as Synthetic() and LocalLoss are; {type(prototype).__name__} "
                "waits for backward"
            )
        self.probability = probability
        names = cuts_by_default(network) if at is None else cuts_by_name(network, at)
        ends = [name for name, _ in chain_modules(network) if name in names]
        if missing := [name for name in names if name not in ends]:
            raise ValueError(f"at must name modules that are no nn.Sequential containers, got {missing}")
        self.at = tuple(ends)
        self.inputs = nn.ModuleDict()
        for name in ends:
            key = self._key(name)
            self.cuts[key] = copy.deepcopy(prototype)
            self.inputs[key] = SyntheticInput(inputs, hidden_size, input_optim)

    def extra_repr(self) -> str:
        return f"at={list(self.at)}, probability={self.probability}"

    def _stages(self) -> list[list[nn.Module]]:
        stages: list[list[nn.Module]] = [[]]
        for name, module in chain_modules(self.network):
            stages[-1].append(module)
            if name in self.at:
                stages.append([])
        return stages

    def _training_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            raise ValueError(
                f"Unlocked takes one tensor, got {len(args)} positional arguments and the keywords {sorted(kwargs)}"
            )
        x, stages = args[0], self._stages()
        keys = [self._key(name) for name in self.at]
        if any(not cast(SyntheticInput, model).sized for model in self.inputs.values()):
            self._size(x)
        acts = (torch.rand(len(stages)) < self.probability).tolist()
        pending = PendingUpdates()
        leaves: list[Tensor] = []
        below: tuple[Source, Any] | None = None  # the source of the stage below and its memory, if that stage acted
        predicted: Tensor | None = None  # the prediction of the input model of this stage
        for i, key in enumerate(keys):
            following = cast(SyntheticInput, self.inputs[key])
            guess, output = following(x)
            if acts[i]:
                inputs = x.detach() if predicted is None else predicted.requires_grad_()
                h = run(stages[i], inputs)
                source = cast(Source, self.cuts[key])
                gradient, memory = source.predict(h, self._context)
                parameters = [p for module in stages[i] for p in module.parameters() if p.requires_grad]
                wanted = [*([] if predicted is None else [inputs]), *parameters]
                found = list(torch.autograd.grad(h, wanted, gradient, allow_unused=True))
                target = found.pop(0) if predicted is not None else None
                if below is not None:
                    pending.targets.append((*below, target))
                leaves += parameters
                pending.gradients += found
                pending.inputs.append((following, output, h.detach()))
                below = source, memory
            else:
                below = None
            predicted = guess
        return self._top(stages[-1], cast(Tensor, predicted), acts[-1], below, pending, leaves)

    def _top(
        self,
        stage: list[nn.Module],
        predicted: Tensor,
        acts: bool,
        below: tuple[Source, Any] | None,
        pending: PendingUpdates,
        leaves: list[Tensor],
    ) -> Tensor:
        """The output of the top stage; if it does not act, its graph only brings backward to the other stages."""
        if acts:
            pending.top = below
            inputs, _ = Cut.apply(pending, 1, 0, predicted.requires_grad_(), *leaves)
            return run(stage, inputs)
        with torch.no_grad():
            output = run(stage, predicted)
        given, _ = Cut.apply(pending, 1, 0, output.requires_grad_(), *leaves)
        return cast(Tensor, given)

    def _size(self, x: Tensor) -> None:
        """Build sources and input models for the outputs of the stages, in one dry run without side effects."""

        def visit(name: str, outputs: list[Tensor]) -> list[Tensor]:
            (h,), key = outputs, self._key(name)
            source, model = cast(Source, self.cuts[key]), cast(SyntheticInput, self.inputs[key])
            source.axis = 1 if h.dim() == image_axes(self.network, name) else -1
            with seeded_for(key):
                if not source.sized:
                    source.size(h)
                if not model.sized:
                    model.build(x.shape[1:], h.shape[1:], h)
            return outputs

        with torch.no_grad(), without_side_effects(self.network) as call, hook_cuts(self.network, self.at, visit):
            call((x,), {})


def run(stage: list[nn.Module], x: Tensor) -> Tensor:
    """Call the modules of a stage one after the other."""
    for module in stage:
        x = module(x)
    return x

"""DNI: a network cut into stages that learn without waiting for the loss."""

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.base import Decoupled
from linnet.decoupled.engine.forward_pass import ForwardPass, tensors
from linnet.decoupled.engine.hooks import build_source, hook_cuts, on_device_of, without_side_effects
from linnet.decoupled.engine.immediate import Immediate
from linnet.decoupled.engine.owned_optimizer import OptimizerFactory
from linnet.decoupled.engine.places import cuts_by_default, cuts_by_name, image_axes, is_sequential
from linnet.decoupled.engine.trace import cuts_by_trace
from linnet.decoupled.sources.source import Source
from linnet.decoupled.sources.synthetic import Synthetic


class DNI(Decoupled):
    """A network cut into stages; each stage below a cut gets its gradient without the loss, by default a synthetic one.

    At a cut a *gradient source* gives the gradient g of the loss in the activations h. The stage below computes its
    gradients from g at once, and its graph is freed. The gradient that reaches the cut from above, from the loss or
    from the source of the next cut, stops there: the source learns from it. The stage above the last cut gets its true
    gradient. All gradients are in ``.grad`` after ``loss.backward()``, and the training loop does not change::

        net = DNI(net, optim=opt)
        for input, target in data:
            opt.zero_grad()
            output = net(input)
            loss = criterion(output, target)
            loss.backward()
            opt.step()

    ======================================= =================================================== ==============
    ``gradient=``                           gradient of the stage below                         known
    ======================================= =================================================== ==============
    :class:`Synthetic() <linnet.Synthetic>` the prediction of a synthesizer from h              in forward
    ``Synthetic(context=10)``               its prediction from h and the label (cDNI)          in forward
    ``Synthetic(mix=0.5)``                  the mean of prediction and gradient from above      in backward
    :class:`~linnet.LocalLoss`              the gradient of an auxiliary head                   in forward
    :class:`~linnet.DirectFeedback`         the error of the output through a fixed matrix      after the loss
    :class:`~linnet.Delayed`                the true gradient, some steps late                  in backward
    :class:`~linnet.Backprop`               the true gradient: the control                      in backward
    ======================================= =================================================== ==============

    Args:
        network: the network; it is available as ``.network``.
        optim: the optimizer of the training loop, which must hold every trainable parameter of the network. Deferred
            updates never step it. None skips the check.
        at: the modules after which to cut: indices of an nn.Sequential, qualified names of any network, or patterns
            (``"encoder.*"``: the children of encoder). None cuts in front of every layer but the first, so that the
            norm and the activation after a layer stay with it. If the network is not an nn.Sequential, None cuts where
            no path bypasses the cut; one call with the example or the first input finds these places.
        gradient: a gradient source, of which each cut gets a deep copy; or a dict from modules to sources, whose keys
            replace ``at``. None is ``Synthetic()``, a linear synthesizer.
        update: ``"deferred"`` leaves gradients in ``.grad`` for ``optim.step()``. ``"immediate"`` steps the parameters
            below a cut inside forward, before the loss exists; ``optim.step()`` then steps the top stage only.
        stage_optim: for immediate updates, class or factory of an optimizer for each stage; its state must be tensors
            and is in ``state_dict``. None steps with ``optim``, its hyper-parameters, state and schedulers.
        scaler: the ``GradScaler`` of the training loop, if it uses one.
        example: one input, or the tuple of inputs, for a dry run that sizes the sources; buffers and random state stay
            unchanged. None builds each source at first use or by ``load_state_dict``.

    Shape:
        - input, output: the shapes of the network
        - activations at a cut: (batch, *, features), or (batch, channels, *) after a convolution, of a floating dtype;
          a module that returns several tensors is cut in each. In a population, (batch, beings, features), all beings
          share the synthesizer, which can learn only what their gradients have in common;
          ``LinearSynthesizer(beings=n)`` has one synthesizer for each being.

    Raises:
        TypeError: network, optim, or the result of a factory, is of the wrong type.
        ValueError: at names an unknown module, the last module or none; a parameter is missing in optim; immediate
            updates with a source that waits for backward or with a scaler. In a training forward: a parameter is used
            on both sides of a cut, a connection skips over a cut, a conditioned source has no context. In backward: a
            gradient is not finite and there is no scaler.
        RuntimeError: a second backward through the same forward; with immediate updates, a second backward without a
            step in between, or a GradScaler.

    Note:
        * **Values.** The output equals that of the network bit for bit. In eval mode, or without gradients, DNI is the
          network alone and stores nothing: in eval mode gradients are true gradients.
        * **Scale.** Synthesizers read activations in units of their root mean square and predict the gradient of one
          sample (batch size times the gradient of a mean loss) in units of its running root mean square. With a
          ``GradScaler`` pass ``scaler=``, so that sources see gradients of the unscaled loss. Sources skip a target of
          0, and a target that overflows under a scaler. Under autocast the sources stay in float32.
        * **Loops.** ``zero_grad`` may be called anywhere before or after forward; several forwards may precede their
          backwards; deferred gradients accumulate. A forward without a backward changes nothing, except that immediate
          updates have stepped. Immediate updates do not see loss terms beside the output: ``optim.step()`` applies the
          gradient of a penalty on lower parameters.
        * **Parameters.** ``parameters()`` includes those of the sources. Their ``.grad`` is None after backward, so
          that an optimizer that holds them skips them, weight decay included. To build an optimizer after wrapping,
          use ``dni.network.parameters()``.
        * **State.** ``state_dict`` holds everything as tensors, including the state of the sources' optimizers, but no
          hyper-parameters. The state of the cut after module ``a.b`` is in ``cuts["a/b"]``.
        * **What to expect.** Activations do not contain the label as long as the network does not know it. A
          synthesizer that sees only activations can predict little for the stage below: with more than two or three
          cuts and without norm layers, training is clearly worse than backpropagation. With the labels as context it is
          about as good; docs/decoupled.md says which source to choose. The synthesizer must follow a changing network,
          hence the large default learning rate of the linear one; with hidden layers use 1e-3.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
        >>> opt = torch.optim.Adam(net.parameters(), lr=0.01)
        >>> net = DNI(net, optim=opt)
        >>> x = torch.randn(64, 4)
        >>> y = x.sum(-1, keepdim=True)
        >>> for step in range(200):
        ...     opt.zero_grad()
        ...     loss = nn.functional.mse_loss(net(x), y)
        ...     loss.backward()
        ...     opt.step()
        >>> net.at, bool(loss < 0.1)
        (('1',), True)

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    def __init__(
        self,
        network: nn.Module,
        optim: Optimizer | None = None,
        *,
        at: str | Iterable[int | str] | None = None,
        gradient: Source | Mapping[int | str, Source] | None = None,
        update: str = "deferred",
        stage_optim: OptimizerFactory | None = None,
        scaler: torch.amp.GradScaler | None = None,
        example: Tensor | tuple[Any, ...] | None = None,
    ) -> None:
        super().__init__(network, optim)
        self.scaler = scaler
        self._prototypes = _prototypes(network, gradient)
        if at is None and isinstance(gradient, Mapping):
            at = list(gradient)
        self.at: tuple[str, ...] = ()
        if at is not None:
            self._cut_at(cuts_by_name(network, at))
        elif is_sequential(network):
            self._cut_at(cuts_by_default(network))
        self.immediate = self._immediate(optim, update, stage_optim)
        if example is not None:
            self._dry_run(example if isinstance(example, tuple) else (example,), {})

    @property
    def mix(self) -> float:
        """λ of all :class:`Synthetic` sources, the share of the gradient from above; it may be set between steps."""
        mixes = {source.mix for source in self._synthetic()}
        if len(mixes) != 1:
            raise ValueError(f"All Synthetic sources must have the same mix, got {sorted(mixes) or 'no such source'}")
        return mixes.pop()

    @mix.setter
    def mix(self, value: float) -> None:
        if self.immediate is not None and value > 0:
            raise ValueError(f"mix must be 0 with update='immediate', which cannot wait for backward, got {value}")
        for source in self._synthetic():
            source.mix = value

    def diagnostics(self) -> dict[str, Tensor]:
        """The quality of each synthesizer's last prediction, measured before the synthesizer learned from its target.

        Returns:
            for each cut with a synthesizer the scalars ``cosine/<cut>``, of prediction and target;
            ``norm_ratio/<cut>``, norm of the prediction / norm of the target; ``loss/<cut>``, the mean squared error in
            units of the running mean square of the targets.
        """
        found: dict[str, Tensor] = {}
        for key, source in self.cuts.items():
            if isinstance(source, Synthetic) and float(source.seen) > 0:
                for name, value in source.measured().items():
                    found[f"{name}/{_name(key)}"] = value
        return found

    def extra_repr(self) -> str:
        return f"at={list(self.at)}"

    # ------------------------------------------------------------------ one training forward

    def _training_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.at:
            self._dry_run(args, kwargs)
        scale = None if self.scaler is None else float(self.scaler.get_scale())
        run = ForwardPass(self.network, tensors([args, kwargs]), self._context, scale, self.immediate)

        def visit(name: str, outputs: list[Tensor]) -> list[Tensor]:
            return run.cut(name, functools.partial(self._source, name), outputs)

        with hook_cuts(self.network, self.at, visit) as reached:
            output = self.network(*args, **kwargs)
        if not reached:
            raise ValueError(f"A forward must reach a cut; none of the modules {list(self.at)} in at= was called")
        run.close(tensors(output))
        return output

    def _dry_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the cuts if ``at`` is None, and build every source; the network stays unchanged."""
        if not self.at:
            with without_side_effects(self.network) as call:
                self._cut_at(cuts_by_trace(self.network, lambda: call(args, kwargs)))

        def visit(name: str, outputs: list[Tensor]) -> list[Tensor]:
            for i, h in enumerate(outputs):
                self._source(name, i, h)
            return outputs

        with (
            torch.no_grad(),
            without_side_effects(self.network) as call,
            hook_cuts(self.network, self.at, visit) as reached,
        ):
            call(args, kwargs)
        if missed := [name for name in self.at if name not in reached]:
            raise ValueError(f"The example must reach every cut; the modules {missed} in at= were not called")

    # ------------------------------------------------------------------ cuts and their sources

    def _cut_at(self, names: list[str]) -> None:
        self.at = tuple(names)
        self._image_axes = {name: image_axes(self.network, name) for name in names}
        for name in names:
            self._make_source(self._key(name))

    def _make_source(self, key: str) -> Source:
        source = copy.deepcopy(self._prototypes.get(_name(key)) or self._prototypes[None])
        self.cuts[key] = on_device_of(source, self.network).train(self.training)
        return source

    def _source(self, name: str, i: int, h: Tensor) -> Source:
        """The source of the i-th tensor that the module returns; its first activations determine its size."""
        key = f"{self._key(name)}#{i}" if i else self._key(name)
        source = cast(Source, self.cuts[key]) if key in self.cuts else self._make_source(key)
        return build_source(source, key, h, self._image_axes[name])

    def _sources(self) -> list[Source]:
        return [*self._prototypes.values(), *super()._sources()]

    def _synthetic(self) -> list[Synthetic]:
        return [source for source in self._sources() if isinstance(source, Synthetic)]

    def _immediate(self, optim: Optimizer | None, update: str, make: OptimizerFactory | None) -> Immediate | None:
        if update not in ("deferred", "immediate"):
            raise ValueError(f"update must be 'deferred' or 'immediate', got {update!r}")
        if update == "deferred":
            if make is not None:
                raise ValueError("stage_optim needs update='immediate', got update='deferred'")
            return None
        if optim is None:
            raise ValueError("update='immediate' needs optim=, the optimizer of the training loop")
        if self.scaler is not None:
            raise ValueError("update='immediate' steps before the loss is scaled; leave scaler= out")
        for source in self._prototypes.values():
            if not source.known_in_forward:
                mix = f" with mix = {source.mix}" if isinstance(source, Synthetic) and source.late else ""
                targets = " with true targets" if source.true_targets else ""
                raise ValueError(
                    "update='immediate' needs a gradient that is known in forward; "
                    f"{type(source).__name__}{mix}{targets} waits for backward"
                )
        return Immediate(optim, make, self.network)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        start = prefix + "cuts."
        keys = dict.fromkeys(entry[len(start) :].partition(".")[0] for entry in state_dict if entry.startswith(start))
        if not self.at:
            self._cut_at([_name(key) for key in keys if "#" not in key])
        for key in keys:
            if key not in self.cuts and _name(key) in self.at:
                self._make_source(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _name(key: str) -> str:
    """A key of ``cuts`` -> the name of its cut."""
    return key.partition("#")[0].rstrip("/").replace("/", ".")


def _prototypes(network: nn.Module, gradient: Source | Mapping[int | str, Source] | None) -> dict[str | None, Source]:
    """From the name of a cut, or None for all other cuts, to the source to copy."""
    given: dict[str | None, Source] = {None: Synthetic()}
    if isinstance(gradient, Mapping):
        for place, source in gradient.items():
            given |= dict.fromkeys(cuts_by_name(network, [place]), source)
    elif gradient is not None:
        given[None] = gradient
    for source in given.values():
        if not isinstance(source, Source):
            raise TypeError(f"gradient must be a gradient source such as Synthetic(), got {type(source).__name__}")
    return given

"""DNI: a network in pieces that learn without waiting for the loss."""

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.base import Decoupled
from linnet.decoupled.engine.forward_pass import ForwardPass, tensors
from linnet.decoupled.engine.immediate import Immediate
from linnet.decoupled.engine.owned_optimizer import OptimizerFactory
from linnet.decoupled.engine.places import convolved, cuts_by_default, cuts_by_name, is_chain
from linnet.decoupled.engine.trace import cuts_by_trace
from linnet.decoupled.engine.visiting import placed, ready, untouched, visiting
from linnet.decoupled.sources.source import Source
from linnet.decoupled.sources.synthetic import Synthetic

__all__ = ["DNI"]


class DNI(Decoupled):
    """A network cut in stages; each stage below a cut gets its gradient without the loss, by default a synthetic one.

    At a cut a *gradient source* gives the gradient g of the loss in the activations h, and the stage below computes
    its gradients from g at once; its graph is freed. The gradient that reaches the cut from above, from the loss or
    from the source of the next cut, does not pass it: it is what the source learns from. The stage above the last
    cut gets its true gradient. All gradients are in ``.grad`` after ``loss.backward()``, and the ordinary loop stays
    as it is::

        net = DNI(net, optim=opt)
        for input, target in data:
            opt.zero_grad()
            output = net(input)
            loss = criterion(output, target)
            loss.backward()
            opt.step()

    ================================================ ========================================= =====================
    ``gradient=``                                    what the stage below gets                 known
    ================================================ ========================================= =====================
    :class:`Synthetic() <linnet.Synthetic>`          what a synthesizer makes of h             in forward
    ``Synthetic(context=10)``                        the same, told the label (cDNI)           in forward
    ``Synthetic(mix=0.5)``                           half of it the gradient from above        in backward
    :class:`~linnet.LocalLoss`                       the gradient of an auxiliary head         in forward
    :class:`~linnet.DirectFeedback`                  the output's error through a fixed matrix after the loss
    :class:`~linnet.Delayed`                         the true gradient, some steps late        in backward
    :class:`~linnet.Backprop`                        the true gradient: the control            in backward
    ================================================ ========================================= =====================

    Args:
        network: the network; it stays reachable as ``.network``.
        optim: the optimizer that the loop steps. It must hold every trainable parameter of the network, lest a part
            be forgotten. Deferred updates never step it. None: no check.
        at: where to cut. None: in front of every layer but the first, so that the norm and the activation behind a
            layer stay with it; if the network is not an nn.Sequential, wherever this can be without a path that
            passes by, found by one call with the example or the first input. Otherwise a list of modules, a cut after
            each: indices of an nn.Sequential, qualified names of any network, or patterns (``"encoder.*"``: the
            children of encoder).
        gradient: a gradient source, of which each cut gets a deep copy; or a dict of one for each place, which is
            ``at`` too. None: ``Synthetic()``, a linear synthesizer.
        update: ``"deferred"``: gradients are in ``.grad`` when the loop steps. ``"immediate"``: the parameters below
            a cut step inside forward, before the loss exists; ``optim.step()`` of the loop is left with the top stage.
        stage_optim: for immediate updates, class or factory of an optimizer for each stage; its state must be tensors
            and is in ``state_dict``. None: ``optim`` steps them, with all its hyper-parameters, state and schedulers.
        scaler: the ``GradScaler`` of the loop, if there is one.
        example: one input, or the tuple of inputs, to size the sources by a dry run, which leaves buffers and
            random state as they were. None: each is built at first use or by ``load_state_dict``.

    Shape:
        - as the network; at a cut the activations are (batch, *, features), or (batch, channels, *) after a
          convolution, of a floating dtype; a module that gives several tensors is cut in each. The first axis counts
          the samples; in a population, (batch, beings, features), all beings share the synthesizer, which can learn no
          more than what their gradients have in common, unless each has its own: ``LinearSynthesizer(beings=n)``.

    Raises:
        TypeError: network, optim, or what a factory makes, is of the wrong kind.
        ValueError: there is no such place; the last module or nothing is named; optim lacks a parameter; immediate
            updates with a source that waits for backward or with a scaler; in a training forward: a parameter is used
            on both sides of a cut, a connection skips over one, a conditioned source has no context; in backward: a
            gradient is not finite and there is no scaler.
        RuntimeError: a second backward through the same forward; with immediate updates, a second backward without a
            step in between, or a GradScaler.

    Note:
        * **Values.** The output is the network's, bit for bit. In eval mode and where gradients are off, DNI is the
          network alone and stores nothing; so in eval mode gradients are true ones.
        * **Scale.** Synthesizers read activations in units of their root mean square and predict the gradient of one
          sample (batch size times the gradient of a mean loss) in units of its running root mean square. Under a
          ``GradScaler`` give ``scaler=``, so that sources see gradients of the unscaled loss. A target of 0 teaches
          nothing, nor does one that overflows under a scaler. Under autocast the sources stay in float32.
        * **Loops.** ``zero_grad`` may stand anywhere before or after forward; several forwards may precede their
          backwards; deferred gradients accumulate. A forward without a backward leaves nothing behind, but with
          immediate updates the step that it took. These take no account of what is in the loss beside the output: the
          gradient of a penalty on lower parameters is left for ``optim.step()``.
        * **Parameters.** ``parameters()`` gives those of the sources too. They never have a ``.grad`` after
          backward, so an optimizer that was given them by mistake skips them, weight decay included. To build an
          optimizer after wrapping, take ``dni.network.parameters()``.
        * **State.** Everything is in ``state_dict``, the state of the sources' own optimizers included, all of it
          tensors; hyper-parameters are not. What belongs to the cut after module ``a.b`` is ``cuts["a/b"]``.
        * **What to expect.** The activations say nothing of the label that the network does not know yet, so a
          synthesizer that sees only them can tell the stage below little: with more than two or three cuts, and
          without norm layers, this learns clearly worse than backpropagation. With the labels as context it learns
          about as well; see docs/decoupled.md for what to choose. The synthesizer has to follow the network as it
          changes, hence the large default learning rate; it suits the linear one, with hidden layers take 1e-3.

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
        elif is_chain(network):
            self._cut_at(cuts_by_default(network))
        self.immediate = self._immediate(optim, update, stage_optim)
        if example is not None:
            self._dry_run(example if isinstance(example, tuple) else (example,), {})

    @property
    def mix(self) -> float:
        """λ of all :class:`Synthetic` sources: the share of the gradient from above; it may be set between steps."""
        mixes = {source.mix for source in self._synthetic()}
        if len(mixes) != 1:
            raise ValueError(f"Synthetic sources must have one mix to read, got {sorted(mixes)}")
        return mixes.pop()

    @mix.setter
    def mix(self, value: float) -> None:
        if self.immediate is not None and value > 0:
            raise ValueError(f"Immediate updates cannot wait for the gradient from above, got mix = {value}")
        for source in self._synthetic():
            source.mix = value

    def diagnostics(self) -> dict[str, Tensor]:
        """How well each synthesizer predicts: of its last target, before it learned from it.

        Returns:
            for each cut with a synthesizer, scalars named ``cosine/<cut>``: of prediction and target;
            ``norm_ratio/<cut>``: the length of the prediction over that of the target; ``loss/<cut>``: the mean
            squared error in units of the running mean square of the targets.
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

        with visiting(self.network, self.at, visit) as reached:
            output = self.network(*args, **kwargs)
        if not reached:
            raise ValueError(f"A forward must reach a cut, got none of {list(self.at)} was called")
        run.close(tensors(output))
        return output

    def _dry_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the cuts if they are not known, and size every source; the network is left as it was."""
        if not self.at:
            with untouched(self.network) as call:
                self._cut_at(cuts_by_trace(self.network, lambda: call(args, kwargs)))

        def visit(name: str, outputs: list[Tensor]) -> list[Tensor]:
            for i, h in enumerate(outputs):
                self._source(name, i, h)
            return outputs

        with torch.no_grad(), untouched(self.network) as call, visiting(self.network, self.at, visit) as reached:
            call(args, kwargs)
        if missed := [name for name in self.at if name not in reached]:
            raise ValueError(f"The example must reach every cut, got {missed} were not called")

    # ------------------------------------------------------------------ cuts and their sources

    def _cut_at(self, names: list[str]) -> None:
        self.at = tuple(names)
        self._image_axes = {name: convolved(self.network, name) for name in names}
        for name in names:
            self._make_source(self._key(name))

    def _make_source(self, key: str) -> Source:
        source = copy.deepcopy(self._prototypes.get(_name(key)) or self._prototypes[None])
        self.cuts[key] = placed(source, self.network).train(self.training)
        return source

    def _source(self, name: str, i: int, h: Tensor) -> Source:
        """The source of the i-th tensor that the module gives; it is built by what it sees first."""
        key = f"{self._key(name)}#{i}" if i else self._key(name)
        source = cast(Source, self.cuts[key]) if key in self.cuts else self._make_source(key)
        return ready(source, key, h, self._image_axes[name])

    def _sources(self) -> list[Source]:
        return [*self._prototypes.values(), *super()._sources()]

    def _synthetic(self) -> list[Synthetic]:
        return [source for source in self._sources() if isinstance(source, Synthetic)]

    def _immediate(self, optim: Optimizer | None, update: str, make: OptimizerFactory | None) -> Immediate | None:
        if update not in ("deferred", "immediate"):
            raise ValueError(f"update must be 'deferred' or 'immediate', got {update!r}")
        if update == "deferred":
            if make is not None:
                raise ValueError("stage_optim steps in immediate updates, got update='deferred'")
            return None
        if optim is None:
            raise ValueError("Immediate updates need the optimizer of the loop, got optim is None")
        if self.scaler is not None:
            raise ValueError("Immediate updates step before the loss is scaled, got a GradScaler is given")
        for source in self._prototypes.values():
            if source.late or source.true_targets:
                mix = f" with mix = {source.mix}" if isinstance(source, Synthetic) and source.late else ""
                targets = " with true targets" if source.true_targets else ""
                raise ValueError(
                    "Immediate updates need a gradient that is known in forward, got "
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
    """The name of the cut of a key of ``cuts``."""
    return key.partition("#")[0].rstrip("/").replace("/", ".")


def _prototypes(network: nn.Module, gradient: Source | Mapping[int | str, Source] | None) -> dict[str | None, Source]:
    """The name of a cut, None for any other, -> the source to copy."""
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

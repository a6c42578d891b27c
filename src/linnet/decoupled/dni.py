"""DNI: a network in pieces that learn without waiting for the loss."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.boundary import ForwardPass, tensors
from linnet.decoupled.places import cuts_by_default, cuts_by_name, layer_before, plan
from linnet.decoupled.sources import Synthetic
from linnet.decoupled.synthesizers import LinearSynthesizer, Synthesizer

__all__ = ["DNI"]

ADAM = functools.partial(torch.optim.Adam, lr=0.1)
"""The optimizer of a linear synthesizer: fast, for the network that it follows changes all the time."""


class DNI(nn.Module):
    """A network cut in stages; each stage below a cut gets a *synthetic* gradient inside forward, without the loss.

    At a cut the synthesizer predicts from the activations h the gradient g of the loss in them, and the stage below
    computes its gradients from g at once; its graph is freed. The gradient that reaches the cut from above, from the
    loss or from the synthetic gradient of the next cut, does not pass it: it is what the synthesizer learns from.
    The stage above the last cut gets its true gradient. All gradients are in ``.grad`` after ``loss.backward()``,
    and the ordinary loop stays as it is::

        net = DNI(net, optim=opt)
        for input, target in data:
            opt.zero_grad()
            loss = criterion(net(input), target)
            loss.backward()
            opt.step()

    Args:
        network: the network; it stays reachable as ``.network``.
        optim: the optimizer that the loop steps. DNI never steps it and adds nothing to it, it only checks that it
            holds every trainable parameter of the network, lest a part be forgotten. None: no check.
        at: where to cut. None, for an nn.Sequential: in front of every layer but the first, so that the norm and
            the activation behind a layer stay with it. Otherwise a list of modules, a cut after each: indices of an
            nn.Sequential, qualified names of any network, or patterns (``"encoder.*"``: the children of encoder).
        synthesizer: class or factory of a :class:`Synthesizer`, called for each cut as
            ``synthesizer(features, hidden_size, features)``.
        hidden_size: handed to the synthesizer.
        synthesizer_optim: factory of the optimizer of each synthesizer, called with a list of parameters; its state
            must be tensors. DNI steps it, inside backward.
        example: one input, or the tuple of inputs, to size the synthesizers by a dry run, which leaves buffers and
            random state as they were. None: each synthesizer is built at first use or by ``load_state_dict``.

    Shape:
        - as the network; at a cut the activations are (batch, *, features) of a floating dtype. A synthesizer acts
          on the last axis. The first axis counts the samples; in a population, (batch, beings, features), all beings
          share the synthesizer, which can learn no more than what their gradients have in common.

    Raises:
        TypeError: network, optim, or what a factory makes, is of the wrong kind.
        ValueError: there is no such place; the last module or nothing is named; optim lacks a parameter; in the first
            training forward: a parameter is used on both sides of a cut, or a connection skips over one.
        RuntimeError: a second backward through the same forward.

    Note:
        * **Values.** The output is the network's, bit for bit. In eval mode and where gradients are off, DNI is the
          network alone and stores nothing; so in eval mode gradients are true ones.
        * **Scale.** Synthesizers read activations in units of their root mean square and predict the gradient of one
          sample (batch size times the gradient of a mean loss) in units of its running root mean square. With
          ``GradScaler`` the targets carry the loss scale, hence so do the synthetic gradients, and ``unscale_`` is
          right for all; for about ten steps after a change of scale those below the cuts lag behind it. A target
          that is 0 or not finite teaches nothing. Under autocast the synthesizers stay in float32.
        * **Loops.** ``zero_grad`` may stand anywhere before or after forward; several forwards may precede their
          backwards; gradients accumulate. A forward without a backward leaves nothing behind.
        * **Parameters.** ``parameters()`` gives those of the synthesizers too. They never have a ``.grad`` after
          backward, so an optimizer that was given them by mistake skips them, weight decay included. To build an
          optimizer after wrapping, take ``dni.network.parameters()``.
        * **State.** Everything is in ``state_dict``, the state of the synthesizers' optimizers included, all of it
          tensors; hyper-parameters are not. What belongs to the cut after module ``a.b`` is ``cuts["a/b"]``.
        * **What to expect.** The activations say nothing of the label that the network does not know yet, so a
          synthesizer that sees only them can tell the stage below little: with more than two or three cuts, and
          without norm layers, this learns clearly worse than backpropagation. The synthesizer has to follow the
          network as it changes, hence the large default learning rate; it suits the linear one, with hidden layers
          take 1e-3. Images (batch, channels, height, width) have to be flattened before a cut.

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
        synthesizer: Callable[[int, int | None, int], Synthesizer] = LinearSynthesizer,
        hidden_size: int | None = None,
        synthesizer_optim: Callable[[Iterable[nn.Parameter]], Optimizer] = ADAM,
        example: Tensor | tuple[Any, ...] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be an nn.Module, however: {type(network).__name__}")
        if any(isinstance(module, DNI) for module in network.modules()):
            raise ValueError("network must not contain a DNI, however: it does (its cuts cannot be cut again)")
        _never_compiled()
        self.network = network
        self.at = tuple(cuts_by_default(network) if at is None else cuts_by_name(network, at))
        if optim is not None:
            check_optimizer(optim, network)
        device = next((parameter.device for parameter in network.parameters()), None)
        self.cuts = nn.ModuleDict()
        for name in self.at:
            self.cuts[self._key(name)] = Synthetic(synthesizer, hidden_size, synthesizer_optim).to(device)
        if example is not None:
            self._dry_run(example if isinstance(example, tuple) else (example,))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return self.network(*args, **kwargs)
        return self._training_forward(args, kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _never_compiled()

    def extra_repr(self) -> str:
        return f"at={list(self.at)}"

    def _training_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = ForwardPass(self.network, tensors([args, kwargs]))

        def visit(name: str, h: Tensor) -> Tensor:
            return run.cut(name, self._source(name, h), h)

        with self._visiting(visit) as reached:
            output = self.network(*args, **kwargs)
        if not reached:
            raise ValueError(f"A forward must reach a cut, however: none of {list(self.at)} was called")
        run.close(tensors(output))
        return output

    def _dry_run(self, args: tuple[Any, ...]) -> None:
        """Size every synthesizer; modes, buffers and random state are left as they were."""

        def visit(name: str, h: Tensor) -> Tensor:
            self._source(name, h).size(h.shape[-1], h.device, h.dtype)
            return h

        modes = {module: module.training for module in self.network.modules()}
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        cuda = {buffer.device for buffer in (*self.network.parameters(), *buffers.values()) if buffer.is_cuda}
        self.network.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=list(cuda)), self._visiting(visit) as reached:
                torch.func.functional_call(self.network, buffers, args)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if missed := [name for name in self.at if name not in reached]:
            raise ValueError(f"The example must reach every cut, however: {missed} were not called")

    @contextmanager
    def _visiting(self, visit: Callable[[str, Tensor], Tensor]) -> Iterator[set[str]]:
        """Replace the output at each cut by what ``visit`` makes of it; gives the names of the cuts reached so far.

        The hooks live as long as the context: outside of it the network is untouched.
        """
        calls = plan(self.network, self.at)
        count = dict.fromkeys(calls, 0)
        reached: set[str] = set()

        def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            names = calls[module]
            if count[module] == len(names):
                raise ValueError(f"A module before a cut must be called once in a forward, however: {names} again")
            name = names[count[module]]
            count[module] += 1
            if name is None:
                return None
            reached.add(name)
            if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() == 0:
                found = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"A module before a cut must give one floating tensor (batch, *, features), however: {name!r} "
                    f"gives {found}"
                )
            return visit(name, output)

        with ExitStack() as stack:
            for module in calls:
                stack.enter_context(module.register_forward_hook(hook))
            yield reached

    def _source(self, name: str, h: Tensor) -> Synthetic:
        source = cast(Synthetic, self.cuts[self._key(name)])
        if source.synthesizer is None and h.dim() > 2:
            layer = layer_before(self.network, name)
            if isinstance(layer, nn.modules.conv._ConvNd):
                raise ValueError(
                    f"A synthesizer acts on the last axis, (batch, *, features), however: after {name!r} that is a "
                    f"place in an image, {tuple(h.shape)} (flatten it before the cut)"
                )
        return source

    def _key(self, name: str) -> str:
        """Keys of an nn.ModuleDict have no dots and are not its own attributes."""
        key = name.replace(".", "/")
        return key if key in self.cuts or not hasattr(self.cuts, key) else key + "/"


@functools.cache
def _never_compiled() -> None:
    """Keep torch.compile out of training; not at import, which would import the compiler, longer than all of linnet."""
    DNI._training_forward = torch.compiler.disable(DNI._training_forward)  # type: ignore[method-assign]


def check_optimizer(optim: Optimizer, network: nn.Module) -> None:
    """Refuse an optimizer that leaves out a trainable parameter of the network."""
    if not isinstance(optim, Optimizer):
        raise TypeError(f"optim must be a torch.optim.Optimizer, however: {type(optim).__name__}")
    held = {id(parameter) for group in optim.param_groups for parameter in group["params"]}
    named = network.named_parameters()
    if missing := [name for name, parameter in named if parameter.requires_grad and id(parameter) not in held]:
        raise ValueError(
            f"optim must hold every trainable parameter of the network, however: {', '.join(missing)} are not in it "
            "(optim=None if several optimizers share the network)"
        )

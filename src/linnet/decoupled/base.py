"""What DNI and Unlocked have in common: a network inside, that alone runs in eval mode, and a context in training."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.sources.source import Source

__all__ = ["Decoupled"]


class Decoupled(nn.Module, ABC):
    """A network whose training forward gives its stages their gradients.

    Args:
        network: the network; it stays reachable as ``.network``.
        optim: the optimizer of the loop, checked to hold every trainable parameter of the network. None: no check.

    Raises:
        TypeError: network or optim is of the wrong kind.
        ValueError: the network is decoupled already; optim lacks a parameter.
    """

    def __init__(self, network: nn.Module, optim: Optimizer | None) -> None:
        super().__init__()
        _never_compiled(type(self))
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be an nn.Module, got {type(network).__name__}")
        for module in network.modules():
            if isinstance(module, Decoupled):
                raise ValueError(
                    f"network must not contain a {type(module).__name__}, got it does (cuts cannot be cut again)"
                )
        if optim is not None:
            check_optimizer(optim, network)
        self.network = network
        self.cuts = nn.ModuleDict()
        self._context: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return self.network(*args, **kwargs)
        return self._training_forward(args, kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _never_compiled(type(self))

    @abstractmethod
    def _training_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of the network, with all that its stages need for their gradients behind it."""

    @contextmanager
    def context(self, context: Tensor) -> Iterator[None]:
        """Condition the gradient sources of the forwards inside on the labels, or features, of the batch.

        Args:
            context: integer labels, (batch) or with more leading axes of the activations; or floats with the features
                on one more axis.

        Raises:
            TypeError: it is no tensor.
            ValueError: no source takes a context.
        """
        if not isinstance(context, Tensor):
            raise TypeError(f"The context must be a tensor, got {type(context).__name__}")
        if not self.conditioned:
            raise ValueError("A context needs a source that takes one (Synthetic(context=...)), got none does")
        before, self._context = self._context, context
        try:
            yield
        finally:
            self._context = before

    @property
    def conditioned(self) -> bool:
        """Whether there is a source that needs a context."""
        return any(source.conditioned for source in self._sources())

    def _sources(self) -> list[Source]:
        """All sources that the sources of cuts are or will be made of."""
        return [cast(Source, source) for source in self.cuts.values()]

    def _key(self, name: str) -> str:
        """Keys of an nn.ModuleDict have no dots and are not its own attributes."""
        key = name.replace(".", "/")
        return key if key in self.cuts or not hasattr(self.cuts, key) else key + "/"


@functools.cache
def _never_compiled(kind: type[Decoupled]) -> None:
    """Keep torch.compile out of training, the network inside may be compiled.

    Not at import: that would import the compiler, which takes longer than all of linnet.
    """
    kind._training_forward = torch.compiler.disable(kind._training_forward)  # type: ignore[method-assign]


def check_optimizer(optim: Optimizer, network: nn.Module) -> None:
    """Refuse an optimizer that leaves out a trainable parameter of the network."""
    if not isinstance(optim, Optimizer):
        raise TypeError(f"optim must be a torch.optim.Optimizer, got {type(optim).__name__}")
    held = {id(parameter) for group in optim.param_groups for parameter in group["params"]}
    named = network.named_parameters()
    if missing := [name for name, parameter in named if parameter.requires_grad and id(parameter) not in held]:
        raise ValueError(
            f"optim must hold every trainable parameter of the network, got {', '.join(missing)} are not in it "
            "(optim=None if several optimizers share the network)"
        )

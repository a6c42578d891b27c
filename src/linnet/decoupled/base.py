"""Decoupled: the base class of DNI, Unlocked and TruncatedBPTT, with the network, its gradient sources and context."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.sources.source import Source


class Decoupled(nn.Module, ABC):
    """Base class: a network whose training forward computes the gradients of its stages.

    In eval mode, or without gradients, the network runs alone.

    Args:
        network: the network; it is available as ``.network``.
        optim: the optimizer of the training loop, which must hold every trainable parameter of the network; None skips
            this check.

    Raises:
        TypeError: network or optim is of the wrong type.
        ValueError: the network already contains a decoupled module; a parameter is missing in optim.
    """

    def __init__(self, network: nn.Module, optim: Optimizer | None) -> None:
        super().__init__()
        _never_compiled(type(self))
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be an nn.Module, got {type(network).__name__}")
        for module in network.modules():
            if isinstance(module, Decoupled):
                kind = type(module).__name__
                article = "an" if kind[0] in "AEIOU" else "a"
                raise ValueError(f"network already contains {article} {kind}; {kind} modules cannot be nested")
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
        """The output of the network; its autograd graph gives the stages their gradients."""

    @contextmanager
    def context(self, context: Tensor) -> Iterator[None]:
        """Condition the gradient sources on the labels, or features, of the batch, for forwards inside this context.

        Args:
            context: integer labels, (batch) or with more leading axes of the activations; or floats with one more axis
                of features.

        Raises:
            TypeError: context is not a tensor.
            ValueError: no gradient source takes a context.
        """
        if not isinstance(context, Tensor):
            raise TypeError(f"The context must be a tensor, got {type(context).__name__}")
        if not self.conditioned:
            raise ValueError("context() needs a gradient source that takes a context, such as Synthetic(context=...)")
        before, self._context = self._context, context
        try:
            yield
        finally:
            self._context = before

    @property
    def conditioned(self) -> bool:
        """Whether a gradient source needs a context."""
        return any(source.conditioned for source in self._sources())

    def _sources(self) -> list[Source]:
        """All gradient sources: those of the cuts, and prototypes of cuts that are not built yet."""
        return [cast(Source, source) for source in self.cuts.values()]

    def _key(self, name: str) -> str:
        """The key of a cut: keys of an nn.ModuleDict must not contain dots or equal its attributes."""
        key = name.replace(".", "/")
        return key if key in self.cuts or not hasattr(self.cuts, key) else key + "/"


@functools.cache
def _never_compiled(kind: type[Decoupled]) -> None:
    """Exclude the training forward from torch.compile; the network inside may be compiled.

    This runs at the first construction, not at import: torch.compiler takes longer to import than all of linnet.
    """
    kind._training_forward = torch.compiler.disable(kind._training_forward)  # type: ignore[method-assign]


def check_optimizer(optim: Optimizer, network: nn.Module) -> None:
    """Raise an error unless ``optim`` is an optimizer with every trainable parameter of the network."""
    if not isinstance(optim, Optimizer):
        raise TypeError(f"optim must be a torch.optim.Optimizer, got {type(optim).__name__}")
    held = {id(parameter) for group in optim.param_groups for parameter in group["params"]}
    named = network.named_parameters()
    if missing := [name for name, parameter in named if parameter.requires_grad and id(parameter) not in held]:
        raise ValueError(
            f"optim must hold every trainable parameter of the network; missing: {', '.join(missing)} "
            "(pass optim=None if several optimizers share the network)"
        )

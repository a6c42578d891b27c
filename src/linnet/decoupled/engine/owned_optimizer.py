"""OwnedOptimizer and Owner: a module trains one inside it; the optimizer's state is in the outer state_dict."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.core.autograd import at_least_float32

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""A class or factory of optimizers, called with a list of parameters."""


class OwnedOptimizer:
    """An optimizer inside a module, which follows its parameters when they are moved, replaced, saved and loaded.

    The entries of its state are named ``<parameter>.<key>``. A loaded state is kept until the parameters exist.

    Args:
        make: class or factory of the optimizer, called with a list of parameters; its state must be tensors.
        argument: name of the user's argument, for error messages.
    """

    def __init__(self, make: OptimizerFactory, argument: str) -> None:
        self._make, self._argument = make, argument
        self._optimizer: Optimizer | None = None
        self._loaded: dict[str, Tensor] | None = None  # loaded state that no optimizer holds yet
        self._must_rebind = False

    def rebind(self) -> None:
        """Bind the optimizer to its parameters again before the next step, since they were moved or replaced."""
        self._must_rebind = True

    def step(self, named: Mapping[str, nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        """Make one step with these gradients; ``.grad`` stays unchanged."""
        optimizer = self.bound(named)
        with temporary_grads(list(named.values()), gradients):
            optimizer.step()

    def bound(self, named: Mapping[str, nn.Parameter]) -> Optimizer:
        """The optimizer of the current parameters, with its state on their device and in their dtype."""
        if self._optimizer is None or self._must_rebind or self._loaded is not None:
            fresh = self._make(list(named.values()))
            if not isinstance(fresh, Optimizer):
                raise TypeError(f"{self._argument} must return an Optimizer, got {type(fresh).__name__}")
            if self._loaded is not None:
                self._fill(fresh, named, self._loaded)
            elif self._optimizer is not None:
                state = self._optimizer.state_dict()["state"]
                self._restore(fresh, state)
            self._optimizer, self._must_rebind, self._loaded = fresh, False, None
        return self._optimizer

    def state(self, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The state as a dict from ``<parameter>.<key>`` to tensors."""
        if self._loaded is not None:
            return dict(self._loaded)
        if self._optimizer is None:
            return {}
        optimizer, found = self.bound(named), {}
        for name, parameter in named.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor):
                    raise TypeError(
                        f"The state of {self._argument} must be tensors, got {type(value).__name__} for {key!r}"
                    )
                found[f"{name}.{key}"] = value
        return found

    def save(
        self, named: Mapping[str, nn.Parameter], destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Put the state into a state_dict, as ``<prefix>optimizer.<parameter>.<key>``."""
        for entry, value in self.state(named).items():
            destination[f"{prefix}optimizer.{entry}"] = value if keep_vars else value.detach()

    def take(self, named: Mapping[str, nn.Parameter], state_dict: dict[str, Any], prefix: str) -> None:
        """Remove from a state_dict the entries of :meth:`save` and load them; entries of unknown parameters stay."""
        own = prefix + "optimizer."
        entries = [entry for entry in state_dict if entry.startswith(own)]
        known = [entry for entry in entries if entry[len(own) :].rpartition(".")[0] in named]
        self.load({entry[len(own) :]: state_dict.pop(entry) for entry in known})

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load a state of :meth:`state`; it takes effect at the next step."""
        self._loaded = {name: value.detach().clone() for name, value in state.items()}

    @staticmethod
    def _fill(fresh: Optimizer, named: Mapping[str, nn.Parameter], entries: Mapping[str, Tensor]) -> None:
        index = {id(parameter): i for i, parameter in enumerate(_parameters(fresh))}
        state: dict[int, dict[str, Tensor]] = {}
        for entry, value in entries.items():
            name, _, key = entry.rpartition(".")
            if name in named:
                state.setdefault(index[id(named[name])], {})[key] = value
        OwnedOptimizer._restore(fresh, state)

    @staticmethod
    def _restore(fresh: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
        fresh.load_state_dict({"state": dict(state), "param_groups": fresh.state_dict()["param_groups"]})
        for index, parameter in enumerate(_parameters(fresh)):
            for key, value in state.get(index, {}).items():
                # load_state_dict casts to the parameter's dtype; a scalar, such as the step count, keeps its own
                if isinstance(value, Tensor) and value.dim() == 0:
                    fresh.state[parameter][key] = fresh.state[parameter][key].to(value.dtype)


class Owner(nn.Module, ABC):
    """A module that trains an inner module by an :class:`OwnedOptimizer`, ``owned``.

    The inner module is built when its sizes are known, from activations or a state_dict, and stays in at least float32.
    """

    inner: ClassVar[str]
    """Name of the attribute that holds the inner module, None until it is built."""
    owned: OwnedOptimizer

    @property
    def sized(self) -> bool:
        return getattr(self, self.inner) is not None

    @abstractmethod
    def _build_from(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Build the inner module for the sizes in a state_dict, if the state_dict has one."""

    def _install(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """Set the inner module, and move everything to this device and to this dtype, at least float32."""
        setattr(self, self.inner, module)
        self.to(device, torch.promote_types(dtype, torch.float32))

    def _built(self) -> nn.Module:
        found: nn.Module | None = getattr(self, self.inner)
        if found is None:
            raise RuntimeError(f"{type(self).__name__} is not built yet; it is built at its first forward")
        return found

    def _named(self) -> dict[str, nn.Parameter]:
        return dict(self._built().named_parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(lambda tensor: at_least_float32(fn(tensor)), recurse)
        self.owned.rebind()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.sized:
            self.owned.save(self._named(), destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if not self.sized:
            self._build_from(state_dict, prefix)
        if self.sized:
            self.owned.take(self._named(), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)  # reports the remaining entries as unexpected


@contextmanager
def temporary_grads(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> Iterator[None]:
    """Set ``.grad`` of the parameters inside the context; restore it afterwards."""
    before = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else with_strides_of(parameter, gradient)
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def with_strides_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with the strides of its parameter, as backward returns it: fused optimizers ignore strides.

    Example:
        >>> with_strides_of(torch.zeros(2, 3), torch.ones(3, 2).T).stride()
        (3, 1)
    """
    if gradient.layout != torch.strided or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)


def with_frozen(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Gradients of the parameters with ``requires_grad`` -> gradients of all, None for the others."""
    rest = iter(gradients)
    return [next(rest) if parameter.requires_grad else None for parameter in parameters]


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

"""What a check works on, a :class:`Case`, and how a check complains, :class:`ContractError`."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnet.core.dense import dense
from linnet.core.linear_map import LinearMap
from linnet.core.measures import tolerance

BATCH = 4  # differs from the 3 beings of the default cases: a batch axis must never pass for the beings axis


class ContractError(AssertionError):
    """A layer breaks the contract; the message names the check, the layer and the numbers."""


@dataclass(frozen=True)
class Case:
    """One layer class with the options, sizes, device and dtypes that a check builds it with.

    Args:
        cls: the layer class.
        in_features: size of each input sample.
        out_features: size of each output sample.
        options: the class's own options.
        beings: None for one map, n for a population.
        device: where the layers are built.
        dtypes: the precisions in which numbers are compared.

    Example:
        >>> from linnet import SymmetricLinear
        >>> print(Case(SymmetricLinear, 6, 6, beings=3))
        SymmetricLinear(6, 6, beings=3)
    """

    cls: type[LinearMap]
    in_features: int
    out_features: int
    options: Mapping[str, Any] = field(default_factory=dict)
    beings: int | None = None
    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def __str__(self) -> str:
        shown = {**self.options, **({} if self.beings is None else {"beings": self.beings})}
        sizes = (str(self.in_features), str(self.out_features))
        return f"{self.cls.__name__}({', '.join((*sizes, *(f'{k}={v!r}' for k, v in shown.items())))})"

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading axes of the parameters: () or (beings,)."""
        return () if self.beings is None else (self.beings,)

    def layer(self, seed: int = 0, *, bias: bool = True, **factory: Any) -> LinearMap:
        """A fresh layer drawn with ``seed``; the caller's random state is left as it was."""
        with self.seeded(seed):
            return self.build(bias, **factory)

    def build(self, bias: bool = True, **factory: Any) -> LinearMap:
        """A layer drawn from the default generator."""
        given: dict[str, Any] = {"device": self.device, **self.options, **factory}
        if self.beings is not None:
            given["beings"] = self.beings
        return self.quiet(self.cls(self.in_features, self.out_features, bias, **given))

    def quiet(self, layer: LinearMap) -> LinearMap:
        """The layer as it is checked: a noisy one keeps the contract in eval mode."""
        return layer.eval() if self.cls.noisy else layer

    @contextmanager
    def seeded(self, seed: int) -> Any:
        """Inside, the default generators start at ``seed``; outside, they are as they were."""
        devices = [torch.device(self.device)] if torch.device(self.device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def random_state(self) -> Tensor:
        """The state of the generator that layers on this device draw from."""
        device = torch.device(self.device)
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def randn(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> Tensor:
        """Normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(1234 + seed)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.to(self.device, dtype or self.dtypes[0])

    def input(self, *, dtype: torch.dtype | None = None, seed: int = 0) -> Tensor:
        """An ordinary batch: (4, in), for a population (4, beings, in)."""
        return self.randn(BATCH, *self.leading, self.in_features, dtype=dtype, seed=seed)

    def input_shapes(self) -> list[tuple[int, ...]]:
        """Every kind of shape that the contract admits."""
        n, m = self.in_features, self.beings
        if m is None:
            return [(n,), (BATCH, n), (2, BATCH, n), (2, 1, BATCH, n), (0, n), (2, 0, n)]
        return [(n,), (1, n), (m, n), (BATCH, 1, n), (BATCH, m, n), (2, BATCH, m, n), (2, BATCH, 1, n), (0, m, n)]

    def matrix(self, *, dtype: torch.dtype | None = None, seed: int = 0) -> Tensor:
        """A Gaussian matrix (or one for each being): it has no structure at all."""
        return self.randn(*self.leading, self.out_features, self.in_features, dtype=dtype, seed=seed)


Check = Callable[[Case], None]


def cases(
    cls: type[LinearMap],
    options: Mapping[str, Any] | None = None,
    *,
    in_features: int | None = None,
    out_features: int | None = None,
    beings: Iterable[int | None] = (None, 3),
    device: str = "cpu",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
) -> list[Case]:
    """The cases of a class: each option dict with each number of beings.

    Args:
        cls: the layer class.
        options: the class's own options; None takes every dict of ``cls.examples()``. An ``in_features`` or
            ``out_features`` among them stands for the size, for options that admit only certain sizes.
        in_features, out_features: sizes; by default 6 -> 6 for a square class, otherwise 7 -> 5 for one map and 5 -> 7
            for a population.
        beings: numbers of beings, None for one map.
        device: where the layers are built.
        dtypes: the precisions in which numbers are compared.

    Example:
        >>> from linnet import OrthogonalLinear
        >>> [str(case) for case in cases(OrthogonalLinear, beings=(None,))]
        ['OrthogonalLinear(6, 6)', 'OrthogonalLinear(6, 6, reflectors=2)']
    """
    found = []
    for example in cls.examples() if options is None else [dict(options)]:
        own = dict(example)
        size_in, size_out = own.pop("in_features", in_features), own.pop("out_features", out_features)
        for count in beings:
            usual = (6, 6) if cls.square else (7, 5) if count is None else (5, 7)
            sizes = (size_in or usual[0], size_out or usual[1])
            found.append(Case(cls, *sizes, options=own, beings=count, device=device, dtypes=tuple(dtypes)))
    return found


def check(function: Check) -> Check:
    """Run a check on a random state of its own, and turn what it raises into a ContractError that names it."""

    @functools.wraps(function)
    def run(case: Case) -> None:
        try:
            with case.seeded(0):
                function(case)
        except Exception as error:
            fact = str(error) if isinstance(error, ContractError) else f"{type(error).__name__}: {error}"
            raise ContractError(f"{function.__name__}, {case}: {fact}") from error

    return run


def expect(condition: Any, message: str) -> None:
    """Complain unless the condition holds."""
    if not bool(condition):
        raise ContractError(message)


def array(tensor: Tensor) -> np.ndarray:
    """A tensor, sparse ones included, as a float64 array."""
    return dense(tensor.detach()).cpu().double().numpy()


def close(what: str, actual: Tensor, expected: Tensor | np.ndarray, *, rtol: float | None = None) -> None:
    """Complain unless ``actual`` equals the oracle up to ``rtol`` times its largest entry (default: the tolerance)."""
    reference = array(expected) if isinstance(expected, Tensor) else np.asarray(expected)
    found = array(actual)
    expect(found.shape == reference.shape, f"{what} must have shape {reference.shape}, got {found.shape}")
    if reference.size == 0:
        return
    allowed = (tolerance(actual.dtype) if rtol is None else rtol) * max(1.0, float(np.abs(reference).max()))
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and NaN is a difference
        difference = float(np.abs(found - reference).max())
    expect(difference <= allowed, f"{what} differs by {difference:.2e} from the reference (limit {allowed:.2e})")


def same(what: str, actual: Tensor, expected: Tensor) -> None:
    """Complain unless two tensors agree in dtype and in every bit."""
    expect(actual.dtype == expected.dtype, f"{what} must have dtype {expected.dtype}, got {actual.dtype}")
    found, given = dense(actual.detach()), dense(expected.detach())
    expect(found.shape == given.shape, f"{what} must have shape {tuple(given.shape)}, got {tuple(found.shape)}")
    off = (found != given).sum().item()
    expect(not off, f"{what} is not the same bit for bit: {off} of {found.numel()} numbers differ")


def refused(
    what: str,
    errors: type[Exception] | tuple[type[Exception], ...],
    call: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> str:
    """Complain unless the call raises one of the given errors; the message of that error."""
    try:
        call(*args, **kwargs)
    except errors as error:
        return str(error)
    names = errors.__name__ if isinstance(errors, type) else " or ".join(error.__name__ for error in errors)
    raise ContractError(f"{what} must raise {names}, but was accepted")


def train(case: Case, layer: LinearMap, steps: int = 2, lr: float = 0.1) -> LinearMap:
    """A few steps of SGD, so that the layer is no longer what a constructor draws."""
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    if parameters:
        optimizer = torch.optim.SGD(parameters, lr=lr)
        for step in range(steps):
            descend(case, layer, optimizer, step)
    return layer


def descend(case: Case, layer: LinearMap, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step on a linear loss, whose gradient no parameter can make grow."""
    x = case.input(dtype=first_dtype(layer), seed=10 + step)
    y = layer(x)
    loss = (y * case.randn(*y.shape, dtype=y.dtype, seed=20 + step)).sum() + layer.penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def gradient(name: str, tensor: Tensor) -> Tensor:
    """The gradient of a leaf tensor; complain if backward did not reach it."""
    if tensor.grad is None:
        raise ContractError(f"{name} gets no gradient (DDP refuses unused parameters)")
    return tensor.grad


def first_dtype(layer: nn.Module) -> torch.dtype:
    """The dtype of the first floating tensor of a layer; torch's default without any."""
    tensors = (*layer.parameters(), *layer.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())


def trainable(layer: LinearMap) -> dict[str, nn.Parameter]:
    """The raw parameters, without the bias."""
    return {name: parameter for name, parameter in layer.named_parameters() if name != "bias"}

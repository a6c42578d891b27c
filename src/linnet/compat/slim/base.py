"""The base classes of linnet.compat.slim: the interface of neuromancer.slim, implemented by linnet's maps."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap

OPTIONS = frozenset(
    "complex droprate_init epsilon gamma increasing_stride l2 lamda max_p n_U_reflectors n_V_reflectors n_reflectors "
    "ortho_init p provide_weights pwr_iters rank real sigma_max sigma_min temperature tied_weight weight_decay".split()
)
"""All options of all classes of neuromancer.slim: its blocks pass one map the options of another, so none warns."""


def device_and_dtype(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """``device`` and ``dtype`` among the extra keywords of a class; warn about unknown keywords."""
    for name in sorted(given.keys() - OPTIONS - {"device", "dtype"}):
        warnings.warn(
            f"{cls.__name__} ignores {name!r}, which is neither an option of neuromancer.slim nor device or dtype",
            stacklevel=4,
        )
    return {name: given[name] for name in ("device", "dtype") if name in given}


class LinearBase(nn.Module, ABC):
    """y = x A + b with A = ``effective_W()``, the only method that a subclass must define.

    Args:
        insize: size of each input sample.
        outsize: size of each output sample.
        bias: whether an additive bias is learned.
        provide_weights: whether there is a parameter ``weight``, (insize, outsize), initialized like nn.Linear.

    Shape:
        - input: (*, insize)
        - output: (*, outsize)

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> class Even(LinearBase):
        ...     def effective_W(self):
        ...         return (self.weight + self.weight.flip(0)) / 2
        >>> Even(4, 3)(torch.randn(2, 5, 4)).shape
        torch.Size([2, 5, 3])
    """

    in_features: int
    out_features: int
    use_bias: bool
    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, insize: int, outsize: int, bias: bool = False, provide_weights: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = check_positive(insize=insize, outsize=outsize)
        self.use_bias = bool(bias)
        bound = 1 / math.sqrt(self.in_features)
        if provide_weights:
            self.weight = nn.Parameter(torch.empty(self.in_features, self.out_features).uniform_(-bound, bound))
        drawn = nn.Parameter(torch.empty(self.out_features).uniform_(-bound, bound)) if bias else None
        self.register_parameter("bias", drawn)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(chain(self.parameters(), self.buffers()), torch.empty(0)).device

    @abstractmethod
    def effective_W(self) -> Tensor:
        """The matrix A of y = x A + b, (insize, outsize), differentiable."""

    def reg_error(self) -> Tensor:
        """Scalar penalty to add to the loss; 0 for hard structures."""
        return torch.zeros((), device=self.device)

    def eig(self, eigenvectors: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Eigenvalues of A, (n,), complex; with ``eigenvectors`` also the eigenvectors v of A v = λ v, in columns.

        Raises:
            ValueError: A is not square.
        """
        if self.in_features != self.out_features:
            raise ValueError(f"Only a square matrix has eigenvalues, got {self.in_features} -> {self.out_features}")
        matrix = self.effective_W()
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        if not eigenvectors:
            return torch.linalg.eigvals(matrix)
        values, vectors = torch.linalg.eig(matrix)
        return values, vectors

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.effective_W()
        return y if self.bias is None else y + self.bias


class SquareLinear(LinearBase, ABC):
    """A :class:`LinearBase` whose matrix is square.

    Args:
        insize, outsize, bias, provide_weights: see :class:`LinearBase`.

    Raises:
        ValueError: insize != outsize.
    """

    def __init__(
        self, insize: int, outsize: int, bias: bool = False, provide_weights: bool = True, **kwargs: Any
    ) -> None:
        if insize != outsize:
            raise ValueError(f"{type(self).__name__} is square: insize must equal outsize, got {insize} and {outsize}")
        where = device_and_dtype(type(self), kwargs)
        super().__init__(insize, outsize, bias=bias, provide_weights=provide_weights)
        self.to(**where)


class Mapped(LinearBase):
    """Base class of the classes of slim that are one of linnet's maps, available as ``layer.linear``.

    ``class Name(Mapped, of=cls)`` uses the map ``cls``, which owns all parameters, including the bias. A subclass that
    overrides ``effective_W`` multiplies by that matrix.
    """

    _map: ClassVar[type[LinearMap]]
    linear: LinearMap

    def __init_subclass__(cls, *, of: type[LinearMap] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if of is not None:
            cls._map = of
        if "effective_W" in cls.__dict__ and "forward" not in cls.__dict__:
            cls.forward = LinearBase.forward  # type: ignore[method-assign]

    def __init__(self, insize: int, outsize: int, bias: bool = False, **kwargs: Any) -> None:
        self._init_map(insize, outsize, bias, {}, kwargs)

    def _init_map(self, insize: int, outsize: int, bias: bool, options: dict[str, Any], given: dict[str, Any]) -> None:
        where = device_and_dtype(type(self), given)
        nn.Module.__init__(self)
        self.linear = self._map(insize, outsize, bool(bias), **options, **where)
        self.in_features, self.out_features = insize, outsize
        self.use_bias = bool(bias)

    @property
    def bias(self) -> nn.Parameter | None:
        """b, (outsize,), or None."""
        return self.linear.bias

    @bias.setter
    def bias(self, value: nn.Parameter | None) -> None:
        self.linear.bias = value

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), property):  # nn.Module would register a Parameter instead
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def effective_W(self) -> Tensor:
        return self.linear.weight.mT

    def reg_error(self) -> Tensor:
        # after bake, self.linear is an nn.Linear
        return self.linear.penalty() if isinstance(self.linear, LinearMap) else super().reg_error()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

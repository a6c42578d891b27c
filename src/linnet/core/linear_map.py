"""The contract: what every linear map of this library is, and what a new one must write.

Longer bodies are functions in the files beside this one: ``parameters.py`` (allocation, drawing), ``matrix_free.py``,
``frozen.py``, ``conversion.py`` (from nn.Linear and back), ``being.py`` (populations) and ``options.py``.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from linnet.core import conversion
from linnet.core.affine import affine
from linnet.core.autograd import at_least_float32, autocast_off
from linnet.core.being import Being, copy_beings, extract, indices
from linnet.core.checks import check_input, check_matrix, check_positive
from linnet.core.dense import dense
from linnet.core.frozen import Materialized, held
from linnet.core.matrix_free import matrix_free
from linnet.core.options import own_options, summary
from linnet.core.parameters import allocate, draw
from linnet.core.registry import register

FAST_FROM = 256 * 256
"""Entries of W up to which the dense product, once W is computed, is faster than the forward of a fast layer."""


class LinearMap(nn.Module, ABC):
    """y = x Wᵀ + b, with W of a stated structure: the contract that every layer of linnet keeps.

    Promises are stated on A = Wᵀ, the matrix of y = x A + b, of shape (in_features, out_features).

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether an additive bias is learned.
        beings: None for one map; n for a population of n maps, all evaluated at once.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - input: (*, in_features); a population takes (in_features,) or (*, beings or 1, in_features)
        - output: (*, out_features); a population gives (*, beings, out_features)

    Raises:
        ValueError: a size is not a positive integer, or the structure is square and the sizes differ.
    """

    family: ClassVar[str] = ""
    """The page of docs/maps that describes the class, and its group in ``linnet layers``; empty for your own."""
    promise: ClassVar[str] = "none"
    """What the matrix keeps, as a formula in A."""
    square: ClassVar[bool] = False
    """Whether in_features must equal out_features."""
    hard: ClassVar[bool] = True
    """Whether the promise holds after any optimizer step; a soft one has a penalty."""
    penalized: ClassVar[bool] = False
    """Whether a hard map has a penalty too, for what it prefers but does not promise."""
    noisy: ClassVar[bool] = False
    """Whether forward draws random numbers in training mode; ``weight`` is the matrix of eval mode."""
    fast: ClassVar[bool] = False
    """Whether forward costs less than the dense product where the sizes are large."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """The raw tensors that are buffers: drawn and assigned like the others, never trained."""
    decays: ClassVar[tuple[str, ...]] = ()
    """The raw parameters that weight decay may shrink: with them W shrinks, and is pulled nowhere else."""

    in_features: int
    out_features: int
    beings: int | None
    bias: nn.Parameter | None

    _raw_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, catalogue: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_weight" not in cls.__dict__:
            return  # made at run time by FSDP or parametrize, or a mere alias of its parent
        cls._raw_names = tuple(inspect.signature(cls._weight).parameters)[1:]
        if catalogue:
            register(cls)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = check_positive(in_features=in_features, out_features=out_features)
        self.beings = None if beings is None else check_positive(beings=beings)[0]
        if self.square and self.in_features != self.out_features:
            raise ValueError(
                f"{type(self).__name__} is square: in_features must equal out_features, "
                f"got {self.in_features} and {self.out_features}"
            )
        shapes = self._shapes()
        allocate(self, shapes, bias, device, dtype)
        if shapes:
            self.reset_parameters()

    # ------------------------------------------------------------------ what a layer writes

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the raw tensors of *one* map by name, in the order in which they are registered.

        Those named in ``fixed`` become buffers, the others parameters. Without any, the constructor of the class makes
        them and then calls ``reset_parameters``.
        """
        return {}

    @abstractmethod
    def _weight(self, *args: Any, **raw: Any) -> Tensor:
        """Raw tensors, named by the signature of the override -> W, (..., out, in)."""

    @abstractmethod
    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        """W, float64, (..., out, in) -> raw tensors by name, for the nearest matrix of the structure."""

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        """Draw the raw tensors of *one* map in place; by default U(±1/√in)."""
        bound = 1 / math.sqrt(self.in_features)
        for tensor in raw.values():
            tensor.uniform_(-bound, bound, generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        """Distance of W, float64, (..., out, in), from the promise, relative to the natural scale, (...)."""
        return weight.new_zeros(weight.shape[:-2])

    def _product(self, x: Tensor, *args: Any, **raw: Any) -> Tensor:
        """x, ([beings or 1,] batch, in), and the raw tensors -> x Wᵀ without forming W. Optional: forward uses it."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """Option dicts that the contract tests run; where only some sizes fit, in_features and out_features too."""
        return [{}]

    # ------------------------------------------------------------------ the matrix

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading axes of every raw parameter: () or (beings,)."""
        return () if self.beings is None else (self.beings,)

    @property
    def weight(self) -> Tensor:
        """The effective matrix W, ([beings,] out, in): differentiable, deterministic."""
        try:
            kept = held(self) if not self.noisy and self._pays_dense() else None
            return self._build(self.raw_tensors()) if kept is None else kept.weight
        except AttributeError as error:  # nn.Module would report the property itself as missing
            raise RuntimeError(f"{type(self).__name__}.weight could not be computed: {error}") from error

    def raw_tensors(self) -> dict[str, Tensor]:
        """The raw tensors from which W is computed, by name: parameters, and buffers with a beings axis."""
        return {name: getattr(self, name) for name in self._raw_names}

    def _build(self, raw: Mapping[str, Tensor]) -> Tensor:
        """raw -> W in at least float32 with autocast off, cast to the dtype of the parameters at the end."""
        first = next(iter(raw.values()))
        wide = torch.promote_types(first.dtype, torch.float32)
        with autocast_off(first.device.type):
            weight = self._weight(**{name: tensor.to(wide) for name, tensor in raw.items()})
        return weight.to(first.dtype)

    def _sampled(self, raw: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The raw tensors with the noise of one forward among them; a layer without noise has none to add."""
        return raw

    def _realized(self, raw: Mapping[str, Tensor]) -> Tensor:
        """What :meth:`_sampled` gave -> the matrix that this forward uses; without noise W."""
        return self._build(raw)

    def _pays_dense(self) -> bool:
        """Whether x Wᵀ, once W is computed, is no slower than ``forward``: a pure function of sizes and options."""
        return not self.fast or self.in_features * self.out_features <= FAST_FROM

    def materialize(self) -> Materialized:
        """This layer with W computed once, and always up to date, for hand-written loops; see :class:`Materialized`."""
        return Materialized(self)

    def forward(self, input: Tensor) -> Tensor:
        if type(self)._product is not LinearMap._product:
            return self._matrix_free(input, self._product)
        check_input(input, self.in_features, self.beings)
        return affine(input, self.weight, self.bias)

    def _matrix_free(self, input: Tensor, product: Callable[..., Tensor]) -> Tensor:
        """A forward that never forms W: ``product`` is as :meth:`_product`."""
        return matrix_free(self, input, product)

    def reset_parameters(self, *, seeds: int | Sequence[int] | None = None) -> None:
        """Redraw every parameter in place and rebuild the buffers: all that initialization from the meta device needs.

        Args:
            seeds: None draws from torch's default generator. An int, for a population one int for each being,
                draws map i as after ``torch.manual_seed(seeds[i])``.
        """
        draw(self, seeds)

    def assign(self, weight: Tensor) -> Tensor:
        """Take a given matrix: exactly if it has the structure, else the nearest that has (or as the class documents).

        Args:
            weight: the matrix W, ([beings,] out, in).

        Returns:
            The relative distance moved, ‖W_new − W‖_F / ‖W‖_F, ([beings]) float64; from W = 0 it is infinite.

        Raises:
            ValueError: the shape differs from that of ``weight``, or an entry is not finite.
        """
        target = self._checked(weight)
        if not torch.isfinite(target).all():
            raise ValueError("weight must be finite, got NaN or infinity among its entries")
        with torch.no_grad():
            raw = self.raw_tensors()
            for name, value in self._assign(target).items():
                raw[name].copy_(value)
            moved = torch.linalg.matrix_norm(self._checked(self.weight) - target)
            return torch.where(moved == 0, moved, moved / torch.linalg.matrix_norm(target))

    def penalty(self) -> Tensor:
        """Scalar regularizer, >= 0, summed over the beings; 0 where the structure is hard."""
        return self._anchor.new_zeros(())

    def violation(self, weight: Tensor | None = None) -> Tensor:
        """How far a matrix (by default the layer's own) is from the promise, relative to the natural scale.

        A pure function of the matrix: the promise holds iff it is at most :func:`tolerance` of the dtype.

        Args:
            weight: a matrix to judge, ([beings,] out, in); None judges the layer's own.

        Returns:
            float64, () or (beings,); infinite where the matrix is not finite.
        """
        with torch.no_grad():
            matrix = self._checked(self.weight if weight is None else weight)
            finite = torch.isfinite(matrix).all(-1).all(-1)
            distance = self._violation(torch.where(finite[..., None, None], matrix, 0.0))
            return torch.where(finite, distance, torch.inf)

    def eigvals(self) -> Tensor:
        """Eigenvalues of ``weight`` (and of A), ([beings,] n), complex; square maps only."""
        if self.in_features != self.out_features:
            raise ValueError(f"Only a square matrix has eigenvalues, got {self.in_features} -> {self.out_features}")
        return torch.linalg.eigvals(at_least_float32(dense(self.weight)))

    def svdvals(self) -> Tensor:
        """Singular values of ``weight``, ([beings,] min(in, out)), in descending order."""
        return torch.linalg.svdvals(at_least_float32(dense(self.weight)))

    # ------------------------------------------------------------------ from nn.Linear and back

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """nn.Linear -> this layer, through :meth:`assign`; torch's random state is left as it was."""
        return conversion.from_linear(cls, linear, options)[0]

    @classmethod
    def from_linears(cls, linears: Iterable[nn.Linear], **options: Any) -> Self:
        """nn.Linears of one shape -> the population of them, through :meth:`assign`."""
        return conversion.from_linears(cls, linears, options)

    def to_linear(self) -> nn.Linear:
        """This layer -> an independent nn.Linear of the same function; torch's random state is left as it was."""
        return conversion.to_linear(self)

    def to_linears(self) -> list[nn.Linear]:
        """A population -> one independent nn.Linear for each being."""
        return conversion.to_linears(self)

    @classmethod
    def _empty(cls, in_features: int, out_features: int, bias: bool, **options: Any) -> Self:
        """A layer by the contract's own arguments, for classes whose constructor has others."""
        return cls(in_features, out_features, bias, **options)

    # ------------------------------------------------------------------ populations

    def clone_being(self, source: int | Sequence[int] | Tensor, destination: int | Sequence[int] | Tensor) -> None:
        """Overwrite being ``destination`` with being ``source``; lists of indices are copied all at once.

        The copy is an in-place operation that autograd sees: between forward and backward it makes backward raise an
        error wherever backward needs an overwritten value; otherwise the gradient is that of the forward that ran.
        """
        copy_beings(self.rows(), source, destination, self._population())
        self.rows_moved()

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front: what moves with them."""
        return [tensor for tensor in (*self.raw_tensors().values(), self.bias) if tensor is not None]

    def rows_moved(self) -> None:
        """Rebuild what is derived from :meth:`rows`, after they were written to."""

    def get_single(self, index: int) -> Being:
        """Being ``index`` as a single map: a live view, see :class:`Being`."""
        return Being(self, int(indices(index, self._population())))

    def single(self, index: int) -> Self:
        """Being ``index`` as an independent map of the same class, without beings."""
        return extract(self, index)

    def _population(self) -> int:
        """The number of beings, or a ValueError."""
        if self.beings is None:
            raise ValueError(f"The layer must be a population (beings=n), got {self}")
        return self.beings

    def _leads(self, name: str) -> bool:
        """Whether a buffer has the axis of beings; one that has not is shared."""
        return name in self._raw_names

    # ------------------------------------------------------------------ bookkeeping

    def options(self) -> dict[str, Any]:
        """The class's own options by name, as given to the constructor."""
        return own_options(self)

    def extra_repr(self) -> str:
        return summary(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and not (isinstance(value, nn.Parameter) and "weight" in self._parameters):
            self.assign(value)
        else:
            super().__setattr__(name, value)

    @property
    def _anchor(self) -> Tensor:
        """Any tensor of the layer: it tells device and dtype."""
        tensors = (*self.raw_tensors().values(), self.bias, *self.buffers())
        return next((tensor for tensor in tensors if tensor is not None), torch.empty(0))

    def _checked(self, weight: Tensor) -> Tensor:
        """``weight`` as a detached dense float64 tensor of the right shape on the layer's device."""
        check_matrix(weight, (*self.leading, self.out_features, self.in_features))
        return dense(weight.detach()).to(self._anchor.device, torch.float64)

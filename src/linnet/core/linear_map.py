"""The contract: what every linear map of this library is, and the catalogue of them.

A layer is one class in one file. It owns raw parameters and writes

* ``_weight(self, raw, ...)``: raw tensors -> W; the argument names *are* the names of the raw tensors, and any
  leading axes are carried along (``.mT``, ``...``), which gives populations for free;
* ``_assign(weight)``: W -> raw tensors, the right inverse of ``_weight``;
* ``_draw(raw, generator)``: fresh raw values of one map, in place;
* ``_violation(weight)``: how far a matrix is from what the layer promises.

:class:`LinearMap` turns these into a module that behaves like :class:`torch.nn.Linear` everywhere.
"""

import copy
import inspect
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from linnet.core.affine import affine
from linnet.core.autograd import at_least_float32, autocast_off
from linnet.core.being import Being, copy_beings, indices
from linnet.core.checks import check_input, check_positive
from linnet.core.dense import dense, plain_linear
from linnet.core.frozen import Materialized, held
from linnet.core.registry import register

__all__ = ["LinearMap"]

FAST_FROM = 256 * 256
"""Entries of W up to which a fast layer, once W is at hand, is faster as a dense product."""


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
    """Whether a hard map has a penalty all the same, for what it prefers and does not promise."""
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
                f"{type(self).__name__} is square, in_features must equal out_features, "
                f"got {self.in_features} and {self.out_features}"
            )
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be True or False, got {bias!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a real floating-point type, got {dtype}")
        if bias:
            self.bias = nn.Parameter(torch.empty(*self.leading, self.out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        if shapes := self._shapes():
            self._allocate(shapes, device, dtype)
            self.reset_parameters()

    # ------------------------------------------------------------------ what a layer writes

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Raw tensors by name, in the order in which they are registered -> the shape of those of *one* map.

        They are parameters, or buffers if they are named in ``fixed``. A class that makes its tensors in a constructor
        of its own, and then calls ``reset_parameters``, leaves this as it is.
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

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """Option dicts that together exercise the class: the contract tests run each of them.

        Where an option admits only certain sizes, ``in_features`` and ``out_features`` stand among them.
        """
        return [{}]

    # ------------------------------------------------------------------ the matrix

    def _allocate(self, shapes: Mapping[str, tuple[int, ...]], device: Any, dtype: torch.dtype | None) -> None:
        """Register the raw tensors, uninitialized, with the leading axes in front."""
        for name, shape in shapes.items():
            tensor = torch.empty(*self.leading, *shape, device=device, dtype=dtype)
            if name in self.fixed:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor))

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
        """Whether x Wᵀ with W at hand is at least as fast as ``forward``: a pure function of sizes and options."""
        return not self.fast or self.in_features * self.out_features <= FAST_FROM

    def materialize(self) -> Materialized:
        """This layer with W computed once, for hand-written loops; never stale, see :class:`Materialized`."""
        return Materialized(self)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, self.in_features, self.beings)
        return affine(input, self.weight, self.bias)

    def _matrix_free(self, input: Tensor, product: Callable[..., Tensor]) -> Tensor:
        """A forward that never forms W: ``product(x, **raw)`` gives x Wᵀ for x of shape ([beings or 1,] batch, in).

        Like ``weight`` it is computed in at least float32 with autocast off; the result has the dtype that nn.Linear
        would give.
        """
        kept = held(self)
        if kept is not None and self._pays_dense():
            return kept.product(input)
        check_input(input, self.in_features, self.beings)
        raw = self.raw_tensors()
        dtype, device = next(iter(raw.values())).dtype, input.device.type
        # autocast leaves float64 alone, as it does in nn.Linear
        autocast = device != "meta" and torch.is_autocast_enabled(device) and dtype != torch.float64
        if not autocast and input.dtype != dtype:
            raise TypeError(f"The input must have the dtype of the parameters, {dtype}, got {input.dtype}")
        if not autocast and dtype in (torch.float32, torch.float64):
            return self._rows(input, product, raw, self.bias)
        wide = torch.promote_types(dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        with autocast_off(device):
            y = self._rows(input.to(wide), product, {name: tensor.to(wide) for name, tensor in raw.items()}, bias)
            return y.to(torch.get_autocast_dtype(device) if autocast else dtype)

    def _rows(
        self, input: Tensor, product: Callable[..., Tensor], raw: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor:
        """Input of any shape -> the rows that ``product`` takes, and its rows -> the output's shape, plus the bias."""
        if self.beings is None:
            x = input if input.dim() == 2 else input.reshape(-1, self.in_features)  # (batch, in)
            y = product(x, **raw)
            y = y if input.dim() == 2 else y.reshape(*input.shape[:-1], self.out_features)
        else:
            axis = 1 if input.dim() == 1 else input.shape[-2]
            x = input.reshape(-1, axis, self.in_features).transpose(0, 1)  # (beings or 1, batch, in)
            y = product(x, **raw)
            y = y.transpose(0, 1).reshape(*input.shape[:-2], self.beings, self.out_features)
        return y if bias is None else y + bias

    def reset_parameters(self, *, seeds: int | Sequence[int] | None = None) -> None:
        """Redraw every parameter in place and rebuild the buffers: all that meta-device initialisation needs.

        Args:
            seeds: None draws from torch's default generator. An int, for a population one int for each being,
                draws map i as after ``torch.manual_seed(seeds[i])``.
        """
        seed_list: list[int | None] = [None] * (self.beings or 1)
        if seeds is not None:
            listed = seeds if isinstance(seeds, Iterable) else [seeds]
            seed_list = [operator.index(seed) for seed in listed]
        if len(seed_list) != (self.beings or 1):
            raise ValueError(f"seeds must hold one int for each being ({self.beings}), got {len(seed_list)}")
        if any(tensor.is_meta for tensor in (*self.raw_tensors().values(), self.bias) if tensor is not None):
            return
        for i, seed in enumerate(seed_list):
            self._redraw(i, None if seed is None else torch.Generator(self._anchor.device).manual_seed(seed))

    @torch.no_grad()
    def _redraw(self, index: int, generator: torch.Generator | None) -> None:
        """Draw map ``index`` in place, weight and then bias; without beings there is only map 0."""
        which = ... if self.beings is None else index
        self._draw({name: tensor.detach()[which] for name, tensor in self.raw_tensors().items()}, generator)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            self.bias.detach()[which].uniform_(-bound, bound, generator=generator)

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
            raise ValueError("weight must be finite, got it contains NaN or infinity")
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

    # ------------------------------------------------------------------ doors to nn.Linear

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """nn.Linear -> this layer, through :meth:`assign`; torch's random state is left as it was."""
        layer = cls._like([linear], None, options)
        layer._take(linear.weight, linear.bias)
        return layer

    @classmethod
    def from_linears(cls, linears: Iterable[nn.Linear], **options: Any) -> Self:
        """nn.Linears of one shape -> the population of them, through :meth:`assign`."""
        members = list(linears)
        kinds = {
            f"{m.in_features} -> {m.out_features}, bias={m.bias is not None}, {m.weight.dtype}, "
            f"requires_grad={m.weight.requires_grad}"
            for m in members
        }
        if len(kinds) != 1:
            raise ValueError(f"from_linears needs maps of one kind, got {sorted(kinds) or 'none given'}")
        population = cls._like(members, len(members), options)
        biases: list[Tensor] = [m.bias for m in members if m.bias is not None]
        population._take(torch.stack([m.weight.detach() for m in members]), torch.stack(biases) if biases else None)
        return population

    @classmethod
    def _like(cls, members: list[nn.Linear], beings: int | None, options: dict[str, Any]) -> Self:
        first = members[0]
        factory: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
        extra: dict[str, Any] = {} if beings is None else {"beings": beings}
        with torch.random.fork_rng(devices=[first.weight.device] if first.weight.is_cuda else []):
            layer = cls._empty(
                first.in_features, first.out_features, first.bias is not None, **extra, **factory, **options
            )
        for name in layer._raw_names:
            getattr(layer, name).requires_grad_(getattr(layer, name).requires_grad and first.weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(first.bias.requires_grad)
        return layer.train(first.training)

    @classmethod
    def _empty(cls, in_features: int, out_features: int, bias: bool, **options: Any) -> Self:
        """A layer by the contract's own arguments, for classes whose constructor has others."""
        return cls(in_features, out_features, bias, **options)

    def _take(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        moved = self.assign(weight)
        if self.bias is not None and bias is not None:
            with torch.no_grad():
                self.bias.copy_(bias)
        return moved

    @torch.enable_grad()  # what learns goes on learning, even if it is exported under no_grad
    def to_linear(self) -> nn.Linear:
        """This layer -> an independent nn.Linear of the same function; torch's random state is left as it was."""
        if self.beings is not None:
            raise ValueError(
                f"to_linear() needs one map, got a population of {self.beings} (to_linears() gives all, "
                "get_single(i).to_linear() gives one)"
            )
        return plain_linear(dense(self.weight), self.bias)

    @torch.enable_grad()
    def to_linears(self) -> list[nn.Linear]:
        """A population -> one independent nn.Linear for each being."""
        weights = dense(self.weight)
        return [
            plain_linear(weights[i], None if self.bias is None else self.bias[i]) for i in range(self._population())
        ]

    # ------------------------------------------------------------------ populations

    def clone_being(self, source: int | Sequence[int] | Tensor, destination: int | Sequence[int] | Tensor) -> None:
        """Overwrite being ``destination`` with being ``source``; lists of indices are copied all at once.

        Writes in place under autograd's eyes: between forward and backward it makes backward raise an error wherever
        backward needs an overwritten value; otherwise the gradient is that of the forward that ran.
        """
        copy_beings(self.rows(), source, destination, self._population())
        self.rows_moved()

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front: what moves with them."""
        return [tensor for tensor in (*self.raw_tensors().values(), self.bias) if tensor is not None]

    def rows_moved(self) -> None:
        """Rebuild what follows from :meth:`rows`, after somebody wrote to them."""

    def get_single(self, index: int) -> "Being":
        """Being ``index`` as a single map: a live view, see :class:`Being`."""
        return Being(self, int(indices(index, self._population())))

    def single(self, index: int) -> Self:
        """Being ``index`` as an independent map of the same class, without beings."""
        i = int(indices(index, self._population()))
        memo: dict[int, Any] = {}
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            if tensor is not None and (name in self._parameters or self._leads(name)):
                row = tensor.detach()[i].clone()
                learned = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(row, tensor.requires_grad) if learned else row
        alone = copy.deepcopy(self, memo)
        alone.beings = None
        return alone

    def _leads(self, name: str) -> bool:
        """Whether a buffer has the axis of beings; one that has not is shared."""
        return name in self._raw_names

    # ------------------------------------------------------------------ bookkeeping

    def options(self) -> dict[str, Any]:
        """The class's own options by name, as given to the constructor."""
        shared = inspect.signature(LinearMap.__init__).parameters
        own = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in own if name not in shared}

    def extra_repr(self) -> str:
        own = inspect.signature(type(self).__init__).parameters
        parts = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
        ]
        shown = {name: repr(value) for name, value in self.options().items()}
        parts += [f"{name}={text}" for name, text in shown.items() if text != repr(own[name].default)]
        parts += [] if self.beings is None else [f"beings={self.beings}"]
        return ", ".join(parts)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and not (isinstance(value, nn.Parameter) and "weight" in self._parameters):
            self.assign(value)
        else:
            super().__setattr__(name, value)

    def _population(self) -> int:
        if self.beings is None:
            raise ValueError(f"This needs a population (beings=n), got {self}")
        return self.beings

    @property
    def _anchor(self) -> Tensor:
        """Any tensor of the layer: it tells device and dtype."""
        for tensor in (*self.raw_tensors().values(), self.bias, *self.buffers()):
            if tensor is not None:
                return tensor
        return torch.empty(0)

    def _checked(self, weight: Tensor) -> Tensor:
        """``weight`` as a detached dense float64 tensor of the right shape on the layer's device."""
        if not isinstance(weight, Tensor):
            raise TypeError(f"weight must be a tensor, got {type(weight).__name__}")
        shape = (*self.leading, self.out_features, self.in_features)
        if tuple(weight.shape) != shape:
            raise ValueError(f"weight must have shape {shape}, got {tuple(weight.shape)}")
        return dense(weight.detach()).to(self._anchor.device, torch.float64)

"""The connections of a sparse map: where they are, how they move, how they are saved."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.sparse.csr import check_structure, counts, relength, rows_of, transpose
from linnet.sparse.dynamic.optimizer_hooks import attend, dismiss
from linnet.sparse.dynamic.rules import Rule
from linnet.sparse.wiring.given import compressed
from linnet.sparse.wiring.uniform import Uniform
from linnet.sparse.wiring.wiring import Wiring

__all__ = ["BUFFERS", "StateError", "Wired"]

BUFFERS = ("crow", "col", "ccol", "row", "perm")  # W in CSR form, and its transpose, which follows from it
MOVING = ("step", "seed")  # further buffers of a map whose connections move


class StateError(ValueError, RuntimeError):
    """A state_dict that does not fit: a ValueError as every mistake of a user, a RuntimeError as torch has it."""


class Wired(LinearMap, ABC):
    """A map that is zero but at its connections, which it holds as buffers: the abstract half of SparseLinear.

    Shape:
        - values: ([beings,] nnz), ordered by output, then input
        - crow, col: W in CSR form, with an axis of beings if each has connections of its own
        - ccol, row, perm: its transpose in CSR form, and where its entries are in ``values``; not saved
        - step (), seed ([beings]): of a map whose connections move
    """

    values: nn.Parameter
    sparsity: float
    max_size: int
    dynamic: bool | Rule
    crow: Tensor
    col: Tensor
    step: Tensor
    seed: Tensor
    rule: Rule | None = None
    """How the connections move; None: they stay."""

    small_world: bool
    _wiring: Wiring  # which draws them
    _drawn: bool  # or they are the user's
    _turn: int = 0  # which map is being drawn
    _seen: tuple[Tensor, int, int] | None = None  # `step`, its version and its value

    # ------------------------------------------------------------------ where they are

    @property
    def nnz(self) -> int:
        """The number of connections of one map."""
        return self.col.shape[-1]

    @property
    def first_nnz(self) -> int:
        """The number of connections of one map when the layer was made; only pruning makes it fewer."""
        return round((1 - self.sparsity) * self.in_features * self.out_features)

    @property
    def indices(self) -> Tensor:
        """The connections as (output, input) pairs, ([beings,] 2, nnz), in the order of ``values``."""
        return torch.stack([rows_of(self.crow, self.nnz), self.col.long()], dim=-2)

    @property
    def apart(self) -> bool:
        """Whether each being has a wiring of its own."""
        return self.col.dim() == 2

    @property
    def _size(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def cells(self) -> Tensor:
        """The connections as row · in + column, rising: ([beings,] nnz)."""
        return rows_of(self.crow, self.nnz) * self.in_features + self.col

    def reconnect(self, cells: Tensor) -> None:
        """Put the connections at the cells, which rise, ([beings,] nnz); the values stay where they are."""
        crow = F.pad(counts(cells // self.in_features, self.out_features).cumsum(-1), (1, 0))
        if cells.shape[-1] == self.nnz:
            self._connect(..., crow, cells % self.in_features)
        else:
            self.crow, self.col = crow.to(self.crow), (cells % self.in_features).to(self.col)
        self._transpose()

    def _connect(self, which: int | EllipsisType, crow: Tensor, col: Tensor) -> None:
        """Write a wiring into the buffers, that of one being or all; what follows from it must be rebuilt then."""
        self.crow[which].copy_(crow)
        self.col[which].copy_(col)

    def _transpose(self) -> None:
        """Rebuild what follows from ``crow`` and ``col``, in place unless they have moved or changed in size."""
        rebuilt = transpose(self.crow, self.col, self.in_features)
        for name, tensor in zip(BUFFERS[2:], rebuilt, strict=True):
            buffer = self.get_buffer(name)
            if (buffer.device, buffer.dtype, buffer.shape) == (tensor.device, tensor.dtype, tensor.shape):
                buffer.copy_(tensor)
            else:
                setattr(self, name, tensor)
        if self.rule is not None:
            attend(self)

    # ------------------------------------------------------------------ how they are drawn

    @property
    def connectivity(self) -> Any:
        """As the constructor takes it: the wiring that draws the connections (or None), or the connections given."""
        if not self._drawn:
            return self.indices
        return None if self.small_world or self._wiring == Uniform() else self._wiring

    def reset_parameters(self, *, seeds: int | Sequence[int] | None = None) -> None:
        if not self._drawn and not self.values.is_meta:
            try:
                check_structure(self.crow, self.col, self.in_features)
            except ValueError as error:
                raise ValueError(
                    "Connections that the user gave and to_empty destroyed must be restored with load_state_dict, "
                    f"reset_parameters cannot draw them, got {error}"
                ) from error
        self._turn = 0
        if self.rule is not None and not self.values.is_meta:
            self.step.zero_()
        super().reset_parameters(seeds=seeds)
        if not self.values.is_meta:
            self._transpose()

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        values, which = raw["values"], ... if self.beings is None else self._turn
        own = which if self.apart else ...
        if self._drawn:
            # A wiring is drawn on the CPU, from a seed. Every map draws one: its values do not depend on its place.
            seed = _seed(generator, values.device)
            if own is not ... or self._turn == 0:  # the first map brings the wiring that all share
                self._connect(own, *self._placed(torch.Generator("cpu").manual_seed(seed)))
        if self.rule is not None:
            self.seed[which] = _seed(generator, values.device)
        fan_in = self.crow[own].diff()
        bound = fan_in.to(torch.promote_types(values.dtype, torch.float32)).rsqrt()  # (out,)
        bound = bound.to(values.dtype).repeat_interleave(fan_in, output_size=self.nnz)  # (nnz,)
        values.uniform_(-1, 1, generator=generator).mul_(bound)
        self._turn += 1

    def _placed(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        crow, col = compressed(self._wiring(*self._size, self.nnz, generator), *self._size)
        if col.shape != self.col.shape[-1:]:
            raise ValueError(f"{self._wiring!r} must place nnz={self.nnz} connections, got {tuple(col.shape)}")
        return crow, col

    def _own_count(self) -> int | None:
        """How many connections a wiring makes that decides on that itself."""
        own = getattr(self._wiring, "nnz", None)
        return None if own is None else own(*self._size)

    # ------------------------------------------------------------------ how they move

    def set_rule(self, rule: Rule | None) -> None:
        """From now on the connections move by ``rule``; None: they stay. A layer that had no rule is at step 0."""
        self.check_rule(rule)
        drawn = self.rule is None and not self.values.is_meta
        self._follow(rule)
        if rule is not None and drawn:
            self.seed.random_(2**62)

    def _follow(self, rule: Rule | None) -> None:
        self.dynamic, self.rule = False if rule is None else rule, rule
        dismiss(self)
        for name, shape in zip(MOVING, ((), self.leading), strict=True):
            if rule is None:
                self._buffers.pop(name, None)
            elif name not in self._buffers:
                self.register_buffer(name, torch.zeros(shape, dtype=torch.int64, device=self.values.device))
        if rule is not None:
            attend(self)

    def check_rule(self, rule: Rule | None) -> None:
        """Raise unless the connections of this layer can move by the rule."""
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"A rule must be one such as RigL(), got {rule!r}")
        if rule is not None:
            rule.due(1)  # one that must have an end, and has none, says so
        if rule is not None and self.beings is not None and not self.apart:
            raise ValueError(f"Connections may move only where each being has its own (shared=False), got {self}")

    @property
    def steps(self) -> int:
        """The optimizer steps counted so far: ``step``, read from its device only if somebody wrote to it."""
        seen = self._seen
        if seen is None or seen[0] is not self.step or seen[1] != self.step._version:
            seen = self._seen = (self.step, self.step._version, int(self.step))
        return seen[2]

    def count_step(self) -> int:
        """One more optimizer step: ``step`` + 1."""
        steps = self.steps + 1
        self.step.fill_(steps)
        self._seen = (self.step, self.step._version, steps)
        return steps

    # ------------------------------------------------------------------ how they are saved

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.rule is not None:
            attend(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self.get_buffer(name)
            if new.dtype != old.dtype and not old.is_floating_point():  # .type(torch.float64) would take indices along
                setattr(self, name, old.to(new.device))
            elif old.is_meta and not new.is_meta:
                new.zero_()  # no connections: what to_empty leaves could point anywhere
        if self.rule is not None:
            attend(self)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            self._check_loaded(state_dict)  # inside a larger model it is one of the errors that torch lists
        except ValueError as error:
            raise StateError(str(error)) from None
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        errors: list[str] = args[-1]
        own = {name: state_dict[prefix + name] for name in ("values", "crow", "col") if prefix + name in state_dict}
        try:
            self._check_loaded(own)
        except ValueError as error:  # nothing is loaded: values, crow and col make sense together only
            errors.append(f"{prefix or type(self).__name__}: {error}")
            return
        if "values" in own and own["values"].shape != self.values.shape:  # pruning left fewer of them
            self._resize(own["values"].shape[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)
        if "crow" in own:
            self._transpose()

    def _resize(self, nnz: int) -> None:
        self.values.grad = None
        relength(self.values, self.values.new_empty(*self.leading, nnz))
        self.col = self.col.new_empty(*self.col.shape[:-1], nnz)

    def _check_loaded(self, state: Mapping[str, Any]) -> None:
        loaded = {name: state[name] for name in ("values", "crow", "col") if name in state}
        shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
        expected = {name: tuple(getattr(self, name).shape) for name in loaded}
        if self.rule is not None and not self.rule.keeps_count and len(loaded) == 3:  # pruned further, or less far
            expected |= {name: (*expected[name][:-1], *shapes[name][-1:]) for name in ("values", "col")}
        if shapes != expected or (
            "col" in shapes and "values" in shapes and shapes["col"][-1:] != shapes["values"][-1:]
        ):
            raise ValueError(f"A state must have as many connections as the layer, {expected}, got {shapes}")
        if ("crow" in loaded) != ("col" in loaded):
            raise ValueError(f"crow and col must be loaded together, got {sorted(loaded)}")
        if "crow" in loaded and not any(tensor.is_meta for tensor in loaded.values()):
            check_structure(loaded["crow"], loaded["col"], self.in_features)


def _seed(generator: torch.Generator | None, device: torch.device) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=device))

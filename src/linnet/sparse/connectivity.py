"""The connectivity of a sparse map: where its connections are, how they are drawn, rewired and saved."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.sparse.csr import check_structure, counts, index_dtype, rows_of, set_data, transpose
from linnet.sparse.dynamic.optimizer_hooks import register, unregister
from linnet.sparse.dynamic.rules import Rule
from linnet.sparse.wiring.given import compressed
from linnet.sparse.wiring.uniform import Uniform
from linnet.sparse.wiring.wiring import Wiring, count

STRUCTURE = ("crow", "col", "ccol", "row", "perm")
"""The buffers that every sparse map has: W in CSR form, which is saved, and its transpose, which follows from it."""
COUNTERS = ("step", "seed")
"""The further buffers of a map with a rule."""


class StateError(ValueError, RuntimeError):
    """A state_dict that does not fit: a ValueError as every mistake of a user, a RuntimeError as torch has it."""


class SparseMap(LinearMap, ABC):
    """A linear map that is zero outside its connections, which it holds as buffers.

    A subclass says what is computed with them; this class draws, rewires and saves them. Its constructor sets all that
    its methods read; whoever calls it draws the values afterwards with ``reset_parameters``.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sparsity: the share of absent connections, where ``connectivity`` does not decide on it.
        connectivity: a wiring that draws connections, None for :class:`Uniform`, or connections in any form that
            :func:`compressed` takes.
        rule: how connections are rewired; None: never.
        max_size: the largest number of entries of dL/dW that may exist at a time during a rewiring.
        shared: whether the beings share one wiring; None: they do, unless ``rule`` or ``connectivity`` differ by being.

    Shape:
        - values: ([beings,] nnz), ordered by output, then input
        - crow, col: W in CSR form, with an axis of beings if each has a wiring of its own
        - ccol, row, perm: its transpose in CSR form, and where its entries are in ``values``; not saved
        - step (), seed ([beings]): with a rule, the optimizer steps counted and the seed of what the rule draws

    Raises:
        ValueError: as :class:`linnet.SparseLinear`.
    """

    sparsity: float
    dynamic: bool | Rule
    values: nn.Parameter
    crow: Tensor
    col: Tensor
    step: Tensor
    seed: Tensor
    rule: Rule | None = None
    """How the connections are rewired; None: never."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float,
        connectivity: Any,
        rule: Rule | None,
        max_size: int,
        shared: bool | None,
        beings: int | None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.max_size, self.shared = max_size, shared
        self._wiring: Wiring | None = None  # what draws the connections; None: the user gave them
        self._drawn_maps = 0  # how many maps reset_parameters has drawn so far
        self._steps_read: tuple[Tensor, int, int] | None = None  # `step`, its version and its value
        structure = None  # crow and col, where they are given
        if connectivity is None or (callable(connectivity) and not isinstance(connectivity, type)):
            self._wiring = Uniform() if connectivity is None else connectivity
        else:
            structure = compressed(connectivity, *self._size, self.beings)
        own_count = getattr(self._wiring, "nnz", None)  # a wiring may decide how many connections there are
        nnz = own_count(*self._size) if own_count is not None else None
        nnz = nnz if structure is None else structure[1].shape[-1]
        self.sparsity = sparsity if nnz is None else 1 - nnz / (self.out_features * self.in_features)
        nnz = count(sparsity, *self._size) if nnz is None else nnz
        self.values = nn.Parameter(torch.empty(*self.leading, nnz, device=device, dtype=dtype))
        lead = self.leading if self._is_apart(rule, structure is not None and structure[1].dim() == 2) else ()
        for name, length in zip(STRUCTURE, (self.out_features + 1, nnz, self.in_features + 1, nnz, nnz), strict=True):
            zeros = torch.zeros(*lead, length, dtype=index_dtype(*self._size, nnz), device=self.values.device)
            self.register_buffer(name, zeros, persistent=name in ("crow", "col"))
        if structure is not None and not self.values.is_meta:
            self._write(..., *structure)
            self._rebuild_transpose()
        self.check_rule(rule)
        self._take_rule(rule)

    def _is_apart(self, rule: Rule | None, each: bool) -> bool:
        """Whether each being shall have a wiring of its own; ``each``: whether connections are given for each."""
        if self.shared is not None and self.beings is None:
            raise ValueError(f"shared is for populations (beings=n), got shared={self.shared} for one map")
        if self.shared and (rule is not None or each):
            why = "connections for each being" if each else f"dynamic={rule}"
            raise ValueError(f"shared=True needs one wiring that all beings keep, got {why}")
        return self.beings is not None and (rule is not None or each if self.shared is None else not self.shared)

    # ------------------------------------------------------------------ where the connections are

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
            self._write(..., crow, cells % self.in_features)
        else:
            self.crow, self.col = crow.to(self.crow), (cells % self.in_features).to(self.col)
        self._rebuild_transpose()

    def _write(self, which: int | EllipsisType, crow: Tensor, col: Tensor) -> None:
        """Write a wiring into the buffers, that of one being or all; the transpose must be rebuilt then."""
        self.crow[which].copy_(crow)
        self.col[which].copy_(col)

    def _rebuild_transpose(self) -> None:
        """Rebuild what follows from ``crow`` and ``col``, in place unless device, dtype or size have changed."""
        rebuilt = transpose(self.crow, self.col, self.in_features)
        for name, tensor in zip(STRUCTURE[2:], rebuilt, strict=True):
            buffer = self.get_buffer(name)
            if (buffer.device, buffer.dtype, buffer.shape) == (tensor.device, tensor.dtype, tensor.shape):
                buffer.copy_(tensor)
            else:
                setattr(self, name, tensor)
        self._refresh()

    # ------------------------------------------------------------------ how they are drawn

    def reset_parameters(self, *, seeds: int | Sequence[int] | None = None) -> None:
        if self._wiring is None and not self.values.is_meta:
            try:
                check_structure(self.crow, self.col, self.in_features)
            except ValueError as error:
                raise ValueError(
                    "reset_parameters cannot draw connections that were given to the constructor and lost on the meta "
                    f"device; restore them with load_state_dict ({error})"
                ) from error
        self._drawn_maps = 0
        if self.rule is not None and not self.values.is_meta:
            self.step.zero_()
        super().reset_parameters(seeds=seeds)
        if not self.values.is_meta:
            self._rebuild_transpose()

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        values, which = raw["values"], ... if self.beings is None else self._drawn_maps
        own = which if self.apart else ...
        if self._wiring is not None:
            # Wirings are drawn on the CPU, from a seed of the layer's own generator: the same on every device. Each map
            # takes a seed, used or not, so that the values of being i do not depend on whether beings share a wiring.
            seed = _seed(generator, values.device)
            if own is not ... or self._drawn_maps == 0:  # a shared wiring is that of the first map
                self._write(own, *self._draw_structure(self._wiring, torch.Generator("cpu").manual_seed(seed)))
        if self.rule is not None:
            self.seed[which] = _seed(generator, values.device)
        # U(±1/√kᵢ) with kᵢ the fan-in of output i itself: then Var(yᵢ) = kᵢ · Var(w) · Var(x) = Var(x) / 3, whatever
        # the sparsity, as in nn.Linear (arXiv 2010.03533).
        fan_in = self.crow[own].diff()
        bound = fan_in.to(torch.promote_types(values.dtype, torch.float32)).rsqrt()  # (out,)
        bound = bound.to(values.dtype).repeat_interleave(fan_in, output_size=self.nnz)  # (nnz,)
        values.uniform_(-1, 1, generator=generator).mul_(bound)
        self._drawn_maps += 1

    def _draw_structure(self, wiring: Wiring, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        crow, col = compressed(wiring(*self._size, self.nnz, generator), *self._size)
        if col.shape[0] != self.nnz:
            raise ValueError(f"{wiring!r} must place nnz={self.nnz} connections, got {col.shape[0]}")
        return crow, col

    # ------------------------------------------------------------------ how they are rewired

    def set_rule(self, rule: Rule | None) -> None:
        """Rewire by ``rule`` from now on; None: never. A layer that had no rule is at step 0."""
        self.check_rule(rule)
        drawn = self.rule is None and not self.values.is_meta
        self._take_rule(rule)
        if rule is not None and drawn:
            self.seed.random_(2**62)

    def _take_rule(self, rule: Rule | None) -> None:
        self.dynamic, self.rule = False if rule is None else rule, rule
        unregister(self)
        for name, shape in zip(COUNTERS, ((), self.leading), strict=True):
            if rule is None:
                self._buffers.pop(name, None)
            elif name not in self._buffers:
                self.register_buffer(name, torch.zeros(shape, dtype=torch.int64, device=self.values.device))
        self._refresh()

    def _refresh(self) -> None:
        """Tell the optimizer hooks of a rule, and of the buffers where they lie now."""
        if self.rule is not None:
            register(self)

    def check_rule(self, rule: Rule | None) -> None:
        """Raise unless the rule can rewire this layer."""
        if rule is None:
            return
        if not isinstance(rule, Rule):
            raise TypeError(f"rule must be a Rule such as RigL(), got {rule!r}")
        rule.due(1)  # one that must have an end, and has none, says so
        if self.beings is not None and not self.apart:
            raise ValueError(f"A rule needs a wiring for each being (shared=False), got {self}")

    @property
    def steps(self) -> int:
        """The optimizer steps counted so far: ``step``, read from its device only if somebody wrote to it."""
        read = self._steps_read
        if read is None or read[0] is not self.step or read[1] != self.step._version:
            read = self._steps_read = (self.step, self.step._version, int(self.step))
        return read[2]

    def count_step(self) -> int:
        """One more optimizer step: ``step`` + 1."""
        steps = self.steps + 1
        self.step.fill_(steps)
        self._steps_read = (self.step, self.step._version, steps)
        return steps

    # ------------------------------------------------------------------ how they are saved

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._refresh()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self.get_buffer(name)
            if new.dtype != old.dtype and not old.is_floating_point():  # .type(torch.float64) would take indices along
                setattr(self, name, old.to(new.device))
            elif old.is_meta and not new.is_meta:
                new.zero_()  # no connections: what to_empty leaves could point anywhere
        self._refresh()
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
            self._rebuild_transpose()

    def _resize(self, nnz: int) -> None:
        self.values.grad = None
        set_data(self.values, self.values.new_empty(*self.leading, nnz))
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
            raise ValueError(f"state_dict must have as many connections as the layer, {expected}, got {shapes}")
        if ("crow" in loaded) != ("col" in loaded):
            raise ValueError(f"crow and col must be loaded together, got {sorted(loaded)}")
        if "crow" in loaded and not any(tensor.is_meta for tensor in loaded.values()):
            check_structure(loaded["crow"], loaded["col"], self.in_features)


def _seed(generator: torch.Generator | None, device: torch.device) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=device))

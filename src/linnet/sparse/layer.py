"""The sparse layer: memory and work grow with the connections, not with the size of the matrix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from linnet.beings import Being
from linnet.linear import LinearMap
from linnet.sparse.kernels import product
from linnet.sparse.structure import (
    among,
    check_structure,
    compress,
    entries_at,
    index_dtype,
    largest,
    nonzeros,
    rows_of,
    transpose,
)
from linnet.sparse.wiring import Uniform, Wiring, count, given

__all__ = ["SparseLinear"]


BUFFERS = ("crow", "col", "ccol", "row", "perm")  # W in CSR form, and its transpose, which follows from it


class SparseLinear(LinearMap):
    """y = x A + b where A has nnz entries at fixed places and is zero elsewhere.

    Memory and work are O(nnz) throughout; ``weight`` is a sparse tensor, and what needs a dense one (``to_linear``,
    ``eigvals``) refuses beyond 10⁸ entries. The values of output i start as U(±1/√kᵢ), with kᵢ the number of its own
    connections, so that at any sparsity the outputs start as large as nn.Linear's.

    A population shares one wiring. ``assign`` (hence ``from_linear``) takes the largest entries of the given matrix,
    dense or sparse, and moves the connections there; if it has fewer non-zeros than the layer has connections, the
    rest of these stay where they are, with the value 0. ``reset_parameters`` draws a new wiring, with ``seeds`` from
    the first of them. Connections that the user gave are moved by neither; they do not survive the meta device, from
    which only ``load_state_dict`` brings them back. ``torch.func.functional_call`` with the tensors of another layer
    needs all of its buffers (``named_buffers``, ``stack_module_state``), not just its state_dict.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sparsity: the share of absent connections; nnz = round((1 − sparsity) · in · out).
        connectivity: where the connections are. A rule such as :class:`Uniform`, which None stands for; or the
            connections themselves, which then determine the sparsity: a (2, nnz) LongTensor of (output, input) pairs
            in any order, a boolean mask or a sparse tensor or SciPy matrix of shape (out_features, in_features).

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - values: ([beings,] nnz), ordered by output, then input
        - crow: (out_features + 1,), a buffer: the connections of output i are crow[i] to crow[i + 1]
        - col: (nnz,), a buffer: the input of each connection

    Raises:
        ValueError: sparsity is not in [0, 1) or leaves no connection; connections are given that are out of range, or
            twice, or of a wrong shape or dtype.

    Example:
        >>> layer = SparseLinear(20_000, 30_000, sparsity=0.9999)
        >>> layer(torch.randn(8, 20_000)).shape, layer.nnz
        (torch.Size([8, 30000]), 60000)

    Reference:
        U. Evci, Y. Ioannou, C. Keskin, Y. Dauphin, Gradient flow in sparse neural networks and how lottery tickets
        win, 2022, arXiv 2010.03533 (initial values by the actual fan-in).
    """

    promise = "A = 0 outside nnz fixed connections"
    decays = ("values",)

    crow: Tensor
    col: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float = 0.9,
        connectivity: Any = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        drawn = connectivity is None or (callable(connectivity) and not isinstance(connectivity, type))
        self._rule: Wiring | None = connectivity if drawn else None
        self._drawn = drawn
        structure = None if drawn else compress(given(connectivity, *self._size), *self._size)
        nnz = count(sparsity, *self._size) if structure is None else structure[1].shape[0]
        self.sparsity = sparsity if drawn else 1 - nnz / (self.out_features * self.in_features)
        self.values = nn.Parameter(torch.empty(*self.leading, nnz, device=device, dtype=dtype))
        for name, length in zip(BUFFERS, (self.out_features + 1, nnz, self.in_features + 1, nnz, nnz), strict=True):
            zeros = torch.zeros(length, dtype=index_dtype(*self._size, nnz), device=self.values.device)
            self.register_buffer(name, zeros, persistent=name in BUFFERS[:2])
        if structure is not None and not self.values.is_meta:
            self._connect(*structure)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{"sparsity": 0.5}, {"sparsity": 0.8}, {"sparsity": 0.6, "connectivity": Uniform()}]

    # ------------------------------------------------------------------ the wiring

    @property
    def nnz(self) -> int:
        """The number of connections."""
        return self.col.shape[0]

    @property
    def indices(self) -> Tensor:
        """The connections as (output, input) pairs, (2, nnz), in the order of ``values``."""
        return torch.stack([rows_of(self.crow, self.nnz), self.col.long()])

    @property
    def connectivity(self) -> Any:
        """As the constructor takes it: the rule that draws the connections (or None), or the connections given."""
        return self._rule if self._drawn else self.indices

    @property
    def _size(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _cells(self) -> Tensor:
        """The connections as row · in + column, rising: (nnz,)."""
        return rows_of(self.crow, self.nnz) * self.in_features + self.col

    def _connect(self, crow: Tensor, col: Tensor) -> None:
        """Write a wiring into the buffers."""
        self.crow.copy_(crow)
        self.col.copy_(col)
        self._transpose()

    def _transpose(self) -> None:
        """Rebuild what follows from ``crow`` and ``col``, in place unless they have moved to another device."""
        rebuilt = transpose(self.crow, self.col, self.in_features)
        for name, tensor in zip(BUFFERS[2:], rebuilt, strict=True):
            buffer = self.get_buffer(name)
            if (buffer.device, buffer.dtype) == (tensor.device, tensor.dtype):
                buffer.copy_(tensor)
            else:
                setattr(self, name, tensor)

    def reset_parameters(self, *, seeds: int | Sequence[int] | None = None) -> None:
        if not self._drawn and not self.values.is_meta:
            try:
                check_structure(self.crow, self.col, self.in_features)
            except ValueError as error:
                raise ValueError(
                    "Connections that the user gave and to_empty destroyed must be restored with load_state_dict, "
                    f"reset_parameters cannot draw them, however: {error}"
                ) from error
            self._transpose()
        self._must_wire = self._drawn  # the first map to be drawn brings the wiring of all
        super().reset_parameters(seeds=seeds)

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        values = raw["values"]
        if self._drawn:
            # A wiring is drawn on the CPU, from a seed. Every map draws one: its values do not depend on its place.
            seed = int(torch.randint(2**62, (), generator=generator, device=values.device))
            if self._must_wire:
                self._must_wire = False
                self._connect(*self._wired(torch.Generator("cpu").manual_seed(seed)))
        fan_in = self.crow.diff()
        bound = fan_in.to(torch.promote_types(values.dtype, torch.float32)).rsqrt()  # (out,)
        bound = bound.to(values.dtype).repeat_interleave(fan_in, output_size=self.nnz)  # (nnz,)
        values.uniform_(-1, 1, generator=generator).mul_(bound)

    def _wired(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        wiring = Uniform() if self._rule is None else self._rule
        crow, col = compress(given(wiring(*self._size, self.nnz, generator), *self._size), *self._size)
        if col.shape[0] != self.nnz:
            raise ValueError(f"{wiring!r} must place nnz={self.nnz} connections, however: {col.shape[0]}")
        return crow, col

    # ------------------------------------------------------------------ the matrix

    def _weight(self, values: Tensor) -> Tensor:
        *maps, nnz = values.shape
        places = self.indices  # (2, nnz)
        if maps:  # (3, maps · nnz)
            which = torch.arange(maps[0], device=places.device).repeat_interleave(nnz)
            places = torch.cat([which.unsqueeze(0), places.repeat(1, maps[0])])
        shape = (*maps, *self._size)
        return torch.sparse_coo_tensor(places, values.flatten(), shape, is_coalesced=True, check_invariants=False)

    def _pays_dense(self) -> bool:
        return False

    def forward(self, input: Tensor) -> Tensor:
        return self._matrix_free(input, self._product).contiguous()

    def _product(self, x: Tensor, values: Tensor) -> Tensor:
        structure = [getattr(self, name) for name in BUFFERS]
        if self.beings is None:
            return product(values.unsqueeze(0), x.unsqueeze(0), *structure).squeeze(0)
        return product(values, x.expand(self.beings, -1, -1), *structure)

    def assign(self, weight: Tensor) -> Tensor:
        cells, entries = nonzeros(self._checked(weight))
        if not torch.isfinite(entries).all():
            raise ValueError("weight must be finite, however: it contains NaN or infinity")
        norm = torch.linalg.vector_norm(entries, dim=-1)
        with torch.no_grad():
            self.values.copy_(self._fitted(cells, entries))
            found, place = among(self._cells(), cells)
            entries[..., place[found]] -= self.values[..., found].to(entries)  # connections elsewhere hold 0
            return torch.linalg.vector_norm(entries, dim=-1) / norm.clamp_min(torch.finfo(norm.dtype).tiny)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"values": self._fitted(*nonzeros(self._checked(weight)))}

    def _fitted(self, cells: Tensor, entries: Tensor) -> Tensor:
        """Non-zero cells of a matrix and their entries -> values, having moved the connections where they may move."""
        if self._drawn:
            chosen = largest(cells, entries, self.nnz, self._cells())
            places = torch.stack([chosen // self.in_features, chosen % self.in_features])
            self._connect(*compress(places, *self._size))
        return entries_at(self._cells(), cells, entries)

    def violation(self, weight: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            matrix = self._checked(self.weight if weight is None else weight)
            finite = torch.isfinite(nonzeros(matrix)[1]).all(-1)
            return torch.where(finite, self._violation(matrix), torch.inf)

    def _violation(self, weight: Tensor) -> Tensor:
        cells, entries = nonzeros(weight)
        if not cells.numel():
            return entries.sum(-1)
        outside = ~among(cells, self._cells())[0]
        size = entries.abs()
        return torch.where(outside, size, 0).amax(-1) / size.amax(-1).clamp_min(torch.finfo(size.dtype).tiny)

    def _checked(self, weight: Tensor) -> Tensor:
        """As in the base class, but what is sparse stays sparse."""
        sparse = isinstance(weight, Tensor) and weight.layout != torch.strided
        if sparse and tuple(weight.shape) == (*self.leading, *self._size):
            return weight.detach().to(self.values.device, torch.float64)
        return super()._checked(weight)

    # ------------------------------------------------------------------ populations and state

    def extra_repr(self) -> str:
        rule = "given" if not self._drawn else Uniform() if self._rule is None else self._rule
        parts = [f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"]
        parts += [f"sparsity={self.sparsity:.6g}, nnz={self.nnz}, connectivity={rule}"]
        parts += [] if self.beings is None else [f"beings={self.beings}"]
        return ", ".join(parts)

    def get_single(self, index: int) -> Being:
        return SparseBeing(self, super().get_single(index).index)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self.get_buffer(name) for name in BUFFERS}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self.get_buffer(name)
            if new.dtype != old.dtype:  # .type(torch.float64) would take the indices along
                setattr(self, name, old.to(new.device))
            elif old.is_meta and not new.is_meta:
                new.zero_()  # no connections: what to_empty leaves could point anywhere
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        errors: list[str] = args[-1]
        loaded = {name: state_dict[prefix + name] for name in ("values", "crow", "col") if prefix + name in state_dict}
        try:
            self._check_loaded(loaded)
        except ValueError as error:  # nothing is loaded: values, crow and col make sense together only
            errors.append(f"{prefix or type(self).__name__}: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if "crow" in loaded and "col" in loaded:
            self._transpose()

    def _check_loaded(self, loaded: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
        expected = {name: tuple(getattr(self, name).shape) for name in loaded}
        if shapes != expected:
            raise ValueError(f"A state must have as many connections as the layer, {expected}, however: {shapes}")
        if ("crow" in loaded) != ("col" in loaded):
            raise ValueError(f"crow and col must be loaded together, however: {sorted(loaded)}")
        if "crow" in loaded and not any(tensor.is_meta for tensor in loaded.values()):
            check_structure(loaded["crow"], loaded["col"], self.in_features)


class SparseBeing(Being):
    """One being of a sparse population: its product is the sparse one too."""

    def __init__(self, population: SparseLinear, index: int) -> None:
        super().__init__(population, index)
        size = (population.in_features, population.out_features, population.bias is not None)
        self._single = (SparseLinear(*size, sparsity=population.sparsity, device="meta"),)  # a tuple: it is no child

    def forward(self, input: Tensor) -> Tensor:
        population = self._source[0]
        own = {name: parameter[self.index] for name, parameter in population.named_parameters()}
        return torch.func.functional_call(self._single[0], own | dict(population.named_buffers()), (input,))

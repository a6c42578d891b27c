"""SparseLinear: memory and work grow with the number of connections, not with the size of the matrix."""

from collections.abc import Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from linnet.core.autograd import eager
from linnet.core.being import Being
from linnet.core.dense import dense
from linnet.core.frozen import held
from linnet.sparse.being import SparseBeing
from linnet.sparse.connectivity import STRUCTURE, SparseMap
from linnet.sparse.csr import among, csr_tensor, entries_at, largest, nonzeros, rows_of
from linnet.sparse.dynamic.rules import RigL, Rule
from linnet.sparse.kernels.choice import Kernel, Operation, choose_kernel
from linnet.sparse.kernels.ops import affine, product
from linnet.sparse.wiring.small_world import SmallWorld
from linnet.sparse.wiring.uniform import Uniform

SCHEDULE: dict[str, Any] = {"deltaT": 6000, "Tend": 150_000, "alpha": 0.1}


class SparseLinear(SparseMap):
    """y = x A + b where A has nnz entries and is zero elsewhere.

    Memory and work are O(nnz) throughout. ``weight`` is a sparse tensor; methods that need a dense one (``to_dense``,
    ``to_linear``, ``eigvals``) raise ValueError above 10⁸ entries. The values of output i start as U(±1/√kᵢ), with kᵢ
    the number of its own connections: at any sparsity the outputs start as large as nn.Linear's, and the same learning
    rate works.

    With ``dynamic`` the layer is rewired while it is trained (dynamic sparse training), with any optimizer and without
    a call in the training loop: connections are dropped and grown, and weights, gradient and optimizer state go with
    those that stay. ``values`` remains the same Parameter. The rules are :class:`RigL`, :class:`GSE`, :class:`SET` and
    :class:`GradualMagnitude`; :class:`Rewiring` has statistics.

    ``assign`` (hence ``from_linear``) puts the connections at the largest entries of the given matrix, dense or sparse;
    if that has fewer non-zeros than the layer has connections, the other connections stay where they are, with the
    value 0. ``reset_parameters`` draws a new wiring. Neither changes connections that the user gave. Those are lost on
    the meta device; ``load_state_dict`` restores them. ``torch.func.functional_call`` with the tensors of another layer
    needs all of its buffers (``named_buffers``, ``stack_module_state``), not only its state_dict.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        sparsity: the share of absent connections; nnz = round((1 − sparsity) · in · out).
        connectivity: where the connections are. A wiring that draws them, such as :class:`Uniform`, the default; or the
            connections themselves, which then determine the sparsity: a (2, nnz) LongTensor of (output, input) pairs
            in any order, a boolean mask or a sparse tensor or SciPy matrix of shape (out_features, in_features); for a
            population also (beings, 2, nnz) pairs or a mask (beings, out_features, in_features).
        small_world: short for ``connectivity=SmallWorld()``.
        dynamic: the rule of dynamic sparse training, or True for ``RigL(every=deltaT, until=Tend, alpha=alpha)``.
        deltaT: with ``dynamic=True``: optimizer steps from one rewiring to the next.
        Tend: with ``dynamic=True``: the step at which rewiring ends.
        alpha: with ``dynamic=True``: the share of connections that is dropped at the beginning.
        max_size: the largest number of entries of dL/dW that may exist at a time during a rewiring.
        shared: whether the beings share one wiring; None: they do, unless the layer is dynamic or connections are given
            for each being.
        generator: draws wiring and values; None: torch's default generator.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - values: ([beings,] nnz), ordered by output, then input
        - crow: ([beings,] out_features + 1), a buffer: the connections of output i are crow[i] to crow[i + 1]; it and
          col have the axis of beings if each being has a wiring of its own
        - col: ([beings,] nnz), a buffer: the input of each connection
        - step: (), seed: ([beings]), buffers of a dynamic layer: steps counted, and the seed of what the rule draws

    Raises:
        ValueError: sparsity is not in [0, 1) or leaves no connection; given connections are out of range, repeated, or
            of a wrong shape or dtype; options exclude each other.

    Example:
        >>> layer = SparseLinear(20_000, 30_000, sparsity=0.9999)
        >>> layer(torch.randn(8, 20_000)).shape, layer.nnz
        (torch.Size([8, 30000]), 60000)

    Reference:
        U. Evci, Y. Ioannou, C. Keskin, Y. Dauphin, Gradient flow in sparse neural networks and how lottery tickets
        win, 2022, arXiv 2010.03533 (initial values by the actual fan-in).
    """

    family = "sparse"
    promise = "A = 0 outside nnz connections"
    decays = ("values",)

    generator: ClassVar[None] = None  # used by the constructor alone; options() reads it by name

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float = 0.9,
        connectivity: Any = None,
        small_world: bool = False,
        dynamic: bool | Rule = False,
        deltaT: int = 6000,
        Tend: int = 150_000,
        alpha: float = 0.1,
        max_size: float = 1e8,
        shared: bool | None = None,
        beings: int | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        rule = _rule_from(dynamic, {"deltaT": deltaT, "Tend": Tend, "alpha": alpha})
        if not isinstance(small_world, bool):
            raise TypeError(f"small_world must be True or False, got {small_world!r}")
        if small_world and connectivity is not None:
            raise ValueError(f"Either connectivity or small_world may be given, not both, got {connectivity=!r:.60}")
        super().__init__(
            in_features,
            out_features,
            bias,
            sparsity=sparsity,
            connectivity=SmallWorld() if small_world else connectivity,
            rule=rule,
            max_size=_whole(max_size),
            shared=shared,
            beings=beings,
            device=device,
            dtype=dtype,
        )
        self.small_world, self.deltaT, self.Tend, self.alpha = small_world, deltaT, Tend, alpha
        self.dynamic = dynamic
        self.reset_parameters(seeds=None if generator is None else self._seeds(generator))

    def _seeds(self, generator: torch.Generator) -> int | list[int]:
        drawn = torch.randint(2**62, (self.beings or 1,), generator=generator, device=generator.device).tolist()
        return drawn if self.beings is not None else drawn[0]

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [
            {"sparsity": 0.5},
            {"sparsity": 0.8, "dynamic": True, "deltaT": 2},
            {"sparsity": 0.6, "connectivity": Uniform()},
        ]

    @property
    def connectivity(self) -> Any:
        """As the constructor takes it: the wiring that draws the connections (or None), or the connections given."""
        if self._wiring is None:
            return self.indices
        return None if self.small_world or self._wiring == Uniform() else self._wiring

    # ------------------------------------------------------------------ the matrix

    def _weight(self, values: Tensor) -> Tensor:
        *maps, nnz = values.shape
        places = self.indices  # ([beings,] 2, nnz)
        if maps:  # a batch of sparse matrices is one of three axes: (3, maps · nnz)
            which = torch.arange(maps[0], device=places.device).repeat_interleave(nnz)
            places = places.expand(maps[0], 2, nnz).transpose(0, 1).flatten(1)
            places = torch.cat([which.unsqueeze(0), places])
        shape = (*maps, *self._size)
        return torch.sparse_coo_tensor(places, values.flatten(), shape, is_coalesced=True, check_invariants=False)

    def _pays_dense(self) -> bool:
        return False

    def _realized(self, raw: Mapping[str, Tensor]) -> Tensor:
        weight = super()._realized(raw)
        return dense(weight) if self._frozen_is_dense() else weight

    def _frozen_is_dense(self, samples: int = 1) -> bool:
        """Whether :func:`linnet.frozen` takes the product with a dense copy; with few samples it does so earliest."""
        values = self.values
        sizes = (self.out_features, self.in_features, values.shape[-1], samples)
        device, maps = values.device.type, self.beings or 1
        choice = choose_kernel(Operation.FROZEN_PRODUCT, *sizes, maps=maps, device=device, dtype=values.dtype)
        return choice.kernel is Kernel.DENSE

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            if self.rule is not None and eager():
                self._refresh()  # the hooks tell a layer in a backward pass by the address of `col`
        elif (kept := held(self)) is not None and self._frozen_is_dense(input.numel() // self.in_features):
            return kept.product(input)
        if self._is_plain(input):
            x = input if input.dim() == 2 else input.reshape(-1, self.in_features)  # (batch, in)
            y = affine(x, self.values, self.bias, [self._buffers[name] for name in STRUCTURE])  # type: ignore[misc]
            return y if input.dim() == 2 else y.view(*input.shape[:-1], self.out_features)
        return self._matrix_free(input, self._product).contiguous()

    def _is_plain(self, input: Tensor) -> bool:
        """Whether the fast path of one map gives the same result: not in transforms, graphs, autocast or subclasses."""
        return (
            self.beings is None
            and input.dim() > 0
            and input.shape[-1] == self.in_features
            and type(input) is Tensor
            and input.dtype == self.values.dtype
            and input.dtype in (torch.float32, torch.float64)
            and not input.is_meta
            and eager()
            and not torch.is_autocast_enabled(input.device.type)
        )

    def _product(self, x: Tensor, values: Tensor) -> Tensor:
        structure = [getattr(self, name) for name in STRUCTURE]
        if self.beings is None:
            return product(values.unsqueeze(0), x.unsqueeze(0), *structure).squeeze(0)
        return product(values, x.expand(self.beings, -1, -1), *structure)

    def assign(self, weight: Tensor) -> Tensor:
        parts = list(self._parts(self._checked(weight)))
        if not all(bool(torch.isfinite(entries).all()) for _, _, entries in parts):
            raise ValueError("weight must be finite, got NaN or infinity")
        moved = []
        with torch.no_grad():
            self._reconnect_to_largest(parts)
            for which, cells, entries in parts:
                norm = torch.linalg.vector_norm(entries, dim=-1)
                self.values[which].copy_(entries_at(self._cells_of(which), cells, entries))
                found, place = among(self._cells_of(which), cells)
                # What is left of the entries is W − W_new: connections that are not among them hold 0.
                entries[..., place[found]] -= self.values[which][..., found].to(entries)
                moved.append(torch.linalg.vector_norm(entries, dim=-1) / norm.clamp_min(torch.finfo(norm.dtype).tiny))
        return torch.stack(moved) if self.apart else moved[0]

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        parts = list(self._parts(self._checked(weight)))
        self._reconnect_to_largest(parts)
        found = [entries_at(self._cells_of(which), cells, entries) for which, cells, entries in parts]
        return {"values": torch.stack(found) if self.apart else found[0]}

    def _parts(self, weight: Tensor) -> Iterator[tuple[int | EllipsisType, Tensor, Tensor]]:
        """For each wiring: whose it is, and the non-zero cells of the matrices that it serves, with their entries."""
        if not self.apart:
            yield ..., *nonzeros(weight)
            return
        for being in range(self._population()):
            yield being, *nonzeros(weight[being])

    def _reconnect_to_largest(self, parts: Sequence[tuple[int | EllipsisType, Tensor, Tensor]]) -> None:
        """Put connections that were drawn at the largest entries of matrices; those that the user gave stay."""
        if self._wiring is None:
            return
        cells = [largest(cells, entries, self.nnz, self._cells_of(which)) for which, cells, entries in parts]
        self.reconnect(torch.stack(cells).sort(-1).values.view_as(self.col))

    def _cells_of(self, which: int | EllipsisType) -> Tensor:
        return rows_of(self.crow[which], self.nnz) * self.in_features + self.col[which]

    def violation(self, weight: Tensor | None = None) -> Tensor:
        # max |w| outside the connections over max |w|; inherited code would need W as a dense matrix.
        with torch.no_grad():
            found = []
            for which, cells, entries in self._parts(self._checked(self.weight if weight is None else weight)):
                size = entries.abs()
                if not cells.numel():
                    found.append(size.sum(-1))
                    continue
                outside = ~among(cells, self._cells_of(which))[0]
                worst = torch.where(outside, size, 0).amax(-1) / size.amax(-1).clamp_min(torch.finfo(size.dtype).tiny)
                found.append(torch.where(torch.isfinite(entries).all(-1), worst, torch.inf))
            return torch.stack(found) if self.apart else found[0]

    def _checked(self, weight: Tensor) -> Tensor:
        """As in the base class, but what is sparse stays sparse."""
        sparse = isinstance(weight, Tensor) and weight.layout != torch.strided
        if sparse and tuple(weight.shape) == (*self.leading, *self._size):
            return weight.detach().to(self.values.device, torch.float64)
        return super()._checked(weight)

    # ------------------------------------------------------------------ export and conversion

    def to_dense(self) -> Tensor:
        """``weight`` as a dense tensor, ([beings,] out, in); gradients pass.

        Raises:
            ValueError: ``weight`` has more than 10⁸ entries.
        """
        return dense(self.weight)

    def to_csr(self) -> Tensor:
        """W as an independent torch CSR tensor, ([beings,] out, in)."""
        lead = self.leading
        crow, col = (tensor.expand(*lead, -1).clone() for tensor in (self.crow, self.col))
        return csr_tensor(crow, col, self.values.detach().clone(), self.in_features)

    def to_scipy(self) -> Any:
        """W as a ``scipy.sparse.csr_array``; a population gives a list of them."""
        from scipy.sparse import csr_array

        def array(crow: Tensor, col: Tensor, values: Tensor) -> Any:
            parts = tuple(tensor.detach().cpu().numpy().copy() for tensor in (values, col, crow))
            return csr_array(parts, shape=self._size)

        if self.beings is None:
            return array(self.crow, self.col, self.values)
        crow, col = (tensor.expand(self.beings, -1) for tensor in (self.crow, self.col))
        return [array(*parts) for parts in zip(crow, col, self.values, strict=True)]

    # ------------------------------------------------------------------ populations and state

    def extra_repr(self) -> str:
        wiring = "given" if self._wiring is None else self._wiring
        parts = [f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"]
        parts += [f"sparsity={self.sparsity:.6g}, nnz={self.nnz}, connectivity={wiring}"]
        parts += [] if self.rule is None else [f"dynamic={self.rule}"]
        parts += [f"deltaT={self.deltaT}"] if self.deltaT != SCHEDULE["deltaT"] else []
        parts += [] if self.shared is None else [f"shared={self.shared}"]
        parts += [] if self.beings is None else [f"beings={self.beings}"]
        return ", ".join(parts)

    def options(self) -> dict[str, Any]:
        options = super().options()
        options.pop("generator", None)
        return options

    def rows(self) -> list[Tensor]:
        return super().rows() + ([self.crow, self.col] if self.apart else [])

    def rows_moved(self) -> None:
        if self.apart:
            self._rebuild_transpose()

    def single(self, index: int) -> Self:
        alone = super().single(index)
        alone.shared = None
        return alone

    def _leads(self, name: str) -> bool:
        return self.apart and self.get_buffer(name).dim() > 0

    def get_single(self, index: int) -> Being:
        size = (self.in_features, self.out_features, self.bias is not None)
        single = SparseLinear(*size, connectivity=torch.zeros(2, 1, dtype=torch.int64), device="meta")
        return SparseBeing(self, super().get_single(index).index, single)


def _rule_from(dynamic: Any, schedule: dict[str, Any]) -> Rule | None:
    """What the constructor takes as ``dynamic`` -> a rule."""
    if dynamic is True:
        try:
            return RigL(every=schedule["deltaT"], until=schedule["Tend"], alpha=schedule["alpha"])
        except ValueError as error:
            raise ValueError(f"dynamic=True is RigL(every=deltaT, until=Tend, alpha=alpha): {error}") from error
    if schedule != SCHEDULE:
        raise ValueError(f"deltaT, Tend and alpha belong to dynamic=True, got {schedule} with dynamic={dynamic}")
    if dynamic is not False and not isinstance(dynamic, Rule):
        raise TypeError(f"dynamic must be True, False or a rule such as RigL(), got {dynamic!r}")
    return dynamic or None


def _whole(max_size: Any) -> int:
    if isinstance(max_size, bool) or not isinstance(max_size, int | float) or not 1 <= max_size < 2**63:
        raise ValueError(f"max_size must be a number of entries, at least 1, got {max_size!r}")
    return int(max_size)

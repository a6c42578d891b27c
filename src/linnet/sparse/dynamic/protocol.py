"""What rewiring needs of a layer: optimizer hooks, updates and :class:`Rewiring` see nothing else of it."""

from typing import Protocol, TypeGuard

from torch import Tensor, nn

from linnet.sparse.dynamic.rules import Rule


class Rewirable(Protocol):
    """A layer whose matrix is zero outside its connections, which a rule may drop and grow.

    :class:`linnet.sparse.connectivity.SparseMap` describes each member.
    """

    in_features: int
    out_features: int
    beings: int | None
    max_size: int
    rule: Rule | None
    values: nn.Parameter
    col: Tensor  # its address identifies the layer in a backward pass
    seed: Tensor

    @property
    def leading(self) -> tuple[int, ...]: ...
    @property
    def nnz(self) -> int: ...
    @property
    def first_nnz(self) -> int: ...
    @property
    def steps(self) -> int: ...
    def count_step(self) -> int: ...
    def cells(self) -> Tensor: ...
    def reconnect(self, cells: Tensor) -> None: ...
    def check_rule(self, rule: Rule | None) -> None: ...
    def set_rule(self, rule: Rule | None) -> None: ...


def is_rewirable(module: nn.Module) -> TypeGuard[Rewirable]:
    """Whether a module has the methods of :class:`Rewirable`; looked up in its class, so that no property runs."""
    return all(hasattr(type(module), name) for name in ("cells", "reconnect", "check_rule", "set_rule", "count_step"))

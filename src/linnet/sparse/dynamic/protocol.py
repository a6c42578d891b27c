"""What rewiring needs of a layer: optimizer hooks, updates and :class:`Rewiring` see nothing else of it."""

from typing import Protocol, TypeGuard

from torch import Tensor, nn

from linnet.sparse.dynamic.rules import Rule

__all__ = ["Rewirable", "is_rewirable"]


class Rewirable(Protocol):
    """A layer whose matrix is zero outside its connections, which a rule may drop and grow.

    Shape:
        - values: ([beings,] nnz), the Parameter, one weight for each connection
        - col: ([beings,] nnz), the input of each connection; its address identifies the layer in a backward pass
        - seed: ([beings]), the seed of what the rule draws
    """

    in_features: int
    out_features: int
    beings: int | None
    max_size: int
    """Entries of dL/dW that may exist at a time."""
    rule: Rule | None
    values: nn.Parameter
    col: Tensor
    seed: Tensor

    @property
    def leading(self) -> tuple[int, ...]:
        """() or (beings,)."""

    @property
    def nnz(self) -> int:
        """The number of connections of one map."""

    @property
    def first_nnz(self) -> int:
        """The number of connections of one map when the layer was made."""

    @property
    def steps(self) -> int:
        """The optimizer steps counted so far."""

    def count_step(self) -> int:
        """Count one more optimizer step, and return how many there are."""

    def cells(self) -> Tensor:
        """The connections as row · in_features + column, rising: ([beings,] nnz)."""

    def reconnect(self, cells: Tensor) -> None:
        """Put the connections at the cells, which rise, ([beings,] nnz)."""

    def check_rule(self, rule: Rule | None) -> None:
        """Raise unless the rule can rewire this layer."""

    def set_rule(self, rule: Rule | None) -> None:
        """Rewire by ``rule`` from now on; None: never."""


def is_rewirable(module: nn.Module) -> TypeGuard[Rewirable]:
    """Whether a module has the methods of :class:`Rewirable`; looked up in its class, so that no property runs."""
    return all(hasattr(type(module), name) for name in ("cells", "reconnect", "check_rule", "set_rule", "count_step"))

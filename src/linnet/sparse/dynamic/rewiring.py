"""Rewiring of all sparse layers of a model: explicit control of it, and statistics of each rewiring."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from linnet.core.checks import check_positive
from linnet.sparse.dynamic.optimizer_hooks import register
from linnet.sparse.dynamic.protocol import Rewirable, is_rewirable
from linnet.sparse.dynamic.rules import Rule
from linnet.sparse.dynamic.update import Move


@dataclass(frozen=True)
class Update:
    """One rewiring of one layer.

    Attributes:
        layer: its name in the model.
        step: at which optimizer step, counted from 1.
        dropped, grown: how many connections are no longer there, and how many are new, over all beings.
        nnz: how many there are now, in one map.
        explored: the exploration rate, the share of all places that have been connected at some time.
    """

    layer: str
    step: int
    dropped: int
    grown: int
    nnz: int
    explored: float


class Rewiring:
    """Rewire every sparse layer in ``model`` by ``rule`` while ``optimizer`` steps.

    The training loop calls nothing. ``SparseLinear(dynamic=rule)`` does the same for one layer and any optimizer; a
    ``Rewiring`` has statistics besides, and can be removed.

    Counters and seeds are buffers of the layers: construct the ``Rewiring`` before ``load_state_dict``. The statistics
    have a :meth:`state_dict` of their own.

    Args:
        model: a sparse layer, or a module that contains some; it may be wrapped in DistributedDataParallel.
        optimizer: the optimizer that owns their ``values``.
        rule: how they are rewired; None: each layer keeps the rule that it has.
        total_steps: the length of the training; a rule without an end ends after three quarters of it.
        on_move: called with a :class:`Move` after each rewiring, to carry along other tensors of the shape of
            ``values``.

    Attributes:
        updates: one :class:`Update` for each rewiring of each layer.

    Raises:
        ValueError: there is no sparse layer, one has no rule, or one is not owned by the optimizer.

    Example:
        >>> from linnet import RigL, SparseLinear
        >>> layer = SparseLinear(20, 10, sparsity=0.8)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> rewiring = Rewiring(layer, optimizer, RigL(every=2), total_steps=8)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     layer(torch.randn(4, 20)).square().sum().backward()
        ...     optimizer.step()
        >>> [(update.step, update.nnz) for update in rewiring.updates]
        [(2, 40), (4, 40)]

    Reference:
        S. Liu, L. Yin, D. C. Mocanu, M. Pechenizkiy, Do we actually need dense over-parameterization? In-time
        over-parameterization in sparse training, 2021, arXiv 2102.02887 (the exploration rate).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        rule: Rule | None = None,
        *,
        total_steps: int | None = None,
        on_move: Callable[[Move], None] | None = None,
    ) -> None:
        root = model.module if isinstance(model, DistributedDataParallel) else model
        self.layers: dict[str, Rewirable] = {
            name: module for name, module in root.named_modules() if is_rewirable(module)
        }
        if not self.layers:
            raise ValueError(f"Rewiring needs a model with sparse layers, got a {type(root).__name__} without one")
        if total_steps is not None:
            check_positive(total_steps=total_steps)
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        rules: dict[str, Rule] = {}
        for name, layer in self.layers.items():
            own = layer.rule if rule is None else rule
            if own is None:
                raise ValueError(
                    f"Layer {name!r} must have a rule of its own if Rewiring is given none, got dynamic=False"
                )
            if id(layer.values) not in owned:
                raise ValueError(
                    f"The optimizer must own the values of every sparse layer, got one without those of {name!r}"
                )
            rules[name] = own if total_steps is None or not isinstance(own, Rule) else own.ending(total_steps)
            layer.check_rule(rules[name])
        self.updates: list[Update] = []
        self._on_move = on_move
        self._explored: dict[str, Tensor] = {}
        self._given = rule is not None
        for name, layer in self.layers.items():
            layer.set_rule(rules[name])
            registration = register(layer)
            if model is not root:
                registration.gradient.group = model.process_group
            self._explored[name] = _numbered(layer)
            registration.listeners.append(self._record)

    def remove(self) -> None:
        """Rewire no longer, and take no statistics; layers that had a rule of their own go on by it."""
        for layer in self.layers.values():
            listeners = register(layer).listeners
            if self._record in listeners:
                listeners.remove(self._record)
            if self._given:
                layer.set_rule(None)

    def exploration(self) -> dict[str, float]:
        """The exploration rate of each layer: the share of its places that have been connected at some time."""
        return {
            name: self._explored[name].numel() / (layer.in_features * layer.out_features * (layer.beings or 1))
            for name, layer in self.layers.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The statistics; what decides the training is in the state_dict of the model."""
        return {"explored": dict(self._explored), "updates": [vars(update).copy() for update in self.updates]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the statistics of :meth:`state_dict`."""
        if sorted(state["explored"]) != sorted(self.layers):
            raise ValueError(
                f"The statistics must be of the layers {sorted(self.layers)}, got {sorted(state['explored'])}"
            )
        self._explored = {name: state["explored"][name].to(layer.col.device) for name, layer in self.layers.items()}
        self.updates = [Update(**update) for update in state["updates"]]

    def _record(self, move: Move) -> None:
        name = next(name for name, layer in self.layers.items() if layer is move.layer)
        self._explored[name] = torch.cat([self._explored[name].to(move.source.device), _numbered(move.layer)]).unique()
        self.updates.append(Update(name, move.step, move.dropped, move.grown, move.layer.nnz, self.exploration()[name]))
        if self._on_move is not None:
            self._on_move(move)


def _numbered(layer: Rewirable) -> Tensor:
    """The connected cells of all beings, each with a number of its own, rising."""
    cells = layer.cells()
    if cells.dim() == 2:
        total = layer.in_features * layer.out_features
        cells = cells + total * torch.arange(cells.shape[0], device=cells.device).unsqueeze(1)
    return cells.flatten()

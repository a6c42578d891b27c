"""One rewiring: connections are dropped and grown, and weights, gradients and optimizer state go with the others."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from linnet.sparse.csr import among, set_data
from linnet.sparse.dynamic.gradient import Gradient
from linnet.sparse.dynamic.protocol import Rewirable
from linnet.sparse.dynamic.rules import Connections, Rule


@dataclass(frozen=True, eq=False)
class Move:
    """What one rewiring did to one layer.

    Attributes:
        layer: the layer.
        step: at which optimizer step, counted from 1.
        dropped: connections that are no longer there, over all beings.
        grown: connections that were not there before, over all beings.
        source: for each connection the place it had before in the order of ``values``, -1 for a new one,
            ([beings,] nnz).
    """

    layer: Rewirable
    step: int
    dropped: int
    grown: int
    source: Tensor

    def carried(self, tensor: Tensor) -> Tensor:
        """A tensor in the old order of ``values`` (an average of the weights, say) -> in the new one, 0 where new."""
        source = self.source.to(tensor.device)
        return torch.where(source >= 0, tensor.gather(-1, source.clamp_min(0)), 0)


def wanted_cells(layer: Rewirable, rule: Rule, step: int, gradient: Gradient) -> Tensor:
    """The cells that a rule wants connected, ([beings,] nnz); nothing is changed."""
    # A map's generator is seeded by its seed and the step: a resumed run, and every process, draws the same.
    maps, total = layer.beings or 1, layer.in_features * layer.out_features
    single = torch.promote_types(layer.values.dtype, torch.float32)
    cells, values = (tensor.reshape(maps, -1) for tensor in (layer.cells(), layer.values.detach().to(single)))
    seeds = layer.seed.reshape(maps).tolist()
    wanted = []
    for being in range(maps):
        now = Connections(
            cells[being],
            values[being],
            total,
            first=layer.first_nnz,
            generator=torch.Generator("cpu").manual_seed((seeds[being] + step) % 2**63),
            steepest=partial(gradient.steepest, being, cells.shape[1]),
            slope=partial(gradient.slope, being),
        )
        wanted.append(_checked(rule, rule.move(now, step), now))
    if len({found.shape for found in wanted}) > 1:
        raise ValueError(f"{rule} must give equally many cells for all beings, got {[len(f) for f in wanted]}")
    return torch.stack(wanted).view(*layer.leading, -1)


def _checked(rule: Rule, found: Tensor, now: Connections) -> Tensor:
    rising = bool((found.diff() > 0).all()) and found.numel() and int(found[0]) >= 0 and int(found[-1]) < now.total
    if not rising or (rule.keeps_count and found.shape != now.cells.shape):
        raise ValueError(
            f"{rule} must give {now.cells.shape[0] if rule.keeps_count else 'some'} rising cells in "
            f"0..{now.total - 1}, got {found.shape[0]}: {found.tolist()!s:.60}"
        )
    return found


def rewire(layer: Rewirable, cells: Tensor, step: int, state: dict[str, Any]) -> Move:
    """Connect the cells, ([beings,] nnz), rising: ``values``, its gradient and the state that belongs to it follow.

    With s(k) the place that connection k had before, every tensor t of that shape becomes t'_k = t_{s(k)}, and 0 for
    new connections. Everything is computed before anything is changed.

    Args:
        layer: the layer; its Parameter stays the same object.
        cells: to be connected from now on.
        step: for the report.
        state: of ``values`` in its optimizer: what has its shape belongs to single connections.

    Raises:
        ValueError: the state has tensors of another shape.
    """
    old = layer.cells()
    pairs = zip(cells.reshape(-1, cells.shape[-1]), old.reshape(-1, old.shape[-1]), strict=True)
    source = torch.stack([_place_before(wanted, own) for wanted, own in pairs]).view(cells.shape)
    stayed = int((source >= 0).sum())
    move = Move(layer, step, old.numel() - stayed, cells.numel() - stayed, source)
    shape = layer.values.shape
    found = {name: _is_per_connection(name, value, shape) for name, value in state.items()}
    carried = {name: move.carried(value) for name, value in state.items() if found[name]}
    values = move.carried(layer.values.detach())
    grad = None if layer.values.grad is None else move.carried(layer.values.grad)
    layer.reconnect(cells)
    with torch.no_grad():
        _write(layer.values, values)
        if grad is not None:
            if grad.shape == shape:
                layer.values.grad.copy_(grad)  # type: ignore[union-attr]
            else:
                layer.values.grad = grad
        for name, tensor in carried.items():
            _write(state[name], tensor)
    return move


def _place_before(wanted: Tensor, own: Tensor) -> Tensor:
    """Where each wanted cell is among the own ones; -1 if it is not."""
    found, place = among(wanted, own)
    return torch.where(found, place, -1)


def _write(tensor: Tensor, content: Tensor) -> None:
    """In place where the length stays: then the tensor keeps its memory, which others may share."""
    if tensor.shape == content.shape:
        tensor.copy_(content)
    else:
        set_data(tensor, content)


def _is_per_connection(name: str, value: Any, shape: torch.Size) -> bool:
    """Whether state belongs to single connections; what is neither that nor a scalar cannot follow a rewiring."""
    if isinstance(value, Tensor) and value.shape == shape:
        return True
    if isinstance(value, list | tuple | dict) or (isinstance(value, Tensor) and value.numel() > 1):
        what = f"{name}, {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name}, a {type(value).__name__}"
        raise ValueError(
            f"The optimizer of a dynamic layer must keep state for each connection, {tuple(shape)}, or scalars, "
            f"got {what}"
        )
    return False


def digest(cells: Tensor) -> Tensor:
    """A hash of cells in their order, (1,) int64: Σ_k (k + 1) · φ · (c_k ⊕ ⌊c_k / 2⁷⌋) mod 2⁶⁴."""
    # The factor of each place makes the order count. φ is 2⁶⁴ over the golden ratio, without its highest bit so that it
    # fits into int64: it spreads neighbouring cells over all bits, and differences in several places hardly ever cancel
    # (D. Knuth, The art of computer programming 3, section 6.4).
    flat = cells.reshape(-1)
    factor = torch.arange(1, flat.numel() + 1, device=flat.device) * 0x1E3779B97F4A7C15
    return ((flat ^ (flat >> 7)) * factor).sum().reshape(1)


def check_same(cells: Tensor, group: Any) -> None:
    """Raise RuntimeError unless all processes of the group have the same cells: they compare a hash."""
    # All are equal iff the smallest is the largest, which two reductions of one number tell to everybody.
    low = digest(cells)
    high = low.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    if bool(low != high):
        raise RuntimeError("All processes must have the same connections, got different ones after a rewiring")

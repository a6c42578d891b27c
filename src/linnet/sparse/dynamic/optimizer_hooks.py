"""What follows the optimizer: at each of its steps, the connections of the layers that it trains may move.

A layer with a rule needs nothing but an optimizer: torch's global optimizer hooks tell which optimizer owns its
``values`` and that it is about to step. A step counts for a layer iff ``values`` has a gradient then, so that gradient
accumulation, steps that GradScaler skips and frozen layers come out right.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from linnet.sparse.dynamic.gradient import Gradient
from linnet.sparse.dynamic.protocol import Rewirable
from linnet.sparse.dynamic.rules import Rule
from linnet.sparse.dynamic.update import Move, check_same, chosen_cells, move_connections
from linnet.sparse.kernels.ops import OBSERVERS

__all__ = ["attend", "dismiss"]

_HOOKS: list[Any] = []


class _Attendant:
    """What is kept beside a layer with a rule, and is no state: it can be lost and begun anew."""

    def __init__(self, layer: Rewirable) -> None:
        self.layer = ref(layer, lambda _: self.watch(False))
        self.gradient = Gradient(layer.out_features, layer.in_features, layer.max_size)
        self.key: int | None = None  # under which the backward passes are watched
        self.late = False  # a rewiring was due and had not seen the gradient: it comes with the next step
        self.listeners: list[Callable[[Move], None]] = []

    def __call__(self, g: Tensor, x: Tensor) -> None:
        layer = self.layer()
        if layer is None:
            return
        task = torch._C._current_graph_task_id()
        if task != self.gradient.task:  # another backward pass: it adds to a gradient, or begins one
            grad = layer.values.grad
            if grad is None or not grad.any():
                self.gradient.clear()
            self.gradient.task = task
        self.gradient.add(g, x)

    def watch(self, wanted: bool) -> None:
        """Look at the backward passes of the layer, or no longer."""
        layer = self.layer()
        key = layer.col.data_ptr() if wanted and layer is not None else None
        if key != self.key:
            if self.key is not None and OBSERVERS.get(self.key) is self:
                del OBSERVERS[self.key]
            self.gradient.clear()
            self.key = key
        if key is not None:
            OBSERVERS[key] = self


_ATTENDANTS: WeakKeyDictionary[Rewirable, _Attendant] = WeakKeyDictionary()
_SET_ASIDE: WeakKeyDictionary[Optimizer, list[tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def attend(layer: Rewirable) -> _Attendant:
    """From now on the connections of ``layer`` move by its rule; called again whenever it may have changed places."""
    attendant = _ATTENDANTS.get(layer)
    if attendant is None:
        attendant = _ATTENDANTS[layer] = _Attendant(layer)
        if not _HOOKS:
            _HOOKS.append(register_optimizer_step_pre_hook(_before_step))
            _HOOKS.append(register_optimizer_step_post_hook(_after_step))
    if dist.is_available() and dist.is_initialized():
        parallel = DistributedDataParallel._get_active_ddp_module()
        if parallel is not None:
            attendant.gradient.group = parallel.process_group
    rule = layer.rule
    if rule is not None and not layer.col.is_meta:
        attendant.watch(rule.sees_gradient and (attendant.late or rule.due(layer.steps + 1)))
    return attendant


def dismiss(layer: Rewirable) -> None:
    """The connections of ``layer`` stay where they are."""
    attendant = _ATTENDANTS.pop(layer, None)
    if attendant is not None:
        attendant.watch(False)


# ---------------------------------------------------------------------- at every step of any optimizer


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Count the step and move what is due; with a closure, once this has computed the gradients."""
    layers = _owned(optimizer)
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if not layers:
        return None
    if closure is None:
        _advance(optimizer, layers)
        return None
    pending = [True]

    def computed() -> Any:
        loss = closure()
        if pending.pop() if pending else False:
            _advance(optimizer, layers)
        return loss

    return ((args[0], computed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": computed})


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for parameter, grad in _SET_ASIDE.pop(optimizer, ()):
        parameter.grad = grad


def _owned(optimizer: Optimizer) -> list[Rewirable]:
    """The layers with a rule whose ``values`` this optimizer steps, in its order, which is that of every process."""
    if not _ATTENDANTS:
        return []
    by_values: dict[int, list[Rewirable]] = {}
    for layer in list(_ATTENDANTS):
        by_values.setdefault(id(layer.values), []).append(layer)
    listed = [by_values.get(id(parameter), []) for group in optimizer.param_groups for parameter in group["params"]]
    for layers in listed:
        if len(layers) > 1:
            raise ValueError(
                f"Layers whose connections move must each have values of their own, got {len(layers)} share theirs"
            )
    return [layer for layers in listed for layer in layers]


def _advance(optimizer: Optimizer, layers: list[Rewirable]) -> None:
    found_inf = getattr(optimizer, "found_inf", None)  # GradScaler tells fused optimizers to skip the step by this
    if found_inf is not None and bool(found_inf):
        return
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "The optimizer of a layer whose connections move must keep its state for each connection, "
            "got LBFGS keeps that of all parameters together"
        )
    replaced = False
    for layer in layers:
        rule = layer.rule
        if rule is None or layer.values.grad is None:
            continue
        attendant = attend(layer)
        step = layer.count_step()
        if rule.due(step) or attendant.late:
            attendant.late = rule.sees_gradient and not attendant.gradient
            if not attendant.late:
                _rewire(layer, rule, step, attendant, optimizer.state.get(layer.values, {}))
                replaced |= rule.replaces_step
        attend(layer)
    if replaced:  # this step moves connections and takes no gradient step
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        _SET_ASIDE[optimizer] = [(parameter, parameter.grad) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None


def _rewire(layer: Rewirable, rule: Rule, step: int, attendant: _Attendant, state: dict[str, Any]) -> None:
    if hasattr(layer.values, "placements"):  # a DTensor
        raise ValueError(
            "Connections can move only where all of them are, got their values are a sharded DTensor, "
            f"{layer.values.placements} (DistributedDataParallel keeps them whole)"
        )
    group = attendant.gradient.group
    if group is not None and not rule.keeps_count:
        raise ValueError(f"Distributed data parallel training needs as many connections always, got {rule}")
    cells = chosen_cells(layer, rule, step, attendant.gradient)
    attendant.gradient.clear()
    if group is not None:
        check_same(cells, group)
    move = move_connections(layer, cells, step, state)
    for listener in attendant.listeners:
        listener(move)

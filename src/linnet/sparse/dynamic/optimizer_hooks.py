"""What follows the optimizer: at each of its steps, the layers that it trains may be rewired.

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
from linnet.sparse.dynamic.update import Move, check_same, rewire, wanted_cells
from linnet.sparse.kernels.ops import OBSERVERS

_HOOKS: list[Any] = []


class Registration:
    """What is kept beside a registered layer, and is no state: it can be lost and begun anew."""

    def __init__(self, layer: Rewirable) -> None:
        self.layer = ref(layer, lambda _: self.observe(False))
        self.gradient = Gradient(layer.out_features, layer.in_features, layer.max_size)
        self.key: int | None = None  # under which the backward passes are observed
        self.overdue = False  # a rewiring was due and had not seen the gradient: it comes with the next step
        self.listeners: list[Callable[[Move], None]] = []

    def __call__(self, g: Tensor, x: Tensor) -> None:
        """Take what a backward pass shows of one use of the layer."""
        layer = self.layer()
        if layer is None:
            return
        task = torch._C._current_graph_task_id()
        if task != self.gradient.task:
            # Another backward pass. It adds to the gradient of those before it (accumulation), unless the user has
            # thrown that away: after zero_grad() `grad` is None, or zero.
            grad = layer.values.grad
            if grad is None or not grad.any():
                self.gradient.clear()
            self.gradient.task = task
        self.gradient.add(g, x)

    def observe(self, wanted: bool) -> None:
        """Observe the backward passes of the layer, or no longer: the pairs (g, x) that are kept take memory."""
        layer = self.layer()
        key = layer.col.data_ptr() if wanted and layer is not None else None
        if key != self.key:
            if self.key is not None and OBSERVERS.get(self.key) is self:
                del OBSERVERS[self.key]
            self.gradient.clear()
            self.key = key
        if key is not None:
            OBSERVERS[key] = self


_REGISTERED: WeakKeyDictionary[Rewirable, Registration] = WeakKeyDictionary()
_SET_ASIDE: WeakKeyDictionary[Optimizer, list[tuple[Tensor, Tensor]]] = WeakKeyDictionary()
"""Gradients of an optimizer in a step that rewires instead of following them; they are put back after the step."""


def register(layer: Rewirable) -> Registration:
    """Rewire ``layer`` by its rule from now on; to be called again whenever its buffers may lie elsewhere."""
    registration = _REGISTERED.get(layer)
    if registration is None:
        registration = _REGISTERED[layer] = Registration(layer)
        if not _HOOKS:
            _HOOKS.append(register_optimizer_step_pre_hook(_before_step))
            _HOOKS.append(register_optimizer_step_post_hook(_after_step))
    if dist.is_available() and dist.is_initialized():
        parallel = DistributedDataParallel._get_active_ddp_module()
        if parallel is not None:
            registration.gradient.group = parallel.process_group
    rule = layer.rule
    if rule is not None and not layer.col.is_meta:
        # Only the backward passes before a rewiring are of interest.
        registration.observe(rule.sees_gradient and (registration.overdue or rule.due(layer.steps + 1)))
    return registration


def unregister(layer: Rewirable) -> None:
    """Rewire ``layer`` no longer."""
    registration = _REGISTERED.pop(layer, None)
    if registration is not None:
        registration.observe(False)


# ---------------------------------------------------------------------- at every step of any optimizer


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Count the step and rewire what is due; with a closure, once this has computed the gradients."""
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
        if pending.pop() if pending else False:  # an optimizer may call its closure several times in a step
            _advance(optimizer, layers)
        return loss

    return ((args[0], computed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": computed})


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for parameter, grad in _SET_ASIDE.pop(optimizer, ()):
        parameter.grad = grad


def _owned(optimizer: Optimizer) -> list[Rewirable]:
    """The layers with a rule whose ``values`` this optimizer steps, in its order, which is that of every process."""
    if not _REGISTERED:
        return []
    by_values: dict[int, list[Rewirable]] = {}
    for layer in list(_REGISTERED):
        by_values.setdefault(id(layer.values), []).append(layer)
    listed = [by_values.get(id(parameter), []) for group in optimizer.param_groups for parameter in group["params"]]
    for layers in listed:
        if len(layers) > 1:
            raise ValueError(
                f"Each dynamic layer must have values of its own, got {len(layers)} layers with one Parameter"
            )
    return [layer for layers in listed for layer in layers]


def _advance(optimizer: Optimizer, layers: list[Rewirable]) -> None:
    found_inf = getattr(optimizer, "found_inf", None)  # GradScaler tells fused optimizers to skip the step by this
    if found_inf is not None and bool(found_inf):
        return
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "The optimizer of a dynamic layer must keep its state for each connection, got LBFGS, which keeps one for "
            "all parameters together"
        )
    replaced = False
    for layer in layers:
        rule = layer.rule
        if rule is None or layer.values.grad is None:
            continue
        registration = register(layer)
        step = layer.count_step()
        if rule.due(step) or registration.overdue:
            # The gradient is missing where the layer was registered, or moved in memory, after the backward pass.
            registration.overdue = rule.sees_gradient and not registration.gradient
            if not registration.overdue:
                _rewire(layer, rule, step, registration, optimizer.state.get(layer.values, {}))
                replaced |= rule.replaces_step
        register(layer)
    if replaced:
        # This step rewires and takes no gradient step: optimizers pass over parameters whose gradient is None.
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        _SET_ASIDE[optimizer] = [(parameter, parameter.grad) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None


def _rewire(layer: Rewirable, rule: Rule, step: int, registration: Registration, state: dict[str, Any]) -> None:
    if hasattr(layer.values, "placements"):  # a DTensor
        raise ValueError(
            "Rewiring needs all connections of a layer in one process, got values that are a sharded DTensor, "
            f"{layer.values.placements}; DistributedDataParallel keeps them whole"
        )
    group = registration.gradient.group
    if group is not None and not rule.keeps_count:
        raise ValueError(f"DistributedDataParallel needs a rule that keeps the number of connections, got {rule}")
    cells = wanted_cells(layer, rule, step, registration.gradient)
    registration.gradient.clear()
    if group is not None:
        check_same(cells, group)
    move = rewire(layer, cells, step, state)
    for listener in registration.listeners:
        listener(move)

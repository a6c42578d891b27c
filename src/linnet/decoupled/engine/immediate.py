"""Immediate updates: the parameters below a cut step inside forward, before the loss exists."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.engine.owned_optimizer import OptimizerFactory, OwnedOptimizer, temporary_grads


class Immediate(nn.Module):
    """Steps the parameters of one stage at a time, by the user's optimizer or by an optimizer of the stage.

    The user's optimizer steps while its groups hold only the stage's parameters, so that hyper-parameters, schedulers
    and state apply as usual. Afterwards these parameters have no ``.grad``, and ``optim.step()`` of the training loop
    skips them.

    Args:
        optim: the user's optimizer.
        make: class or factory of an optimizer for each stage, used instead; its state is in ``state_dict``.
        network: the network, which gives the names of the parameters.
    """

    def __init__(self, optim: Optimizer, make: OptimizerFactory | None, network: nn.Module) -> None:
        super().__init__()
        self.optim = optim
        self._make = make
        self._network = (network,)  # a tuple, so that torch does not register it as a child
        self._names: dict[int, tuple[str, nn.Parameter | None]] = {}
        self._owned: dict[str, OwnedOptimizer] = {}
        self._stages: dict[str, dict[str, nn.Parameter]] = {}
        self._stepping = False  # whether this object steps the user's optimizer now
        self._open: Any = None  # the pass that backward has reached since the user's last step
        self._register_hook()

    def _register_hook(self) -> None:
        self.optim.register_step_pre_hook(self._before_step)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register_hook()  # a copied optimizer has no hooks

    def step(
        self, name: str, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Step the parameters among the leaves; return the other leaves, which are inputs, with their gradients."""
        stage: dict[str, nn.Parameter] = {}
        found: list[Tensor] = []
        left: list[Tensor] = []
        of_left: list[Tensor | None] = []
        for leaf, gradient in zip(leaves, gradients, strict=True):
            own = self._name_of(leaf)
            if own is None:
                left.append(leaf)
                of_left.append(gradient)
            elif gradient is not None:
                stage[own] = cast(nn.Parameter, leaf)
                for hook in (leaf._backward_hooks or {}).values():
                    changed = hook(gradient)
                    gradient = gradient if changed is None else changed
                found.append(gradient)
        if stage and self._make is not None:
            self._stages[name] = stage
            self._owned.setdefault(name, self._own()).step(stage, found)
        elif stage:
            self._step_only(stage, found)
        return left, of_left

    def _name_of(self, leaf: Tensor) -> str | None:
        name, parameter = self._names.get(id(leaf), ("", None))
        if parameter is not leaf:  # the parameters were replaced, or this object is a copy
            (network,) = self._network
            self._names = {id(p): (name, p) for name, p in network.named_parameters()}
            name, parameter = self._names.get(id(leaf), ("", None))
        return name if parameter is leaf else None

    def _own(self) -> OwnedOptimizer:
        return OwnedOptimizer(cast(OptimizerFactory, self._make), "stage_optim")

    def _step_only(self, stage: Mapping[str, nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        groups = [group["params"] for group in self.optim.param_groups]
        mine = {id(parameter) for parameter in stage.values()}
        for group in self.optim.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) in mine]
        self._stepping = True
        try:
            with temporary_grads(list(stage.values()), gradients):
                self.optim.step()
        finally:
            self._stepping = False
            for group, parameters in zip(self.optim.param_groups, groups, strict=True):
                group["params"] = parameters

    def enter_backward(self, run: object) -> None:
        """Note that backward has reached a cut of this pass; only one pass may do so between two ``optim.step()``."""
        if self._open is not None and self._open is not run:
            raise RuntimeError(
                "With update='immediate' gradients cannot accumulate; call optim.step() after each backward, or use "
                "update='deferred'"
            )
        self._open = run

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, owned in self._owned.items():
            owned.save(self._stages.get(name, {}), destination, f"{prefix}{name}.", keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found: dict[str, dict[str, Tensor]] = {}
        if self._make is not None:
            for entry in [entry for entry in state_dict if entry.startswith(prefix)]:
                name, _, rest = entry[len(prefix) :].partition(".optimizer.")
                found.setdefault(name, {})[rest] = state_dict.pop(entry)
        for name, state in found.items():
            self._owned.setdefault(name, self._own()).load(state)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Immediate":
        for owned in self._owned.values():
            owned.rebind()
        return super()._apply(fn, recurse)

    def _before_step(self, *_: Any) -> None:
        if self._stepping:
            return
        self._open = None
        # torch does not tell a step hook who calls step(); GradScaler.step is a few frames up the stack
        frame = sys._getframe(1)
        for _level in range(8):
            if isinstance(frame.f_locals.get("self"), torch.amp.GradScaler):
                raise RuntimeError(
                    "With update='immediate' a GradScaler cannot step the optimizer, since parameters step before the "
                    "loss is scaled; use update='deferred'"
                )
            if frame.f_back is None:
                break
            frame = frame.f_back

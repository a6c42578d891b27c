"""Immediate updates: the parameters below a cut step inside forward, before the loss exists."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linnet.decoupled.engine.owned_optimizer import OptimizerFactory, OwnedOptimizer, having

__all__ = ["Immediate"]


class Immediate(nn.Module):
    """Steps the parameters of one stage at a time, by the user's optimizer or by one of the stage's own.

    The user's optimizer steps with only the stage's parameters in its groups, so all hyper-parameters of the groups,
    what schedulers make of them, and its state are the same as ever. Afterwards these parameters have no ``.grad``,
    so the loop's own ``optim.step()`` passes them over.

    Args:
        optim: the user's optimizer.
        make: class or factory of an optimizer for each stage instead; its state is in ``state_dict``.
        network: to name the parameters.
    """

    def __init__(self, optim: Optimizer, make: OptimizerFactory | None, network: nn.Module) -> None:
        super().__init__()
        self.optim = optim
        self._make = make
        self._network = (network,)  # not a module of this one
        self._names: dict[int, tuple[str, nn.Parameter | None]] = {}
        self._owned: dict[str, OwnedOptimizer] = {}
        self._stages: dict[str, dict[str, nn.Parameter]] = {}
        self._inside = False  # whether it is this object that steps the user's optimizer
        self._open: Any = None  # the pass that backward has gone through since the user's last step
        self._listen()

    def _listen(self) -> None:
        self.optim.register_step_pre_hook(self._before_step)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._listen()  # a copied optimizer has no hooks

    def step(
        self, name: str, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Step the parameters among the leaves; returns the other leaves, the inputs, and their gradients."""
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
            self._narrowed(stage, found)
        return left, of_left

    def _name_of(self, leaf: Tensor) -> str | None:
        name, parameter = self._names.get(id(leaf), ("", None))
        if parameter is not leaf:  # they were replaced, or this is a copy
            (network,) = self._network
            self._names = {id(p): (name, p) for name, p in network.named_parameters()}
            name, parameter = self._names.get(id(leaf), ("", None))
        return name if parameter is leaf else None

    def _own(self) -> OwnedOptimizer:
        return OwnedOptimizer(cast(OptimizerFactory, self._make), "stage_optim")

    def _narrowed(self, stage: Mapping[str, nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        groups = [group["params"] for group in self.optim.param_groups]
        mine = {id(parameter) for parameter in stage.values()}
        for group in self.optim.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) in mine]
        self._inside = True
        try:
            with having(list(stage.values()), gradients):
                self.optim.step()
        finally:
            self._inside = False
            for group, parameters in zip(self.optim.param_groups, groups, strict=True):
                group["params"] = parameters

    def reached_by_backward(self, run: object) -> None:
        """A backward has reached a cut of this pass."""
        if self._open is not None and self._open is not run:
            raise RuntimeError(
                "Immediate updates step once for every batch, so gradients cannot accumulate, got there is a "
                "second backward without optim.step() in between (use update='deferred')"
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
        if self._inside:
            return
        self._open = None
        frame = sys._getframe(1)
        for _level in range(8):
            if isinstance(frame.f_locals.get("self"), torch.amp.GradScaler):
                raise RuntimeError(
                    "Immediate updates step before the loss is scaled, so they cannot be unscaled, got a "
                    "GradScaler steps the optimizer (use update='deferred')"
                )
            if frame.f_back is None:
                break
            frame = frame.f_back

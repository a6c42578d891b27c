"""Optimizers of populations: each being has its own hyper-parameters, as with one torch optimizer for each being.

All parameters have the axis of beings in front. A hyper-parameter is one number, or a tensor with one number for each
being. ``param_groups`` and ``state_dict`` hold it as a (beings,) float64 tensor. A schedule is arithmetic on that
tensor, ``group["lr"] *= 0.99``: torch's schedulers set one number for a whole group and refuse such a tensor.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linnet.core.being import indices
from linnet.core.checks import check_positive

Hyper = float | Tensor


def clip_beings_(parameters: Iterable[nn.Parameter], max_norm: Hyper) -> Tensor:
    """g_i ← g_i · min(1, max_norm_i / (‖g_i‖₂ + 10⁻⁶)): clip the gradient of each being by its own norm, in place.

    ``torch.nn.utils.clip_grad_norm_`` takes one norm over all beings: a being that diverges shrinks the gradients of
    all others.

    Args:
        parameters: parameters with the axis of beings in front; parameters without a gradient are skipped.
        max_norm: one number, or one for each being.

    Shape:
        - result: (beings,), the norms before clipping

    Raises:
        ValueError: the parameters have different numbers of beings.

    Example:
        >>> from linnet import Linear
        >>> layer = Linear(3, 2, beings=4)
        >>> layer(torch.ones(3)).sum().backward()
        >>> clip_beings_(layer.parameters(), 1.0)
        tensor([2.8284, 2.8284, 2.8284, 2.8284])
    """
    learned = [p for p in parameters if p.grad is not None]
    if len({len(p) for p in learned}) > 1:
        raise ValueError(f"All parameters must have the same number of beings, got {[tuple(p.shape) for p in learned]}")
    if not learned:
        return torch.zeros(0)
    with torch.no_grad():
        norms = _norms([p.grad for p in learned if p.grad is not None])
        factors = _clip(norms, torch.as_tensor(max_norm).to(norms))
        for p in learned:
            if p.grad is not None:
                p.grad.mul_(_aligned(factors, p.grad))
    return norms


def _norms(gradients: list[Tensor]) -> Tensor:
    """‖g_i‖₂ of each being over all its parameters, (beings,)."""
    each = [torch.linalg.vector_norm(g.flatten(1), dim=1) if g.dim() > 1 else g.abs() for g in gradients]
    return torch.linalg.vector_norm(torch.stack(each), dim=0)


def _clip(norms: Tensor, max_norm: Tensor) -> Tensor:
    return (max_norm / (norms + 1e-6)).clamp(max=1.0)


def _aligned(rows: Tensor, tensor: Tensor) -> Tensor:
    """(beings,) -> (beings, 1, ...), which broadcasts with ``tensor``."""
    return rows.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))


class WideOptimizer(torch.optim.Optimizer, ABC):
    """Base class of the optimizers of populations: hyper-parameters by being, clipping, quarantine.

    Args:
        params: parameters or groups of parameters, each with the axis of beings in front.
        beings: number of beings.
        max_norm: clip the gradient of each being, over all its parameters, to this norm; infinity does not clip.
        quarantine: stop training a being once its gradient is not finite; see :attr:`alive`.
        hyper: the hyper-parameters of the optimizer.

    Raises:
        ValueError: a parameter has another number of beings, or a hyper-parameter is out of its range or is neither a
            number nor of shape (beings,).
    """

    intervals: ClassVar[dict[str, tuple[float, float]]] = {}
    """Each hyper-parameter of the class and its allowed interval [low, high)."""

    def __init__(self, params: Any, beings: int, *, max_norm: Hyper, quarantine: bool, **hyper: Any) -> None:
        self.beings = check_positive(beings=beings)[0]
        if not isinstance(quarantine, bool):
            raise TypeError(f"quarantine must be True or False, got {quarantine!r}")
        super().__init__(params, {**hyper, "max_norm": max_norm, "quarantine": quarantine, "alive": True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for p in group["params"]:
                if p.dim() < 1 or len(p) != self.beings:
                    raise ValueError(
                        f"Every parameter must have the axis of beings={self.beings} in front, got {tuple(p.shape)}"
                    )
            for name, (low, high) in {**self.intervals, "max_norm": (0.0, math.inf)}.items():
                group[name] = self._rows(name, group[name], low, high, group["params"][0].device)
            group["alive"] = torch.ones(self.beings, dtype=torch.bool, device=group["params"][0].device)
        except ValueError:
            self.param_groups.pop()
            raise

    def _rows(self, name: str, value: Hyper, low: float, high: float, device: torch.device) -> Tensor:
        rows = torch.as_tensor(value, dtype=torch.float64).detach()
        if rows.shape not in ((), (self.beings,)):
            raise ValueError(f"{name} must be a number or have shape ({self.beings},), got {tuple(rows.shape)}")
        if not bool(((rows >= low) & ((rows < high) | (rows == high) & (high == math.inf))).all()):
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}), got {rows.tolist()}")
        return rows.expand(self.beings).clone().to(device)

    @property
    def alive(self) -> Tensor:
        """Which beings are trained, (beings,) bool; the others are in quarantine."""
        return torch.stack([group["alive"] for group in self.param_groups]).all(0)

    def release(self, beings: Any) -> None:
        """End the quarantine of beings, after their parameters have been repaired."""
        for group in self.param_groups:
            group["alive"][indices(beings, self.beings).to(group["alive"].device)] = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of every being that is alive, for all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        learned = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not learned:
            return loss
        if any(p.grad.is_sparse for _, p in learned):
            raise ValueError(
                f"{type(self).__name__} needs dense gradients, got a sparse one; build nn.Embedding with sparse=False"
            )
        norms = None
        if any(group["quarantine"] or not _is_infinite(group["max_norm"]) for group in self.param_groups):
            norms = _norms([p.grad for _, p in learned])
        for group in self.param_groups:
            if group["quarantine"] and norms is not None:
                group["alive"] &= norms.isfinite()
        alive = self.alive
        out = None if bool(alive.all()) else (~alive).nonzero().squeeze(1)
        factors = {
            id(group): _clip(norms, group["max_norm"].to(norms))
            for group in self.param_groups
            if norms is not None and not _is_infinite(group["max_norm"])
        }
        for group, p in learned:
            state = self.state[p]
            if not state:
                state.update(self._fresh(group, p))
            tensors = [p, *(value for value in state.values() if isinstance(value, Tensor))]
            # the update runs for all beings at once; the rows of those in quarantine are restored afterwards
            kept = [] if out is None else [tensor.index_select(0, out) for tensor in tensors]
            gradient = p.grad
            if id(group) in factors:
                gradient = gradient * _aligned(factors[id(group)], gradient)
            self._update(group, p, gradient, state)
            if out is not None:
                for tensor, rows in zip(tensors, kept, strict=True):
                    tensor.index_copy_(0, out, rows)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        steps = {key: value["step"] for key, value in state_dict["state"].items() if "step" in value}
        super().load_state_dict(state_dict)  # casts the state to the parameter's dtype; step must stay float64
        every = [p for group in self.param_groups for p in group["params"]]
        for key, step in steps.items():
            self.state[every[key]]["step"] = step.clone().to(every[key].device)

    @abstractmethod
    def _fresh(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        """The initial state of a parameter; every tensor has the axis of beings in front."""

    @abstractmethod
    def _update(self, group: dict[str, Any], p: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        """Make one step of one parameter in place; the gradient stays unchanged."""


def _is_infinite(max_norm: Tensor) -> bool:
    return bool(max_norm.isinf().all())


def _decayed(group: dict[str, Any], p: Tensor, gradient: Tensor) -> Tensor:
    """g + λ θ."""
    if bool((group["weight_decay"] != 0).any()):
        return torch.addcmul(gradient, p, _aligned(group["weight_decay"], p))
    return gradient


class WideSGD(WideOptimizer):
    """v ← μ v + g + λ θ, θ ← θ − η v, with η, μ, λ of each being: torch.optim.SGD for populations.

    Args:
        params: parameters or groups of parameters, each with the axis of beings in front.
        beings: number of beings.
        lr: learning rate η.
        momentum: μ.
        weight_decay: λ.
        nesterov: whether the step is g + μ v.
        max_norm: clip the gradient of each being to this norm.
        quarantine: stop training a being once its gradient is not finite.

    Shape:
        - lr, momentum, weight_decay, max_norm: a number or (beings,)

    Raises:
        ValueError: see :class:`WideOptimizer`.

    Example:
        >>> from linnet import Linear
        >>> layer = Linear(3, 2, beings=4)
        >>> optimizer = WideSGD(layer.parameters(), beings=4, lr=torch.tensor([0.1, 0.2, 0.4, 0.8]))
        >>> layer(torch.ones(3)).sum().backward(), optimizer.step()
        (None, None)
    """

    intervals: ClassVar = {"lr": (0.0, math.inf), "momentum": (0.0, math.inf), "weight_decay": (0.0, math.inf)}

    def __init__(
        self,
        params: Any,
        beings: int,
        lr: Hyper = 1e-3,
        momentum: Hyper = 0.0,
        weight_decay: Hyper = 0.0,
        nesterov: bool = False,
        *,
        max_norm: Hyper = math.inf,
        quarantine: bool = False,
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, beings, max_norm=max_norm, quarantine=quarantine, **hyper)

    def _fresh(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(p)} if bool((group["momentum"] != 0).any()) else {}

    def _update(self, group: dict[str, Any], p: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        gradient = _decayed(group, p, gradient)
        if "momentum_buffer" in state:
            momentum, v = _aligned(group["momentum"], p), state["momentum_buffer"]
            v.mul_(momentum).add_(gradient)
            gradient = torch.addcmul(gradient, v, momentum) if group["nesterov"] else v
        p.sub_(gradient * _aligned(group["lr"], p))


class _WideMoments(WideOptimizer, ABC):
    """Base class of WideAdam and WideAdamW: the moments of each being, and the step along them."""

    intervals: ClassVar = {
        "lr": (0.0, math.inf),
        "beta1": (0.0, 1.0),
        "beta2": (0.0, 1.0),
        "eps": (0.0, math.inf),
        "weight_decay": (0.0, math.inf),
    }

    def _fresh(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        # one step count for each being: after reproduction or quarantine the bias corrections 1 − βᵗ of beings differ
        step = torch.zeros(self.beings, dtype=torch.float64, device=p.device)
        return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def _descend(self, group: dict[str, Any], p: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − η / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + ε)."""
        beta1, beta2, t = group["beta1"], group["beta2"], state["step"].add_(1)
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(gradient, _aligned(1 - beta1, p))
        v.mul_(_aligned(beta2, p)).addcmul_(gradient * _aligned(1 - beta2, p), gradient)
        root = v.sqrt().mul_(_aligned((1 - beta2**t).rsqrt(), p)).add_(_aligned(group["eps"], p))
        p.sub_(root.reciprocal_().mul_(m).mul_(_aligned(group["lr"] / (1 - beta1**t), p)))


class WideAdam(_WideMoments):
    """θ ← θ − η m̂ / (√v̂ + ε), with η, β₁, β₂, ε, λ of each being: torch.optim.Adam; λ θ is added to g.

    Args:
        params: parameters or groups of parameters, each with the axis of beings in front.
        beings: number of beings.
        lr: learning rate η.
        beta1: decay of the mean m.
        beta2: decay of the mean square v.
        eps: ε.
        weight_decay: λ, g ← g + λ θ.
        max_norm: clip the gradient of each being to this norm.
        quarantine: stop training a being once its gradient is not finite.

    Shape:
        - lr, beta1, beta2, eps, weight_decay, max_norm: a number or (beings,)

    Raises:
        ValueError: see :class:`WideOptimizer`.

    Example:
        >>> from linnet import Linear
        >>> layer = Linear(3, 2, beings=4)
        >>> optimizer = WideAdam(layer.parameters(), beings=4, lr=torch.logspace(-4, -1, 4))
        >>> layer(torch.ones(3)).sum().backward(), optimizer.step()
        (None, None)

    Reference:
        D. P. Kingma, J. Ba, Adam, 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        params: Any,
        beings: int,
        lr: Hyper = 1e-3,
        beta1: Hyper = 0.9,
        beta2: Hyper = 0.999,
        eps: Hyper = 1e-8,
        weight_decay: Hyper = 0.0,
        *,
        max_norm: Hyper = math.inf,
        quarantine: bool = False,
    ) -> None:
        hyper = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, beings, max_norm=max_norm, quarantine=quarantine, **hyper)

    def _update(self, group: dict[str, Any], p: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        self._descend(group, p, _decayed(group, p, gradient), state)


class WideAdamW(_WideMoments):
    """θ ← (1 − η λ) θ − η m̂ / (√v̂ + ε), with η, β₁, β₂, ε, λ of each being: torch.optim.AdamW.

    Args:
        params: parameters or groups of parameters, each with the axis of beings in front.
        beings: number of beings.
        lr: learning rate η.
        beta1: decay of the mean m.
        beta2: decay of the mean square v.
        eps: ε.
        weight_decay: λ.
        max_norm: clip the gradient of each being to this norm.
        quarantine: stop training a being once its gradient is not finite.

    Shape:
        - lr, beta1, beta2, eps, weight_decay, max_norm: a number or (beings,)

    Raises:
        ValueError: see :class:`WideOptimizer`.

    Example:
        >>> from linnet import Linear
        >>> layer = Linear(3, 2, beings=4)
        >>> optimizer = WideAdamW(layer.parameters(), beings=4, weight_decay=torch.tensor([0.0, 0.01, 0.1, 1.0]))
        >>> layer(torch.ones(3)).sum().backward(), optimizer.step()
        (None, None)

    Reference:
        I. Loshchilov, F. Hutter, Decoupled weight decay regularization, 2019, arXiv:1711.05101.
    """

    def __init__(
        self,
        params: Any,
        beings: int,
        lr: Hyper = 1e-3,
        beta1: Hyper = 0.9,
        beta2: Hyper = 0.999,
        eps: Hyper = 1e-8,
        weight_decay: Hyper = 1e-2,
        *,
        max_norm: Hyper = math.inf,
        quarantine: bool = False,
    ) -> None:
        hyper = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, beings, max_norm=max_norm, quarantine=quarantine, **hyper)

    def _update(self, group: dict[str, Any], p: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        p.mul_(_aligned(1 - group["lr"] * group["weight_decay"], p))
        self._descend(group, p, gradient, state)

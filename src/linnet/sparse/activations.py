"""K-winners activations: of all units only the k largest pass, with boosting of those that seldom win."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from linnet.core.autograd import eager
from linnet.core.being import copy_beings, indices
from linnet.core.checks import check_positive, is_number


def largest_k_reference(score: Tensor, k: int) -> Tensor:
    """Which are the k largest along the last axis, (*, n) -> (*, n) bool; of equal ones those of lower index."""
    if k >= score.shape[-1]:
        return torch.ones_like(score, dtype=torch.bool)
    least = score.topk(k, dim=-1).values[..., -1:]  # kthvalue has no counterpart in ONNX
    return _first(score, least, k)


def largest_k(score: Tensor, k: int) -> Tensor:
    """:func:`largest_k_reference`; on CPUs by NumPy's partition, eight times as fast as torch's selection."""
    n = score.shape[-1]
    usable = score.device.type == "cpu" and score.dtype in (torch.float32, torch.float64) and score.numel()
    if k >= n or not usable or not eager() or type(score) is not Tensor:
        return largest_k_reference(score, k)
    values = score.detach().numpy()
    least = torch.from_numpy(np.partition(values, n - k, axis=-1)[..., n - k, None])
    chosen = score >= least
    if int(chosen.count_nonzero()) == k * (score.numel() // n):
        return chosen
    return _first(score, least, k)


def _first(score: Tensor, least: Tensor, k: int) -> Tensor:
    """All scores above the k-th largest, and of those equal to it as many as are missing, by rising index."""
    above, equal = score > least, score == least
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


class KWinners(nn.Module):
    """y = x for the k units with the largest x · exp(β (k/n − duty)), 0 for the others; k = ⌊(1 − act_sparsity) n⌋.

    The duty cycle is the rate at which each unit wins, duty ← (1 − α) duty + α · (share of the batch in which it won),
    updated in training mode. Boosting, in eval mode too, only chooses: winners keep their own value, and the gradient
    passes to them alone. There are always exactly k winners: of equal units those of lower index win. NaN wins, so that
    it is seen. A recomputation by activation checkpointing chooses as the forward did, if this was the last one.

    Args:
        num_features: n, the number of units.
        act_sparsity: the share of units that do not win.
        alpha: α, the rate at which the duty cycle is updated.
        beta: β, the strength of boosting at first.
        inference_factor: in eval mode ⌊k · inference_factor⌋ units win.
        boost_decay: by which :meth:`decay_boost` multiplies the strength of boosting; call it once an epoch, say.
        dim: the axis of the units; 1 for images (N, C, H, W).
        scope: ``"local"``: k winners at every place; ``"global"``: ⌊(1 − act_sparsity) · n · places⌋ winners among all
            units and places of a sample, which is an entry of axis 0.
        beings: None for one set of units; b for a population, whose beings share nothing.
        device: of the buffers.

    Shape:
        - input: any with num_features at axis ``dim``; with beings (*, beings or 1, num_features)
        - output: as the input; with beings (*, beings, num_features)
        - duty_cycle: ([beings,] num_features), a buffer, in [0, 1], at least float32
        - boost: (), a buffer: the strength of boosting now

    Raises:
        ValueError: act_sparsity leaves no winner or is not in [0, 1), alpha is not in (0, 1], or another option is out
            of its range; the input has another number of units.
        TypeError: the input is not floating-point.

    Example:
        >>> layer = KWinners(10, act_sparsity=0.7)
        >>> layer(torch.randn(4, 10)).count_nonzero(-1)
        tensor([3, 3, 3, 3])

    Reference:
        S. Ahmad, L. Scheinkman, How can we be so dense? The benefits of using highly sparse representations, 2019,
        arXiv 1903.11257; A. Makhzani, B. Frey, k-sparse autoencoders, 2013, arXiv 1312.5663.
    """

    duty_cycle: Tensor
    boost: Tensor
    num_features: int | None

    def __init__(
        self,
        num_features: int,
        act_sparsity: float = 0.65,
        *,
        alpha: float = 0.1,
        beta: float = 1.5,
        inference_factor: float = 1.0,
        boost_decay: float = 1.0,
        dim: int = -1,
        scope: Literal["local", "global"] = "local",
        beings: int | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        for name, value, low, high in (
            ("beta", beta, 0, math.inf),
            ("inference_factor", inference_factor, 0, math.inf),
            ("boost_decay", boost_decay, 0, 1),
        ):
            if not is_number(value) or not low <= value <= high or math.isinf(value):
                raise ValueError(f"{name} must be a finite number in [{low}, {high}], got {value!r}")
        if not is_number(act_sparsity) or not 0 <= act_sparsity < 1:
            raise ValueError(f"act_sparsity must lie in [0, 1), got {act_sparsity!r}")
        if not is_number(alpha) or not 0 < alpha <= 1:
            raise ValueError(f"alpha is a rate and must lie in (0, 1], got {alpha!r}")
        if scope not in ("local", "global"):
            raise ValueError(f"scope must be 'local' or 'global', got {scope!r}")
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim must be an integer, got {dim!r}")
        if beings is not None and (dim != -1 or scope != "local"):
            raise ValueError(f"A population needs dim=-1 and scope='local', got {dim=}, {scope=}")
        self.act_sparsity, self.alpha, self.beta = act_sparsity, alpha, beta
        self.inference_factor, self.boost_decay, self.dim, self.scope = inference_factor, boost_decay, dim, scope
        self.beings = None if beings is None else check_positive(beings=beings)[0]
        self.num_features = None
        self._before: Tensor | None = None  # the duty cycle of the last forward, for its recomputation
        self.register_buffer("duty_cycle", torch.zeros(0, dtype=torch.float32, device=device))
        self.register_buffer("boost", torch.tensor(float(beta), dtype=torch.float32, device=device))
        if num_features is not None or type(self) is KWinners:
            self.size_for(check_positive(num_features=num_features)[0])

    def size_for(self, num_features: int) -> None:
        """Give the duty cycle the size of ``num_features`` units, all 0.

        Raises:
            ValueError: no unit would win.
        """
        self._count(num_features)
        self.num_features = num_features
        lead = () if self.beings is None else (self.beings,)
        self.duty_cycle = self.duty_cycle.new_zeros(*lead, num_features)

    def _count(self, n: int) -> int:
        """k of n units: ⌊(1 − act_sparsity) n⌋, in eval mode times the factor."""
        k = self._k(n)
        if k < 1:
            raise ValueError(f"A unit must win, got act_sparsity={self.act_sparsity}, which leaves none of {n}")
        return k if self.training else max(1, min(n, math.floor(round(k * self.inference_factor, 6))))

    def _k(self, n: int) -> int:
        return math.floor(round((1 - self.act_sparsity) * n, 6))  # 0.35 · 20 is 7 also where it is 6.999999

    def reset_parameters(self) -> None:
        """Reset the duty cycle to 0 and the strength of boosting to ``beta``."""
        self.duty_cycle.zero_()
        self.boost.fill_(self.beta)
        self._before = None

    def forward(self, input: Tensor) -> Tensor:
        x = self._units_last(input)  # (*, [beings,] n)
        duty = self.duty_cycle
        # Activation checkpointing runs the forward again inside a backward pass, and must get the same winners: those
        # by the duty cycle before the forward, which is not updated again.
        recomputed = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if recomputed and self._before is not None:
            duty = self._before
        n = x.shape[-1]
        # x · exp(β (k/n − duty)), with k/n the duty cycle of a unit that wins as often as all others.
        score = x.detach()
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        score = score * torch.exp(self.boost * (self._k(n) / n - duty)).to(score.dtype)
        score = score.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # NaN wins, so that it is seen
        if self.scope == "global" and x.dim() > 1:
            flat = score.flatten(1)  # (N, places · n)
            won = largest_k(flat, self._count(flat.shape[-1])).view(score.shape)
        else:
            won = largest_k(score, self._count(n))
        if self.training and not recomputed and won.numel():
            with torch.no_grad():
                self._update(won)
        y = torch.where(won, x, 0)
        return y if self.dim == -1 else y.movedim(-1, self.dim)

    def _update(self, won: Tensor) -> None:
        keep = self.duty_cycle.dim()
        rate = won.to(self.duty_cycle.dtype)
        rate = rate.mean(dim=tuple(range(won.dim() - keep))) if won.dim() > keep else rate
        if eager():
            self._before = self.duty_cycle.clone()
        self.duty_cycle.mul_(1 - self.alpha).add_(rate, alpha=self.alpha)

    def _units_last(self, input: Tensor) -> Tensor:
        if not input.is_floating_point():
            raise TypeError(f"The input must be floating-point, got {input.dtype}")
        shape = tuple(input.shape)
        if not -input.dim() <= self.dim < input.dim():
            raise ValueError(f"The input must have an axis {self.dim}, got shape {shape}")
        if self.num_features is None:
            self.size_for(shape[self.dim])
        if shape[self.dim] != self.num_features:
            raise ValueError(
                f"The input must have num_features={self.num_features} units at axis {self.dim}, got {shape}"
            )
        if self.beings is None:
            return input if self.dim == -1 else input.movedim(self.dim, -1)
        if input.dim() > 1 and shape[-2] not in (1, self.beings):
            raise ValueError(
                f"The input of a population must have shape (num_features={self.num_features},) or (*, beings="
                f"{self.beings} or 1, num_features={self.num_features}), got {shape}"
            )
        return input.expand(*shape[:-2], self.beings, self.num_features)

    def decay_boost(self) -> None:
        """Multiply the strength of boosting by ``boost_decay``."""
        self.boost.mul_(self.boost_decay)

    def entropy(self) -> Tensor:
        """Σ H(duty) in bits, H(p) = −p log₂ p − (1 − p) log₂(1 − p): large where units win evenly; ([beings])."""
        p = self.duty_cycle
        return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum(-1) / math.log(2)

    def max_entropy(self) -> float:
        """n · H(k/n): the entropy where all units win equally often."""
        n = self.duty_cycle.shape[-1]
        p = self._k(n) / n if n else 0.0
        return 0.0 if p in (0.0, 1.0) else -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p))

    def clone_being(self, source: int | Sequence[int] | Tensor, destination: int | Sequence[int] | Tensor) -> None:
        """Overwrite the duty cycle of being ``destination`` with that of being ``source``."""
        copy_beings(self.rows(), source, destination, self._population())
        self.rows_moved()

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front."""
        return [self.duty_cycle]

    def rows_moved(self) -> None:
        """Drop what was derived from the duty cycle, after it was written to."""
        self._before = None

    def single(self, index: int) -> Self:
        """The units of being ``index`` alone, as an independent module."""
        row = self.duty_cycle[int(indices(index, self._population()))].clone()
        alone = copy.deepcopy(self, {id(self.duty_cycle): row})
        alone.beings = alone._before = None
        return alone

    def _population(self) -> int:
        if self.beings is None:
            raise ValueError(f"This method needs a population (beings=n), got {self}")
        return self.beings

    def extra_repr(self) -> str:
        size = "not sized yet" if self.num_features is None else f"num_features={self.num_features}"
        parts = [size, f"act_sparsity={self.act_sparsity}", f"alpha={self.alpha}", f"beta={self.beta}"]
        usual = {"inference_factor": 1.0, "boost_decay": 1.0, "dim": -1, "scope": "local", "beings": None}
        parts += [f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value]
        return ", ".join(parts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self.get_buffer(name)
            if old is not None and new.dtype.itemsize < 4:  # a rate that changes by less than half precision resolves
                self._buffers[name] = old.to(new.device)
        self._before = None
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}duty_cycle")
        if saved is not None and self.num_features is None and saved.dim() == self.duty_cycle.dim() and saved.numel():
            self.size_for(saved.shape[-1])
        self._before = None
        super()._load_from_state_dict(state_dict, prefix, *args)


class ActivationSparsity(KWinners):
    """:class:`KWinners` for as many units as the last axis of its first input has: sparselinear's module.

    Args:
        alpha: the rate at which the duty cycle is updated.
        beta: the strength of boosting.
        act_sparsity: the share of units that do not win.

    Shape:
        - input: (*, units)
        - output: (*, units)

    Raises:
        ValueError: as in :class:`KWinners`.

    Example:
        >>> layer = ActivationSparsity(act_sparsity=0.5)
        >>> layer(torch.randn(3, 10)).count_nonzero(-1)
        tensor([5, 5, 5])

    Reference:
        S. Ahmad, L. Scheinkman, How can we be so dense? The benefits of using highly sparse representations, 2019,
        arXiv 1903.11257.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.5, act_sparsity: float = 0.65) -> None:
        if type(alpha) is int and alpha > 1:
            raise ValueError(
                f"alpha is a rate and must lie in (0, 1], got {alpha} (KWinners({alpha}) has {alpha} units)"
            )
        super().__init__(None, act_sparsity, alpha=alpha, beta=beta)  # type: ignore[arg-type]

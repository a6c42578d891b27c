"""Matrices with a penalty on the number of their entries, through random gates.

The structure is soft: nothing is promised of the matrix. Add ``penalty()`` to the loss.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_number
from linnet.core.linear_map import LinearMap

LOWEST, HIGHEST = -0.1, 1.1
"""The gates are stretched to this interval, γ to ζ in the paper, and then cut to [0, 1]: both ends are reached."""
GROUPS, NOISES = ("input", "output", "weight"), ("batch", "sample", "held")


def stretched(p: Tensor) -> Tensor:
    """p in (0, 1) -> [0, 1], with both ends reached."""
    return (p * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def mean_gate(log_alpha: Tensor) -> Tensor:
    """The gate without noise, exactly 0 for log_alpha <= −log 11."""
    return stretched(log_alpha.sigmoid())


def hard_concrete(log_alpha: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Gates z in [0, 1] from standard logistic noise; 0 and 1 have positive probability."""
    return stretched(((noise + log_alpha) / temperature).sigmoid())


def open_probability(log_alpha: Tensor, temperature: float) -> Tensor:
    """P(z ≠ 0) of a hard concrete gate."""
    # z > 0 iff σ((noise + log α)/temperature) > −γ/(ζ − γ), that is, noise > temperature·log(−γ/ζ) − log α
    return (log_alpha - temperature * math.log(-LOWEST / HIGHEST)).sigmoid()


def logistic(like: Tensor) -> Tensor:
    """Standard logistic noise of the shape of a given tensor."""
    return torch.rand_like(like).logit(eps=1e-6)


class L0Linear(LinearMap):
    """y = x A + b whose penalty is the expected number of entries of A that are not zero.

    Every entry is multiplied by a gate, that of its input, its output or its own. In training the gates are random,
    hard concrete: z = min(max(1.2 σ((logit of uniform noise + log α)/temperature) − 0.1, 0), 1), so the forward depends
    on torch's generator. In eval mode, and in ``weight``, the noise is left out and many gates are exactly 0. The
    penalty is Σ P(z ≠ 0) (lamda + weight_decay a²/2) over all entries a, in closed form.

    The entries start as nn.Linear's, and gates at about 1 − droprate_init shrink the outputs by that factor. Any matrix
    is assigned exactly to ``weight``, with all gates at least half open.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        weight_decay: the penalty on the squares of entries whose gate is open, >= 0.
        droprate_init: probability, near enough, of closed gates at the start, in (0, 1).
        temperature: of the gates, > 0; the lower, the more of them are 0 or 1.
        lamda: the penalty on each entry whose gate is open, >= 0.
        group: what shares a gate: "input" (all entries of one input), "output", or "weight" (none).
        noise: "batch" draws new noise for every forward, the same for all samples; "sample" also for every sample
            (with group="weight" the memory of batch · in · out numbers); "held" keeps it until ``resample()`` is
            called, so that a recurrent net has one mask for a sequence.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - entries: ([beings,] out_features, in_features)
        - log_alpha: ([beings,] in_features), ([beings,] out_features) or ([beings,] out_features, in_features)
        - held: as log_alpha, a buffer, the noise that is held; empty, ([beings,] 0), where none is

    Raises:
        ValueError: a number is out of its range, or group or noise is none of those named.

    Example:
        >>> layer = L0Linear(4, 2, droprate_init=0.95).eval()
        >>> layer.weight.count_nonzero().item()
        0

    Reference:
        C. Louizos, M. Welling, D. P. Kingma, Learning sparse neural networks through L0 regularization, 2017,
        arXiv 1712.01312.
    """

    family = "sparse"
    promise = "none"
    noisy = True
    hard = False
    decays = ("entries",)
    fixed = ("held",)

    entries: nn.Parameter
    log_alpha: nn.Parameter
    held: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_decay: float = 1.0,
        droprate_init: float = 0.5,
        temperature: float = 2 / 3,
        lamda: float = 1.0,
        group: str = "input",
        noise: str = "batch",
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_number(0, weight_decay=weight_decay, droprate_init=droprate_init, temperature=temperature, lamda=lamda)
        if not 0 < droprate_init < 1:
            raise ValueError(f"droprate_init must lie in (0, 1), got {droprate_init!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be a finite number > 0, got {temperature!r}")
        for name, value, known in (("group", group, GROUPS), ("noise", noise, NOISES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.weight_decay, self.droprate_init = weight_decay, droprate_init
        self.temperature, self.lamda, self.group, self.noise = temperature, lamda, group, noise
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, m = self.in_features, self.out_features
        gates = {"input": (n,), "output": (m,), "weight": (m, n)}[self.group]
        return {"entries": (m, n), "log_alpha": gates, "held": gates if self.noise == "held" else (0,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [
            {},
            {"group": "weight", "noise": "sample", "droprate_init": 0.2},
            {"group": "output", "noise": "held", "lamda": 0.1, "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def resample(self) -> None:
        """Redraw the noise that noise="held" keeps; call it at the start of each sequence."""
        self.held.copy_(logistic(self.held.to(self._wide)))

    def open_probability(self) -> Tensor:
        """P(z ≠ 0) of every gate, of the shape of ``log_alpha``, differentiable."""
        return open_probability(self.log_alpha.to(self._wide), self.temperature)

    def penalty(self) -> Tensor:
        squares = self.entries.to(self._wide).square()
        cost = self.lamda + self.weight_decay / 2 * squares  # of each entry, if its gate is open
        return (self._spread(self.open_probability()) * cost).sum().to(self.entries.dtype)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.entries.dtype, torch.float32)

    def _spread(self, gates: Tensor) -> Tensor:
        """Gates -> a factor for each entry, broadcast to (..., out, in)."""
        return gates if self.group == "weight" else gates.unsqueeze(-2 if self.group == "input" else -1)

    def _weight(self, entries: Tensor, log_alpha: Tensor, held: Tensor) -> Tensor:
        return entries * self._spread(mean_gate(log_alpha))

    def _sampled(self, raw: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        drawn = self.training and self.noise == "batch"
        return {**raw, "held": logistic(raw["log_alpha"].detach().to(self._wide))} if drawn else raw

    def _realized(self, raw: Mapping[str, Tensor]) -> Tensor:
        if not self.training:
            return self._build(raw)
        entries, log_alpha, noise = (raw[name].to(self._wide) for name in ("entries", "log_alpha", "held"))
        z = self._spread(hard_concrete(log_alpha, noise, self.temperature))
        return (entries * z).to(raw["entries"].dtype)

    def _pays_dense(self) -> bool:
        return not (self.training and self.noise == "sample")  # every sample has a matrix of its own

    def _product(self, x: Tensor, entries: Tensor, log_alpha: Tensor, held: Tensor) -> Tensor:
        if not self.training:
            return x @ self._weight(entries, log_alpha, held).mT
        if self.noise == "sample":  # (..., batch, *gates)
            lead = len(self.leading)
            log_alpha = log_alpha.unsqueeze(lead)
            shape = (*self.leading, x.shape[-2], *log_alpha.shape[lead + 1 :])
            noise = logistic(x.new_empty(shape))
        else:
            noise = held if self.noise == "held" else logistic(log_alpha)
        z = hard_concrete(log_alpha, noise, self.temperature)
        if self.group == "weight":
            if self.noise == "sample":
                return torch.einsum("...bi,...boi->...bo", x, entries.unsqueeze(-3) * z)
            return x @ (entries * z).mT
        z = z if self.noise == "sample" else z.unsqueeze(-2)  # (..., batch or 1, in or out)
        return (x * z) @ entries.mT if self.group == "input" else (x @ entries.mT) * z

    @property
    def _log_odds(self) -> float:
        return math.log((1 - self.droprate_init) / self.droprate_init)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        log_alpha = torch.full_like(self.log_alpha, max(self._log_odds, 0.0)).to(torch.float64)
        return {"entries": weight / self._spread(mean_gate(log_alpha)), "log_alpha": log_alpha}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        super()._draw({"entries": raw["entries"]}, generator)
        raw["log_alpha"].normal_(self._log_odds, 0.01, generator=generator)
        raw["held"].uniform_(0, 1, generator=generator)
        raw["held"].copy_(raw["held"].logit(eps=1e-3))

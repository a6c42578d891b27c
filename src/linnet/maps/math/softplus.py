"""Positive numbers from any: s·softplus(raw/s).

It is smooth and increasing, so no entry is cut off from learning as a ReLU cuts off half of them; for raw >> s the
number is raw itself, and raw = 0, where weight decay leads, is s·ln 2, of the size that entries have at the start.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def positive(raw: Tensor, scale: float) -> Tensor:
    """scale · softplus(raw / scale), > 0 and increasing; about raw where raw >> scale."""
    return F.softplus(raw, beta=1 / scale, threshold=50.0)  # where it is cut off, the error is below float64's


def positive_raw(value: Tensor, scale: float, eps: float) -> Tensor:
    """The inverse of :func:`positive`; a value below eps² scale counts as that, since 0 would need raw = −∞."""
    t = (value / scale).clamp_min(eps**2)
    return scale * (t + (-torch.expm1(-t)).log())


def draw_positive(raw: Tensor, largest: float, scale: float, generator: torch.Generator | None) -> None:
    """Fill ``raw`` so that the entries are uniform on [0, largest]."""
    raw.uniform_(1e-3, 1, generator=generator)
    raw.copy_(positive_raw(raw.to(torch.float64) * largest, scale, 1e-6))

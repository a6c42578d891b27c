"""From any number to an interval, or to one that cannot explode, and back."""

import math

import torch
from torch import Tensor

__all__ = [
    "CALM",
    "EDGE",
    "angle_in",
    "calmed",
    "calmed_raw",
    "check_interval",
    "draw_angles",
    "interval",
    "outside",
    "within",
    "within_raw",
]

EDGE = 1e-6  # `assign` keeps this far from the ends of an interval, where the gradient would vanish
CALM = 10.0  # the size at which numbers begin to grow with the logarithm of the raw parameter


def within(raw: Tensor, low: float, high: float) -> Tensor:
    """low + (high − low)·sigmoid(raw): any number -> the interval [low, high]."""
    return (low + (high - low) * raw.sigmoid()).clamp(low, high)


def within_raw(value: Tensor, low: float, high: float) -> Tensor:
    """The inverse of :func:`within`; what lies outside or at an end is taken :data:`EDGE` of the length inside."""
    share = (value - low) / (high - low)
    # half the edge as threshold: what was put at the edge once stays where it is
    share = torch.where(share < EDGE / 2, EDGE, torch.where(share > 1 - EDGE / 2, 1 - EDGE, share))
    return torch.logit(share)


def check_interval(
    sigma_min: float, sigma_max: float, *, lowest: float = 0.0, strict: bool = False
) -> tuple[float, float]:
    """The two ends as floats, or a ValueError.

    Args:
        sigma_min: the lower end, finite and >= ``lowest``.
        sigma_max: the upper end, finite and >= sigma_min; not both are 0.
        lowest: how low the lower end may be.
        strict: whether the ends must differ.
    """
    low, high = float(sigma_min), float(sigma_max)
    ordered = low < high if strict else low <= high and (low, high) != (0.0, 0.0)
    if not (lowest <= low and ordered and math.isfinite(high - low)):
        at_least = "" if lowest == -math.inf else f"{lowest:g} <= "
        order = "sigma_min < sigma_max" if strict else "sigma_min <= sigma_max, not both 0"
        raise ValueError(
            f"sigma_min and sigma_max must be finite, {at_least}{order}, "
            f"got sigma_min={sigma_min!r} and sigma_max={sigma_max!r}"
        )
    return low, high


def calmed(raw: Tensor, calm: float = CALM) -> Tensor:
    """calm·asinh(raw/calm): the identity for small numbers; any number can be reached, none makes the product overflow.

    Where the matrix is a product of its parameters, the gradient grows with them, and one step of a large learning rate
    would set off an explosion.
    """
    return calm * torch.asinh(raw / calm)


def calmed_raw(value: Tensor, calm: float = CALM) -> Tensor:
    """The inverse of :func:`calmed`, cut off at 80 times calm, beyond which float32 has no number."""
    return calm * torch.sinh((value / calm).clamp(-80.0, 80.0))


def interval(angle: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Any real number -> [low, high], by a sine: no value of the angle is far from one where the gradient is large."""
    return low + (high - low) * (1 + angle.sin()) / 2


def angle_in(value: Tensor, low: float | Tensor, high: float | Tensor, dtype: torch.dtype) -> Tensor:
    """The angle that :func:`interval` maps to ``value``, clamped into [low, high].

    The ends themselves, where the sine is flat, are missed by eps (high − low)/4, so that the gradient is not zero.
    """
    width = torch.as_tensor(high - low, dtype=value.dtype, device=value.device)
    place = torch.where(width > 0, 2 * (value - low) / torch.where(width > 0, width, 1.0) - 1, 0.0)
    steepest = math.pi / 2 - math.sqrt(torch.finfo(dtype).eps)
    return place.clamp(-1, 1).asin().clamp(-steepest, steepest)


def draw_angles(angles: Tensor, generator: torch.Generator | None) -> None:
    """Fill angles in place so that :func:`interval` of them is uniform over the interval."""
    angles.uniform_(-1, 1, generator=generator).asin_()


def outside(values: Tensor, low: float, high: float) -> Tensor:
    """How far values, (..., k), reach beyond [low, high], relative to the larger end: (...)."""
    beyond = torch.maximum(low - values.amin(-1), values.amax(-1) - high)
    return beyond.clamp_min(0) / max(abs(low), abs(high))

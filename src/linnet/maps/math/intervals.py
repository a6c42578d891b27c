"""From any number to an interval, or to a number that grows slowly, and back.

Two maps lead into an interval. A sigmoid reaches the ends only at infinity, where its gradient vanishes for good; a
sine passes through them, so that a parameter that has run far away still has a place of large gradient nearby.
"""

import math

import torch
from torch import Tensor

# The part of an interval by which `assign` stays away from its ends, where the gradient of a sigmoid would vanish.
EDGE = 1e-6
# The size up to which `compressed` is about the identity; from there on it grows like a logarithm.
LINEAR_TO = 10.0


def sigmoid_to_interval(raw: Tensor, low: float, high: float) -> Tensor:
    """low + (high − low)·sigmoid(raw): any number -> the interval [low, high]."""
    return (low + (high - low) * raw.sigmoid()).clamp(low, high)


def sigmoid_raw(value: Tensor, low: float, high: float) -> Tensor:
    """The inverse of :func:`sigmoid_to_interval`; a value outside or at an end counts as :data:`EDGE` inside."""
    share = (value - low) / (high - low)
    # Values count as outside from half the edge on: one that was moved to the edge before, and rounded, stays there.
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


def compressed(raw: Tensor, linear_to: float = LINEAR_TO) -> Tensor:
    """c·asinh(raw/c), c = ``linear_to``: the identity for small numbers, a logarithm for large ones, and onto.

    Where the matrix is a product of its parameters, the gradient of one factor grows with the others: one step of a
    large learning rate would make the next gradient larger still, until the product overflows.
    """
    return linear_to * torch.asinh(raw / linear_to)


def compressed_raw(value: Tensor, linear_to: float = LINEAR_TO) -> Tensor:
    """The inverse of :func:`compressed`, cut off at 80 times ``linear_to``: sinh(89.4) is beyond float32."""
    return linear_to * torch.sinh((value / linear_to).clamp(-80.0, 80.0))


def sine_to_interval(angle: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Any real number -> [low, high], by a sine: no value of the angle is far from one where the gradient is large."""
    return low + (high - low) * (1 + angle.sin()) / 2


def angle_of(value: Tensor, low: float | Tensor, high: float | Tensor, dtype: torch.dtype) -> Tensor:
    """The angle that :func:`sine_to_interval` maps to ``value``, clamped into [low, high].

    The ends themselves, where the sine is flat, are missed by eps (high − low)/4, so that the gradient is not zero.
    """
    width = torch.as_tensor(high - low, dtype=value.dtype, device=value.device)
    # In an interval of no width every angle is right; 0 avoids 0/0.
    place = torch.where(width > 0, 2 * (value - low) / torch.where(width > 0, width, 1.0) - 1, 0.0)
    # 1 − sin(π/2 − δ) ≈ δ²/2: with δ = √eps the value is off by eps/2 of half the width, and the slope is still √eps.
    largest = math.pi / 2 - math.sqrt(torch.finfo(dtype).eps)
    return place.clamp(-1, 1).asin().clamp(-largest, largest)


def draw_angles(angles: Tensor, generator: torch.Generator | None) -> None:
    """Fill angles in place so that :func:`sine_to_interval` of them is uniform over the interval."""
    # sin is then uniform on [−1, 1]
    angles.uniform_(-1, 1, generator=generator).asin_()


def outside(values: Tensor, low: float, high: float) -> Tensor:
    """How far values, (..., k), reach beyond [low, high], relative to the larger end: (...)."""
    beyond = torch.maximum(low - values.amin(-1), values.amax(-1) - high)
    return beyond.clamp_min(0) / max(abs(low), abs(high))

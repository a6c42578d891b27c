"""From any number to an interval, or to one that cannot explode, and back."""

import math

import torch
from torch import Tensor

__all__ = ["CALM", "EDGE", "calmed", "calmed_raw", "check_interval", "within", "within_raw"]

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


def check_interval(sigma_min: float, sigma_max: float, lowest: float = -math.inf) -> None:
    """Refuse an interval that is not lowest <= sigma_min < sigma_max < infinity."""
    if not (lowest <= sigma_min < sigma_max < math.inf and sigma_min > -math.inf):
        rule = "finite numbers with sigma_min < sigma_max" if lowest == -math.inf else f"{lowest:g} <= min < max"
        raise ValueError(f"sigma_min and sigma_max must be {rule}, however: {sigma_min} and {sigma_max}")


def calmed(raw: Tensor, calm: float = CALM) -> Tensor:
    """calm·asinh(raw/calm): the identity for small numbers; any number can be reached, none makes the product overflow.

    Where the matrix is a product of its parameters, the gradient grows with them, and one step of a large learning rate
    would set off an explosion.
    """
    return calm * torch.asinh(raw / calm)


def calmed_raw(value: Tensor, calm: float = CALM) -> Tensor:
    """The inverse of :func:`calmed`, cut off at 80 times calm, beyond which float32 has no number."""
    return calm * torch.sinh((value / calm).clamp(-80.0, 80.0))

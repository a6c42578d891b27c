"""Sums over all maps in a model: the penalty, the largest violation; and the violation that rounding alone explains."""

from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap


def tolerance(dtype: torch.dtype) -> float:
    """100 eps: the largest :meth:`LinearMap.violation` that rounding alone explains, relative to the natural scale.

    Example:
        >>> tolerance(torch.float32) < 1.2e-5
        True
    """
    return 100 * torch.finfo(dtype).eps


def penalty(model: nn.Module) -> Tensor:
    """Sum of ``layer.penalty()`` over all maps in ``model``, each counted once: add it to the loss.

    Example:
        >>> from linnet import Linear
        >>> float(penalty(nn.Sequential(Linear(3, 2), nn.ReLU())))
        0.0
    """
    terms = [module.penalty() for module in judges(model)]
    return torch.stack([term.to(terms[0]) for term in terms]).sum() if terms else torch.zeros(())


def violation(model: nn.Module) -> Tensor:
    """The largest ``layer.violation()`` in ``model``, a float64 scalar; 0 if it contains no map.

    Example:
        >>> from linnet import Linear
        >>> float(violation(nn.Sequential(Linear(3, 2), nn.ReLU())))
        0.0
    """
    terms = [module.violation().max() for module in judges(model)]
    return torch.stack([term.cpu() for term in terms]).max() if terms else torch.zeros((), dtype=torch.float64)


def judges(model: nn.Module) -> list[Any]:
    """The maps in a model, each once, and in the place of those inside a widened module that module."""
    found: dict[nn.Module, None] = {}
    seen: set[nn.Module] = set()

    def visit(module: nn.Module) -> None:
        if module in seen:
            return
        seen.add(module)
        widened = getattr(module, "judges_members", False)
        if widened or isinstance(module, LinearMap):
            found[module] = None
        for child in () if widened else module.children():
            visit(child)

    visit(model)
    return list(found)

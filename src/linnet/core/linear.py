"""nn.Linear, and populations of it."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap


class Linear(LinearMap):
    """y = x Wᵀ + b with W unconstrained: :class:`torch.nn.Linear`, and with ``beings=n`` a population of n of them.

    The state_dict keys are nn.Linear's, and the same seed draws the same values.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - weight: ([beings,] out_features, in_features)
        - bias: ([beings,] out_features)

    Example:
        >>> layer = Linear(20, 30, beings=4)
        >>> layer(torch.randn(128, 4, 20)).shape
        torch.Size([128, 4, 30])
    """

    family = "free"
    promise = "none"
    decays = ("weight",)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.out_features, self.in_features)}

    @property
    def weight(self) -> Tensor:
        # A parameter; a tensor that prune and weight_norm keep up to date; a buffer, in FixedRandom.
        stored = self._parameters.get("weight", self.__dict__.get("weight", self._buffers.get("weight")))
        if stored is None:
            raise AttributeError(f"the weight of {type(self).__name__} was deleted")
        return stored

    @weight.deleter
    def weight(self) -> None:
        del self.__dict__["weight"]

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "weight" or "weight" in self._parameters or not isinstance(value, Tensor):
            super().__setattr__(name, value)
        elif isinstance(value, nn.Parameter):
            self._parameters["weight"] = value
        elif (own := inspect.getattr_static(type(self), "weight")).fset:  # torch.nn.utils.parametrize made it
            own.fset(self, value)
        else:  # torch.nn.utils.prune and weight_norm keep the parameter under another name, and this up to date
            self.__dict__["weight"] = value

    def _weight(self, weight: Tensor) -> Tensor:
        return weight

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"weight": weight}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        nn.init.kaiming_uniform_(raw["weight"], a=math.sqrt(5), generator=generator)  # as nn.Linear does

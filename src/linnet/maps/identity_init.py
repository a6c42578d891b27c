"""Free matrices that start as the identity."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap


class IdentityInitLinear(LinearMap):
    """y = x A + b with A = I at the start and free from then on.

    Where the sizes differ, it starts as the rectangular identity: inputs are cut off, or outputs begin as zeros. The
    bias starts as that of nn.Linear. Any matrix is assigned exactly.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - entries: ([beings,] out_features, in_features)

    Example:
        >>> IdentityInitLinear(3, 5, bias=False)(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0, 0.0, 0.0]

    Reference:
        Q. V. Le, N. Jaitly, G. E. Hinton, A simple way to initialize recurrent networks of rectified linear units,
        2015, arXiv 1504.00941.
    """

    family = "free"
    promise = "none"
    decays = ("entries",)

    entries: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"entries": (self.out_features, self.in_features)}

    def _weight(self, entries: Tensor) -> Tensor:
        return entries

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"entries": weight}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        nn.init.eye_(raw["entries"])

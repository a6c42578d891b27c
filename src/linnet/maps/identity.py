"""The identity."""

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.core.linear_map import LinearMap


class IdentityLinear(LinearMap):
    """y = x A + b with A = I always: a placeholder for a layer.

    Where the sizes differ, A is the rectangular identity: inputs are cut off, or outputs filled with zeros. The
    matrix has no parameter; ``assign`` accepts any matrix, moves to I and reports how far that was.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - anchor: ([beings,] 0), an empty buffer

    Example:
        >>> IdentityLinear(3, 5, bias=False)(torch.ones(3))
        tensor([1., 1., 1., 0., 0.])

    Reference:
        J. Drgoňa et al., Spectral analysis and stability of deep neural dynamics, 2020, arXiv 2011.13492.
    """

    family = "free"
    promise = "A = I"
    fixed = ("anchor",)

    anchor: Tensor

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        # Without a bias nothing else would tell the device, the dtype and the leading axes of `weight`.
        return {"anchor": (0,)}

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        super().register_buffer(name, tensor, persistent and name != "anchor")  # it holds nothing to save

    def _weight(self, anchor: Tensor) -> Tensor:
        identity = torch.eye(self.out_features, self.in_features, device=anchor.device, dtype=anchor.dtype)
        return identity.expand(*anchor.shape[:-1], self.out_features, self.in_features)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {}

    def _violation(self, weight: Tensor) -> Tensor:
        identity = torch.eye(self.out_features, self.in_features, device=weight.device, dtype=weight.dtype)
        return (weight - identity).abs().amax((-2, -1))

    def _pays_dense(self) -> bool:
        return False

    def _product(self, x: Tensor, anchor: Tensor) -> Tensor:
        y = F.pad(x[..., : self.out_features], (0, max(0, self.out_features - self.in_features)))
        return y.expand(*self.leading, *y.shape[-2:]).contiguous()  # an output that may be changed in place

"""Butterfly matrices with the interface of slim: complex numbers are pairs along the last axis."""

from typing import Any

import torch
from torch import Tensor, nn

from linnet import maps as structured
from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap

__all__ = ["Butterfly"]


def paired(linear: LinearMap, x: Tensor) -> Tensor:
    """Apply the map to real and imaginary parts, (*, in, 2) -> (*, out, 2)."""
    if x.dim() < 2 or x.shape[-1] != 2 or 2 * x.shape[-2] != linear.in_features:
        raise ValueError(f"The input must have shape (*, in_size={linear.in_features // 2}, 2), got {tuple(x.shape)}")
    return linear(x.flatten(-2)).unflatten(-1, (-1, 2))


def complex_matrix(linear: LinearMap) -> Tensor:
    """The complex A, (in, out), of a map whose features are pairs."""
    columns = linear.weight.mT[0::2]  # (in, 2 out), the rows of the real parts, which determine the complex matrix
    return torch.complex(columns[:, 0::2], columns[:, 1::2])


class Butterfly(nn.Module):
    """y = x A + b with Aᵀ a product of log₂ n butterfly factors, those of :class:`linnet.ButterflyLinear`.

    Args:
        in_size: size of each input sample.
        out_size: size of each output sample.
        bias: whether an additive bias is learned.
        complex: whether the numbers are complex.
        tied_weight: whether the blocks of a factor share their entries.
        increasing_stride: whether the strides 1, 2, 4, ... are applied in this order, not in the reverse.
        ortho_init: whether every 2 × 2 matrix starts as a rotation.

    Shape:
        - input: (*, in_size); if complex (*, in_size, 2)
        - output: (*, out_size); if complex (*, out_size, 2)

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> Butterfly(8, 6, complex=True)(torch.randn(4, 5, 8, 2)).shape
        torch.Size([4, 5, 6, 2])
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        bias: bool = True,
        complex: bool = False,
        tied_weight: bool = True,
        increasing_stride: bool = True,
        ortho_init: bool = False,
    ) -> None:
        super().__init__()
        self.in_size, self.out_size = check_positive(in_size=in_size, out_size=out_size)
        self.complex, self.tied_weight = complex, tied_weight
        self.increasing_stride, self.ortho_init = increasing_stride, ortho_init
        parts = 2 if complex else 1
        self.linear = structured.ButterflyLinear(
            parts * self.in_size,
            parts * self.out_size,
            bool(bias),
            complex=complex,
            tied_weight=tied_weight,
            increasing_stride=increasing_stride,
            ortho_init=ortho_init,
        )

    @property
    def twiddle(self) -> nn.Parameter:
        """The entries of the factors, see :class:`linnet.ButterflyLinear`."""
        return self.linear.twiddle

    @property
    def bias(self) -> Tensor | None:
        """b, (out_size,) or (out_size, 2), or None."""
        bias = self.linear.bias
        return bias if bias is None or not self.complex else bias.unflatten(-1, (-1, 2))

    def reset_parameters(self, **kwargs: Any) -> None:
        """Redraw all parameters, see :meth:`linnet.LinearMap.reset_parameters`."""
        self.linear.reset_parameters(**kwargs)

    def forward(self, input: Tensor) -> Tensor:
        return paired(self.linear, input) if self.complex else self.linear(input)

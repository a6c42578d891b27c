"""WideLinear: a population of linear maps with the name and the constructor of the widelinears package."""

from typing import Any, Self

import torch
from torch import nn

from linnet.core.linear import Linear


class WideLinear(Linear):
    """A population of ``beings`` linear maps: ``Linear(..., beings=n)`` with the argument order of widelinears.

    Args:
        beings: number of parallel linear maps.
        input_size: size of the input of each.
        output_size: size of the output of each.
        bias: whether an additive bias is learned.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - input: (input_size,) or (*, 1, input_size), shared by all beings; (*, beings, input_size)
        - output: (*, beings, output_size)
        - weight: (beings, output_size, input_size)
        - bias: (beings, output_size)

    Raises:
        ValueError: a size is not a positive integer, or the input has any other shape.

    Example:
        >>> layer = WideLinear(4, 5, 3)
        >>> layer(torch.randn(5)).shape, layer(torch.randn(7, 4, 5)).shape
        (torch.Size([4, 3]), torch.Size([7, 4, 3]))

    Reference:
        J. Figueira, widelinears, 2021 (the interface).
    """

    def __init__(
        self,
        beings: int,
        input_size: int,
        output_size: int,
        bias: bool = True,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, output_size, bias, beings=beings, device=device, dtype=dtype)

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """nn.Linear -> a population of one."""
        return cls.from_linears([linear], **options)

    @classmethod
    def _empty(cls, in_features: int, out_features: int, bias: bool, **options: Any) -> Self:
        if options.get("beings") is None:
            raise ValueError(f"{cls.__name__} is a population; give its number of beings, beings=n")
        return cls(options.pop("beings"), in_features, out_features, bias, **options)

    def options(self) -> dict[str, Any]:
        return {}

    def extra_repr(self) -> str:
        return (
            f"beings={self.beings}, input_size={self.in_features}, output_size={self.out_features}, "
            f"bias={self.bias is not None}"
        )

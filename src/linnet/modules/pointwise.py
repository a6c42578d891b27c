"""Pointwise: a 1×1 convolution whose matrix is that of a map."""

from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.dense import plain_linear
from linnet.core.linear_map import LinearMap

CONVOLUTIONS: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Pointwise(nn.Module):
    """y[:, o, p] = Σ_i W[o, i] x[:, i, p] + b[o] for every place p: a 1×1 convolution whose matrix is that of a map.

    :func:`linnet.replace` with ``convolutions=True`` puts it in place of an ``nn.Conv1d``, ``nn.Conv2d`` or
    ``nn.Conv3d``, and :func:`linnet.bake` turns it back into one.

    Args:
        layer: the map between channels, without beings.
        dims: number of axes of places: 1, 2 or 3.

    Shape:
        - input: ([batch,] layer.in_features, *places)
        - output: ([batch,] layer.out_features, *places), contiguous if the input is, channels last if the input is

    Raises:
        TypeError: layer is not a map.
        ValueError: layer is a population, dims is not 1, 2 or 3, or the input has another number of axes.

    Example:
        >>> from linnet import OrthogonalLinear
        >>> Pointwise(OrthogonalLinear(6, 6))(torch.randn(2, 6, 8, 8)).shape
        torch.Size([2, 6, 8, 8])
    """

    def __init__(self, layer: LinearMap, dims: int = 2) -> None:
        super().__init__()
        if not isinstance(layer, LinearMap):
            raise TypeError(f"layer must be a linear map, got {type(layer).__name__}")
        if layer.beings is not None:
            raise ValueError(f"layer must be a single map, got a population of {layer.beings}")
        if dims not in CONVOLUTIONS:
            raise ValueError(f"dims must be 1, 2 or 3, got {dims!r}")
        self.layer, self.dims = layer, dims

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (self.dims + 1, self.dims + 2):
            raise ValueError(
                f"The input must have {self.dims + 1} or {self.dims + 2} axes, ([batch,] channels, *places), "
                f"got shape {tuple(input.shape)}"
            )
        channels = -self.dims - 1
        output = self.layer(input.movedim(channels, -1)).movedim(-1, channels)
        return output.contiguous() if input.is_contiguous() else output

    def to_convolution(self) -> nn.Module:
        """An independent convolution of the same function."""
        plain: Any = self.layer.to_linear() if isinstance(self.layer, LinearMap) else self.layer  # bake sets nn.Linear
        kind = CONVOLUTIONS[self.dims]
        size = (plain.in_features, plain.out_features, 1)
        new = nn.utils.skip_init(
            kind, *size, bias=plain.bias is not None, device=plain.weight.device, dtype=plain.weight.dtype
        )
        with torch.no_grad():
            for name in ("weight", "bias"):
                own, theirs = getattr(new, name), getattr(plain, name)
                if own is not None:
                    own.copy_(theirs.reshape(own.shape))
                    own.requires_grad_(theirs.requires_grad)
        return new.train(self.training)

    def extra_repr(self) -> str:
        return f"dims={self.dims}"


def is_pointwise(module: Any) -> int:
    """The number of axes of places of a 1×1 convolution with stride 1, one group and no padding; 0 for others."""
    alone = (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and set(module.kernel_size) == {1}
        and set(module.stride) == {1}
        and module.groups == 1
        and (module.padding in ("same", "valid") or set(module.padding) == {0})
    )
    return len(module.kernel_size) if alone else 0


def as_linear(convolution: Any) -> nn.Linear:
    """The matrix of a 1×1 convolution as an independent nn.Linear, in the same mode."""
    return plain_linear(convolution.weight.flatten(1), convolution.bias).train(convolution.training)

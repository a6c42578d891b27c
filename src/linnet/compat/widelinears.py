"""The API of widelinears, name for name: change ``from widelinears`` to ``from linnet.compat.widelinears``.

Where the code and the documentation of widelinears disagree, linnet follows the documentation
(docs/compat-widelinears.md).
"""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

import linnet.wide.wide_deep
import linnet.wide.wide_linear
from linnet.core.being import Being, indices

__all__ = ["LinearWidePointer", "WideDeep", "WideLinear"]


class LinearWidePointer(Being):
    """y = x Wᵀ + b of one being: a live view of a :class:`WideLinear` that behaves like a single nn.Linear.

    Args:
        hive: the population.
        being: the number of the being, a member of the population.

    Shape:
        - input: (*, input_size)
        - output: (*, output_size)

    Raises:
        ValueError: the number is out of range.

    Example:
        >>> LinearWidePointer(WideLinear(100, 3, 4), 7)
        LinearWidePointer(in_features=3, out_features=4, bias=True)
    """

    def __init__(self, hive: "WideLinear", being: int) -> None:
        super().__init__(hive, int(indices(being, hive._population())))

    @property
    def hive(self) -> "WideLinear":
        return self._source[0]  # type: ignore[return-value]

    @property
    def being(self) -> int:
        return self.index

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class WideLinear(linnet.wide.wide_linear.WideLinear):
    """A population of parallel linear maps: the layer of widelinears, on :class:`linnet.WideLinear`.

    Args:
        beings: number of parallel linear layers.
        input_size: size of the input of each.
        output_size: size of the output of each.

    Shape:
        - input: (input_size,) or (*, 1, input_size), shared by all beings; (*, beings, input_size)
        - output: (*, beings, output_size)

    Raises:
        ValueError: see :class:`linnet.WideLinear`.

    Example:
        >>> import torch
        >>> WideLinear(100, 3, 4)(torch.randn(3)).shape
        torch.Size([100, 4])
    """

    def __init__(self, beings: int, input_size: int, output_size: int) -> None:
        super().__init__(beings, input_size, output_size)

    @property
    def input_size(self) -> int:
        return self.in_features

    @property
    def output_size(self) -> int:
        return self.out_features

    def get_single(self, being: int) -> LinearWidePointer:
        """Being ``being`` as a single linear map."""
        return LinearWidePointer(self, being)

    @classmethod
    def _empty(cls, in_features: int, out_features: int, bias: bool, **options: Any) -> Self:
        placed = {name: options.pop(name) for name in ("device", "dtype") if name in options}
        if not bias:
            raise ValueError("The layer of widelinears always has a bias, got bias=False; use linnet.WideLinear")
        return cls(options.pop("beings"), in_features, out_features, **options).to(**placed)

    def extra_repr(self) -> str:
        return (
            f"beings={self.beings}, in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class WideDeep(linnet.wide.wide_deep.WideDeep):
    """A population of parallel deep networks: the module of widelinears, on :class:`linnet.WideDeep`.

    Args:
        beings: number of parallel networks.
        input_size: size of the input of each.
        hidden_size: size of each hidden layer.
        depth: number of linear layers; 1 is a single layer from input to output, as widelinears documents it.
        output_size: size of the output of each.
        non_linear: the activation after every layer but the last; None is ReLU.
        final_nl: the activation after the last layer; None is the sigmoid.

    Shape:
        - input: (input_size,) or (*, 1, input_size), shared by all beings; (*, beings, input_size)
        - output: (*, beings, output_size)

    Raises:
        ValueError: see :class:`linnet.WideDeep`.

    Example:
        >>> import torch
        >>> WideDeep(100, 5, 3, 2, 4)(torch.randn(100, 5)).shape
        torch.Size([100, 4])
    """

    layer_class = WideLinear

    def __init__(
        self,
        beings: int,
        input_size: int,
        hidden_size: int,
        depth: int,
        output_size: int,
        non_linear: Callable[[Tensor], Tensor] | None = None,
        final_nl: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(beings, input_size, hidden_size, depth, output_size, non_linear, final_nl)

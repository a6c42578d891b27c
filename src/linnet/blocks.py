"""What networks are built of: blocks that take any layer."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from linnet.beings import check_positive
from linnet.catalogue import find_layer
from linnet.linear import Linear
from linnet.wide.layer import EachBeing

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """``depth`` linear layers with an activation between them: input → hidden → ⋯ → hidden → output.

    ``layer`` takes every place; a layer that is square by nature goes hidden to hidden, with :class:`Linear` at both
    ends. ``carriers`` tells how many places it took.

    Args:
        input_size: size of each input sample.
        hidden_size: size of each hidden layer.
        output_size: size of each output sample.
        depth: number of linear layers, at least 1; the default 2 is hidden and output.
        layer: a layer class, a factory called as ``layer(in_features, out_features, bias, **options)``, or a name of
            the catalogue.
        activation: called without arguments for each place between two layers.
        bias: whether the layers learn an additive bias.
        beings: None for one network, n for a population of n.
        device: device of the parameters.
        dtype: dtype of the parameters.
        **options: go to every layer of the kind ``layer``.

    Shape:
        - input: (*, input_size); a population takes (input_size,) or (*, beings or 1, input_size)
        - output: (*, output_size); a population gives (*, beings, output_size)

    Raises:
        ValueError: a size or the depth is not a positive integer, the layer is unknown, or it is square and depth < 3
            leaves no place from hidden to hidden.
        TypeError: an option that the layer does not have.

    Example:
        >>> net = MLP(20, 64, 10, depth=3, layer="orthogonal")
        >>> net(torch.randn(2, 20)).shape, net.carriers
        (torch.Size([2, 10]), 1)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        depth: int = 2,
        layer: str | Callable[..., nn.Module] = Linear,
        activation: Callable[[], nn.Module] = nn.ReLU,
        bias: bool = True,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        check_positive(input_size=input_size, hidden_size=hidden_size, output_size=output_size, depth=depth)
        kind = find_layer(layer) if isinstance(layer, str) else layer
        if isinstance(activation, nn.Module):
            raise TypeError(f"activation must be a class or factory, such as nn.ReLU, however: the module {activation}")
        square = getattr(getattr(kind, "func", kind), "square", False)  # functools.partial keeps the class in func
        if square and depth < 3:
            name = getattr(kind, "__name__", kind)
            raise ValueError(
                f"A square layer goes from hidden to hidden, depth must be at least 3, however: {name} with {depth=}"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        population: dict[str, Any] = {} if beings is None else {"beings": beings}
        sizes = [input_size] + [hidden_size] * (depth - 1) + [output_size]
        modules: list[nn.Module] = []
        carriers = 0
        for place, (i, o) in enumerate(itertools.pairwise(sizes)):
            if square and place in (0, depth - 1):
                modules.append(Linear(i, o, bias, beings=beings, **factory))
            else:
                modules.append(kind(i, o, bias, **population, **factory, **options))
                carriers += 1
            if place < depth - 1:
                between = activation().to(device, dtype)
                modules.append(between if beings is None else EachBeing(between, beings))
        super().__init__(*modules)
        self.carriers = carriers

    def __getitem__(self, index: Any) -> Any:
        """A module, or for a slice an ``nn.Sequential`` of the same modules."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

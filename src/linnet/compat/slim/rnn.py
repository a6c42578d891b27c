"""RNN and RNNCell of slim over any maps; the hidden matrix is computed once for each sequence."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.compat.slim.base import LinearBase, Mapped
from linnet.compat.slim.linear import Linear
from linnet.core.checks import check_positive, hooked
from linnet.core.frozen import sequence_matrix
from linnet.core.linear_map import LinearMap

__all__ = ["RNN", "RNNCell"]

NONE: Mapping[str, Any] = MappingProxyType({})


def reg_error(module: nn.Module) -> Tensor:
    """``module.reg_error()``, or 0 if the module has no such method, as nn.Linear."""
    return module.reg_error() if hasattr(module, "reg_error") else torch.zeros(())  # type: ignore[operator]


def step_function(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function that equals ``linear`` for every step of one sequence, with its matrix computed once.

    A module with hooks or its own forward is returned unchanged.
    """
    if not isinstance(linear, LinearBase) or hooked(linear):
        return linear
    if type(linear).forward is Mapped.forward and isinstance(linear.linear, LinearMap):
        return sequence_matrix(linear.linear)
    if type(linear).forward is LinearBase.forward:
        matrix, bias = linear.effective_W(), linear.bias
        return lambda h: h @ matrix if bias is None else h @ matrix + bias
    return linear


class RNNCell(nn.Module):
    """h' = nonlin(h H + x A), with a map H for the hidden state and a map A for the input.

    Args:
        input_size: size of each input sample.
        hidden_size: size of the hidden state.
        bias: whether both maps learn a bias.
        nonlin: any function of a tensor.
        hidden_map: class of the hidden map, built as ``hidden_map(n, n, bias=bias, **hidden_args)``, n = hidden_size.
        input_map: class of the input map, called the same way.
        input_args: options of the input map.
        hidden_args: options of the hidden map.

    Shape:
        - input: (*, input_size)
        - hidden: (*, hidden_size)
        - output: (*, hidden_size)

    Example:
        >>> from linnet.compat import slim
        >>> cell = RNNCell(5, 8, hidden_map=slim.OrthogonalLinear)
        >>> cell(torch.randn(20, 5), torch.zeros(20, 8)).shape
        torch.Size([20, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = False,
        nonlin: Callable[[Tensor], Tensor] = F.gelu,
        hidden_map: Callable[..., nn.Module] = Linear,
        input_map: Callable[..., nn.Module] = Linear,
        input_args: Mapping[str, Any] = NONE,
        hidden_args: Mapping[str, Any] = NONE,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.in_features, self.out_features = input_size, hidden_size
        self.nonlin = nonlin
        self.lin_in = input_map(input_size, hidden_size, bias=bias, **input_args)
        self.lin_hidden = hidden_map(hidden_size, hidden_size, bias=bias, **hidden_args)

    def reg_error(self) -> Tensor:
        """The mean of the penalties of the two maps."""
        return (reg_error(self.lin_in) + reg_error(self.lin_hidden)) / 2

    def forward(self, input: Tensor, hidden: Tensor) -> Tensor:
        return self.nonlin(self.lin_hidden(hidden) + self.lin_in(input))

    def unroll(self, sequence: Tensor, hidden: Tensor) -> Tensor:
        """The hidden states after every step, (seq_len, batch, hidden_size).

        Args:
            sequence: (seq_len, batch, input_size).
            hidden: the initial state, (batch, hidden_size), or (1, hidden_size) for all samples.
        """
        driven = self.lin_in(sequence.flatten(0, 1)).unflatten(0, sequence.shape[:2])
        step, states = step_function(self.lin_hidden), []
        for drive in driven:
            hidden = self.nonlin(step(hidden) + drive)
            states.append(hidden)
        return torch.stack(states)


class RNN(nn.Module):
    """A stack of :class:`RNNCell`, each reading the states of the cell before; the initial states are learned.

    Args:
        input_size: size of each input sample.
        hidden_size: size of every hidden state.
        num_layers: number of cells.
        cell_args: options of every cell, see :class:`RNNCell`.

    Shape:
        - sequence: (seq_len, batch, input_size)
        - init_states: (num_layers, batch, hidden_size), or a list of (batch or 1, hidden_size); None: the learned ones
        - output: (seq_len, batch, hidden_size), and the last state of every cell, (num_layers, batch, hidden_size)

    Raises:
        ValueError: a size is not a positive integer; the sequence or the initial states have a wrong shape.

    Example:
        >>> from linnet.compat import slim
        >>> rnn = RNN(5, hidden_size=8, num_layers=3, cell_args={"hidden_map": slim.PerronFrobeniusLinear})
        >>> output, last = rnn(torch.randn(20, 10, 5))
        >>> output.shape, last.shape
        (torch.Size([20, 10, 8]), torch.Size([3, 10, 8]))
    """

    def __init__(
        self, input_size: int, hidden_size: int = 16, num_layers: int = 1, cell_args: Mapping[str, Any] = NONE
    ) -> None:
        super().__init__()
        (layers,) = check_positive(num_layers=num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, layers
        sizes = [input_size] + [hidden_size] * (layers - 1)
        self.rnn_cells = nn.ModuleList(RNNCell(size, hidden_size, **cell_args) for size in sizes)
        self.init_states = nn.ParameterList(torch.zeros(1, hidden_size) for _ in sizes)

    def reg_error(self) -> Tensor:
        """The mean of the penalties of the cells."""
        return torch.stack([reg_error(cell) for cell in self.rnn_cells]).mean()

    def forward(self, sequence: Tensor, init_states: Iterable[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        shape = tuple(sequence.shape)
        if len(shape) != 3 or shape[0] == 0 or shape[2] != self.input_size:
            raise ValueError(
                f"The sequence must have shape (seq_len >= 1, batch, input_size={self.input_size}), got {shape}"
            )
        starts = list(self.init_states if init_states is None else init_states)
        admitted = {(n, self.hidden_size) for n in (1, shape[1])}
        if len(starts) != self.num_layers or any(tuple(start.shape) not in admitted for start in starts):
            raise ValueError(
                f"There must be num_layers={self.num_layers} initial states, each (batch={shape[1]} or 1, "
                f"hidden_size={self.hidden_size}), got {[tuple(start.shape) for start in starts]}"
            )
        last = []
        for start, cell in zip(starts, self.rnn_cells, strict=True):
            sequence = cell.unroll(sequence, start)  # type: ignore[operator]
            last.append(sequence[-1])
        return sequence, torch.stack(last)

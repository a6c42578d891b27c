"""RNN and RNNCell over any map: h ← φ(x W_inᵀ + h W_hidᵀ + b), with W_hid computed once for each sequence."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.catalogue import find_layer
from linnet.core.checks import check_positive, hooked
from linnet.core.frozen import sequence_matrix
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap

Kind = str | Callable[..., nn.Module]
Nonlinearity = str | Callable[[Tensor], Tensor]
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class RNNCell(nn.Module):
    """h' = φ(x W_inᵀ + h W_hidᵀ + b): :class:`torch.nn.RNNCell` with any class of maps for W_in and W_hid.

    Args:
        input_size: size of each input sample.
        hidden_size: size of the state.
        bias: whether both maps learn an additive bias, as in :class:`torch.nn.RNNCell`.
        input_map: class of the map from input to state: a layer class, a factory called as
            ``input_map(in_features, out_features, bias, **options)``, or a name of the catalogue.
        hidden_map: class of the map from state to state.
        nonlinearity: φ, ``"tanh"``, ``"relu"`` or any callable; the parameters of a module are trained too.
        input_options: options of the input map.
        hidden_options: options of the hidden map.
        beings: None for one cell, n for a population of n cells.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - input: (*, input_size); a population takes (*, beings or 1, input_size)
        - state: (*, hidden_size); a population takes (*, beings, hidden_size); None is zeros
        - output: the shape of the state

    Raises:
        ValueError: a size is not a positive integer, the nonlinearity or a map is unknown, or a map cannot have its
            size (such as a square input map where input_size and hidden_size differ).

    Example:
        >>> cell = RNNCell(3, 16, hidden_map="orthogonal")
        >>> h = None
        >>> for x in torch.randn(100, 8, 3):
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([8, 16])

    Reference:
        J. L. Elman, Finding structure in time, 1990.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        input_map: Kind = Linear,
        hidden_map: Kind = Linear,
        nonlinearity: Nonlinearity = "tanh",
        input_options: Mapping[str, Any] | None = None,
        hidden_options: Mapping[str, Any] | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = check_positive(input_size=input_size, hidden_size=hidden_size)
        self.beings = None if beings is None else check_positive(beings=beings)[0]
        self.nonlinearity = _checked(nonlinearity)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        factory |= {} if beings is None else {"beings": beings}
        self.input_map = _kind(input_map)(self.input_size, self.hidden_size, bias, **factory, **(input_options or {}))
        self.hidden_map = _kind(hidden_map)(
            self.hidden_size, self.hidden_size, bias, **factory, **(hidden_options or {})
        )

    def forward(self, input: Tensor, state: Tensor | None = None) -> Tensor:
        x = self.input_map(input)  # (*, [beings,] hidden)
        if state is None:
            state = torch.zeros_like(x)
        elif state.shape != x.shape:
            raise ValueError(f"The state must have shape {tuple(x.shape)}, got {tuple(state.shape)}")
        return self._phi(x + self.hidden_map(state))

    def sequence(self, input: Tensor, state: Tensor) -> Tensor:
        """All states of a sequence, with one product for all inputs, and W_hid computed once.

        Args:
            input: the inputs, (length, batch, [beings or 1,] input_size).
            state: the initial state, (batch, [beings,] hidden_size).

        Shape:
            - returns: (length, batch, [beings,] hidden_size)
        """
        x = self.input_map(input)  # (length, batch, [beings,] hidden)
        layer, states = self.hidden_map, []
        h = state.to(x.dtype)
        if not (isinstance(layer, LinearMap) and layer._pays_dense()) or hooked(layer):
            for row in x.unbind():
                h = self._phi(row + layer(h))
                states.append(h)
            return torch.stack(states)
        weight = sequence_matrix(layer).weight.mT  # ([beings,] hidden, hidden)
        x = x if layer.bias is None else x + layer.bias
        if self.beings is None:
            for row in x.unbind():
                h = self._phi(torch.addmm(row, h, weight))
                states.append(h)
            return torch.stack(states)
        h = h.transpose(0, 1)  # (beings, batch, hidden)
        for row in x.transpose(1, 2).unbind():
            h = self._phi(torch.baddbmm(row, h, weight))
            states.append(h)
        return torch.stack(states).transpose(1, 2)

    def _phi(self, z: Tensor) -> Tensor:
        phi = self.nonlinearity
        return NONLINEARITIES[phi](z) if isinstance(phi, str) else phi(z)

    def extra_repr(self) -> str:
        return f"nonlinearity={self.nonlinearity!r}" if isinstance(self.nonlinearity, str) else ""


class RNN(nn.Module):
    """A stack of recurrent layers over a sequence: :class:`torch.nn.RNN` with any class of maps.

    The matrix of the hidden map is computed once for each sequence, so that orthogonal or stable nets cost little more
    than nets of nn.Linear. A random hidden map (:class:`linnet.L0Linear`) draws one sample for each sequence.

    Args:
        input_size: size of each input sample.
        hidden_size: size of the states.
        num_layers: number of recurrent layers; each but the first takes the states of the layer before.
        bias: whether all maps learn an additive bias.
        batch_first: whether the batch axis comes before time: (batch, length, ...) for input and output.
        dropout: probability of dropout on the outputs of each layer but the last.
        input_map: class of the maps from input to state, see :class:`RNNCell`.
        hidden_map: class of the maps from state to state.
        nonlinearity: φ, ``"tanh"``, ``"relu"`` or any callable; all layers share a module.
        input_options: options of the input maps.
        hidden_options: options of the hidden maps.
        beings: None for one net, n for a population of n nets.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - input: (length, [batch,] input_size); a population takes (length, [batch,] beings or 1, input_size)
        - states: the initial states, (num_layers, [batch,] [beings,] hidden_size); None is zeros
        - output: (length, [batch,] [beings,] hidden_size), the states of the last layer
        - last states: (num_layers, [batch,] [beings,] hidden_size)

    Raises:
        ValueError: a size is not a positive integer, dropout is not in [0, 1], a map or the nonlinearity is unknown, or
            a map cannot have its size (such as a square input map where input_size and hidden_size differ).

    Example:
        >>> net = RNN(3, 64, num_layers=2, hidden_map="orthogonal", batch_first=True)
        >>> output, last = net(torch.randn(8, 100, 3))
        >>> output.shape, last.shape
        (torch.Size([8, 100, 64]), torch.Size([2, 8, 64]))

    Reference:
        J. L. Elman, Finding structure in time, 1990.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        input_map: Kind = Linear,
        hidden_map: Kind = Linear,
        nonlinearity: Nonlinearity = "tanh",
        input_options: Mapping[str, Any] | None = None,
        hidden_options: Mapping[str, Any] | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        (self.num_layers,) = check_positive(num_layers=num_layers)
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability in [0, 1], got {dropout!r}")
        self.batch_first, self.dropout = batch_first, dropout
        self.cells = nn.ModuleList(
            RNNCell(
                hidden_size if i else input_size,
                hidden_size,
                bias,
                input_map=input_map,
                hidden_map=hidden_map,
                nonlinearity=nonlinearity,
                input_options=input_options,
                hidden_options=hidden_options,
                beings=beings,
                device=device,
                dtype=dtype,
            )
            for i in range(self.num_layers)
        )
        self.input_size, self.hidden_size, self.beings = input_size, hidden_size, beings

    def forward(self, input: Tensor, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
        single = 2 if self.beings is None else 3  # axes of a sequence without a batch
        if not isinstance(input, Tensor) or input.dim() not in (single, single + 1):
            given = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
            axes = "input_size" if self.beings is None else "beings or 1, input_size"
            raise ValueError(f"The input must have shape (length, [batch,] {axes}), got {given}")
        batched = input.dim() > single
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x  # (length, batch, [beings,] input)
        if x.shape[0] == 0:
            raise ValueError(f"A sequence must have at least one step, got {tuple(input.shape)}")
        population = [] if self.beings is None else [self.beings]
        shape: tuple[int, ...] = (self.num_layers, *([x.shape[1]] if batched else []), *population, self.hidden_size)
        if states is not None and (not isinstance(states, Tensor) or states.shape != shape):
            given = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ValueError(f"The states must have shape {shape}, got {given}")
        start = x.new_zeros(shape) if states is None else states
        last: list[Tensor] = []
        for i, (cell, h) in enumerate(zip(self.cells, start if batched else start.unsqueeze(1), strict=True)):
            if i and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            x = cell.sequence(x, h)  # type: ignore[operator]
            last.append(x[-1])
        final = torch.stack(last)  # (num_layers, batch, [beings,] hidden)
        if not batched:
            return x.squeeze(1), final.squeeze(1)
        return (x.transpose(0, 1) if self.batch_first else x), final

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        parts += [f"{name}={getattr(self, name)}" for name in ("batch_first", "dropout") if getattr(self, name)]
        return ", ".join(parts)


def _kind(kind: Kind) -> Callable[..., nn.Module]:
    if isinstance(kind, nn.Module) or not (isinstance(kind, str) or callable(kind)):
        raise TypeError(f"A map must be a layer class, a factory or a name of the catalogue, got {kind!r}")
    return find_layer(kind) if isinstance(kind, str) else kind


def _checked(nonlinearity: Nonlinearity) -> Nonlinearity:
    if isinstance(nonlinearity, str) and nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity must be {', '.join(NONLINEARITIES)} or a callable, got {nonlinearity!r}")
    if isinstance(nonlinearity, type) or not (isinstance(nonlinearity, str) or callable(nonlinearity)):
        raise TypeError(f"nonlinearity must be a name or a function of a tensor, got {nonlinearity!r}")
    return nonlinearity

"""Batched RNN, LSTM and GRU and their cells for populations; torch.vmap has no rule for these modules of torch.nn.

One product W_ih x covers all time steps and beings; the product W_hh h is one for each step, for all beings.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.affine import product_rows
from linnet.wide.kernels.measured import lstm_one_by_one
from linnet.wide.random import Noise

Tensors = Mapping[str, Tensor]
State = tuple[Tensor, ...]
"""h, or h and c, each (beings, batch, hidden)."""


def _elman(phi: Callable[[Tensor], Tensor]) -> Callable[..., State]:
    """h ← φ(W_ih x + W_hh h + b); ``given`` is W_ih x + b_ih."""

    def step(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
        return (phi(given + product_rows(state[0], weight, bias)),)

    return step


def _lstm(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    """c ← σ(f) c + σ(i) tanh(g), h ← σ(o) tanh(c), where i, f, g, o = W_ih x + W_hh h + b."""
    i, f, g, o = (given + product_rows(state[0], weight, bias)).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    """h ← (1 − z) n + z h with n = tanh(n_in + r · n_state); as n + z (h − n)."""
    r_in, z_in, n_in = given.chunk(3, -1)
    r_state, z_state, n_state = product_rows(state[0], weight, bias).chunk(3, -1)
    n = (n_in + (r_in + r_state).sigmoid() * n_state).tanh()
    return (n + (z_in + z_state).sigmoid() * (state[0] - n),)


def _step_of(leaf: nn.Module) -> Callable[..., State]:
    if isinstance(leaf, nn.LSTM | nn.LSTMCell):
        return _lstm
    if isinstance(leaf, nn.GRU | nn.GRUCell):
        return _gru
    return _elman(torch.tanh if leaf.nonlinearity == "tanh" else torch.relu)


def _cell(leaf: nn.RNNCellBase, tensors: Tensors, noise: Noise, input: Tensor, hx: Any = None) -> Any:
    """(beings, [batch,] in) -> the next state, as the cell returns it."""
    if input.dim() not in (2, 3) or input.shape[-1] != leaf.input_size:
        return NotImplemented
    two = isinstance(leaf, nn.LSTMCell)
    batched = input.dim() == 3
    x = input if batched else input.unsqueeze(1)
    if hx is None:
        zeros = x.new_zeros(*x.shape[:2], leaf.hidden_size)
        state: State = (zeros, zeros) if two else (zeros,)
    else:
        state = tuple(part if batched else part.unsqueeze(1) for part in (hx if two else (hx,)))
    if any(part.shape != (*x.shape[:2], leaf.hidden_size) for part in state):
        return NotImplemented
    given = product_rows(x, tensors["weight_ih"], tensors.get("bias_ih"))
    state = _step_of(leaf)(given, state, tensors["weight_hh"], tensors.get("bias_hh"))
    state = state if batched else tuple(part.squeeze(1) for part in state)
    return state if two else state[0]


def _recurrent(leaf: nn.RNNBase, tensors: Tensors, noise: Noise, input: Any, hx: Any = None) -> Any:
    """(beings, time, batch, in), or the layout of the leaf -> the outputs of all times and the last states."""
    if not isinstance(input, Tensor) or input.dim() not in (3, 4) or input.shape[-1] != leaf.input_size:
        return NotImplemented  # a PackedSequence, or an input that the member refuses
    two, batched = isinstance(leaf, nn.LSTM), input.dim() == 4
    x = input if batched else input.unsqueeze(2)
    x = x.transpose(1, 2) if leaf.batch_first and batched else x  # (beings, time, batch, in)
    beings, _, batch, _ = x.shape
    if x.shape[1] == 0:
        return NotImplemented
    directions = 2 if leaf.bidirectional else 1
    sizes = [leaf.proj_size or leaf.hidden_size, leaf.hidden_size] if two else [leaf.hidden_size]
    if hx is None:
        starts = [x.new_zeros(beings, leaf.num_layers * directions, batch, size) for size in sizes]
    else:
        starts = [part if batched else part.unsqueeze(2) for part in (hx if two else (hx,))]
    if [part.shape for part in starts] != [(beings, leaf.num_layers * directions, batch, size) for size in sizes]:
        return NotImplemented
    plain = not (leaf.dropout and leaf.training and leaf.num_layers > 1)
    if two and plain and x.device.type == "cpu" and lstm_one_by_one(beings, batch, leaf.hidden_size):
        each = zip(x.unbind(), *(part.unbind() for part in starts), *_flat_weights(leaf, tensors), strict=True)
        found = [_lstm_of_one(leaf, own, h, c, weights) for own, h, c, *weights in each]
        outs = [torch.stack(parts) for parts in zip(*found, strict=True)]
        return _in_leaf_layout(leaf, batched, outs[0], outs[1:])
    step, lasts = _step_of(leaf), []
    for layer in range(leaf.num_layers):
        if layer and leaf.dropout and leaf.training:
            x = x * noise.kept(x[0].numel(), leaf.dropout, x.dtype).view(x.shape)
        outputs = []
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            state: State = tuple(part[:, layer * directions + direction] for part in starts)
            output, state = _scan(step, tensors, suffix, x.flip(1) if direction else x, state)
            outputs.append(output.flip(1) if direction else output)
            lasts.append(state)
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
    ends = [torch.stack(parts, 1) for parts in zip(*lasts, strict=True)]  # (beings, layers · directions, batch, hidden)
    return _in_leaf_layout(leaf, batched, x, ends)


def _in_leaf_layout(leaf: nn.RNNBase, batched: bool, x: Tensor, ends: list[Tensor]) -> Any:
    """(beings, time, batch, hidden) and (beings, layers · directions, batch, hidden) -> the layout of the leaf."""
    if not batched:
        x, ends = x.squeeze(2), [end.squeeze(2) for end in ends]
    elif leaf.batch_first:
        x = x.transpose(1, 2)
    return x, (tuple(ends) if isinstance(leaf, nn.LSTM) else ends[0])


def _flat_weights(leaf: nn.RNNBase, tensors: Tensors) -> list[tuple[Tensor, ...]]:
    """The weights in the order of torch's kernels, each unbound along the beings."""
    return [tensors[name].unbind() for name in leaf._flat_weights_names]


def _lstm_of_one(leaf: nn.RNNBase, x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Outputs (time, batch, hidden) and the last h and c of one being."""
    return torch.lstm(x, (h, c), weights, leaf.bias, leaf.num_layers, 0.0, leaf.training, leaf.bidirectional, False)


def _scan(step: Callable[..., State], tensors: Tensors, suffix: str, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One layer in one direction: (beings, time, batch, in) -> (beings, time, batch, hidden) and the last state."""
    weight, bias = tensors[f"weight_hh{suffix}"], tensors.get(f"bias_hh{suffix}")
    projection = tensors.get(f"weight_hr{suffix}")
    given = product_rows(x.flatten(1, 2), tensors[f"weight_ih{suffix}"], tensors.get(f"bias_ih{suffix}"))
    outputs = []
    for now in given.unflatten(1, x.shape[1:3]).unbind(1):
        state = step(now, state, weight, bias)
        if projection is not None:
            state = (product_rows(state[0], projection, None), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs, 1), state


RECURRENT: dict[type[nn.Module], Callable[..., Any]] = dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _recurrent)
CELLS: dict[type[nn.Module], Callable[..., Any]] = dict.fromkeys((nn.RNNCell, nn.LSTMCell, nn.GRUCell), _cell)

"""A forward that never forms W: what precision it runs in, and how its rows are laid out."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from linnet.core.autograd import autocast_off
from linnet.core.checks import check_input
from linnet.core.frozen import held
from linnet.core.protocols import Map


def matrix_free(layer: Map, input: Tensor, product: Callable[..., Tensor]) -> Tensor:
    """x Wᵀ + b by ``product(x, **raw)``, which gives x Wᵀ for x of shape ([beings or 1,] batch, in).

    Like ``weight`` it is computed in at least float32 with autocast off; the result has the dtype that nn.Linear would
    give.
    """
    kept = held(layer)
    if kept is not None and layer._pays_dense():
        return kept.product(input)
    check_input(input, layer.in_features, layer.beings)
    raw = layer.raw_tensors()
    dtype, device = next(iter(raw.values())).dtype, input.device.type
    # autocast leaves float64 alone, as it does in nn.Linear
    autocast = device != "meta" and torch.is_autocast_enabled(device) and dtype != torch.float64
    if not autocast and input.dtype != dtype:
        raise TypeError(f"The input must have the dtype of the parameters, {dtype}, got {input.dtype}")
    if not autocast and dtype in (torch.float32, torch.float64):
        return _by_rows(layer, input, product, raw, layer.bias)
    wide = torch.promote_types(dtype, torch.float32)
    bias = None if layer.bias is None else layer.bias.to(wide)
    with autocast_off(device):
        y = _by_rows(layer, input.to(wide), product, {name: tensor.to(wide) for name, tensor in raw.items()}, bias)
        return y.to(torch.get_autocast_dtype(device) if autocast else dtype)


def _by_rows(
    layer: Map, input: Tensor, product: Callable[..., Tensor], raw: Mapping[str, Tensor], bias: Tensor | None
) -> Tensor:
    """Input of any shape -> the rows that ``product`` takes, and its rows -> the output's shape, plus the bias."""
    if layer.beings is None:
        x = input if input.dim() == 2 else input.reshape(-1, layer.in_features)  # (batch, in)
        y = product(x, **raw)
        y = y if input.dim() == 2 else y.reshape(*input.shape[:-1], layer.out_features)
    else:
        axis = 1 if input.dim() == 1 else input.shape[-2]
        x = input.reshape(-1, axis, layer.in_features).transpose(0, 1)  # (beings or 1, batch, in)
        y = product(x, **raw)
        y = y.transpose(0, 1).reshape(*input.shape[:-2], layer.beings, layer.out_features)
    return y if bias is None else y + bias

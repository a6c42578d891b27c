"""y = x Wᵀ + b for one map or a population, by the product that was measured to be the fastest."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.core.autograd import eager, through_reference

COLUMNS_FROM, CACHED, LARGE = 16, 2**22, 2**13
"""The number of samples from which columns are faster than rows, the number of weights that stay in a cache, and the
number from which a hand-written backward is worth its call: measured in float32 on a CPU."""


def affine(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b for one map, W (out, in), or for a population of maps, W (beings, out, in).

    Shape:
        - input: (*, in); for a population (in,), (*, 1, in) or (*, beings, in)
        - output: (*, out); for a population (*, beings, out)
    """
    if weight.dim() == 2:
        return F.linear(input, weight, bias)
    beings, out_features, in_features = weight.shape
    if input.dim() == 1 or (input.shape[-2] == 1 and beings > 1):  # one input for all: a single wide product
        x = input if input.dim() == 1 else input.squeeze(-2)  # (*, in)
        wide_bias = None if bias is None else bias.reshape(beings * out_features)
        y = F.linear(x, weight.reshape(beings * out_features, in_features), wide_bias)  # (*, beings * out)
        return y.unflatten(-1, (beings, out_features))
    if input.dim() == 2:
        return product(input.unsqueeze(1), weight, bias).squeeze(1)
    x = input.reshape(-1, beings, in_features).transpose(0, 1)  # (beings, batch, in)
    return product(x, weight, bias).transpose(0, 1).reshape(*input.shape[:-1], out_features)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(beings, batch, in), (beings, out, in), (beings, out) -> (beings, batch, out).

    Samples stand as columns, y = W x, unless they are few: those are faster as rows, as long as the weights stay in a
    cache. The gradient dL/dW = dyᵀ x of either needs no transposed copy.
    """
    if not eager() or x.is_meta or torch.is_autocast_enabled(x.device.type):
        return product_reference(x, weight, bias)
    if x.shape[1] < COLUMNS_FROM and torch.is_grad_enabled() and weight.requires_grad and weight.numel() >= LARGE:
        return _Product.apply(x, weight, bias)
    return _rows_or_columns(x, weight, bias)


def product_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`product` in one way for all sizes."""
    y = torch.bmm(weight, x.mT) if bias is None else torch.baddbmm(bias.unsqueeze(-1), weight, x.mT)
    return y.mT


def _rows_or_columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.shape[1] >= COLUMNS_FROM or weight.numel() > CACHED:
        return product_reference(x, weight, bias)
    return product_rows(x, weight, bias)


def product_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`product` with samples as rows, y = x Wᵀ, whatever their number."""
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _padded(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    return product_reference(x, weight, bias[0] if bias else None)


class _Product(torch.autograd.Function):
    """The product with samples as rows; the backward of torch's operators would make dL/dW transposed and copy it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, *([] if bias is None else [bias]))
        return _rows_or_columns(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *rest = ctx.saved_tensors
        if torch.is_grad_enabled() or not eager():
            inputs, wanted = (x, weight, *rest), ctx.needs_input_grad
            found = through_reference(_padded, inputs, wanted[: len(inputs)], grad)
            return (*found, *[None] * (3 - len(found)))
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if for_x else None,
            torch.bmm(grad.mT, x) if for_weight else None,
            grad.sum(1) if for_bias else None,
        )

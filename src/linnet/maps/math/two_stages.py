"""Two block-diagonal factors with a permutation in between: the Monarch form, which butterflies take too.

An input has the index (k, p), block and place; a block k mixes its p places into q numbers (k, q). Read as (q, k), the
second factor mixes, for each q, the k numbers into s outputs (s, q). So each input reaches each output by one path.
"""

from typing import Any

import torch
from torch import Tensor

from linnet.core.autograd import eager, through_reference


def monarch(first: Tensor, second: Tensor) -> Tensor:
    """R, (..., k, q, p), and L, (..., q, s, k) -> the matrix P L Pᵀ R, (..., s q, k p).

    The p inputs of block k and the s outputs with number q are joined by L[q, :, k] R[k, q, :]ᵀ, a block of rank one.
    """
    return torch.einsum("...qsk,...kqp->...sqkp", second, first).flatten(-4, -3).flatten(-2)


def two_stages_reference(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """x (P L Pᵀ R)ᵀ for rows x, (..., batch, k p) -> (..., batch, s q), in operations that autograd sees."""
    x = x.unflatten(-1, (-1, first.shape[-1])).movedim(-3, -1)  # (..., k, p, batch)
    z = (first @ x).transpose(-3, -2).contiguous()  # (..., k, q, batch) -> (..., q, k, batch)
    y = (second @ z).movedim(-1, -3).transpose(-2, -1)  # (..., q, s, batch) -> (..., batch, s, q)
    return y.flatten(-2)


def two_stages(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What :func:`two_stages_reference` computes, with a backward by hand where one real map is at work."""
    if x.dim() == 2 and first.dim() == second.dim() == 3 and not first.is_complex() and eager():
        return _TwoStages.apply(x.contiguous(), first, second)
    return two_stages_reference(x, first, second)


class _TwoStages(torch.autograd.Function):
    """:func:`two_stages` for one map, with no copy of x and one of each gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        k, _, p = first.shape
        z = torch.bmm(first, x.view(len(x), k, p).permute(1, 2, 0)).transpose(0, 1).contiguous()  # (q, k, batch)
        ctx.save_for_backward(x, first, second, z)
        q, s, _ = second.shape
        y = x.new_empty(len(x), s * q)  # no view, so that it may be changed in place
        y.view(len(x), s, q).copy_(torch.bmm(second, z).permute(2, 1, 0))  # (q, s, batch) -> (batch, s q)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, first, second, z = ctx.saved_tensors
        if torch.is_grad_enabled() or not eager():
            return through_reference(two_stages_reference, (x, first, second), ctx.needs_input_grad, grad)
        (k, _, p), (q, s, _) = first.shape, second.shape
        gy = grad.reshape(len(x), s, q).permute(2, 1, 0).contiguous()  # (q, s, batch)
        gz = torch.bmm(second.mT, gy).transpose(0, 1).contiguous()  # (k, q, batch)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = torch.bmm(gz.mT, first).transpose(0, 1).reshape(x.shape)  # (k, batch, p) -> (batch, k p)
        return gx, torch.bmm(gz, x.view(len(x), k, p).transpose(0, 1)), torch.bmm(gy, z.mT)

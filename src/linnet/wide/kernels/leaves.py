"""Batched kernels for the leaf modules of torch.nn: where vmap has no rule, or is slower.

A kernel is called as ``kernel(leaf, tensors, noise, *args)``. ``leaf`` holds the options (stride, training), and
``tensors`` are its parameters and buffers. Tensors, arguments and the result have the axis of beings in front. An
argument that all beings share is expanded, with stride 0 along the beings: see :func:`shared`. A kernel returns
NotImplemented for arguments that it does not support; then the module's own forward runs, and raises its own errors.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.affine import affine, product
from linnet.core.checks import hooked
from linnet.core.linear import Linear
from linnet.wide.kernels.recurrent import CELLS, RECURRENT
from linnet.wide.random import Noise

Kernel = Callable[..., Any]
Tensors = Mapping[str, Tensor]

ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.LeakyReLU,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.LogSigmoid,
    nn.Tanhshrink,
    nn.Softshrink,
    nn.Hardshrink,
    nn.Threshold,
)
"""Modules that act on each number alone and so cannot mix beings."""

CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
POOLS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)


def shared(x: Tensor) -> bool:
    """Whether all beings share one tensor (beings, ...): its stride along the beings is 0."""
    return x.stride(0) == 0 and len(x) > 1


def is_known(module: nn.Module) -> bool:
    """Whether a kernel can replace the module: its exact class has one, it has no hooks, and its options are known."""
    if type(module) not in KERNELS or customized(module):
        return False
    return type(module) not in CONDITIONAL or _options_are_supported(module)


def customized(module: nn.Module) -> bool:
    """Whether a module has hooks or a forward of its own, so that its class does not say what a call does."""
    return "forward" in vars(module) or hooked(module)


def may_draw(module: nn.Module) -> bool:
    """Whether a part of the module can draw random numbers, for which each being needs a stream."""
    return any(isinstance(part, STOCHASTIC) and getattr(part, "dropout", True) for part in module.modules())


def _options_are_supported(module: nn.Module) -> bool:
    """Whether the module's kernel supports the module's options."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        # without momentum the factor is 1 / num_batches_tracked, which differs between beings
        return module.momentum is not None or not module.training
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.sparse
    if isinstance(module, nn.EmbeddingBag):
        return module.padding_idx is None and module.max_norm is None and not module.sparse
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.padding_mode == "zeros"
    if isinstance(module, nn.modules.pooling._MaxPoolNd):
        return not module.return_indices
    return True


def _elementwise(leaf: nn.Module, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    if getattr(leaf, "inplace", False) and shared(input):
        input = input.clone()
    return type(leaf).forward(leaf, input)


def _linear(leaf: nn.Module, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    weight, bias = tensors["weight"], tensors.get("bias")
    if input.dim() < 2 or input.shape[-1] != weight.shape[-1]:
        return NotImplemented
    if shared(input):  # one product of x with the weights of all beings side by side
        return affine(input[0].unsqueeze(-2), weight, bias).movedim(-2, 0)
    x = input if input.dim() == 3 else input.reshape(len(input), -1, input.shape[-1])  # (beings, batch, in)
    y = product(x, weight, bias)
    return y if input.dim() == 3 else y.reshape(*input.shape[:-1], y.shape[-1])


def _flatten(leaf: nn.Flatten, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    if input.dim() < 3:
        return NotImplemented
    start, end = (dim + 1 if dim >= 0 else dim for dim in (leaf.start_dim, leaf.end_dim))
    return input.flatten(start, end)


def _softmax(leaf: nn.Softmax, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    if leaf.dim is None or not -input.dim() < leaf.dim < input.dim() - 1:
        return NotImplemented
    function = F.log_softmax if isinstance(leaf, nn.LogSoftmax) else F.softmax
    return function(input, leaf.dim + 1 if leaf.dim >= 0 else leaf.dim)


def _dropout(leaf: nn.Dropout, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    if not leaf.training or leaf.p == 0:
        return input
    kept = noise.kept(math.prod(input.shape[1:]), leaf.p, input.dtype).view(input.shape)
    return _times(leaf, input, kept)


def _times(leaf: nn.Module, input: Tensor, kept: Tensor) -> Tensor:
    return input.mul_(kept) if leaf.inplace and not shared(input) else input * kept


def _channel_dropout(leaf: nn.Dropout2d, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    """Drop whole channels, (beings, batch, channels, *places)."""
    places = {nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}[type(leaf)]
    if input.dim() != places + 3:
        return NotImplemented
    if not leaf.training or leaf.p == 0:
        return input
    lead = input.shape[1:3]
    return _times(leaf, input, noise.kept(math.prod(lead), leaf.p, input.dtype).view(len(input), *lead, *[1] * places))


def _layer_norm(leaf: nn.LayerNorm, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    if input.dim() <= len(leaf.normalized_shape):
        return NotImplemented
    y = F.layer_norm(input, leaf.normalized_shape, eps=leaf.eps)
    weight, bias = (_aligned(tensors.get(name), y) for name in ("weight", "bias"))
    if weight is None:
        return y
    return y * weight if bias is None else torch.addcmul(bias, y, weight)


def _aligned(rows: Tensor | None, x: Tensor) -> Tensor | None:
    """(beings, *features) -> (beings, 1, ..., *features), which broadcasts with x of shape (beings, *, *features)."""
    return None if rows is None else rows.view(len(rows), *[1] * (x.dim() - rows.dim()), *rows.shape[1:])


def _batch_norm(leaf: nn.BatchNorm1d, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    """One batch norm over the channels of all beings, (batch, beings · channels, *).

    Batch norm treats each channel alone, so that beings · channels channels give the statistics of every being.
    """
    leaf._check_input_dim(input[0])
    if input.shape[2] != leaf.num_features:
        return NotImplemented
    beings, batch, channels, *_ = input.shape
    if input.dim() == 3:  # samples as places: no copy where the product before stores its samples as columns
        x = input.mT.reshape(1, beings * channels, batch)
    else:
        x = input.transpose(0, 1).flatten(1, 2)
    flat = {name: tensor.reshape(-1) for name, tensor in tensors.items() if name != "num_batches_tracked"}
    mean, var = flat.get("running_mean"), flat.get("running_var")
    if leaf.training and "num_batches_tracked" in tensors:
        tensors["num_batches_tracked"].add_(1)
    from_batch = leaf.training or mean is None
    momentum = 0.0 if leaf.momentum is None else leaf.momentum
    y = F.batch_norm(x, mean, var, flat.get("weight"), flat.get("bias"), from_batch, momentum, leaf.eps)
    if input.dim() == 3:
        return y.view(beings, channels, batch).mT
    return y.unflatten(1, (beings, channels)).transpose(0, 1)


def _convolution(leaf: nn.Conv2d, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    """One convolution for all beings: their channels side by side, with ``leaf.groups`` groups for each being.

    An input that all beings share needs no groups: its channels meet the filters of all beings.
    """
    convolve: Any = CONVOLUTIONS[type(leaf)]
    weight, bias = tensors["weight"], tensors.get("bias")
    options = {"stride": leaf.stride, "padding": leaf.padding, "dilation": leaf.dilation}
    batched = input.dim() == weight.dim()
    if (not batched and input.dim() != weight.dim() - 1) or input.shape[1 + batched] != leaf.in_channels:
        return NotImplemented
    x = input if batched else input.unsqueeze(1)  # (beings, batch, channels, *)
    beings = len(x)
    if shared(x) and leaf.groups == 1:  # filters of all beings side by side
        x, groups = x[0], 1
    else:
        x, groups = x.transpose(0, 1).flatten(1, 2), beings * leaf.groups  # (batch, beings · channels, *)
    wide_bias = None if bias is None else bias.flatten()
    y = convolve(x, weight.flatten(0, 1), wide_bias, groups=groups, **options)
    y = y.unflatten(1, (beings, leaf.out_channels)).transpose(0, 1)
    return y if batched else y.squeeze(1)


def _pool(leaf: nn.Module, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    """Pool beings and batch as one batch, (beings, [batch,] channels, *places)."""
    places = int(type(leaf).__name__[-2])
    if input.dim() not in (places + 2, places + 3):
        return NotImplemented
    lead = input.shape[: -1 - places]
    return leaf(input.reshape(-1, *input.shape[-1 - places :])).unflatten(0, lead)


def _in_one_table(input: Tensor, weight: Tensor) -> Tensor | None:
    """Indices into the table of each being -> indices into the stacked tables, i + being · rows.

    None if an index is outside its table: it would read a row of another being.
    """
    beings, rows, _ = weight.shape
    if input.numel() and bool(((input < 0) | (input >= rows)).any()):
        return None
    return input + torch.arange(beings, device=input.device).view(-1, *[1] * (input.dim() - 1)) * rows


def _embedding(leaf: nn.Embedding, tensors: Tensors, noise: Noise, input: Tensor) -> Tensor:
    weight = tensors["weight"]  # (beings, rows, features)
    flat = _in_one_table(input, weight)
    if flat is None:
        return NotImplemented
    y = F.embedding(flat, weight.flatten(0, 1), scale_grad_by_freq=leaf.scale_grad_by_freq)
    if leaf.padding_idx is None:
        return y
    return torch.where((input == leaf.padding_idx).unsqueeze(-1), y.detach(), y)  # padding gets no gradient


def _embedding_bag(
    leaf: nn.EmbeddingBag,
    tensors: Tensors,
    noise: Noise,
    input: Tensor,
    offsets: Any = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Bags of equal length: (beings, bags, length) -> (beings, bags, features)."""
    weight = tensors["weight"]
    flat = _in_one_table(input, weight)
    if input.dim() != 3 or offsets is not None or flat is None:
        return NotImplemented
    y = F.embedding_bag(
        flat.flatten(0, 1),
        weight.flatten(0, 1),
        mode=leaf.mode,
        scale_grad_by_freq=leaf.scale_grad_by_freq,
        per_sample_weights=None if per_sample_weights is None else per_sample_weights.flatten(0, 1),
    )
    return y.unflatten(0, input.shape[:2])


def _bilinear(leaf: nn.Bilinear, tensors: Tensors, noise: Noise, input1: Tensor, input2: Tensor) -> Tensor:
    weight, bias = tensors["weight"], tensors.get("bias")  # (beings, out, in1, in2)
    if input1.shape[:-1] != input2.shape[:-1] or (input1.shape[-1], input2.shape[-1]) != tuple(weight.shape[2:]):
        return NotImplemented
    y = torch.einsum("n...i,noij,n...j->n...o", input1, weight, input2)
    return y if bias is None else y + bias.view(len(y), *[1] * (y.dim() - 2), -1)


KERNELS: dict[type[nn.Module], Kernel] = {
    nn.Linear: _linear,
    Linear: _linear,
    nn.Flatten: _flatten,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _softmax,
    nn.Dropout: _dropout,
    nn.Dropout1d: _channel_dropout,
    nn.Dropout2d: _channel_dropout,
    nn.Dropout3d: _channel_dropout,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding_bag,
    nn.Bilinear: _bilinear,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(POOLS, _pool),
    **RECURRENT,
    **CELLS,
}

CONDITIONAL = {
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Embedding,
    nn.EmbeddingBag,
    *CONVOLUTIONS,
    *(kind for kind in POOLS if issubclass(kind, nn.modules.pooling._MaxPoolNd)),
}
"""Modules whose kernels support some options only."""

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
STOCHASTIC: tuple[type[nn.Module], ...] = (*DROPOUTS, nn.RNN, nn.LSTM, nn.GRU)
"""Modules that may draw random numbers."""

LEAVING = {nn.Linear, Linear, nn.EmbeddingBag, nn.Bilinear, *STOCHASTIC, *CELLS}
"""Modules that leave vmap inside another module's forward; for the others vmap's own rule is as fast."""

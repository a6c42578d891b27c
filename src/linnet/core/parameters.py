"""How the parameters of a map come to be: allocated from their shapes, and drawn map by map."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from linnet.core.protocols import Map


def allocate(
    layer: Map, shapes: Mapping[str, tuple[int, ...]], bias: bool, device: Any, dtype: torch.dtype | None
) -> None:
    """Register the bias and the raw tensors, uninitialized, with the leading axes in front."""
    if not isinstance(bias, bool):
        raise TypeError(f"bias must be True or False, got {bias!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a real floating-point type, got {dtype}")
    every = {"bias": (layer.out_features,), **shapes}
    if "weight" in shapes:  # nn.Linear's order: an optimizer's state knows a parameter by its place in it
        every["bias"] = every.pop("bias")
    for name, shape in every.items():
        if name == "bias" and not bias:
            layer.register_parameter(name, None)
            continue
        tensor = torch.empty(*layer.leading, *shape, device=device, dtype=dtype)
        if name in layer.fixed:
            layer.register_buffer(name, tensor)
        else:
            layer.register_parameter(name, nn.Parameter(tensor))


def draw(layer: Map, seeds: int | Sequence[int] | None) -> None:
    """Draw every parameter in place: from torch's default generator, or map i from ``seeds[i]``; nothing on meta."""
    maps = layer.beings or 1
    drawn: list[int | None] = [None] * maps
    if seeds is not None:
        drawn = [operator.index(seed) for seed in (seeds if isinstance(seeds, Iterable) else [seeds])]
    if len(drawn) != maps:
        raise ValueError(f"seeds must hold one int for each being ({maps}), got {len(drawn)}")
    if any(tensor.is_meta for tensor in (*layer.raw_tensors().values(), layer.bias) if tensor is not None):
        return
    for i, seed in enumerate(drawn):
        draw_one(layer, i, None if seed is None else torch.Generator(layer._anchor.device).manual_seed(seed))


@torch.no_grad()
def draw_one(layer: Map, index: int, generator: torch.Generator | None) -> None:
    """Draw map ``index`` in place, weight and then bias, as nn.Linear does; without beings there is only map 0."""
    which = ... if layer.beings is None else index
    layer._draw({name: tensor.detach()[which] for name, tensor in layer.raw_tensors().items()}, generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.in_features)
        layer.bias.detach()[which].uniform_(-bound, bound, generator=generator)

"""From nn.Linear to a map and back."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from linnet.core.dense import dense, plain_linear
from linnet.core.protocols import Map

M = TypeVar("M", bound=Map)


def from_linear(cls: type[M], linear: nn.Linear, options: dict[str, Any]) -> tuple[M, Tensor]:
    """nn.Linear -> a map of the class, and the relative distance that ``assign`` moved."""
    layer = _like(cls, linear, None, options)
    return layer, _take(layer, linear.weight, linear.bias)


def from_linears(cls: type[M], linears: Iterable[nn.Linear], options: dict[str, Any]) -> M:
    """nn.Linears of one shape -> the population of them."""
    members = list(linears)
    kinds = {
        f"{m.in_features} -> {m.out_features}, bias={m.bias is not None}, {m.weight.dtype}, "
        f"requires_grad={m.weight.requires_grad}"
        for m in members
    }
    if not members:
        raise ValueError("from_linears needs at least one nn.Linear, got none")
    if len(kinds) != 1:
        raise ValueError(f"from_linears needs maps of one kind, got {'; '.join(sorted(kinds))}")
    population = _like(cls, members[0], len(members), options)
    biases: list[Tensor] = [m.bias for m in members if m.bias is not None]
    _take(population, torch.stack([m.weight.detach() for m in members]), torch.stack(biases) if biases else None)
    return population


@torch.enable_grad()  # requires_grad must survive an export under no_grad
def to_linear(layer: Map) -> nn.Linear:
    """A map -> an independent nn.Linear of the same function."""
    if layer.beings is not None:
        raise ValueError(
            f"to_linear() needs one map, got a population of {layer.beings}; use to_linears() for all of them, or "
            "get_single(i).to_linear() for one"
        )
    return plain_linear(dense(layer.weight), layer.bias)


@torch.enable_grad()
def to_linears(layer: Map) -> list[nn.Linear]:
    """A population -> one independent nn.Linear for each being."""
    beings, weights = layer._population(), dense(layer.weight)
    return [plain_linear(weights[i], None if layer.bias is None else layer.bias[i]) for i in range(beings)]


def _like(cls: type[M], linear: nn.Linear, beings: int | None, options: dict[str, Any]) -> M:
    """A map with the sizes, device, dtype, mode and requires_grad of an nn.Linear, its values still to be taken.

    Constructing it draws numbers that nobody will see: torch's random state is left as it was.
    """
    weight, bias = linear.weight, linear.bias
    placed: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    if beings is not None:
        placed["beings"] = beings
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
        layer = cls._empty(linear.in_features, linear.out_features, bias is not None, **placed, **options)
    for tensor in layer.raw_tensors().values():  # buffers among them do not learn as it is
        tensor.requires_grad_(tensor.requires_grad and weight.requires_grad)
    if layer.bias is not None:
        layer.bias.requires_grad_(bias.requires_grad)
    return layer.train(linear.training)


def _take(layer: Map, weight: Tensor, bias: Tensor | None) -> Tensor:
    moved = layer.assign(weight)
    if layer.bias is not None and bias is not None:
        with torch.no_grad():
            layer.bias.copy_(bias)
    return moved

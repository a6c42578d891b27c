"""Checks that the state of a layer is its tensors: copies, files, functional calls, ensembles."""

import copy
import io
import pickle
import warnings

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.testing.case import Case, check, close, expect, gradient, refused, same, train


def used(case: Case, seed: int = 0) -> LinearMap:
    """A layer that has been trained, assigned to, and has gradients."""
    layer = case.layer(seed)
    layer.assign(case.matrix())
    return train(case, layer)


@check
def check_copy(case: Case) -> None:
    """deepcopy, pickle and torch.save of a used layer give the same function on storage of their own."""
    layer, x = used(case), case.input()
    y = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),
        "torch.save": torch.load(file, weights_only=False),
    }
    for name, other in copies.items():
        same(f"output of the copy by {name}", other(x), y)
        expect(repr(other) == repr(layer), f"repr of the copy by {name}: {other!r}")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    for name, other in copies.items():
        same(f"output of the copy by {name} after a change of the original", other(x), y)


@check
def check_state_dict(case: Case) -> None:
    """state_dict holds tensors only and is all: loaded into a freshly drawn layer, it gives equal bits."""
    layer, x = used(case), case.input()
    y, state = layer(x), layer.state_dict()
    for name, tensor in state.items():
        expect(isinstance(tensor, Tensor), f"state_dict[{name!r}] is {type(tensor).__name__}, not a tensor")
    fresh = case.layer(1)
    fresh.load_state_dict(state)
    same("output after load_state_dict", fresh(x), y)
    same("weight after load_state_dict", fresh.weight, layer.weight)
    bare = case.layer(device="meta")
    bare.load_state_dict(state, assign=True)
    same("output of a meta layer after load_state_dict(assign=True)", bare(x), y)
    nested = nn.Sequential(nn.Identity(), case.layer(1))
    nested.load_state_dict(nn.Sequential(nn.Identity(), layer).state_dict())
    same("output after load_state_dict of a parent", nested(x), y)
    refused("an unexpected key", RuntimeError, fresh.load_state_dict, {**state, "surplus": torch.ones(1)})
    for name in state:
        less = {key: tensor for key, tensor in state.items() if key != name}
        refused(f"a missing {name}", RuntimeError, fresh.load_state_dict, less)


@check
def check_safetensors(case: Case) -> None:
    """The state survives a safetensors file, which refuses shared, sparse and foreign storage."""
    from safetensors.torch import load, save

    layer, x = used(case), case.input()
    state = {name: tensor.contiguous() for name, tensor in layer.state_dict().items()}
    fresh = case.layer(1)
    fresh.load_state_dict(load(save(state)))
    same("output after a safetensors round trip", fresh(x), layer(x))


@check
def check_functional_call(case: Case) -> None:
    """functional_call computes with the tensors it is given, and leaves the layer as it was."""
    layer, other, x = case.layer(0), used(case, 1), case.input()
    before = layer(x)
    given = dict(other.named_parameters()) | dict(other.named_buffers())
    same("functional_call", torch.func.functional_call(layer, given, (x,)), other(x))
    same("the layer after functional_call", layer(x), before)


@check
def check_vmap(case: Case) -> None:
    """torch.vmap over inputs, and over an ensemble of layers, equals the loop, gradients included."""
    layer = case.layer()
    x = case.randn(5, *case.input().shape, seed=3)
    with warnings.catch_warnings():  # a slow batching rule is still a right one
        warnings.filterwarnings("ignore", message="There is a performance drop")
        close("vmap over inputs", torch.vmap(layer)(x), torch.stack([layer(one) for one in x]))
        close("vmap over single samples", torch.vmap(layer)(x[:, 0]), torch.stack([layer(one) for one in x[:, 0]]))
        members = [case.layer(seed) for seed in range(5)]
        parameters, buffers = torch.func.stack_module_state(list(members))

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(layer, (parameters, buffers), (x,))

        y = torch.vmap(call)(parameters, buffers, x)
    expected = torch.stack([member(one) for member, one in zip(members, x, strict=True)])
    close("vmap over an ensemble", y, expected)
    g = case.randn(*y.shape, seed=4)
    y.backward(g)
    expected.backward(g)
    for name, stacked in parameters.items():
        loop = torch.stack([gradient(name, member.get_parameter(name)) for member in members])
        close(f"gradient of {name} in an ensemble", gradient(name, stacked), loop)

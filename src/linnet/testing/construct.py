"""Checks of how a layer comes to be: constructor, factory arguments, meta device, drawing."""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.core.measures import tolerance
from linnet.testing.case import Case, array, check, close, expect, refused, same
from linnet.testing.values import oracle


@check
def check_constructor(case: Case) -> None:
    """Arguments in the order of nn.Linear, errors for bad ones, attributes, repr, no 0-dim Parameter."""
    cls, n, m, options = case.cls, case.in_features, case.out_features, dict(case.options)
    layer = case.layer()
    expect(isinstance(layer, LinearMap), f"{cls.__name__} must be a LinearMap")
    expect(cls(n, m, False, **options).bias is None, "the third positional argument must be bias")
    for name in ("beings", "device", "dtype", *options):
        parameter = inspect.signature(cls).parameters.get(name)
        expect(parameter is not None, f"{cls.__name__} must take {name}")
        expect(parameter.kind is parameter.KEYWORD_ONLY, f"{name} must be keyword-only")  # type: ignore[union-attr]
    refused("an unknown keyword", TypeError, cls, n, m, no_such_option=1, **options)
    for bad in (0, -1, 2.5, True, "3"):
        for wrong in ({"in_features": bad, "out_features": m}, {"in_features": n, "out_features": bad}):
            refused(f"{wrong}", ValueError, cls, **wrong, **options)
        refused(f"beings={bad!r}", ValueError, cls, n, m, **options, beings=bad)
    if cls.square:
        refused("a square map with two sizes", ValueError, cls, n, n + 1, **options)
    found = (layer.in_features, layer.out_features, layer.beings)
    expect(found == (n, m, case.beings), f"in_features, out_features, beings are {found}")
    expect(isinstance(layer.bias, nn.Parameter), "bias must be a Parameter")
    shape = (*case.leading, m)
    expect(layer.bias is not None and tuple(layer.bias.shape) == shape, f"bias must have shape {shape}")
    shape = (*case.leading, m, n)
    expect(tuple(layer.weight.shape) == shape, f"weight must have shape {shape}, got {tuple(layer.weight.shape)}")
    for name, tensor in layer.named_parameters():
        expect(tensor.dim() > 0, f"no Parameter may be 0-dim (FSDP refuses it), got {name}")
    known = [*layer.parameters(), *layer.buffers()]
    for name, raw in layer.raw_tensors().items():
        expect(any(raw is tensor for tensor in known), f"raw tensor {name} must be a Parameter or a buffer")
        expect(not case.leading or raw.shape[0] == case.beings, f"raw tensor {name} must lead with the beings axis")
    parts = [f"in_features={n}", f"out_features={m}", "bias=True"]
    parts += [] if case.beings is None else [f"beings={case.beings}"]
    parts += [f"{name}=" for name, value in options.items() if repr(value) != repr(_default(cls, name))]
    for part in parts:
        expect(part in repr(layer), f"repr must contain {part}, got {layer!r}")


def _default(cls: type[LinearMap], name: str) -> Any:
    return inspect.signature(cls).parameters[name].default


@check
def check_sizes(case: Case) -> None:
    """Very small and uneven sizes work and keep the promise, or are refused by a ValueError."""
    for n, m in ((1, 1), (2, 2), (1, 4), (4, 1), (9, 9), (33, 8)):
        if case.cls.square and n != m:
            continue
        other = replace(case, in_features=n, out_features=m)
        try:
            layer = other.layer()
        except ValueError as error:
            expect(str(error), f"{n} -> {m} must be refused with a reason")
            continue
        x = other.input()
        close(f"forward {n} -> {m}", layer(x), oracle(x, layer.weight, layer.bias))
        if case.cls.hard:
            worst = float(layer.violation().max())
            expect(worst <= tolerance(x.dtype), f"violation {worst:.2e} of {n} -> {m}")


@check
def check_factory(case: Case) -> None:
    """device= and dtype= are honoured, and so is ``with torch.device(...)``."""
    for dtype in case.dtypes:
        for name, tensor in _tensors(case.layer(dtype=dtype)).items():
            expect(tensor.device.type == torch.device(case.device).type, f"{name} lies on {tensor.device}")
            expect(not tensor.is_floating_point() or tensor.dtype == dtype, f"{name} has dtype {tensor.dtype}")
    for name, tensor in _tensors(case.layer(device="meta")).items():
        expect(tensor.is_meta, f"with device='meta' {name} lies on {tensor.device}")
    with torch.device("meta"):
        layer = case.layer(device=None)
    for name, tensor in _tensors(layer).items():
        expect(tensor.is_meta, f"with torch.device('meta') {name} lies on {tensor.device}")
    expect(layer.weight.is_meta, "the weight of a meta layer must be meta")
    shape = (2, *case.leading, case.out_features)
    found = layer(torch.empty(2, *case.leading, case.in_features, device="meta"))
    expect(found.is_meta and tuple(found.shape) == shape, f"a meta layer gives {tuple(found.shape)} on {found.device}")


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    return dict(layer.named_parameters()) | dict(layer.named_buffers())


@check
def check_meta(case: Case) -> None:
    """meta -> to_empty -> reset_parameters gives a working layer, and so does skip_init."""
    options = {**case.options, **({} if case.beings is None else {"beings": case.beings})}
    skipped = nn.utils.skip_init(case.cls, case.in_features, case.out_features, device=case.device, **options)
    for layer in (case.layer(device="meta").to_empty(device=case.device), case.quiet(skipped)):
        for tensor in _tensors(layer).values():
            tensor.detach().fill_(_garbage(tensor.dtype))
        try:
            with case.seeded(0):
                layer.reset_parameters()
        except (RuntimeError, ValueError) as error:  # what the user gave, such as connections, cannot be redrawn
            expect("load_state_dict" in str(error), f"reset_parameters must work or name load_state_dict: {error}")
            layer.load_state_dict(case.layer().state_dict())
        for name, tensor in _tensors(layer).items():
            expect(tensor.isfinite().all(), f"{name} is not rebuilt by reset_parameters")
        x = case.input()
        close("forward after to_empty", layer(x), oracle(x, layer.weight, layer.bias))
        expect(np.isfinite(array(layer.weight)).all(), "the weight is not finite after reset_parameters")
        worst = float(layer.violation().max())
        expect(not case.cls.hard or worst <= tolerance(x.dtype), f"violation {worst:.2e} after to_empty")
        same("forward after to_empty", layer(x), case.layer()(x))


def _garbage(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return torch.nan if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype).max


@check
def check_seeds(case: Case) -> None:
    """reset_parameters(seeds=) draws map i as after torch.manual_seed(seeds[i]), and touches no global state."""
    seeds = 5 if case.beings is None else [5 + 2 * i for i in range(case.beings)]
    layer = case.layer()
    with case.seeded(99):
        before = case.random_state()
        layer.reset_parameters(seeds=seeds)
        expect(torch.equal(before, case.random_state()), "reset_parameters(seeds=) must leave torch's generator alone")
    drawn = _drawn(layer)
    again = case.layer(1)
    again.reset_parameters(seeds=seeds)
    for name, tensor in _drawn(again).items():
        same(f"{name} redrawn with the same seeds", tensor, drawn[name])
    again.reset_parameters(seeds=6 if case.beings is None else [6 + 2 * i for i in range(case.beings)])
    if drawn:
        expect(
            any(not torch.equal(t, drawn[k]) for k, t in _drawn(again).items()), "other seeds must draw other values"
        )
    wrong = [5, 6] if case.beings is None else [5] * (case.beings + 1)
    refused("a wrong number of seeds", ValueError, layer.reset_parameters, seeds=wrong)
    for i, seed in enumerate([seeds] if isinstance(seeds, int) else seeds):
        with case.seeded(seed):
            single = replace(case, beings=None).build()
        own, alone = _drawn(layer), _drawn(single)
        if i > 0 and not _same_wiring(layer, single):  # beings may share one wiring, that of the first seed
            own, alone = {"bias": own["bias"]}, {"bias": alone["bias"]}
        for name, tensor in alone.items():
            drawn_here = own[name] if case.beings is None else own[name][i]
            same(f"{name} of map {i}, against a layer built after torch.manual_seed({seed}),", drawn_here, tensor)


def _same_wiring(layer: LinearMap, other: LinearMap) -> bool:
    """Whether the state besides raw tensors and bias, which has no beings axis, is the same."""
    own, its = ({k: v for k, v in m.state_dict().items() if k not in _drawn(m)} for m in (layer, other))
    return all(torch.equal(tensor, its[name]) for name, tensor in own.items())


def _drawn(layer: LinearMap) -> dict[str, Tensor]:
    """What a layer draws for each map: its raw tensors and the bias."""
    tensors = {name: tensor.detach().clone() for name, tensor in layer.raw_tensors().items()}
    return tensors | ({} if layer.bias is None else {"bias": layer.bias.detach().clone()})

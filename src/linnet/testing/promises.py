"""Checks of what a class promises: always kept, judged from the matrix alone, kept by ``assign``."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnet.core.dense import dense
from linnet.core.linear_map import LinearMap
from linnet.core.measures import tolerance
from linnet.testing.case import (
    Case,
    array,
    check,
    close,
    descend,
    expect,
    gradient,
    refused,
    same,
    train,
    trainable,
)

Parameters = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "SGD(lr=1e3, weight_decay=1e-2)": lambda p: torch.optim.SGD(p, lr=1e3, weight_decay=1e-2),
    "SGD(lr=1, weight_decay=1): the decayed part vanishes": lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=1.0),
    "Adam(lr=10)": lambda p: torch.optim.Adam(p, lr=10.0),
    "AdamW(weight_decay=0.5, fused=True)": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
}
SPREADS = [
    *((f"of size {size:g}", 0.0, size) for size in (1e-30, 1e-3, 1.0, 1e2, 1e4)),
    ("all zero", 0.0, 0.0),
    ("all one", 1.0, 0.0),
    ("nearly equal", 1.0, 1e-4),
]


def promises(cls: type[LinearMap]) -> bool:
    """Whether the class promises anything about its matrix."""
    return cls.promise != "none"


def stressed(case: Case, dtype: torch.dtype, steps: int = 3) -> Iterator[tuple[str, LinearMap]]:
    """Layers in every state that a guarantee must survive: drawn, trained wildly, raw parameters of any size."""
    yield "freshly drawn", case.layer(dtype=dtype)
    if not trainable(case.layer(dtype=dtype)):
        return
    for name, optimizer_of in OPTIMIZERS.items():
        layer = case.layer(dtype=dtype)
        optimizer = optimizer_of(layer.parameters())
        for step in range(steps):
            descend(case, layer, optimizer, step)
        yield f"{steps} steps of {name}", layer
    for name, mean, scale in SPREADS:
        layer = case.layer(dtype=dtype)
        with torch.no_grad():
            for i, parameter in enumerate(trainable(layer).values()):
                parameter.copy_(mean + scale * case.randn(*parameter.shape, dtype=dtype, seed=30 + i))
        yield f"raw parameters {name}", layer


@check
def check_guarantee(case: Case) -> None:
    """A hard promise holds after any optimizer step and for raw parameters of any size; nothing becomes NaN."""
    if not (case.cls.hard and promises(case.cls)):
        return
    for dtype in case.dtypes:
        for state, layer in stressed(case, dtype):
            worst = float(layer.violation().max())
            allowed = tolerance(dtype)
            expect(worst <= allowed, f"violation {worst:.2e} with {state}, {dtype} (limit {allowed:.2e})")
            layer.zero_grad()
            layer(case.input(dtype=dtype)).sum().backward()
            for name, parameter in trainable(layer).items():
                expect(gradient(name, parameter).isfinite().all(), f"gradient of {name} with {state}, {dtype}")


def strangers(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Matrices of which at least one breaks any promise that says something."""
    gaussian = case.matrix(dtype=dtype)
    return {
        "Gaussian": gaussian,
        "a large Gaussian": 100 * gaussian,
        "zero": torch.zeros_like(gaussian),
        "ones": torch.ones_like(gaussian),
    }


@check
def check_violation(case: Case) -> None:
    """``violation`` judges the matrix it is given: members hold, not every other does, NaN is infinite."""
    for dtype in case.dtypes:
        layer = train(case, case.layer(dtype=dtype))
        own = layer.violation()
        expect(own.dtype == torch.float64 and tuple(own.shape) == case.leading, f"violation() is {own!r}")
        expect(not own.requires_grad and (own >= 0).all(), f"violation() is {own!r}")
        if case.cls.hard:
            expect((own <= tolerance(dtype)).all(), f"violation {float(own.max()):.2e} in {dtype}")
        member = layer.weight.detach().clone()
        close("violation(weight)", layer.violation(member), own)
        with torch.no_grad():
            for parameter in trainable(layer).values():
                parameter.copy_(case.randn(*parameter.shape, dtype=dtype, seed=5))
        close("violation(W), whatever the layer's own parameters are,", layer.violation(member), own)
        judged = {name: layer.violation(stranger) for name, stranger in strangers(case, dtype).items()}
        worst = max(judged, key=lambda name: judged[name].min().item())
        if promises(case.cls):
            expect((judged[worst] > 1e-3).all(), f"no matrix breaks {case.cls.promise!r} by violation(): {judged}")
        else:
            expect(not any(found.any() for found in judged.values()), "a class without a promise finds a violation")
        if case.beings and promises(case.cls) and case.cls.hard:
            mixed = dense(member).clone()
            mixed[0] = strangers(case, dtype)[worst][0]
            found = layer.violation(mixed)
            alone = found[0] > 1e-3 and (found[1:] <= tolerance(dtype)).all()
            expect(alone, f"only the first of these violations may exceed the tolerance: {found.tolist()}")
        for bad in (torch.nan, torch.inf, -torch.inf):
            broken = dense(member).clone()
            broken[..., -1, 0] = bad
            expect(
                (layer.violation(broken) == torch.inf).all(), f"the violation of a matrix with {bad} must be infinite"
            )
    _refuse_matrices(layer.violation, case)


@check
def check_assign(case: Case) -> None:
    """A matrix of the structure is taken exactly, any other becomes one; the distance returned is the one moved."""
    for dtype in case.dtypes:
        small = 10 * tolerance(dtype)
        layer = train(case, case.layer(dtype=dtype))
        bias = layer.get_parameter("bias").clone()
        member = dense(layer.weight.detach()).clone()
        _assign(case, layer, member, dtype, "the layer's own matrix", small)
        other = case.layer(1, dtype=dtype)
        with torch.no_grad():  # a fresh draw on the same wiring, which is no raw tensor
            other.load_state_dict(layer.state_dict())
            for name, tensor in case.layer(1, dtype=dtype).raw_tensors().items():
                other.raw_tensors()[name].copy_(tensor)
        _assign(case, other, member, dtype, "a matrix of the structure, in a freshly drawn layer,", small)
        x = case.input(dtype=dtype)
        close("forward after assign", other(x) - other.get_parameter("bias"), layer(x) - bias, rtol=small)
        for seed in range(3):
            stranger = case.matrix(dtype=dtype, seed=seed)
            _assign(case, layer, stranger, dtype, "a Gaussian matrix", None)
            nearest = dense(layer.weight.detach()).clone()
            _assign(case, layer, nearest, dtype, "what assign had made of a Gaussian matrix", small)
        same("bias after assign", layer.get_parameter("bias"), bias)
        layer.weight = member.double()  # type: ignore[misc]
        close("weight after layer.weight = W", layer.weight, member, rtol=small)
        layer.assign(torch.zeros_like(member))
        expect(np.isfinite(array(layer.weight)).all(), "the weight after assign(0) is not finite")
        before = layer.weight.detach()
        _refuse_matrices(layer.assign, case)
        for bad in (torch.nan, torch.inf):
            broken = member.clone()
            broken[..., 0, -1] = bad
            refused(f"a matrix with {bad}", ValueError, layer.assign, broken)
        same("weight after refused matrices", layer.weight, before)


def _assign(case: Case, layer: LinearMap, matrix: Tensor, dtype: torch.dtype, what: str, allowed: float | None) -> None:
    moved = layer.assign(matrix)
    found, given = array(layer.weight), array(matrix)
    distance = np.sqrt(((found - given) ** 2).sum((-2, -1)) / (given**2).sum((-2, -1)))
    expect(
        moved.dtype == torch.float64 and tuple(moved.shape) == case.leading,
        f"assign must return {case.leading} float64",
    )
    close(f"the distance that assign returned for {what}", moved, distance, rtol=1e-6)
    if allowed is not None:
        worst = float(distance.max())
        expect(worst <= allowed, f"{what} moved by {worst:.2e} in {dtype} (limit {allowed:.2e})")
    if case.cls.hard:
        worst = float(layer.violation().max())
        expect(worst <= tolerance(dtype), f"violation {worst:.2e} in {dtype} after assigning {what}")


def _refuse_matrices(call: Callable[[Any], Any], case: Case) -> None:
    lead, n, m = case.leading, case.in_features, case.out_features
    for shape in ((*lead, m + 1, n), (*lead, m, n + 1), (m,), (*lead, 1, m, n), (2, m, n)):
        message = refused(f"a matrix of shape {shape}", ValueError, call, case.randn(*shape))
        expect(str(shape) in message, f"the error must name the shape {shape}, got {message}")
    refused("what is no tensor", TypeError, call, [[1.0]])


@check
def check_penalty(case: Case) -> None:
    """``penalty`` is a finite scalar >= 0, differentiable where it is not constant, 0 in hard maps.

    Only a hard map that is ``penalized`` has one.
    """
    for dtype in case.dtypes:
        layer = case.layer(dtype=dtype)
        penalty = layer.penalty()
        expect(penalty.dim() == 0 and penalty.isfinite() and penalty >= 0, f"penalty() is {penalty!r}")
        expect(penalty.dtype == dtype, f"penalty() has dtype {penalty.dtype}")
        expect(penalty.device.type == torch.device(case.device).type, f"penalty() lies on {penalty.device}")
        if case.cls.hard and not case.cls.penalized:
            expect(penalty == 0, f"the penalty of a hard promise must be 0, got {penalty.item()}")
        if case.cls.penalized:
            expect(penalty.requires_grad, "a map that is penalized must have a penalty that depends on its parameters")
        if penalty.requires_grad:
            gradients = torch.autograd.grad(penalty, list(layer.parameters()), allow_unused=True)
            expect(all(g is None or g.isfinite().all() for g in gradients), "the gradient of penalty() is not finite")
        else:
            expect(penalty == 0, f"a penalty of {penalty.item()} must be differentiable")

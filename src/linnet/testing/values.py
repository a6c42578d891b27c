"""Checks of what a layer computes, against dense float64 products in NumPy."""

import numpy as np
import torch
from torch import Tensor, nn

from linnet.core.dense import dense
from linnet.core.linear_map import LinearMap
from linnet.testing.case import (
    BATCH,
    Case,
    array,
    check,
    close,
    expect,
    first_dtype,
    gradient,
    refused,
    same,
    train,
    trainable,
)


def oracle(x: Tensor, weight: Tensor, bias: Tensor | None) -> np.ndarray:
    """x Wᵀ + b in float64: W (out, in) or (beings, out, in), x of any shape that the contract admits."""
    a, w = array(x), array(weight)
    if w.ndim == 3:
        lead = a.shape[:-2] if a.ndim > 1 else ()
        a = np.broadcast_to(a, (*lead, w.shape[0], w.shape[2]))
    y = np.einsum("...i,oi->...o" if w.ndim == 2 else "...bi,boi->...bo", a, w)
    return y if bias is None else y + array(bias)


def inputs(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Inputs of every admitted shape, and some that are not contiguous."""
    n, m = case.in_features, case.beings
    plain = [case.randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(case.input_shapes())]
    if m is None:
        turned = [case.randn(n, BATCH, dtype=dtype).mT, case.randn(n, 3, 2, dtype=dtype).permute(2, 1, 0)]
    else:
        batch_inside = case.randn(m, BATCH, n, dtype=dtype).transpose(0, 1)
        turned = [case.randn(n, m, BATCH, dtype=dtype).permute(2, 1, 0), batch_inside]
    lead = case.leading
    strided = case.randn(2 * BATCH, *lead, 2 * n, dtype=dtype)[::2, ..., ::2]
    return [*plain, *turned, strided, case.randn(1, *lead, n, dtype=dtype).expand(BATCH, *lead, n)]


@check
def check_forward(case: Case) -> None:
    """y = x Wᵀ + b for inputs of 1 to 4 dimensions, empty and not contiguous ones, in every dtype."""
    for dtype in case.dtypes:
        for bias in (True, False):
            layer = case.layer(bias=bias, dtype=dtype)
            for x in inputs(case, dtype):
                before = x.clone()
                y = layer(x)
                what = f"forward of {tuple(x.shape)} {dtype}"
                expect(y.dtype == dtype, f"{what} has dtype {y.dtype}")
                close(what, y, oracle(x, layer.weight, layer.bias))
                same(f"{what}, a second time,", layer(x), y)
                y.mul_(2).add_(1)  # users write X /= 2 in their forward
                same(f"the input after an in-place change of the output of {tuple(x.shape)}", x, before)


@check
def check_input_shapes(case: Case) -> None:
    """Every other shape is a ValueError that names the shape it got and the size that it wants."""
    layer, n = case.layer(), case.in_features
    wrong: list[tuple[int, ...]] = [(), (n + 1,), (BATCH, n + 1), (BATCH, *case.leading, n + 1), (n, 1), (0,)]
    if case.beings is not None:
        m = case.beings
        wrong += [(m + 1, n), (BATCH, m + 1, n), (m, BATCH * m + 1, n), (0, n), (m, BATCH, n)]
    for shape in wrong:
        if shape[-1:] == (n,) and case.beings is None:
            continue
        message = refused(f"an input of shape {shape}", ValueError, layer, case.randn(*shape))
        for part in (str(shape), str(n)):
            expect(part in message, f"the error for shape {shape} must name {part}, got {message}")


@check
def check_weight(case: Case) -> None:
    """``weight`` is deterministic, differentiable, of the right dtype, and never a stale copy."""
    for dtype in case.dtypes:
        layer = case.layer(dtype=dtype)
        first = dense(layer.weight).clone()
        same("weight, read twice,", layer.weight, first)
        with torch.no_grad():
            same("weight under no_grad", layer.weight, first)
        learned = any(parameter.requires_grad for parameter in trainable(layer).values())
        expect(first.requires_grad == learned, f"weight.requires_grad is {first.requires_grad}")
        for state in (False, True):
            layer.requires_grad_(state)
            expect(layer.weight.requires_grad == (learned and state), "weight must follow requires_grad_()")
        x = case.input(dtype=dtype)
        layer(x)
        for parameter in trainable(layer).values():
            parameter.data.copy_(case.randn(*parameter.shape, dtype=dtype, seed=7))  # .data moves no version counter
        if learned:
            expect(not np.array_equal(array(layer.weight), array(first)), "weight must follow its raw parameters")
        close("forward after a change of the raw parameters", layer(x), oracle(x, layer.weight, layer.bias))


@check
def check_backward(case: Case) -> None:
    """Gradients of input and bias follow from W; those of the raw parameters are the same through ``weight``."""
    for dtype in case.dtypes:
        layer = train(case, case.layer(dtype=dtype))
        for shape in case.input_shapes():
            x = case.randn(*shape, dtype=dtype).requires_grad_()
            y = layer(x)
            g = case.randn(*y.shape, dtype=dtype, seed=1)
            layer.zero_grad()
            y.backward(g)
            gradients = {name: gradient(name, parameter) for name, parameter in layer.named_parameters()}
            lead = tuple(range(g.dim() - 1 - len(case.leading)))
            close(f"gradient of the input {shape}", gradient("the input", x), input_gradient(x, g, layer.weight))
            close(f"gradient of the bias for input {shape}", gradients["bias"], array(g).sum(lead))
            raw = trainable(layer)
            if raw:
                matrix = torch.from_numpy(weight_gradient(x, g, len(case.leading))).to(g)  # dL/dW = gᵀ x
                through = torch.autograd.grad(dense(layer.weight), list(raw.values()), matrix)
                for name, other in zip(raw, through, strict=True):
                    close(f"gradient of {name} for input {shape}, forward against weight,", gradients[name], other)


def input_gradient(x: Tensor, g: Tensor, weight: Tensor) -> np.ndarray:
    """g W, summed over the beings where they shared an input."""
    up, w = array(g), array(weight)
    if w.ndim == 2:
        return up @ w
    down = np.einsum("...bo,boi->...bi", up, w)
    if x.dim() == 1:
        return down.sum(-2)
    return down.sum(-2, keepdims=True) if x.shape[-2] == 1 else down


def weight_gradient(x: Tensor, g: Tensor, beings_axes: int) -> np.ndarray:
    """gᵀ x, summed over the batch: ([beings,] out, in)."""
    up, a = array(g), array(x)
    if beings_axes == 0:
        return np.einsum("ko,ki->oi", up.reshape(-1, up.shape[-1]), a.reshape(-1, a.shape[-1]))
    a = np.broadcast_to(a, (*up.shape[:-1], a.shape[-1]))
    beings = up.shape[-2]
    return np.einsum("kbo,kbi->boi", up.reshape(-1, beings, up.shape[-1]), a.reshape(-1, beings, a.shape[-1]))


@check
def check_gradcheck(case: Case) -> None:
    """Finite differences in float64, of forward and of ``weight``, by every raw parameter."""
    layer = train(case, case.layer(dtype=torch.float64))
    names = [name for name, _ in layer.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    x = case.input(dtype=torch.float64).requires_grad_()

    def forward(x: Tensor, *raw: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, raw, strict=True)), (x,))

    weight_of = _WeightOf(layer)

    def weight(*raw: Tensor) -> Tensor:
        named = {f"layer.{name}": value for name, value in zip(names, raw, strict=True)}
        return torch.func.functional_call(weight_of, named, ())

    torch.autograd.gradcheck(forward, (x, *values), fast_mode=True, nondet_tol=1e-10)
    if trainable(layer):
        torch.autograd.gradcheck(weight, tuple(values), fast_mode=True, nondet_tol=1e-10)


class _WeightOf(nn.Module):
    """A module whose forward gives the weight, for functional_call."""

    def __init__(self, layer: LinearMap) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return dense(self.layer.weight)


@check
def check_precision(case: Case) -> None:
    """Half-precision models, autocast, ``.to`` and ``.double`` behave as with nn.Linear."""
    half = torch.bfloat16
    layer = case.layer().to(half)
    x = case.input(dtype=half).requires_grad_()
    y = layer(x)
    expect(y.dtype == half, f"a bfloat16 layer gives {y.dtype}")
    expect(layer.weight.dtype == half, f"a bfloat16 layer has a weight of {layer.weight.dtype}")
    close("bfloat16 forward", y, oracle(x, layer.weight, layer.bias), rtol=0.03)
    y.sum().backward()
    for name, parameter in layer.named_parameters():
        expect(gradient(name, parameter).isfinite().all(), f"bfloat16 gradient of {name} is not finite")
    drawn = case.layer(dtype=half)
    expect(first_dtype(drawn) == half and np.isfinite(array(drawn.weight)).all(), "a layer built in bfloat16 must work")
    kind = torch.device(case.device).type
    for dtype in case.dtypes:
        layer = case.layer(dtype=dtype)
        plain = nn.Linear(case.in_features, case.out_features, device=case.device, dtype=dtype)
        x, outside = case.input(dtype=dtype), layer.weight
        with torch.autocast(kind, half):
            y, expected = layer(x), plain(x).dtype
            same("weight under autocast", layer.weight, outside)
        expect(y.dtype == expected, f"under autocast a {dtype} layer gives {y.dtype}, nn.Linear {expected}")
        close(f"autocast forward in {dtype}", y, oracle(x, layer.weight, layer.bias), rtol=0.03)
        y.float().sum().backward()
        for name, parameter in layer.named_parameters():
            found = gradient(name, parameter)
            expect(found.dtype == dtype and found.isfinite().all(), f"autocast gradient of {name} in {found.dtype}")
        other = torch.float64 if dtype == torch.float32 else torch.float32
        errors = (RuntimeError, TypeError, ValueError)
        refused(f"an input of {other} for a layer of {dtype}", errors, layer, case.input(dtype=other))
    layer = case.layer()
    double = case.layer().double()
    x = case.input()
    close("forward after .double()", double(x.double()), oracle(x, double.weight, double.bias))
    close("forward after .double(), against before,", double(x.double()), layer(x), rtol=1e-4)
    close("forward after .double().float()", double.float()(x), layer(x))

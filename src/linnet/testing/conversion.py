"""Checks of the conversion from and to nn.Linear, and of the spectra."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.core.measures import tolerance
from linnet.testing.case import Case, array, check, close, expect, refused, same, train, trainable


@check
def check_linear_doors(case: Case) -> None:
    """to_linear(s) and from_linear(s) keep function, requires_grad, dtype and mode, and leave the generator alone."""
    for dtype in case.dtypes:
        layer, x = train(case, case.layer(dtype=dtype)), case.input(dtype=dtype)
        before = case.random_state()
        linears = _leave(layer)
        back = case.quiet(_enter(case, linears))
        with torch.no_grad():
            quiet = _leave(layer)
        expect(torch.equal(before, case.random_state()), "conversion must leave torch's random state as it was")
        expect(all(type(linear) is nn.Linear for linear in linears), "to_linear must give a plain nn.Linear")
        for i, linear in enumerate(linears):
            own, y = (x, layer(x)) if case.beings is None else (x[:, i], layer(x)[:, i])
            close("output of to_linear", linear(own), y)
            expect(
                linear.weight.dtype == dtype and linear.bias.dtype == dtype, f"to_linear gives {linear.weight.dtype}"
            )
        close("output of from_linear of to_linear", back(x), layer(x), rtol=10 * tolerance(dtype))
        expect(isinstance(back, case.cls) and back.beings == case.beings, f"from_linear gives {back!r}")
        learned = bool(trainable(layer))
        for linear in (*linears, *quiet):
            expect(
                linear.bias.requires_grad and linear.weight.requires_grad == learned,
                "to_linear must keep requires_grad of weight and bias",
            )
        layer.requires_grad_(False)
        left = [parameter for linear in _leave(layer) for parameter in linear.parameters()]
        expect(not any(parameter.requires_grad for parameter in left), "to_linear must keep requires_grad=False")
        for linear in linears:
            linear.requires_grad_(False)
            linear.eval()
        back = _enter(case, linears)
        expect(not any(p.requires_grad for p in back.parameters()), "from_linear must keep requires_grad=False")
        expect(not back.training, "from_linear must keep eval mode")
        expect(_enter(case, _leave(case.layer(bias=False, dtype=dtype))).bias is None, "no bias must stay no bias")
        unchanged = layer(x)
        with torch.no_grad():
            for linear in linears:
                linear.weight.fill_(torch.nan)
                linear.bias.fill_(torch.nan)
        same("the layer's output after a change of its exported nn.Linears", layer(x), unchanged)
        expect(back(x).isfinite().all(), "an imported layer must own its storage")
    if case.beings is None:
        refused("to_linears of one map", ValueError, layer.to_linears)
    else:
        refused("to_linear of a population", ValueError, layer.to_linear)
        refused("from_linears of nothing", ValueError, case.cls.from_linears, [], **case.options)


def _leave(layer: LinearMap) -> list[nn.Linear]:
    return [layer.to_linear()] if layer.beings is None else layer.to_linears()


def _enter(case: Case, linears: list[nn.Linear]) -> LinearMap:
    if case.beings is None:
        return case.cls.from_linear(linears[0], **case.options)
    return case.cls.from_linears(linears, **case.options)


@check
def check_spectra(case: Case) -> None:
    """eigvals and svdvals are NumPy's, of each being."""
    layers = [case.layer(dtype=dtype) for dtype in case.dtypes] + _square_layers(case)
    for layer in layers:
        matrix = array(layer.weight)
        close("svdvals", layer.svdvals(), np.linalg.svd(matrix, compute_uv=False))
        if layer.in_features != layer.out_features:
            refused("eigvals of a rectangular map", ValueError, layer.eigvals)
            continue
        found = layer.eigvals()
        shape = (*case.leading, layer.in_features)
        expect(found.is_complex() and tuple(found.shape) == shape, f"eigvals must be {shape} and complex: {found!r}")
        for power in range(1, layer.in_features + 1):  # power sums do not depend on the order of the eigenvalues
            expected = np.trace(np.linalg.matrix_power(matrix, power), axis1=-2, axis2=-1)
            total = found.to(torch.complex128).pow(power).sum(-1)
            allowed = 100 * tolerance(layer.weight.dtype)
            close(f"sum of the eigenvalues to the power {power}", _real(total), expected, rtol=allowed)
    half = case.layer().to(torch.bfloat16)
    close("svdvals in bfloat16", half.svdvals(), np.linalg.svd(array(half.weight), compute_uv=False))


def _square_layers(case: Case) -> list[LinearMap]:
    """The same class where input and output have one size, if it and its options admit that."""
    square = replace(case, out_features=case.in_features)
    try:
        return [square.layer(dtype=dtype) for dtype in case.dtypes]
    except ValueError:
        return []


def _real(total: Tensor) -> Tensor:
    expect(bool((total.imag.abs() <= 1e-3 * (1 + total.abs())).all()), "the eigenvalues must come in conjugate pairs")
    return total.real

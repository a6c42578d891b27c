"""The contract, on every layer of the catalogue: a class defined anywhere in the package is tested here."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import linnet
from linnet import LinearMap, catalogue, tolerance
from linnet.testing import CHECKS, Case, ContractError, cases, check_ddp, check_layer, stressed
from support.planted import UnusedParameter
from support.promises import LAWS, NEAREST, PROMISES, matrices

LAYERS = {name: cls for name, cls in catalogue().items() if cls.__module__.startswith("linnet.")}
DEAR = ("check_compile", "check_export", "check_onnx")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def params(*, checks=(None,), devices=("cpu",)) -> list:
    """Every case with every check.

    The dear checks are slow, but for one of them in turn on the first class of a file; so is a population of a class
    with other options than its first example, whose single map is checked by default.
    """
    found, families = [], {}
    for name, cls in LAYERS.items():
        for device in devices:
            for i, case in enumerate(cases(cls, device=device)):
                first = families.setdefault(cls.__module__, cls) is cls and i == 0
                options = "".join(f"-{key}={value}" for key, value in case.options.items())
                label = f"{name}{options}" + (f"-beings={case.beings}" if case.beings else "")
                for check in checks:
                    dear = check is not None and check.__name__ in DEAR
                    if dear and first:
                        dear = check.__name__ != DEAR[list(families).index(cls.__module__) % len(DEAR)]
                    again = case.beings is not None and case.options != cls.examples()[0]
                    marks = [pytest.mark.slow] * (dear or again) + [pytest.mark.gpu] * (device != "cpu")
                    arguments = (case,) if check is None else (case, check)
                    suffix = ("" if check is None else f"-{check.__name__}") + ("" if device == "cpu" else f"-{device}")
                    found.append(pytest.param(*arguments, marks=marks, id=label + suffix))
    return found


@pytest.mark.parametrize(("case", "check"), params(checks=CHECKS, devices=DEVICES))
def test_check(case, check):
    check(case)


@pytest.mark.parametrize("case", params(devices=DEVICES))
def test_the_promise_is_kept_says_an_independent_predicate(case):
    if not case.cls.hard or case.cls.promise == "none":
        return
    for dtype in case.dtypes:
        for state, layer in stressed(case, dtype):
            for a in matrices(layer.weight):
                assert np.isfinite(a).all(), state
                residual = PROMISES[case.cls.__name__](a, layer)
                assert residual <= tolerance(dtype), f"{residual:.2e} with {state} in {dtype}"


@pytest.mark.slow
@pytest.mark.parametrize("case", params())
def test_the_promise_is_kept_by_large_matrices(case):
    if not case.cls.hard or case.cls.promise == "none" or case.beings:
        return
    large = replace(case, in_features=300, out_features=300 if case.cls.square else 200)
    try:
        large.layer(device="meta")
    except ValueError:  # a class for maps that widen
        large = replace(case, in_features=200, out_features=300)
    for dtype in case.dtypes:
        for state, layer in stressed(large, dtype, steps=1):
            (a,) = matrices(layer.weight)
            assert PROMISES[case.cls.__name__](a, layer) <= tolerance(dtype), f"{state} in {dtype}"
            assert layer.violation() <= tolerance(dtype), f"{state} in {dtype}"


def test_the_promise_is_kept_by_very_long_rows():
    layer = linnet.RightStochasticLinear(4, 300_000)
    assert layer.violation() <= tolerance(torch.float32)


@pytest.mark.parametrize("case", params())
def test_violation_agrees_with_an_independent_predicate(case):
    if case.cls.promise == "none":
        return
    layer = case.layer(dtype=torch.float64)
    predicate = PROMISES[case.cls.__name__]
    member = layer.weight.detach()
    member = member if member.layout == torch.strided else member.to_dense()
    for size in (0.0, 1e-4, 1e-2, 1.0):
        for seed in range(4):
            w = member + size * case.matrix(dtype=torch.float64, seed=seed)
            judged = layer.violation(w).reshape(-1).tolist()
            for found, a in zip(judged, matrices(w), strict=True):
                truth = predicate(a, layer)
                assert (found <= tolerance(torch.float64)) == (truth <= tolerance(torch.float64)), (size, found, truth)
                assert truth / 100 <= found <= 100 * truth or max(found, truth) < 1e-10, (size, found, truth)


@pytest.mark.parametrize("case", params())
def test_the_promise_seen_from_a_vector(case):
    law = LAWS.get(case.cls.__name__)
    if law is None or not case.cls.hard:
        return
    for dtype in case.dtypes:
        layer = case.layer(bias=False, dtype=dtype)
        x = case.randn(8, *case.leading, case.in_features, dtype=dtype)
        assert law(layer, x).item() <= tolerance(dtype)


@pytest.mark.parametrize("case", params())
def test_assign_gives_the_nearest_matrix(case):
    project = NEAREST.get(case.cls.__name__)
    layer = case.layer(dtype=torch.float64)
    if project is None:
        return
    members = [np.stack(matrices(case.layer(seed, dtype=torch.float64).weight)) for seed in range(10)]
    for seed in range(4):
        stranger = case.matrix(dtype=torch.float64, seed=seed)
        layer.assign(stranger)
        found, a = np.stack(matrices(layer.weight)), np.stack(matrices(stranger))
        nearest = project(a, layer)
        if nearest is not None:
            np.testing.assert_allclose(found, nearest, atol=1e-10)
            assert min(np.linalg.norm(member - a) for member in members) >= np.linalg.norm(found - a) - 1e-9


def test_every_promise_has_an_independent_predicate():
    missing = [cls.__name__ for cls in LAYERS.values() if cls.promise != "none" and cls.__name__ not in PROMISES]
    assert not missing, f"write the promise of {missing} a second time, in tests/support/promises.py"


def test_ddp_on_two_processes():
    """One start of two processes for all: a planted fault is found, and the layers after it are without one."""
    with pytest.raises(ContractError) as caught:
        check_ddp([Case(UnusedParameter, 4, 4), *(case for cls in LAYERS.values() for case in cases(cls))])
    at_fault = set(re.findall(r"(\w+)\([^;]*? on rank", str(caught.value)))
    assert at_fault == {"UnusedParameter"}, str(caught.value)


@settings(deadline=None, max_examples=60)
@given(
    cls=st.sampled_from(sorted(LAYERS.values(), key=lambda cls: cls.__name__)),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    beings=st.none() | st.integers(1, 4),
    lead=st.lists(st.integers(0, 4), max_size=3),
    shared=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_forward_of_any_size_equals_a_loop_over_numpy_products(cls, sizes, beings, lead, shared, bias, seed):
    n, m = (sizes[0], sizes[0]) if cls.square else sizes
    torch.manual_seed(seed)
    try:
        layer = cls(n, m, bias, beings=beings, dtype=torch.float64).eval()
    except ValueError:  # a size that the class documents as impossible
        return
    x = torch.randn(*lead, *(() if beings is None else (1 if shared else beings,)), n, dtype=torch.float64)
    y = layer(x).detach().numpy()
    weights = matrices(layer.weight)
    biases = np.zeros((len(weights), m)) if layer.bias is None else layer.bias.detach().numpy().reshape(-1, m)
    assert y.shape == (*lead, *(() if beings is None else (beings,)), m)
    for i, (a, b) in enumerate(zip(weights, biases, strict=True)):
        own = x.numpy() if beings is None else x.numpy()[..., 0 if shared else i, :]
        np.testing.assert_allclose(y if beings is None else y[..., i, :], own @ a + b, atol=1e-10)


def test_check_layer_runs_every_check_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    names = check_layer(linnet.SymmetricLinear, beings=(None,), checks=[c for c in CHECKS if c.__name__ not in DEAR])
    assert set(names) | set(DEAR) == {check.__name__ for check in CHECKS}
    assert torch.equal(before, torch.get_rng_state())


def test_check_layer_passes_over_onnx_where_its_runtime_is_not_installed(monkeypatch):
    monkeypatch.setattr("linnet.testing.find_spec", lambda name: None)
    names = check_layer(linnet.IdentityLinear, beings=(None,))
    assert set(names) == {check.__name__ for check in CHECKS} - {"check_onnx"}


def test_the_sizes_of_the_cases():
    assert [(c.in_features, c.out_features) for c in cases(linnet.SymmetricLinear)] == [(6, 6), (6, 6)]
    assert [(c.in_features, c.out_features) for c in cases(linnet.Linear)] == [(7, 5), (5, 7)]
    assert [(c.in_features, c.out_features) for c in cases(linnet.Linear, in_features=2)] == [(2, 5), (2, 7)]
    (case,) = cases(linnet.Linear, {"out_features": 9}, beings=(4,))
    assert (case.out_features, dict(case.options), case.beings) == (9, {}, 4)


def test_every_check_has_a_docstring_and_a_name_that_says_check():
    assert all(check.__doc__ and check.__name__.startswith("check_") for check in CHECKS)
    assert issubclass(LinearMap, torch.nn.Module)

"""Non-negative, stochastic and diagonally dominant maps: the mathematics, against NumPy and SciPy."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import tolerance
from linnet.maps.diagonally_dominant import DiagonallyDominantLinear, nearest_dominated
from linnet.maps.doubly_stochastic import DoublyStochasticLinear, nearest_doubly, round_doubly, sinkhorn
from linnet.maps.left_stochastic import LeftStochasticLinear
from linnet.maps.math.simplex import project_band
from linnet.maps.math.softplus import positive, positive_raw
from linnet.maps.non_negative import NonNegativeLinear
from linnet.maps.perron_frobenius import PerronFrobeniusLinear
from linnet.maps.split import SplitLinear
from linnet.testing import Case, cases, stressed
from support.promises_nonnegative import PROMISES_NONNEGATIVE

Array = np.ndarray
F64 = torch.float64


CLASSES = [
    DiagonallyDominantLinear,
    DoublyStochasticLinear,
    LeftStochasticLinear,
    NonNegativeLinear,
    PerronFrobeniusLinear,
    SplitLinear,
]
CASES = [pytest.param(case, id=str(case)) for cls in CLASSES for case in cases(cls)]


def matrices(layer) -> list[Array]:
    w = layer.weight.detach().double().numpy()
    return [one.T for one in w.reshape(-1, *w.shape[-2:])]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].cls is not SplitLinear])
def test_the_promise_by_an_independent_predicate(case, dtype):
    for state, layer in stressed(case, dtype):
        for a in matrices(layer):
            assert np.isfinite(a).all(), state
            assert PROMISES_NONNEGATIVE[case.cls.__name__](a, layer) <= tolerance(dtype), state


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("cls", [c for c in CLASSES if c is not SplitLinear])
def test_the_promise_of_larger_matrices(cls, n):
    for state, layer in stressed(Case(cls, n, n), torch.float32, steps=1):
        (a,) = matrices(layer)
        assert PROMISES_NONNEGATIVE[cls.__name__](a, layer) <= tolerance(torch.float32), state


def test_split_keeps_both_parts_non_negative_in_any_state():
    for state, layer in stressed(Case(SplitLinear, 7, 5, beings=2), torch.float32):
        assert (layer.B >= 0).all() and (layer.C >= 0).all(), state
        torch.testing.assert_close(layer.weight.mT, layer.B - layer.C)


@settings(deadline=None, max_examples=50)
@given(value=st.floats(1e-6, 1e6), scale=st.sampled_from([0.03, 1.0]))
def test_positive_and_its_inverse(value, scale):
    raw = positive_raw(torch.tensor(value, dtype=F64), scale, 1e-16)
    assert positive(raw, scale).item() == pytest.approx(value, rel=1e-9)
    assert scale * np.logaddexp(0, raw.item() / scale) == pytest.approx(value, rel=1e-9)


def test_no_entry_of_a_non_negative_map_dies_in_training():
    torch.manual_seed(0)
    layer = NonNegativeLinear(16, 16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(torch.randn(64, 16)) - torch.randn(64, 16)).square().mean().backward()
        optimizer.step()
    assert (layer.raw.grad != 0).all()


@pytest.mark.parametrize("n", [16, 256])
@pytest.mark.parametrize("cls", [NonNegativeLinear, SplitLinear, DiagonallyDominantLinear])
def test_outputs_start_at_the_scale_of_nn_linear(cls, n):
    torch.manual_seed(0)
    x = torch.randn(500, n)
    spread = cls(n, n, bias=False)(x).std().item()
    assert spread == pytest.approx(torch.nn.Linear(n, n, bias=False)(x).std().item(), rel=0.25)


@pytest.mark.parametrize("cls", [LeftStochasticLinear, PerronFrobeniusLinear, DoublyStochasticLinear])
@pytest.mark.parametrize("n", [16, 64])
def test_stochastic_maps_do_not_start_at_rank_one(cls, n):
    torch.manual_seed(0)
    assert cls(n, n).svdvals()[1] > 0.3


def test_left_stochastic_outputs_are_means_of_the_inputs():
    layer, x = LeftStochasticLinear(6, 9, bias=False, dtype=F64), torch.randn(20, 6, dtype=F64)
    y = layer(x)
    assert (y <= x.amax(-1, keepdim=True) + 1e-12).all() and (y >= x.amin(-1, keepdim=True) - 1e-12).all()


@pytest.mark.parametrize("bounds", [(0.8, 1.0), (0.2, 0.9), (0.5, 0.5), (0.0, 2.0)])
def test_the_spectral_radius_of_perron_frobenius_lies_in_the_interval(bounds):
    low, high = bounds
    layer = PerronFrobeniusLinear(9, 9, sigma_min=low, sigma_max=high, beings=20, dtype=F64)
    for a in matrices(layer):
        assert low - 1e-12 <= np.abs(np.linalg.eigvals(a)).max() <= high + 1e-12


def test_row_sums_of_perron_frobenius_span_the_interval_at_the_start():
    torch.manual_seed(0)
    sums = PerronFrobeniusLinear(1000, 4).weight.sum(0)
    quantiles = torch.quantile(sums, torch.tensor([0.01, 0.25, 0.5, 0.75, 0.99]))
    torch.testing.assert_close(quantiles, torch.tensor([0.802, 0.85, 0.9, 0.95, 0.998]), atol=0.015, rtol=0)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 5), seed=st.integers(0, 2**16), scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_projection_onto_the_band_is_the_nearest_point(n, seed, scale):
    a = scale * np.random.default_rng(seed).normal(size=n)
    found = project_band(torch.from_numpy(a), 0.8, 1.0).numpy()
    sums = scipy.optimize.LinearConstraint(np.ones(n), 0.8, 1.0)
    best = scipy.optimize.minimize(
        lambda p: ((p - a) ** 2).sum(), np.full(n, 0.9 / n), bounds=[(0, None)] * n, constraints=[sums], method="SLSQP"
    )
    assert found.min() >= 0 and 0.8 - 1e-9 <= found.sum() <= 1 + 1e-9
    assert ((found - a) ** 2).sum() <= best.fun + 1e-6


@pytest.mark.parametrize("cls", [LeftStochasticLinear, PerronFrobeniusLinear, DoublyStochasticLinear])
@pytest.mark.parametrize("size", [1e-30, 1e6, 1e20])
def test_matrices_of_any_size_are_assigned(cls, size):
    layer = cls(5, 5, dtype=F64)
    layer.assign(size * torch.randn(5, 5, dtype=F64))
    assert layer.violation() <= tolerance(F64)


def test_row_sums_beyond_the_bounds_are_assigned_as_the_bounds():
    layer = PerronFrobeniusLinear(2, 3, dtype=F64)
    layer.assign(torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=F64))
    torch.testing.assert_close(layer.weight.sum(0), torch.tensor([1.0, 0.8], dtype=F64))


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_the_nearest_doubly_stochastic_matrix(n):
    a = torch.from_numpy(np.random.default_rng(n).normal(size=(3, n, n)))
    p = nearest_doubly(a).numpy()
    assert np.abs(p.sum(1) - 1).max() < 1e-12 and np.abs(p.sum(2) - 1).max() < 1e-12 and p.min() >= 0
    # A − P is normal to the polytope at P: no vertex (a permutation, found by linear programming) lies further along it
    for one, q in zip(a.numpy(), p, strict=True):
        rows, columns = scipy.optimize.linear_sum_assignment(one - q, maximize=True)
        assert (one - q)[rows, columns].sum() <= ((one - q) * q).sum() + 1e-9


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1e4])
def test_sinkhorn_and_rounding_at_every_scale(scale):
    logits = scale * torch.randn(4, 12, 12)
    p = round_doubly(sinkhorn(logits, 30, 1e-6)).double()
    assert (p >= 0).all()
    assert max((p.sum(-1) - 1).abs().max(), (p.sum(-2) - 1).abs().max()) < 5e-6


def test_sinkhorn_is_that_of_a_loop():
    logits = torch.randn(6, 6, dtype=F64)
    p = np.exp(logits.numpy())
    for _ in range(200):
        p = p / p.sum(1, keepdims=True)
        p = p / p.sum(0, keepdims=True)
    layer = DoublyStochasticLinear(6, 6, iterations=200, tolerance=0.0, dtype=F64)
    with torch.no_grad():
        layer.logits.copy_(logits)
    np.testing.assert_allclose(layer.weight.detach().numpy(), p, atol=1e-12)
    assert layer.sinkhorn_error() < 1e-12


def test_the_tolerance_ends_the_iteration_of_each_being_by_itself():
    # One being in twenty of the second kind gets within the tolerance after all: these do not.
    generator = torch.Generator().manual_seed(0)
    logits = torch.stack([scale * torch.randn(5, 5, generator=generator) for scale in (0.1, 20)])
    assert (sinkhorn(logits[1:], 39, 0.0).sum(-1) - 1).abs().max() > 1e-3
    together = sinkhorn(logits, 40, 1e-3)
    assert torch.equal(together[0], sinkhorn(logits[:1], 40, 1e-3)[0])
    assert torch.equal(together[0], sinkhorn(logits[:1], 10, 0.0)[0])  # within the tolerance after the least ten
    assert torch.equal(together[1], sinkhorn(logits[1:], 40, 0.0)[0])  # never within it


def test_sinkhorn_error_tells_what_was_left_to_the_rounding():
    layer = DoublyStochasticLinear(8, 8, iterations=2, beings=3)
    with torch.no_grad():
        layer.logits.copy_(20 * torch.randn(3, 8, 8))
    assert layer.sinkhorn_error().shape == (3,) and (layer.sinkhorn_error() > 1e-2).all()
    assert (layer.violation() < tolerance(torch.float32)).all()


def test_a_permutation_is_assigned_to_a_doubly_stochastic_map():
    w = torch.eye(6)[torch.randperm(6)]
    layer = DoublyStochasticLinear(6, 6)
    assert layer.assign(w) < 1e-6


@settings(deadline=None, max_examples=40)
@given(k=st.integers(0, 6), seed=st.integers(0, 2**16), gap=st.sampled_from([0.1, 2.0]))
def test_the_nearest_dominated_row(k, seed, gap):
    rng = np.random.default_rng(seed)
    d0, o0 = abs(rng.normal()), rng.normal(size=k)
    d, o = (t.numpy() for t in nearest_dominated(torch.tensor(d0, dtype=F64), torch.from_numpy(o0), gap))
    assert d - np.abs(o).sum() >= gap - 1e-12
    # the shift t solves (d0 + t) − Σ max(|o0| − t, 0) = gap, unless t = 0 will do
    excess = lambda t: d0 + t - np.maximum(np.abs(o0) - t, 0).sum() - gap  # noqa: E731
    t = 0.0 if excess(0) >= 0 else scipy.optimize.brentq(excess, 0, 100)
    np.testing.assert_allclose(d, d0 + t, atol=1e-9)
    np.testing.assert_allclose(o, np.sign(o0) * np.maximum(np.abs(o0) - t, 0), atol=1e-9)


def test_the_inverse_bound_holds_and_both_signs_occur():
    torch.manual_seed(0)
    layer = DiagonallyDominantLinear(7, 7, beings=50, dtype=F64)
    bound = layer.inverse_bound().detach().numpy()
    for a, largest in zip(matrices(layer), bound, strict=True):
        assert np.abs(np.linalg.inv(a)).sum(1).max() <= largest * (1 + 1e-12) <= 10.0001
    signs = layer.weight.diagonal(dim1=-2, dim2=-1).sign().mean()
    assert abs(signs) < 0.3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PerronFrobeniusLinear(3, 3, sigma_min=1.0, sigma_max=0.5), "0.5"),
        (lambda: PerronFrobeniusLinear(3, 3, sigma_min=-0.1), "-0.1"),
        (lambda: PerronFrobeniusLinear(3, 3, sigma_max=math.nan), "nan"),
        (lambda: PerronFrobeniusLinear(3, 3, sigma_min=0.0, sigma_max=0.0), "not both 0, got"),
        (lambda: PerronFrobeniusLinear(3, 3, sigma_max=math.inf), "inf"),
        (lambda: DoublyStochasticLinear(3, 4), "square"),
        (lambda: DoublyStochasticLinear(3, 3, iterations=0), "iterations"),
        (lambda: DoublyStochasticLinear(3, 3, tolerance=-1.0), "tolerance"),
        (lambda: DiagonallyDominantLinear(3, 4), "square"),
        (lambda: DiagonallyDominantLinear(3, 3, gap=0.0), "gap"),
        (lambda: DiagonallyDominantLinear(3, 3, gap=math.inf), "gap"),
        (lambda: NonNegativeLinear(3, 3).assign(torch.full((3, 3), math.nan)), "finite"),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("cls", CLASSES)
def test_optimization_recovers_a_random_member(cls):
    torch.manual_seed(1)
    goal = cls(6, 6, bias=False, dtype=F64)
    layer = cls(6, 6, bias=False, dtype=F64)
    if cls is DiagonallyDominantLinear:
        layer.signs.copy_(goal.signs)  # the same connected component
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=0)

    def loss():
        optimizer.zero_grad()
        value = (layer.weight - goal.weight.detach()).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert (layer.weight - goal.weight).abs().max() < 1e-3

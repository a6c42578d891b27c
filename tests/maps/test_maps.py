"""The mathematics of the maps against independent formulas; what every layer must keep is in test_contract.py."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from linnet import (
    IdentityLinear,
    OrthogonalLinear,
    RightStochasticLinear,
    SymmetricLinear,
    find_layer,
    householder_product,
    relu_straight_through,
)
from linnet.maps.math.householder import householder_product_reference, newton_schulz_step, reflections, unit
from linnet.maps.math.simplex import project_simplex
from linnet.maps.math.triangles import mirror, upper_triangle


def householder_loop(vectors: np.ndarray) -> np.ndarray:
    """H₁H₂⋯H_k by the definition, one reflection after the other, in float64."""
    product = np.eye(vectors.shape[-1])
    for v in vectors:
        length = v @ v
        if length > 0:
            product = product @ (np.eye(len(v)) - 2 * np.outer(v, v) / length)
    return product


def orthogonality(q: torch.Tensor) -> float:
    q = q.detach().double().numpy()
    return float(np.abs(q.T @ q - np.eye(len(q))).max())


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 12), k=st.integers(1, 14), seed=st.integers(0, 2**16), zero=st.booleans())
def test_householder_product_is_the_product_of_its_reflections(n, k, seed, zero):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(k, n, generator=generator, dtype=torch.float64)
    if zero:
        v[k // 2] = 0
    x = torch.randn(5, n, generator=generator, dtype=torch.float64)
    expected = x.numpy() @ householder_loop(v.numpy())
    np.testing.assert_allclose(householder_product(x, v).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 32])
@pytest.mark.parametrize("special", ["haar", "identity", "minus identity", "permutation", "one reflection", "rotation"])
def test_reflections_factor_every_orthogonal_matrix(n, special):
    rng = np.random.default_rng(n)
    q = {
        "haar": lambda: scipy.stats.ortho_group.rvs(n, random_state=1) if n > 1 else np.eye(1),
        "identity": lambda: np.eye(n),
        "minus identity": lambda: -np.eye(n),
        "permutation": lambda: np.eye(n)[rng.permutation(n)],
        "one reflection": lambda: np.eye(n) - 2 * np.eye(n)[:, :1] @ np.eye(n)[:1],
        "rotation": lambda: (
            scipy.linalg.expm(np.triu(rng.normal(size=(n, n)), 1) - np.triu(rng.normal(size=(n, n)), 1).T)
            if n == 1
            else scipy.linalg.expm((lambda s: s - s.T)(rng.normal(size=(n, n))))
        ),
    }[special]()
    v, signs = reflections(torch.from_numpy(q))
    assert (v.norm(dim=-1) > 0.5).all()
    np.testing.assert_allclose(householder_loop(v.numpy()) * signs.numpy(), q, atol=1e-12)


@pytest.mark.parametrize("spread", [1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 0])
@pytest.mark.parametrize("size", [1e-30, 1, 1e4])
@pytest.mark.parametrize("n", [16, 100])
def test_nearly_parallel_reflections_stay_orthogonal_in_float32(n, spread, size):
    layer = OrthogonalLinear(n, n, bias=False)
    generator = torch.Generator().manual_seed(0)
    flips = torch.randn(n, 1, generator=generator).sign()
    with torch.no_grad():
        noise = torch.randn(n, n, generator=generator)
        layer.vectors.copy_(size * (flips * torch.randn(n, generator=generator) + spread * noise))
    assert orthogonality(layer.weight) < 5e-6


def test_without_the_polish_nearly_parallel_reflections_would_lose_digits():
    """The planted fault for the test above: what the formula alone leaves."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(256, generator=generator) + 1e-3 * torch.randn(256, 256, generator=generator)
    raw = householder_product_reference(torch.eye(256), v)
    assert orthogonality(raw) > 1e-6 and orthogonality(raw) > 10 * orthogonality(
        newton_schulz_step(raw)
    )  # how much: by CPU


def test_no_orthogonal_matrix_collapses_under_weight_decay():
    layer = OrthogonalLinear(8, 8)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=5.0)
    for _ in range(200):
        optimizer.zero_grad()
        layer(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    assert orthogonality(layer.weight) < 5e-6


def test_a_vanished_vector_gets_a_gradient_and_comes_back():
    layer = OrthogonalLinear(4, 4, bias=False, reflectors=2)
    with torch.no_grad():
        layer.vectors.zero_()
    (layer(torch.randn(3, 4)) ** 3).sum().backward()
    assert torch.isfinite(layer.vectors.grad).all()
    assert orthogonality(layer.weight) == 0


def test_orthogonal_draws_are_uniform_over_both_components():
    torch.manual_seed(0)
    n, draws = 3, 3000
    q = OrthogonalLinear(n, n, bias=False, beings=draws).weight.detach().double().numpy()
    determinants = np.linalg.det(q)
    assert abs((determinants > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(draws)
    # Under the Haar measure each entry of a 3 x 3 orthogonal matrix is uniform on [-1, 1] (Archimedes).
    for i in range(n):
        for j in range(n):
            assert scipy.stats.kstest(q[:, i, j], scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4
    # and E (tr Q)² = 1, E tr Q = 0
    traces = np.trace(q, axis1=1, axis2=2)
    assert abs(traces.mean()) < 4 / np.sqrt(draws)
    assert abs((traces**2).mean() - 1) < 0.15


def test_eigenvalues_minus_one_are_reached_by_training():
    """Cayley's formula cannot give an eigenvalue of -1; here gradient descent walks into -I."""
    torch.manual_seed(0)
    layer = OrthogonalLinear(4, 4, bias=False, dtype=torch.float64)
    if torch.linalg.det(layer.weight) < 0:
        layer.assign(layer.weight.detach() * torch.tensor([1.0, 1, 1, -1], dtype=torch.float64))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        loss = (layer.weight + torch.eye(4, dtype=torch.float64)).square().sum()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


def test_the_nearest_orthogonal_matrix_is_the_polar_factor():
    w = torch.randn(5, 5, dtype=torch.float64)
    layer = OrthogonalLinear(5, 5, dtype=torch.float64)
    layer.assign(w)
    np.testing.assert_allclose(layer.weight.detach().numpy(), scipy.linalg.polar(w.numpy())[0], atol=1e-12)


def test_unit_keeps_the_direction_at_any_scale():
    v = torch.tensor([[3.0, 4.0], [3e-38, 4e-38], [3e37, 4e37], [0.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8]] * 3 + [[0.0, 0.0]])
    torch.testing.assert_close(unit(v), expected)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_mirror_places_each_number_twice(n, seed):
    upper = torch.randn(n * (n + 1) // 2, generator=torch.Generator().manual_seed(seed))
    expected, place = np.zeros((n, n), np.float32), 0
    for i in range(n):
        for j in range(i, n):
            expected[i, j] = expected[j, i] = upper[place]
            place += 1
    np.testing.assert_array_equal(mirror(upper, n).numpy(), expected)
    assert torch.equal(upper_triangle(mirror(upper, n)), upper)


def test_symmetric_gradient_counts_both_places():
    layer = SymmetricLinear(3, 3, bias=False, dtype=torch.float64)
    g = torch.randn(3, 3, dtype=torch.float64)
    (layer.weight * g).sum().backward()
    both = (g + g.T - torch.diag(g.diagonal()))[torch.triu_indices(3, 3).unbind()]
    torch.testing.assert_close(layer.upper.grad, both)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 7), seed=st.integers(0, 2**16), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_projection_onto_the_simplex_is_the_nearest_point(n, seed, scale):
    x = scale * np.random.default_rng(seed).normal(size=n)
    p = project_simplex(torch.from_numpy(x)).numpy()
    # the threshold solves Σ max(x − t, 0) = 1, found here by bisection
    t = scipy.optimize.brentq(lambda t: np.maximum(x - t, 0).sum() - 1, x.min() - 2, x.max())
    np.testing.assert_allclose(p, np.maximum(x - t, 0), atol=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e300])
def test_projection_onto_the_simplex_works_at_any_scale(scale):
    p = project_simplex(scale * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(p.sum(-1), torch.ones(4, dtype=torch.float64))
    assert (p >= 0).all()


def test_stochastic_rows_keep_the_sum_of_a_vector():
    layer = RightStochasticLinear(6, 9, bias=False, dtype=torch.float64)
    p = torch.randn(20, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(p).sum(-1), p.sum(-1))


@pytest.mark.parametrize("n", [16, 64, 256])
def test_stochastic_maps_do_not_start_at_rank_one(n):
    torch.manual_seed(0)
    assert RightStochasticLinear(n, n).svdvals()[1] > 0.3  # plain small logits give 1/√n times almost nothing


def test_exact_zeros_are_assigned_to_a_stochastic_map():
    a = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    layer = RightStochasticLinear(2, 3)
    assert layer.assign(a.mT) < 1e-6
    torch.testing.assert_close(layer.weight.mT, a, atol=1e-30, rtol=1e-6)


def test_identity_cuts_and_fills():
    x = torch.randn(2, 5)
    torch.testing.assert_close(IdentityLinear(5, 3, bias=False)(x), x[:, :3])
    torch.testing.assert_close(IdentityLinear(5, 7, bias=False)(x), nn.functional.pad(x, (0, 2)))
    assert sum(p.numel() for p in IdentityLinear(5, 7).parameters()) == 7


@pytest.mark.parametrize("options", [{}, {"reflectors": 2}, {"beings": 3}])
def test_the_inverse_of_an_orthogonal_map_is_its_transpose(options):
    layer = OrthogonalLinear(5, 5, dtype=torch.float64, **options)
    x = torch.randn(4, *layer.leading, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)), x)
    assert (layer.logabsdet() == 0).all() and layer.logabsdet().shape == layer.leading


def test_relu_straight_through():
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0, torch.nan], requires_grad=True)
    y = relu_straight_through(x)
    np.testing.assert_array_equal(y.detach().numpy(), np.maximum(x.detach().numpy(), 0))
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1.0] * 5
    torch.testing.assert_close(torch.func.vmap(relu_straight_through)(x[:4]), x[:4].relu())


@pytest.mark.parametrize("name", ["orthogonal", "circulant", "kronecker", "block-diagonal", "symplectic", "svd"])
@pytest.mark.parametrize("beings", [None, 3])
@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3)])
def test_inverses_of_any_shape_also_under_autocast(name, beings, batch):
    layer = find_layer(name)(6, 6, beings=beings)
    x = torch.randn(*batch, *layer.leading, 6)
    y = layer(x)
    torch.testing.assert_close(layer.inverse(y), x, atol=1e-3, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.inverse(y), x, atol=1e-3, rtol=1e-3)


def test_householder_product_in_half_precision_and_under_autocast():
    x, v = torch.randn(5, 8), torch.randn(3, 8)
    expected = householder_product(x, v)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(householder_product(x, v), expected)
    half = householder_product(x.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.1)
    torch.testing.assert_close(householder_product(x, v.double()), expected.double(), atol=1e-5, rtol=1e-5)

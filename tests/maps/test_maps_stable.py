"""Maps with bounded eigenvalues: radius, half-plane, disc, against NumPy and SciPy in float64."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import tolerance
from linnet.maps.gershgorin import GershgorinLinear
from linnet.maps.hurwitz import HurwitzLinear
from linnet.maps.math.bases import contraction, contraction_raw
from linnet.maps.math.simplex import project_l1
from linnet.maps.power_bound import PowerBoundLinear
from linnet.maps.schur_stable import SchurStableLinear
from linnet.maps.soft_power_bound import SoftPowerBoundLinear
from linnet.maps.stable_split import StableSplitLinear
from support.promises_stable import PROMISES_STABLE, in_disc

CLASSES = [GershgorinLinear, HurwitzLinear, PowerBoundLinear, SchurStableLinear, StableSplitLinear]
CASES = [(cls, options) for cls in CLASSES for options in cls.examples()]
NON_NORMAL = [HurwitzLinear, PowerBoundLinear, SchurStableLinear]


def matrix(layer):
    return layer.weight.detach().double().numpy().T


def fill(layer, size, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("cls", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 50.0, 1e4]), n=st.integers(1, 16))
def test_the_promise_is_kept_for_any_raw_values(cls, options, dtype, seed, size, n):
    layer = cls(n, n, **options, dtype=dtype)
    fill(layer, size, seed)
    a = matrix(layer)
    assert np.isfinite(a).all()
    assert PROMISES_STABLE[cls.__name__](a, layer) <= tolerance(dtype)


@pytest.mark.parametrize("cls", NON_NORMAL)
@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("core", [1.0, 1e4])
def test_the_promise_is_kept_at_the_largest_condition_number(cls, n, core):
    for seed in range(4):
        layer = cls(n, n)
        fill(layer, core, seed)
        with torch.no_grad():
            layer.scales.copy_(torch.linspace(-1, 1, n).sign() * 1e4)  # half of them at each end
        a = matrix(layer)
        assert PROMISES_STABLE[cls.__name__](a, layer) <= tolerance(torch.float32)


@pytest.mark.parametrize(("cls", "options"), CASES)
@pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda p: torch.optim.SGD(p, lr=1e3),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    ],
)
def test_the_promise_survives_training(cls, options, optimizer_of):
    torch.manual_seed(0)
    layer = cls(6, 6, **options)
    optimizer = optimizer_of(layer.parameters())
    for _ in range(30):
        optimizer.zero_grad()
        layer(torch.randn(8, 6)).tanh().sum().backward()
        optimizer.step()
    a = matrix(layer)
    assert np.isfinite(a).all()
    assert PROMISES_STABLE[cls.__name__](a, layer) <= tolerance(torch.float32)


def test_contraction_is_the_stated_function_and_has_an_inverse():
    rng = np.random.default_rng(0)
    for size in (0.0, 1e-3, 1.0, 30.0):
        m = size * rng.normal(size=(5, 5))
        r = scipy.linalg.cholesky(np.eye(5) + m.T @ m)
        k = contraction(torch.from_numpy(m))
        assert np.allclose(k.numpy(), m @ np.linalg.inv(r), atol=1e-12)
        assert np.linalg.norm(k.numpy(), 2) < 1
        assert np.allclose(contraction_raw(k).numpy(), m, rtol=1e-8, atol=1e-8)


def test_contraction_of_a_singular_huge_matrix():
    k = contraction(torch.full((6, 6), 1e4))
    assert float(torch.linalg.matrix_norm(k, 2)) <= 1 + 1e-5


@pytest.mark.parametrize("cls", [PowerBoundLinear, SchurStableLinear])
def test_a_strongly_nonnormal_matrix_is_reached(cls):
    # ρ = 0.5 but ‖A‖ = 10: no normal matrix is near
    a = np.array([[0.5, 10.0], [0.0, 0.5]])
    layer = cls(2, 2, dtype=torch.float64)
    assert float(layer.assign(torch.from_numpy(a.T.copy()))) < 1e-9
    assert np.allclose(matrix(layer), a)


def test_a_strongly_nonnormal_hurwitz_matrix_is_reached():
    a = np.array([[-1.0, 10.0, 0.0], [0.0, -1.0, 3.0], [0.0, 0.0, -2.0]])
    layer = HurwitzLinear(3, 3, dtype=torch.float64)
    assert float(layer.assign(torch.from_numpy(a.T.copy()))) < 1e-9


@pytest.mark.parametrize("cls", NON_NORMAL)
def test_an_unstable_matrix_becomes_a_stable_one_nearby(cls):
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = cls(8, 8, dtype=torch.float64)
    moved = float(layer.assign(a))
    assert PROMISES_STABLE[cls.__name__](matrix(layer), layer) == 0
    assert 0 < moved < 1.2


def test_a_linear_system_decays():
    layer = SchurStableLinear(8, 8, bias=False, bound=0.9, dtype=torch.float64)
    fill(layer, 3.0, 0)
    x = torch.randn(8, dtype=torch.float64)
    for _ in range(300):
        x = layer(x)
    assert float(x.detach().norm()) < 1e-9
    flow = HurwitzLinear(6, 6, alpha=0.5, dtype=torch.float64)
    fill(flow, 1.0, 0)
    assert np.linalg.norm(scipy.linalg.expm(60 * matrix(flow))) < 1e-8


@pytest.mark.parametrize("beings", [None, 3])
def test_the_estimate_of_the_spectral_radius_is_never_too_small_and_converges(beings):
    layer = PowerBoundLinear(8, 8, beings=beings, dtype=torch.float64)
    fill(layer, 1.0, 0)
    a = layer.weight.detach().numpy().reshape(-1, 8, 8)
    exact = np.array([np.abs(np.linalg.eigvals(one)).max() for one in a])
    for k in (1, 2, 7, 200):
        layer.pwr_iters = k
        found = layer.spectral_radius().detach().numpy().reshape(-1)
        slow = [np.linalg.norm(np.linalg.matrix_power(one, k)) ** (1 / k) for one in a]
        assert np.allclose(found, slow, rtol=1e-9)
        assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= exact * 1.05).all()
    layer.spectral_radius().sum().backward()
    assert layer.core.grad.isfinite().all()


@pytest.mark.parametrize("real", [True, False])
def test_gershgorin_keeps_a_matrix_that_has_the_row_sums(real):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 6))
    a = (a + a.T if real else a) * (1 - np.eye(6))
    a = a / np.abs(a).sum(1).max() * 0.3 + np.diag(rng.uniform(0.35, 0.65, 6))
    layer = GershgorinLinear(6, 6, real=real, dtype=torch.float64)
    assert float(layer.assign(torch.from_numpy(a.T.copy()))) < 1e-15
    assert np.allclose(matrix(layer), a, atol=1e-15)


def test_gershgorin_rows_are_those_of_a_not_of_w():
    layer = GershgorinLinear(5, 5, real=False)
    fill(layer, 1.0, 0)
    a = matrix(layer) - 0.5 * np.eye(5)
    assert np.allclose(np.abs(a).sum(1), 0.5, atol=1e-5)  # every row uses up its budget
    assert np.abs(a).sum(0).max() > 0.51


def test_gershgorin_reaches_complex_eigenvalues_and_both_ends_of_the_interval():
    layer = GershgorinLinear(2, 2, sigma_min=-1.0, real=False, dtype=torch.float64)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert float(layer.assign(turn)) == 0
    assert torch.allclose(layer.eigvals().imag.abs(), torch.ones(2, dtype=torch.float64))
    layer = GershgorinLinear(2, 2, sigma_min=-1.0, sigma_max=3.0, dtype=torch.float64)
    assert float(layer.assign(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))) < 1e-15  # eigenvalues -1 and 3
    assert float(layer.assign(torch.tensor([[-1.0, 0.0], [0.0, 3.0]]))) < 1e-15


def test_gershgorin_assigns_the_nearest_rows():
    rng = np.random.default_rng(0)
    layer = GershgorinLinear(4, 4, sigma_min=-1.0, real=False, dtype=torch.float64)
    a = rng.normal(size=(4, 4))
    layer.assign(torch.from_numpy(a.T.copy()))
    others = rng.normal(size=(3000, 4, 4))
    others /= np.maximum(1, np.abs(others).sum(-1, keepdims=True))
    found = np.linalg.norm(matrix(layer) - a, axis=1)
    assert (found <= np.linalg.norm(others - a, axis=-1).min(0) + 1e-12).all()


def test_gershgorin_trained_beyond_its_bound_still_learns():
    """Rows that are scaled down go on turning: of a target out of reach the projection is found."""
    torch.manual_seed(0)
    layer = GershgorinLinear(3, 3, False, sigma_min=-1.0, real=False, dtype=torch.float64)
    target = 3 * torch.randn(3, 3, dtype=torch.float64)
    nearest = project_l1(target.mT, 1.0).mT
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(1000):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimizer.step()
    assert float((layer.weight - target).detach().norm() / (nearest - target).norm()) < 1.05


@pytest.mark.parametrize("beings", [None, 3])
def test_the_soft_bound_is_a_penalty_on_the_estimate(beings):
    layer = SoftPowerBoundLinear(6, 6, max_p=0.4, pwr_iters=50, beings=beings, dtype=torch.float64)
    fill(layer, 0.3, 0)
    a = layer.weight.mT.detach().numpy().reshape(-1, 6, 6)
    estimates = np.array([np.linalg.norm(np.linalg.matrix_power(one, 50)) ** (1 / 50) for one in a])
    assert float(layer.penalty().detach()) == pytest.approx((np.maximum(0, estimates - 0.4) ** 2).sum(), rel=1e-9)
    exact = np.array([np.abs(np.linalg.eigvals(one)).max() for one in a])
    assert np.allclose(layer.violation().reshape(-1).numpy(), np.maximum(0, exact / 0.4 - 1))


def test_a_stable_matrix_has_no_soft_penalty_and_no_gradient():
    layer = SoftPowerBoundLinear(3, 3, max_p=0.9)
    layer.assign(torch.tensor([[0.5, 20.0, 0.0], [0.0, 0.5, 3.0], [0.0, 0.0, -0.5]]))
    assert float(layer.spectral_radius().detach()) < 0.9 and float(layer.penalty().detach()) == 0
    layer.penalty().backward()
    assert (layer.entries.grad == 0).all()
    layer.assign(torch.zeros(3, 3))
    layer.zero_grad()
    layer.penalty().backward()
    assert (layer.entries.grad == 0).all()


@pytest.mark.parametrize("start", ["a complex pair", "a real eigenvalue", "not normal"])
def test_the_soft_penalty_brings_the_radius_under_the_bound(start):
    layer = SoftPowerBoundLinear(4, 4, max_p=0.8, dtype=torch.float64)
    a = 0.1 * np.random.default_rng(0).normal(size=(4, 4))
    a[:2, :2] += {
        "a complex pair": [[0.0, 1.5], [-1.5, 0.0]],
        "a real eigenvalue": [[-1.5, 0.0], [0.0, 0.2]],
        "not normal": [[1.2, 30.0], [0.0, 1.2]],
    }[start]
    layer.assign(torch.from_numpy(a))
    assert in_disc(matrix(layer), 0.8) > 0.2
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(500):
        optimizer.zero_grad()
        layer.penalty().backward()
        optimizer.step()
    assert in_disc(matrix(layer), 0.8) < 1e-3


def test_stable_split_parts_are_nonnegative_and_stable():
    layer = StableSplitLinear(6, 6, sigma_min=0.2, sigma_max=0.7, beings=2, dtype=torch.float64)
    fill(layer, 3.0, 0)
    b, c = layer.B.detach().numpy(), layer.C.detach().numpy()
    assert np.allclose(b - c, layer.weight.mT.detach().numpy()) and b.min() >= 0 and c.min() >= 0
    sums = (b + c).sum(-1)
    assert sums.min() >= 0.2 - 1e-12 and sums.max() <= 0.7 + 1e-12
    for part in (*b, *c):
        assert np.abs(np.linalg.eigvals(part)).max() <= 0.7 + 1e-12


def test_stable_split_of_the_counterexample_to_the_reference():
    # B = I and C = swap, each with ρ = 1, have ρ(B − C) = 2
    a = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    layer = StableSplitLinear(2, 2)
    layer.assign(a)
    assert in_disc(matrix(layer), 1.0) <= tolerance(torch.float32)
    assert np.allclose(matrix(layer), a.numpy() / 2, atol=1e-5)


def test_the_projection_on_the_l1_ball_is_the_nearest_point():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 4))
    found = project_l1(torch.from_numpy(rows), 1.0).numpy()
    assert (np.abs(found).sum(1) <= 1 + 1e-12).all()
    others = rng.normal(size=(2000, 4))
    others /= np.maximum(1, np.abs(others).sum(1, keepdims=True))
    for row, own in zip(rows, found, strict=True):
        assert np.linalg.norm(row - own) <= np.linalg.norm(row - others, axis=1).min() + 1e-12
    inside = rows / 10
    assert np.allclose(project_l1(torch.from_numpy(inside), 1.0).numpy(), inside)
    assert np.allclose(project_l1(torch.zeros(2, 3), 1.0).numpy(), 0)


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_the_scale_at_the_start(cls, options):
    torch.manual_seed(0)
    size = torch.linalg.matrix_norm(cls(64, 64, **options).weight) / 8  # the gain for white noise; 0.58 in nn.Linear
    assert 0.02 < float(size.detach()) < 3


@pytest.mark.parametrize(
    ("cls", "options", "fact"),
    [
        (SchurStableLinear, {"bound": 1.0}, "bound must"),
        (SchurStableLinear, {"bound": 0.0}, "bound must"),
        (SchurStableLinear, {"max_cond": 1.0}, "max_cond must"),
        (SchurStableLinear, {"max_cond": 1e5}, "max_cond must"),
        (PowerBoundLinear, {"max_p": 0}, "max_p must"),
        (PowerBoundLinear, {"pwr_iters": 0}, "pwr_iters must"),
        (HurwitzLinear, {"alpha": -0.1}, "alpha must"),
        (HurwitzLinear, {"alpha": float("nan")}, "alpha must"),
        (GershgorinLinear, {"sigma_min": 1.0, "sigma_max": 0.0}, "got sigma_min=1.0 and sigma_max=0.0"),
        (SoftPowerBoundLinear, {"max_p": 0}, "max_p must"),
        (SoftPowerBoundLinear, {"max_p": float("nan")}, "max_p must"),
        (SoftPowerBoundLinear, {"pwr_iters": 0}, "pwr_iters must"),
        (StableSplitLinear, {"sigma_min": -0.1}, "-0.1"),
    ],
)
def test_bad_options_are_refused(cls, options, fact):
    with pytest.raises(ValueError, match=fact):
        cls(4, 4, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_optimization_recovers_a_random_member(cls, options):
    torch.manual_seed(1)
    member = cls(4, 4, **options, dtype=torch.float64)
    target = member.weight.detach()
    layer = cls(4, 4, **options, dtype=torch.float64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3000)
    for _ in range(3000):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimizer.step()
        schedule.step()
    assert float((layer.weight.detach() - target).norm() / target.norm()) < 1e-3

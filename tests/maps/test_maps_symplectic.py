"""Symplectic and Hamiltonian matrices, skew-symmetric and positive semidefinite ones, against NumPy and SciPy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import tolerance
from linnet.maps.damped_skew_symmetric import DampedSkewSymmetricLinear
from linnet.maps.hamiltonian import HamiltonianLinear
from linnet.maps.math.symplectic import FACTORS, transform, transform_reference
from linnet.maps.psd import PSDLinear, clip_ratio
from linnet.maps.skew_symmetric import SkewSymmetricLinear
from linnet.maps.symplectic import SymplecticLinear
from support.promises_symplectic import PROMISES_SYMPLECTIC, form

CLASSES = [DampedSkewSymmetricLinear, HamiltonianLinear, PSDLinear, SkewSymmetricLinear, SymplecticLinear]
CASES = [(cls, options) for cls in CLASSES for options in cls.examples()]


def matrix(layer):
    return layer.weight.detach().double().numpy().T


@pytest.mark.parametrize(("cls", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 50.0, 1e4]), half=st.integers(1, 8))
def test_the_promise_is_kept_for_any_raw_values(cls, options, dtype, seed, size, half):
    layer = cls(2 * half, 2 * half, **options, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    a = matrix(layer)
    assert np.isfinite(a).all()
    assert PROMISES_SYMPLECTIC[cls.__name__](a, layer) <= tolerance(dtype)


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
    assert PROMISES_SYMPLECTIC[cls.__name__](a, layer) <= tolerance(torch.float32)


@pytest.mark.parametrize("cls", [SkewSymmetricLinear, DampedSkewSymmetricLinear, HamiltonianLinear, PSDLinear])
def test_assign_gives_what_numpy_calls_nearest(cls):
    torch.manual_seed(0)
    layer = cls(6, 6, dtype=torch.float64)
    target = torch.randn(6, 6, dtype=torch.float64)
    layer.assign(target)
    a = target.numpy().T
    gamma = np.clip(-np.diag(a).mean(), 0.1, 0.5)
    j = form(6)
    values, vectors = np.linalg.eigh((a + a.T) / 2)
    expected = {
        SkewSymmetricLinear: (a - a.T) / 2,
        DampedSkewSymmetricLinear: (a - a.T) / 2 - gamma * np.eye(6),
        HamiltonianLinear: j.T @ (j @ a + (j @ a).T) / 2,
        PSDLinear: (vectors * np.maximum(values, 0)) @ vectors.T,
    }[cls]
    assert np.allclose(matrix(layer), expected, atol=1e-6)


def test_a_bounded_condition_is_met_by_the_nearest_matrix():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(size=5) * 3
        found = clip_ratio(torch.from_numpy(values), 0.1, 4.0).numpy()
        grid = np.linspace(0.1, 10, 20001)
        best = min(((np.clip(values, m, 4 * m) - values) ** 2).sum() for m in grid)
        assert ((found - values) ** 2).sum() <= best + 1e-6
        assert found.min() >= 0.1 and found.max() <= 4 * found.min() * (1 + 1e-12)


def test_psd_reaches_its_floor_and_its_condition_exactly():
    layer = PSDLinear(3, 3, epsilon=0.1, condition=10.0, dtype=torch.float64)
    with torch.no_grad():
        layer.factor.copy_(torch.diag(torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)))
    values = np.linalg.eigvalsh(matrix(layer))
    assert np.allclose(values, [1, 1, 10])
    assert float(layer.assign(torch.diag(torch.tensor([0.5, 2.0, 5.0])))) < 1e-9


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_damping_sign_is_the_stated_one(sign):
    layer = DampedSkewSymmetricLinear(6, 6, sign=sign)
    rate = sign * layer.eigvals().real
    assert (rate > 0.1 - 1e-5).all() and (rate < 0.5 + 1e-5).all()
    x = torch.randn(5, 6)
    change = (x * (x @ layer.weight.mT)).sum(-1)  # d|x|²/2dt
    assert (sign * change > 0).all()


def test_one_unit_has_no_rotation():
    layer = SkewSymmetricLinear(1, 1, bias=False)
    assert layer.upper.numel() == 0 and layer(torch.ones(1)) == 0
    assert DampedSkewSymmetricLinear(1, 1).weight.item() < -0.09


@pytest.mark.parametrize("size", [0.7, 30.0])
@pytest.mark.parametrize("beings", [None, 3])
def test_symplectic_forward_is_the_product_of_its_factors(beings, size):
    torch.manual_seed(0)
    layer = SymplecticLinear(8, 8, bias=False, beings=beings, dtype=torch.float64)
    with torch.no_grad():
        layer.factors.normal_(0, size)
    raw = layer.factors.detach().numpy().reshape(-1, FACTORS, 4, 4)
    for member, w in zip(raw, layer.weight.detach().numpy().reshape(-1, 8, 8), strict=True):
        expected = np.eye(8)
        for i, p in enumerate(member):
            s = (p + p.T) / 2
            r = np.sqrt((s**2).mean())
            s = s * 10 * np.arcsinh(r / 10) / r
            zero, one = np.zeros((4, 4)), np.eye(4)
            expected = expected @ (
                np.block([[one, s], [zero, one]]) if i % 2 == 0 else np.block([[one, zero], [s, one]])
            )
        assert np.allclose(w, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beings", [None, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_symplectic_inverse_and_volume(beings, bias):
    layer = SymplecticLinear(6, 6, bias, beings=beings, dtype=torch.float64)
    x = torch.randn(5, *layer.leading, 6, dtype=torch.float64)
    assert torch.allclose(layer.inverse(layer(x)), x, atol=1e-10)
    assert torch.allclose(layer(layer.inverse(x)), x, atol=1e-10)
    determinant = torch.linalg.slogdet(layer.weight)
    assert torch.allclose(determinant.logabsdet, layer.logabsdet(), atol=1e-10) and (determinant.sign == 1).all()
    with pytest.raises(ValueError, match="must have shape"):
        layer.inverse(torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_any_symplectic_matrix_can_be_assigned(seed, m):
    rng = np.random.default_rng(seed)
    s = rng.normal(size=(2 * m, 2 * m)) / np.sqrt(m)
    a = scipy.linalg.expm(form(2 * m) @ (s + s.T) / 3)
    layer = SymplecticLinear(2 * m, 2 * m, dtype=torch.float64)
    assert float(layer.assign(torch.from_numpy(a.T.copy()))) < 1e-8


@pytest.mark.parametrize("kind", ["identity", "minus identity", "J", "squeeze", "rotation"])
def test_famous_symplectic_matrices_can_be_assigned(kind):
    m, eye = 2, np.eye(4)
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    a = {
        "identity": eye,
        "minus identity": -eye,
        "J": form(4),
        "squeeze": np.diag([4.0, 0.5, 0.25, 2.0]),
        "rotation": scipy.linalg.block_diag(turn, np.linalg.inv(turn).T),
    }[kind]
    layer = SymplecticLinear(2 * m, 2 * m, dtype=torch.float64)
    assert float(layer.assign(torch.from_numpy(a.T.copy()))) < 1e-8


@pytest.mark.parametrize("cls", [SymplecticLinear, HamiltonianLinear])
def test_odd_sizes_are_refused(cls):
    with pytest.raises(ValueError, match=r"in_features of .* must be even \(positions and momenta\), got 5"):
        cls(5, 5)


@pytest.mark.parametrize(
    ("cls", "options", "fact"),
    [
        (DampedSkewSymmetricLinear, {"sigma_min": 0.5, "sigma_max": 0.1}, "got sigma_min=0.5 and sigma_max=0.1"),
        (DampedSkewSymmetricLinear, {"sigma_min": -0.5}, "-0.5"),
        (DampedSkewSymmetricLinear, {"sign": 0}, "sign must be"),
        (PSDLinear, {"epsilon": -1.0}, "epsilon must be"),
        (PSDLinear, {"epsilon": float("nan")}, "epsilon must be"),
        (PSDLinear, {"condition": 1.0}, "condition must be"),
    ],
)
def test_bad_options_are_refused(cls, options, fact):
    with pytest.raises(ValueError, match=fact):
        cls(4, 4, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_optimization_recovers_a_random_member(cls, options):
    torch.manual_seed(1)
    target = cls(4, 4, **options, dtype=torch.float64).weight.detach()
    layer = cls(4, 4, **options, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = (layer.weight - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float((layer.weight.detach() - target).norm() / target.norm()) < 1e-3


@pytest.mark.parametrize("size", [0.0, 1e-9, 0.5, 20.0])
def test_the_fused_backward_agrees_with_its_reference(size):
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    factors = (size * torch.randn(FACTORS, 3, 3, dtype=torch.float64)).requires_grad_()
    grad = torch.randn(5, 6, dtype=torch.float64)
    kept = grad.clone()
    found = torch.autograd.grad(transform(x, factors), (x, factors), grad)
    expected = torch.autograd.grad(transform_reference(x, factors), (x, factors), grad)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(transform(x, factors), transform_reference(x, factors))
    assert torch.equal(grad, kept)
    if size:
        assert torch.autograd.gradcheck(transform, (x, factors / (1 + size)))
    assert torch.autograd.gradgradcheck(transform, (x, (factors.detach() + 0.1).requires_grad_()))

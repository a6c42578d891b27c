"""Maps with bounded singular values, eigenvalues, norms and ranks, against NumPy, SciPy and loops."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from linnet import LinearMap, tolerance
from linnet.maps.bounded_norm import BoundedNormLinear
from linnet.maps.contractive import ContractiveLinear
from linnet.maps.low_rank import LowRankLinear
from linnet.maps.math.householder import draw_reflections, frame, reflections
from linnet.maps.math.intervals import angle_of, sine_to_interval
from linnet.maps.math.svd import svd_matrix, svd_product
from linnet.maps.spectral import SpectralLinear
from linnet.maps.stiefel import StiefelLinear
from linnet.maps.svd import SVDLinear
from linnet.maps.svd_learn_bounds import SVDLinearLearnBounds
from linnet.maps.symmetric_spectral import SymmetricSpectralLinear
from linnet.maps.symmetric_svd import SymmetricSVDLinear
from linnet.maps.trivial_null_space import TrivialNullSpaceLinear
from linnet.testing import CHECKS, Case, cases, check_layer, stressed
from support.promises_spectral import PROMISES_SPECTRAL

Array = np.ndarray
SINGULAR = [SVDLinear, SVDLinearLearnBounds, SpectralLinear]
SYMMETRIC = [SymmetricSVDLinear, SymmetricSpectralLinear]
LAYERS = [
    *SINGULAR,
    *SYMMETRIC,
    StiefelLinear,
    ContractiveLinear,
    BoundedNormLinear,
    TrivialNullSpaceLinear,
    LowRankLinear,
]


def clamped_svd(a: Array, low: float, high: float) -> Array:
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    return (u * np.clip(s, low, high)[..., None, :]) @ vh


def clamped_eigh(a: Array, low: float, high: float, signed: bool) -> Array:
    values, q = np.linalg.eigh((a + a.swapaxes(-1, -2)) / 2)
    kept = np.clip(values, low, high) if signed else np.sign(values) * np.clip(np.abs(values), low, high)
    return (q * kept[..., None, :]) @ q.swapaxes(-1, -2)


def truncated(a: Array, layer: LinearMap) -> Array:
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    r = max(1, min(a.shape[-2:]) // 4) if layer.rank is None else layer.rank
    return (u[..., :r] * s[..., None, :r]) @ vh[..., :r, :]


def nearest_frobenius_ball(a: Array, layer: LinearMap) -> Array | None:
    if layer.p != "fro":
        return None
    norm = np.linalg.norm(a, axis=(-2, -1), keepdims=True)
    return a * np.clip(norm, layer.sigma_min, layer.sigma_max) / norm


def nearest_trivial_null_space(a: Array, layer: LinearMap) -> Array:
    n = a.shape[-2]
    r, epsilon = layer.rank or n, layer.epsilon
    values, q = np.linalg.eigh((a[..., :n] + a[..., :n].swapaxes(-1, -2)) / 2)
    values[..., : n - r] = epsilon
    top = (q * np.maximum(values, epsilon)[..., None, :]) @ q.swapaxes(-1, -2)
    return np.concatenate([top, a[..., n:]], -1)


NEAREST_SPECTRAL = {
    "BoundedNormLinear": nearest_frobenius_ball,
    "ContractiveLinear": lambda a, layer: clamped_svd(a, 0, layer.bound),
    "LowRankLinear": truncated,
    "SVDLinear": lambda a, layer: clamped_svd(a, layer.sigma_min, layer.sigma_max),
    "SVDLinearLearnBounds": lambda a, layer: clamped_svd(a, layer.sigma_min, layer.sigma_max),
    "SpectralLinear": lambda a, layer: clamped_svd(a, layer.sigma_min, layer.sigma_max),
    "StiefelLinear": lambda a, layer: clamped_svd(a, 1, 1),
    "SymmetricSVDLinear": lambda a, layer: clamped_eigh(a, layer.sigma_min, layer.sigma_max, False),
    "SymmetricSpectralLinear": lambda a, layer: clamped_eigh(a, layer.sigma_min, layer.sigma_max, True),
    "TrivialNullSpaceLinear": nearest_trivial_null_space,
}


def matrices(weight: torch.Tensor) -> list[Array]:
    return [w.T for w in weight.detach().double().numpy().reshape(-1, *weight.shape[-2:])]


def every_case() -> list:
    """Few reflectors, degenerate intervals, every example; of those of one class the first in the default run."""
    few = [
        Case(SpectralLinear, 7, 5, options={"n_U_reflectors": 2, "n_V_reflectors": 1}),
        Case(SymmetricSpectralLinear, 6, 6, options={"n_reflectors": 2, "sigma_min": 0.5}, beings=3),
        Case(SVDLinear, 5, 5, options={"sigma_min": 0.7, "sigma_max": 0.7}),
    ]
    more = [
        Case(SpectralLinear, 5, 7, options={"n_U_reflectors": 1}, beings=3),
        Case(SpectralLinear, 6, 6, options={"n_V_reflectors": 3, "sigma_min": 0.9}),
        Case(SVDLinear, 5, 5, options={"sigma_min": 0.0, "sigma_max": 1e-3}),
        Case(TrivialNullSpaceLinear, 4, 9, options={"epsilon": 3.0}),
    ]
    found = [(case, ()) for case in few] + [(case, pytest.mark.slow) for case in more]
    for cls in LAYERS:
        found += [(case, pytest.mark.slow if i else ()) for i, case in enumerate(cases(cls))]
    return [pytest.param(case, id=str(case), marks=marks) for case, marks in found]


@pytest.mark.parametrize("case", every_case())
def test_the_promise_is_kept_whatever_the_parameters_are(case):
    for dtype in case.dtypes:
        for state, layer in stressed(case, dtype, steps=1):
            for a in matrices(layer.weight):
                assert np.isfinite(a).all(), state
                residual = PROMISES_SPECTRAL[case.cls.__name__](a, layer)
                assert residual <= tolerance(dtype), f"{residual:.2e} with {state} in {dtype}"
            x = case.input(dtype=dtype)
            assert torch.isfinite(layer(x)).all(), state


@pytest.mark.slow
@pytest.mark.parametrize("case", every_case())
def test_the_promise_is_kept_by_large_matrices(case):
    n, m = (200, 200) if case.cls.square else (300, 200)
    n, m = (m, n) if case.cls is TrivialNullSpaceLinear else (n, m)
    for dtype in case.dtypes:
        large = Case(case.cls, n, m, options=case.options)
        for state, layer in stressed(large, dtype, steps=1):
            (a,) = matrices(layer.weight)
            assert PROMISES_SPECTRAL[case.cls.__name__](a, layer) <= tolerance(dtype), f"{state} in {dtype}"


@pytest.mark.parametrize("case", every_case())
def test_assign_gives_the_nearest_matrix(case):
    few = {"n_U_reflectors", "n_V_reflectors", "n_reflectors"} & set(case.options)
    if few and min(case.options[name] for name in few) < min(case.in_features, case.out_features):
        return
    layer = case.layer(dtype=torch.float64)
    for seed in range(3):
        stranger = 2 * case.matrix(dtype=torch.float64, seed=seed)
        layer.assign(stranger)
        found, a = np.stack(matrices(layer.weight)), np.stack(matrices(stranger))
        nearest = NEAREST_SPECTRAL[case.cls.__name__](a, layer)
        if nearest is not None:
            np.testing.assert_allclose(found, nearest, atol=1e-10)


DEAR = {"check_compile", "check_export", "check_onnx", "check_ddp"}
EXACT = {"check_assign", "check_linear_doors"}  # what needs an exact assign


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SpectralLinear, {"n_U_reflectors": 2, "n_V_reflectors": 1}),
        pytest.param(SymmetricSpectralLinear, {"n_reflectors": 2}, marks=pytest.mark.slow),
    ],
)
def test_few_reflectors_keep_the_contract_but_for_an_exact_assign(cls, options):
    few = [check for check in CHECKS if check.__name__ not in DEAR | EXACT | {"check_guarantee"}]
    check_layer(cls, options, beings=(3,), checks=few)


# ---------------------------------------------------------------- the mathematics


def householder_loop(vectors: Array) -> Array:
    product = np.eye(vectors.shape[-1])
    for v in vectors:
        product = product @ (np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v))
    return product


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 10), k=st.integers(1, 12), r=st.integers(1, 10), seed=st.integers(0, 2**16))
def test_frame_is_the_first_columns_of_the_product(n, k, r, seed):
    r = min(r, n)
    v = torch.randn(2, k, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = frame(v, r).numpy()
    for i in range(2):
        np.testing.assert_allclose(found[i], householder_loop(v[i].numpy())[:, :r], atol=1e-12)


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-4, 1.0])
@pytest.mark.parametrize(("n", "r"), [(300, 40), (40, 40), (64, 1)])
def test_frame_is_orthonormal_for_nearly_parallel_vectors(n, r, spread):
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(n, generator=generator) + spread * torch.randn(r, n, generator=generator)
    q = frame(v, r).double().numpy()
    assert np.abs(q.T @ q - np.eye(r)).max() < 2e-6


@pytest.mark.parametrize(("n", "r"), [(1, 1), (5, 1), (7, 3), (4, 4)])
@pytest.mark.parametrize("special", [False, True])
def test_reflections_factor_orthonormal_columns(n, r, special):
    q = torch.eye(n, r, dtype=torch.float64) if special else torch.linalg.qr(torch.randn(n, r, dtype=torch.float64))[0]
    v, d = reflections(q)
    assert (v.norm(dim=-1) > 0).all() and (d.abs() == 1).all()
    torch.testing.assert_close(frame(v, r) * d, q)


def test_drawn_frames_are_uniform():
    generator = torch.Generator().manual_seed(1)
    drawn = [draw_reflections((2, 3), generator, torch.empty(0)) for _ in range(700)]
    v, d = (torch.stack(tensors) for tensors in zip(*drawn, strict=True))
    q = (
        (frame(v, 2) * d.unsqueeze(-2)).flatten(1).double().numpy()
    )  # every entry of a uniform frame in R³ is uniform on [-1, 1]
    for column in q.T:
        assert scipy.stats.kstest(column, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize(("n", "m", "k", "l"), [(5, 5, 5, 5), (7, 4, 4, 4), (4, 7, 2, 3), (6, 3, 5, 1), (1, 1, 1, 1)])
def test_the_matrix_and_the_product_against_a_loop(n, m, k, l):  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    u, v, s, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((k, n), (l, m), (min(n, m),), (3, n))
    )
    core = np.zeros((n, m))
    np.fill_diagonal(core, s.numpy())
    a = householder_loop(u.numpy()) @ core @ householder_loop(v.numpy()).T
    np.testing.assert_allclose(svd_matrix(u, s, v).numpy().T, a, atol=1e-12)
    np.testing.assert_allclose(svd_product(x, u, s, v).numpy(), x.numpy() @ a, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interval_and_its_inverse(dtype):
    low, high = 0.25, 3.0
    values = torch.linspace(low, high, 101, dtype=torch.float64)
    back = sine_to_interval(angle_of(values, low, high, dtype).to(dtype), low, high)
    np.testing.assert_allclose(back.double().numpy(), values.numpy(), atol=4 * torch.finfo(dtype).eps)
    wild = sine_to_interval(torch.linspace(-1e4, 1e4, 9999, dtype=dtype), low, high)
    assert wild.min() >= low - 1e-6 and wild.max() <= high + 1e-6
    assert wild.min() < low + 0.01 and wild.max() > high - 0.01
    clamped = angle_of(torch.tensor([-5.0, 9.0], dtype=torch.float64), low, high, dtype)
    assert (clamped.cos() > 0).all()  # the gradient is not zero
    assert angle_of(torch.tensor([2.0]), 1.0, 1.0, dtype).item() == 0


# ---------------------------------------------------------------- each class


@pytest.mark.parametrize("cls", [*SINGULAR, SymmetricSVDLinear])
def test_fresh_singular_values_span_the_interval_uniformly(cls):
    layer = cls(300, 300, sigma_min=0.5, sigma_max=2.0)
    s = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)
    inside = 0.02 if cls is SVDLinearLearnBounds else 0.0
    assert scipy.stats.kstest(s, scipy.stats.uniform(0.5 + inside, 1.5 - 2 * inside).cdf).pvalue > 1e-3


@pytest.mark.parametrize("cls", [SVDLinear, SVDLinearLearnBounds, SpectralLinear, ContractiveLinear])
def test_both_determinants_are_drawn_and_assigned(cls):
    signs = {np.sign(np.linalg.det(cls(3, 3).weight.detach().numpy())) for _ in range(40)}
    assert signs == {-1.0, 1.0}
    for d in (-1.0, 1.0):
        layer, w = cls(3, 3), torch.diag(torch.tensor([0.3, 0.5, 0.7 * d]))
        assert layer.assign(w) < 1e-6


@pytest.mark.parametrize("cls", [SVDLinear, ContractiveLinear, SymmetricSVDLinear, SymmetricSpectralLinear])
def test_no_parameter_is_dead_after_an_assign_beyond_the_bounds(cls):
    layer = cls(5, 5, False)
    layer.assign(10 * torch.eye(5) + torch.randn(5, 5))
    target = 0.5 * torch.eye(5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimizer.step()
    assert (layer.weight - target).abs().max() < 0.05


@pytest.mark.parametrize("cls", [*SINGULAR, *SYMMETRIC])
@pytest.mark.parametrize("beings", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_and_logabsdet_against_numpy(cls, beings, dtype):
    layer = cls(6, 6, beings=beings, dtype=dtype)
    x = torch.randn(4, *(() if beings is None else (beings,)), 6, dtype=dtype)
    y = layer(x)
    back = layer.inverse(y)
    assert back.dtype == dtype
    np.testing.assert_allclose(back.detach().numpy(), x.numpy(), atol=1e-4 if dtype == torch.float32 else 1e-12)
    a = np.stack(matrices(layer.weight))
    b = layer.bias.detach().double().numpy().reshape(len(a), 1, 6)
    rows = y.detach().double().numpy().reshape(4, -1, 6).transpose(1, 0, 2)
    solved = np.stack([np.linalg.solve(one.T, (row - c).T).T for one, row, c in zip(a, rows, b, strict=True)])
    np.testing.assert_allclose(back.detach().double().numpy().reshape(4, -1, 6).transpose(1, 0, 2), solved, atol=1e-4)
    expected = np.linalg.slogdet(a)[1].reshape(() if beings is None else (beings,))
    np.testing.assert_allclose(layer.logabsdet().detach().numpy(), expected, rtol=1e-4)
    layer.logabsdet().sum().backward()
    assert layer.angles.grad.abs().max() > 0
    no_bias = cls(6, 6, False, beings=beings, dtype=dtype)
    torch.testing.assert_close(no_bias.inverse(no_bias(x)), x, atol=1e-4, rtol=1e-4)
    if beings:
        assert layer.inverse(torch.randn(6, dtype=dtype)).shape == (3, 6)
        assert layer.inverse(torch.randn(4, 1, 6, dtype=dtype)).shape == (4, 3, 6)
    assert layer.inverse(torch.randn(0, *(() if beings is None else (3,)), 6, dtype=dtype)).shape[0] == 0


def test_inverse_in_low_precision_and_under_autocast():
    layer = SVDLinear(6, 6, sigma_min=0.5)
    x = torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.inverse(layer(x)).float(), x, atol=0.1, rtol=0.1)
    half = SVDLinear(6, 6, sigma_min=0.5, dtype=torch.bfloat16)
    back = half.inverse(half(x.bfloat16()))
    assert back.dtype == torch.bfloat16
    torch.testing.assert_close(back.float(), x, atol=0.1, rtol=0.1)


def test_what_has_no_inverse_says_so():
    for layer in (SVDLinear(6, 5), SVDLinear(6, 6, sigma_min=0.0), SymmetricSpectralLinear(6, 6, sigma_min=-1.0)):
        for call in (lambda layer=layer: layer.inverse(torch.ones(layer.out_features)), layer.logabsdet):
            with pytest.raises(ValueError, match=r"interval without 0, got 6 and "):
                call()
    with pytest.raises(ValueError, match="shape"):
        SVDLinear(6, 6).inverse(torch.ones(5))


def test_learned_bounds_are_ordered_learned_and_capped():
    layer = SVDLinearLearnBounds(6, 4, beings=50, sigma_min=0.2, sigma_max=3.0, dtype=torch.float64)
    for scale in (0.0, 1.0, 1e4):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(0, 1).mul_(scale)
        low, high = layer.bounds
        assert low.shape == (50,) and (0.2 - 1e-12 <= low).all() and (low <= high + 1e-12).all()
        assert (high <= 3.0 + 1e-12).all()
        s = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
        assert (s.min(-1) >= low.detach().numpy() - 1e-12).all() and (s.max(-1) <= high.detach().numpy() + 1e-12).all()
    one = SVDLinearLearnBounds(6, 4, sigma_max=3)
    low, high = one.bounds
    assert low.dim() == 0 and low < 0.15 and high > 2.9
    one.weight.square().sum().backward()
    assert (one.bound_angles.grad != 0).all()


def test_assign_sets_learned_bounds_around_the_singular_values():
    layer = SVDLinearLearnBounds(4, 4, dtype=torch.float64)
    assert layer.assign(torch.diag(torch.tensor([0.3, 0.4, 0.5, 0.6], dtype=torch.float64))) < 1e-12
    low, high = layer.bounds
    assert low.item() == pytest.approx(0.3 - 0.02) and high.item() == pytest.approx(0.6 + 0.04)
    assert layer.assign(0.5 * torch.eye(4, dtype=torch.float64)) < 1e-12
    assert (layer.angles.cos() > 0.1).all()  # one common value: no angle at its end
    assert layer.assign(torch.eye(4, dtype=torch.float64)) < 1e-12  # on the cap
    single = SVDLinearLearnBounds(4, 4, sigma_min=1.0, sigma_max=1.0)  # an empty choice
    assert torch.isfinite(single.weight).all() and single.violation() <= tolerance(torch.float32)


@pytest.mark.parametrize("cls", SYMMETRIC)
def test_symmetric_ones_are_exactly_symmetric(cls):
    w = cls(33, 33, beings=2).weight
    assert torch.equal(w, w.mT)


def test_symmetric_svd_has_eigenvalues_of_both_signs_and_symmetric_spectral_has_not():
    values = np.linalg.eigvalsh(SymmetricSVDLinear(60, 60).weight.detach().double().numpy())
    assert 15 < (values < 0).sum() < 45
    assert np.linalg.eigvalsh(SymmetricSpectralLinear(60, 60).weight.detach().double().numpy()).min() > 0.0999


def test_few_reflectors_change_a_subspace_only():
    layer = SpectralLinear(40, 40, False, n_U_reflectors=2, n_V_reflectors=3, dtype=torch.float64)
    a = layer.weight.detach().numpy().T
    assert np.linalg.matrix_rank(a) == 40
    diagonal = np.diag((layer.signs * sine_to_interval(layer.angles, 0.1, 1.0)).detach().numpy())
    assert np.linalg.matrix_rank(a - diagonal) <= 5
    symmetric = SymmetricSpectralLinear(40, 40, n_reflectors=2, dtype=torch.float64)
    assert (
        np.linalg.matrix_rank(
            symmetric.weight.detach().numpy() - np.diag(sine_to_interval(symmetric.angles, 0.1, 1.0).detach().numpy())
        )
        <= 4
    )


def test_few_reflectors_take_over_the_largest_singular_values():
    layer = SpectralLinear(
        20, 15, n_U_reflectors=3, n_V_reflectors=5, sigma_min=0.0, sigma_max=9.0, dtype=torch.float64
    )
    w = torch.randn(15, 20, dtype=torch.float64)
    layer.assign(w)
    u, s, vh = np.linalg.svd(w.numpy().T)
    core = u.T @ layer.weight.detach().numpy().T @ vh.T
    np.testing.assert_allclose(np.diag(core)[:3], s[:3], rtol=1e-10)
    np.testing.assert_allclose(core[:3, 3:], 0, atol=1e-10)
    np.testing.assert_allclose(core[3:, :3], 0, atol=1e-10)
    w = torch.eye(8, dtype=torch.float64) + 2 * torch.outer(torch.ones(8), torch.ones(8)).double() / 8
    symmetric = SymmetricSpectralLinear(8, 8, n_reflectors=1, sigma_max=5.0, dtype=torch.float64)
    assert symmetric.assign(w) < 1e-12


def test_stiefel_never_builds_the_square():
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.seen = max(self.seen, tensor.numel())
            return out

    for n, m in ((5000, 3), (3, 5000)):
        for cls in (StiefelLinear, SVDLinear, ContractiveLinear):
            with Largest() as largest:
                layer = cls(n, m)
                layer(torch.randn(2, n)).sum().backward()
                layer.weight.sum().backward()
                layer.assign(torch.randn(m, n))
            assert largest.seen <= 4 * 5000 * 3, (cls, largest.seen)


def test_stiefel_keeps_norms_or_projects():
    up = StiefelLinear(4, 9, False, dtype=torch.float64)
    x = torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(up(x).norm(dim=-1), x.norm(dim=-1))
    down = StiefelLinear(9, 4, False, dtype=torch.float64)
    y = torch.randn(7, 9, dtype=torch.float64)
    assert (down(y).norm(dim=-1) <= y.norm(dim=-1)).all()
    torch.testing.assert_close(down(x @ down.weight), x)  # onto: A Aᵀ is a projection


def test_the_lipschitz_certificate_holds_and_is_tight():
    for beings in (None, 3):
        for seed in range(5):
            layer = ContractiveLinear(12, 9, bound=0.7, beings=beings)
            layer.reset_parameters(seeds=seed if beings is None else [seed, seed + 9, seed + 50])
            certificate = layer.lipschitz_bound()
            assert certificate.shape == (() if beings is None else (3,))
            norms = np.array([np.linalg.norm(a, 2) for a in matrices(layer.weight)]).reshape(certificate.shape)
            found = certificate.detach().double().numpy()
            assert (norms <= found).all() and (found <= norms + 1e-4).all() and (found <= 0.7 * (1 + 2e-5)).all()
    certificate.sum().backward()
    assert layer.angles.grad.abs().max() > 0


def test_a_contraction_can_be_orthogonal():
    q = torch.linalg.qr(torch.randn(40, 40))[0]
    layer = ContractiveLinear(40, 40)
    assert layer.assign(q) < 1e-5


@pytest.mark.parametrize("p", [1, 2, math.inf, "fro"])
def test_bounded_norm_reaches_both_bounds_and_is_of_a_not_of_its_transpose(p):
    layer = BoundedNormLinear(5, 3, sigma_min=0.5, sigma_max=2.0, p=p, dtype=torch.float64)
    w = torch.randn(3, 5, dtype=torch.float64)
    for size, expected in ((1e-3, 0.5), (1.0, None), (1e3, 2.0)):
        layer.assign(size * w)
        found = np.linalg.norm(layer.weight.detach().numpy().T, p)
        given = np.linalg.norm(size * w.numpy().T, p)
        assert found == pytest.approx(np.clip(given, 0.5, 2.0) if expected is None else expected, rel=1e-12)
        assert np.corrcoef(layer.weight.detach().numpy().ravel(), w.numpy().ravel())[0, 1] > 1 - 1e-12
    with torch.no_grad():
        layer.direction.zero_()
    assert np.linalg.norm(layer.weight.detach().numpy().T, p) <= 2.0 + 1e-12
    layer.weight.sum().backward()
    assert torch.isfinite(layer.direction.grad).all() and (layer.direction.grad != 0).any()


def test_bounded_norm_starts_as_nn_linear_where_its_norm_is_admitted():
    layer = BoundedNormLinear(64, 64, sigma_max=5.0)
    assert torch.allclose(layer.weight, layer.direction, atol=1e-5)
    norm = BoundedNormLinear(64, 64).svdvals()[0].item()
    assert 0.95 < norm < 1.0


def test_trivial_null_space_is_equation_2():
    layer = TrivialNullSpaceLinear(3, 5, rank=2, epsilon=0.3, dtype=torch.float64)
    g, f = layer.root.detach().numpy(), layer.rest.detach().numpy()
    expected = np.vstack([g.T @ g + 0.3 * np.eye(3), f])  # of a column vector: W x
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected)
    x = torch.randn(100, 3, dtype=torch.float64)
    assert ((layer(x) - layer.bias).norm(dim=-1) >= 0.3 * x.norm(dim=-1)).all()


@pytest.mark.parametrize(("n", "m", "rank"), [(64, 64, None), (64, 256, None), (256, 300, 10), (8, 8, 1)])
def test_trivial_null_space_starts_at_the_scale_of_nn_linear(n, m, rank):
    layer = TrivialNullSpaceLinear(n, m, False, rank=rank)
    y = layer(torch.randn(2000, n))
    assert 0.3 < y.std().item() / 3**-0.5 < 2.0
    assert layer.svdvals()[0] < 12


def test_no_row_is_dead_after_an_assign():
    layer = TrivialNullSpaceLinear(4, 5)
    layer.assign(torch.zeros(5, 4))
    layer.weight.square().sum().backward()
    assert (layer.root.grad.abs().amax(-1) > 0).all()
    for w in (torch.zeros(5, 4), torch.outer(torch.ones(5), torch.ones(4))):
        low = LowRankLinear(4, 5, rank=3)
        low.assign(w)
        torch.testing.assert_close(low.weight, w, atol=1e-5, rtol=1e-5)
        (low.weight - torch.randn(5, 4)).square().sum().backward()
        assert (low.up.grad.abs().amax(-2) > 1e-6).all()


def test_low_rank_by_two_skinny_products():
    layer = LowRankLinear(30, 20, False, rank=4, dtype=torch.float64)
    w = np.random.default_rng(0).normal(size=(20, 30))
    moved = layer.assign(torch.from_numpy(w))
    s = np.linalg.svd(w, compute_uv=False)
    assert moved.item() == pytest.approx(np.sqrt((s[4:] ** 2).sum() / (s**2).sum()))  # Eckart and Young
    np.testing.assert_allclose(
        (layer.down @ layer.down.mT).detach(), (layer.up.mT @ layer.up).detach(), atol=1e-10
    )  # balanced
    x = torch.randn(3, 30, dtype=torch.float64)
    expected = x.numpy() @ layer.down.detach().numpy().T @ layer.up.detach().numpy().T
    np.testing.assert_allclose(layer(x).detach().numpy(), expected)
    y = LowRankLinear(400, 300, False, rank=20)(torch.randn(500, 400))
    assert y.std().item() == pytest.approx(3**-0.5, rel=0.2)
    assert (LowRankLinear(8, 8).down.shape[0], LowRankLinear(2, 9).down.shape[0]) == (2, 1)


# ---------------------------------------------------------------- completeness

RECOVER = [
    (StiefelLinear, 7, 3, {}),
    (StiefelLinear, 5, 5, {}),
    (BoundedNormLinear, 6, 5, {"p": 1}),
    (BoundedNormLinear, 6, 5, {"p": 2}),
    (BoundedNormLinear, 6, 5, {"p": math.inf}),
    (BoundedNormLinear, 6, 5, {"p": "fro"}),
    (TrivialNullSpaceLinear, 4, 6, {}),
    (LowRankLinear, 7, 5, {"rank": 2}),
    (SymmetricSpectralLinear, 4, 4, {}),
]
RECOVER_SLOWLY = [
    (SpectralLinear, 4, 7, {}),
    (SymmetricSpectralLinear, 6, 6, {}),
    (SVDLinear, 6, 6, {}),
    (SVDLinear, 7, 4, {}),
    (SVDLinearLearnBounds, 6, 6, {}),
    (SpectralLinear, 6, 6, {}),
    (SymmetricSVDLinear, 6, 6, {}),
    (ContractiveLinear, 6, 6, {}),
]


@pytest.mark.parametrize(
    ("cls", "n", "m", "options"),
    [*RECOVER, *(pytest.param(*row, marks=pytest.mark.slow) for row in RECOVER_SLOWLY)],
)
def test_optimization_recovers_a_random_member(cls, n, m, options):
    for seed in range(2):
        layer, other = (cls(n, m, False, dtype=torch.float64, **options) for _ in range(2))
        layer.reset_parameters(seeds=seed)
        other.reset_parameters(seeds=100 + seed)
        if hasattr(layer, "signs"):  # the same connected component
            layer.signs.copy_(other.signs)
        target = other.weight.detach()
        optimizer = torch.optim.LBFGS(
            layer.parameters(), max_iter=400, history_size=30, line_search_fn="strong_wolfe", tolerance_change=1e-14
        )

        def loss(layer=layer, target=target, optimizer=optimizer):
            optimizer.zero_grad()
            distance = (layer.weight - target).square().sum()
            distance.backward()
            return distance

        optimizer.step(loss)
        assert (layer.weight - target).norm() / target.norm() < 1e-3, seed


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("cls", [*SINGULAR, SymmetricSVDLinear, BoundedNormLinear])
@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 0.5), (-0.1, 1.0), (0.0, 0.0), (0.1, math.inf), (math.nan, 1.0), (0.1, math.nan)]
)
def test_impossible_intervals_are_refused(cls, low, high):
    with pytest.raises(ValueError, match=r"0 <= sigma_min <= sigma_max.* got sigma_min="):
        cls(4, 4, sigma_min=low, sigma_max=high)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SymmetricSpectralLinear(4, 4, sigma_min=2.0), "sigma_min <= sigma_max, .* sigma_min=2.0"),
        (lambda: SymmetricSpectralLinear(4, 4, sigma_min=-math.inf), "finite, .* sigma_min=-inf"),
        (lambda: SymmetricSVDLinear(4, 5), "square.* 4 and 5"),
        (lambda: SymmetricSpectralLinear(4, 5), "square.* 4 and 5"),
        (lambda: SpectralLinear(4, 5, n_U_reflectors=5), "n_U_reflectors must be at most 4, .* got 5"),
        (lambda: SpectralLinear(4, 5, n_V_reflectors=6), "n_V_reflectors must be at most 5, .* got 6"),
        (lambda: SpectralLinear(4, 5, n_V_reflectors=0), "n_V_reflectors must be a positive integer, got 0"),
        (lambda: SymmetricSpectralLinear(4, 4, n_reflectors=5), "n_reflectors must be at most 4, .* got 5"),
        (lambda: ContractiveLinear(4, 4, bound=0.0), "bound must be a finite number > 0, got 0.0"),
        (lambda: ContractiveLinear(4, 4, bound=math.nan), "bound must be a finite number > 0, got nan"),
        (lambda: BoundedNormLinear(4, 4, p=3), "p must be 1, 2, inf or 'fro', got 3"),
        (lambda: BoundedNormLinear(4, 4, p="nuc"), "p must be 1, 2, inf or 'fro', got 'nuc'"),
        (lambda: TrivialNullSpaceLinear(5, 4), r"out_features must be at least in_features=5 .*, got 4"),
        (lambda: TrivialNullSpaceLinear(4, 5, rank=5), "rank must be at most in_features=4, got 5"),
        (lambda: TrivialNullSpaceLinear(4, 5, epsilon=0.0), "epsilon must be a finite number > 0, got 0.0"),
        (lambda: LowRankLinear(4, 5, rank=5), "rank must be at most min.*=4, got 5"),
        (lambda: LowRankLinear(4, 5, rank=0), "rank must be a positive integer, got 0"),
    ],
)
def test_bad_options_are_refused_with_rule_and_fact(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("cls", LAYERS)
def test_matrices_that_are_not_finite_are_refused(cls):
    layer = cls(4, 4)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            layer.assign(torch.full((4, 4), bad))

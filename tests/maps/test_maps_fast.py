"""Maps with a fast product: the mathematics, against loops and NumPy."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from linnet import tolerance
from linnet.maps.block_diagonal import BlockDiagonalLinear
from linnet.maps.butterfly import ButterflyLinear
from linnet.maps.circulant import CirculantLinear
from linnet.maps.identity_init import IdentityInitLinear
from linnet.maps.kronecker import KroneckerLinear
from linnet.maps.monarch import MonarchLinear
from linnet.testing import cases, stressed
from support.promises_fast import PROMISES_FAST

Array = np.ndarray
F64 = torch.float64


CLASSES = [
    BlockDiagonalLinear,
    ButterflyLinear,
    CirculantLinear,
    IdentityInitLinear,
    KroneckerLinear,
    MonarchLinear,
]
CASES = [pytest.param(case, id=str(case)) for cls in CLASSES for case in cases(cls)]


def matrices(weight: torch.Tensor) -> list[Array]:
    w = weight.detach().double().numpy()
    return [one.T for one in w.reshape(-1, *w.shape[-2:])]


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].cls is not IdentityInitLinear])
def test_the_promise_by_an_independent_predicate(case):
    predicate = PROMISES_FAST[case.cls.__name__]
    for state, layer in stressed(case, torch.float32):
        for a in matrices(layer.weight):
            assert np.isfinite(a).all(), state
            assert predicate(a, layer) <= tolerance(torch.float32), state
    layer = case.layer(dtype=F64)
    for size in (1e-4, 1.0):
        w = layer.weight.detach() + size * case.matrix(dtype=F64)
        for found, a in zip(layer.violation(w).reshape(-1).tolist(), matrices(w), strict=True):
            truth = predicate(a, layer)
            assert truth > 1e-8 and truth / 100 <= found <= 100 * truth


def butterfly_loop(twiddle: Array, n: int, tied: bool, increasing: bool) -> Array:
    """The product of the factors, each written out as an n × n matrix."""
    bits, w = int(math.log2(n)), np.eye(n)
    for k in range(bits) if increasing else reversed(range(bits)):
        s, factor = 2**k, np.zeros((n, n), twiddle.dtype)
        for p in range(n):
            if not p & s:
                t = twiddle[s - 1 + p % s] if tied else twiddle[k, p // (2 * s) * s + p % s]
                factor[np.ix_([p, p | s], [p, p | s])] = t
        w = factor @ w
    return w


@pytest.mark.parametrize("n", [2, 4, 8, 32])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("complex", [True, False])
def test_butterfly_is_the_product_of_its_factors(n, tied, increasing, complex):
    parts = 1 + complex
    options = {"complex": complex, "tied_weight": tied, "increasing_stride": increasing}
    layer = ButterflyLinear(n * parts, n * parts, False, **options, dtype=F64)
    twiddle = layer.twiddle.detach()
    w = butterfly_loop((torch.view_as_complex(twiddle) if complex else twiddle).numpy(), n, tied, increasing)
    x = np.random.default_rng(0).normal(size=(5, n * parts))
    y = (x.view(np.complex128) @ w.T).view(float) if complex else x @ w.T
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy(), y, atol=1e-12)


@pytest.mark.parametrize("options", ButterflyLinear.examples())
@pytest.mark.parametrize("sizes", [(1, 1), (2, 6), (6, 2), (7, 9), (16, 12), (64, 64)])
def test_butterfly_matrices_are_found_exactly(options, sizes):
    options = {k: v for k, v in options.items() if not k.endswith("features")}
    parts = 2 if options.get("complex") else 1
    n, m = (parts * size for size in sizes)
    goal = ButterflyLinear(n, m, False, **options, dtype=F64)
    layer = ButterflyLinear(n, m, False, **options, dtype=F64)
    assert layer.assign(goal.weight) < 1e-10
    x = torch.randn(3, n, dtype=F64)
    torch.testing.assert_close(layer(x), goal(x))


def test_the_hadamard_and_the_fourier_matrix_are_butterflies():
    h = torch.from_numpy(scipy.linalg.hadamard(16)).double()
    assert ButterflyLinear(16, 16, dtype=F64).assign(h) < 1e-12
    reversed_bits = [int(f"{i:04b}"[::-1], 2) for i in range(16)]
    f = np.fft.fft(np.eye(16))[:, reversed_bits]  # the fast transform takes its input in bit-reversed order
    real = torch.from_numpy(np.kron(f.real, np.eye(2)) + np.kron(f.imag, [[0, -1], [1, 0]]))
    assert ButterflyLinear(32, 32, complex=True, dtype=F64).assign(real) < 1e-12


@pytest.mark.parametrize("options", [{}, {"tied_weight": False}, {"increasing_stride": False}, {"complex": True}])
@pytest.mark.parametrize("n", [4, 16, 256])
def test_ortho_init_starts_orthogonal(options, n):
    layer = ButterflyLinear(n, n, ortho_init=True, **options, dtype=F64)
    torch.testing.assert_close(layer.weight @ layer.weight.mT, torch.eye(n, dtype=F64))


@pytest.mark.parametrize("tied", [True, False])
def test_huge_factors_do_not_overflow(tied):
    layer = ButterflyLinear(1024, 1024, tied_weight=tied)
    with torch.no_grad():
        layer.twiddle.normal_(0, 1e4)
    y = layer(torch.randn(2, 1024))
    y.sum().backward()
    assert y.isfinite().all() and layer.twiddle.grad.isfinite().all() and layer.weight.isfinite().all()


def test_the_number_of_butterfly_parameters():
    assert ButterflyLinear(60, 50, bias=False).twiddle.numel() == 63 * 4
    assert ButterflyLinear(60, 50, bias=False, tied_weight=False).twiddle.numel() == 6 * 32 * 4


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9])
def test_circulant_is_scipys(n):
    layer = CirculantLinear(n, n, bias=False, dtype=F64)
    c = layer.kernel.detach().numpy()
    np.testing.assert_allclose(layer.weight.detach().numpy(), scipy.linalg.circulant(c))
    np.testing.assert_allclose(layer.svdvals().detach().numpy(), np.sort(np.abs(np.fft.fft(c)))[::-1], atol=1e-12)
    w = np.random.default_rng(n).normal(size=(n, n))
    layer.assign(torch.from_numpy(w))
    basis = np.stack([scipy.linalg.circulant(e).ravel() for e in np.eye(n)])
    expected = np.linalg.lstsq(basis.T, w.ravel(), rcond=None)[0]
    np.testing.assert_allclose(layer.kernel.detach().numpy(), expected, atol=1e-12)


def test_kronecker_is_numpys_and_its_nearest():
    layer = KroneckerLinear(12, 6, dtype=F64)
    assert layer.first.shape == (2, 3) and layer.second.shape == (3, 4)
    expected = np.kron(layer.first.detach().numpy(), layer.second.detach().numpy())
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected)
    w = np.random.default_rng(0).normal(size=(6, 12))
    rows = np.stack([w[i : i + 3, j : j + 4].ravel() for i in (0, 3) for j in (0, 4, 8)])
    moved = layer.assign(torch.from_numpy(w)).item() * np.linalg.norm(w)
    assert moved == pytest.approx(np.linalg.norm(np.linalg.svd(rows)[1][1:]), rel=1e-9)


def test_monarch_is_two_block_diagonals_and_a_permutation():
    layer = MonarchLinear(9, 9, bias=False, dtype=F64)
    r = scipy.linalg.block_diag(*layer.first.detach().numpy())
    q = scipy.linalg.block_diag(*layer.second.detach().numpy())
    p = np.eye(9)[[3 * i + j for j in range(3) for i in range(3)]]
    np.testing.assert_allclose(layer.weight.detach().numpy(), p @ q @ p.T @ r, atol=1e-12)


def test_monarch_assigns_the_nearest():
    layer, w = MonarchLinear(8, 6, blocks=2, dtype=F64), np.random.default_rng(0).normal(size=(6, 8))
    blocks = [w[q::2, 4 * k : 4 * k + 4] for q in range(2) for k in range(2)]
    lost = math.sqrt(sum((np.linalg.svd(b, compute_uv=False)[1:] ** 2).sum() for b in blocks))
    assert layer.assign(torch.from_numpy(w)).item() * np.linalg.norm(w) == pytest.approx(lost, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "b"), [(7, 5, 3), (6, 9, 3), (8, 8, 8), (5, 7, 1)])
def test_block_diagonal_is_scipys(n, m, b):
    layer = BlockDiagonalLinear(n, m, bias=False, blocks=b, dtype=F64)
    w = scipy.linalg.block_diag(
        *[
            e[: (k + 1) * m // b - k * m // b, : (k + 1) * n // b - k * n // b]
            for k, e in enumerate(layer.entries.detach().numpy())
        ]
    )
    np.testing.assert_allclose(layer.weight.detach().numpy(), w)
    x = np.random.default_rng(0).normal(size=(4, n))
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy(), x @ w.T, atol=1e-12)


def test_identity_init_starts_as_the_identity_and_is_free():
    layer = IdentityInitLinear(3, 5, beings=2)
    assert torch.equal(layer.weight, torch.eye(5, 3).expand(2, 5, 3)) and layer.entries.requires_grad
    w = torch.randn(2, 5, 3)
    assert (layer.assign(w) == 0).all()


@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize("cls", [c for c in CLASSES if c is not IdentityInitLinear])
def test_outputs_start_at_the_scale_of_nn_linear(cls, n):
    torch.manual_seed(0)
    layer, x = cls(n, n, False, beings=10), torch.randn(200, 1, n)
    assert layer(x).square().mean().item() == pytest.approx(1 / 3, rel=0.3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: CirculantLinear(3, 4), "square"),
        (lambda: ButterflyLinear(7, 6, complex=True), "even"),
        (lambda: MonarchLinear(4, 4, blocks=5), "at most"),
        (lambda: MonarchLinear(4, 4, blocks=0), "blocks"),
        (lambda: BlockDiagonalLinear(4, 2, blocks=3), "at most"),
        (lambda: KroneckerLinear(6, 4, factors=(4, 2)), "divide"),
        (lambda: KroneckerLinear(6, 4, factors=(3,)), "pair"),
        (lambda: KroneckerLinear(6, 4, factors=(0, 2)), "positive"),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("beings", [None, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("cls", "n", "options"),
    [
        (CirculantLinear, 1, {}),
        (CirculantLinear, 6, {}),
        (CirculantLinear, 7, {}),
        (BlockDiagonalLinear, 6, {"blocks": 2}),
        (BlockDiagonalLinear, 7, {"blocks": 3}),
        (BlockDiagonalLinear, 3, {"blocks": 3}),
        (KroneckerLinear, 6, {}),
        (KroneckerLinear, 6, {"factors": (3, 3)}),
        (KroneckerLinear, 7, {}),
    ],
)
def test_inverse_and_determinant_against_numpy(cls, n, options, bias, beings):
    torch.manual_seed(0)
    layer = cls(n, n, bias, **options, beings=beings, dtype=F64)
    for shape in ((5, n), (n,), (2, 5, n)) if beings is None else ((5, 3, n), (n,), (5, 1, n)):
        y = torch.randn(shape, dtype=F64)
        x = layer.inverse(y).detach().numpy()
        for i, a in enumerate(matrices(layer.weight)):
            own = y.numpy() if beings is None else np.broadcast_to(y.numpy(), x.shape)[..., i, :]
            b = 0 if layer.bias is None else layer.bias.detach().numpy().reshape(-1, n)[i]
            np.testing.assert_allclose(x if beings is None else x[..., i, :], (own - b) @ np.linalg.inv(a), atol=1e-8)
    found = layer.logabsdet()
    assert found.shape == layer.leading
    expected = [np.linalg.slogdet(a)[1] for a in matrices(layer.weight)]
    np.testing.assert_allclose(found.detach().numpy().reshape(-1), expected, atol=1e-10)
    found.sum().backward()
    layer.inverse(torch.randn(n, dtype=F64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_what_has_no_inverse():
    for layer in (BlockDiagonalLinear(4, 6), KroneckerLinear(4, 6), KroneckerLinear(6, 6, factors=(2, 3))):
        for call in (lambda layer=layer: layer.inverse(torch.zeros(layer.out_features)), layer.logabsdet):
            with pytest.raises(ValueError, match=r"An inverse and a determinant need .* got "):
                call()
    with pytest.raises(ValueError, match="The input must have shape"):
        CirculantLinear(4, 4).inverse(torch.zeros(3))
    layer = BlockDiagonalLinear(4, 4, blocks=2)
    layer.assign(torch.zeros(4, 4))
    assert layer.logabsdet() == -math.inf
    with pytest.raises(torch.linalg.LinAlgError):
        layer.inverse(torch.zeros(4))
    half = CirculantLinear(4, 4, dtype=torch.bfloat16)
    assert half.logabsdet().dtype == half.inverse(torch.zeros(4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].beings is None])
def test_optimization_recovers_a_random_member(case):
    goal = case.layer(1, bias=False, dtype=F64)
    best = math.inf
    for seed in range(2, 8):  # products of factors have saddle points
        layer = case.layer(seed, bias=False, dtype=F64)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def loss(layer=layer, optimizer=optimizer):
            optimizer.zero_grad()
            value = (layer.weight - goal.weight.detach()).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        best = min(best, float((layer.weight - goal.weight).detach().abs().max()))
        if best < 1e-3:
            break
    assert best < 1e-3

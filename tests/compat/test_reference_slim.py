"""The promises in the documentation of neuromancer.slim.linear as tests, sentence by sentence, in its order.

Every test runs on linnet's class ("native") and on the class of the same name in linnet.compat.slim ("slim"). The
predicates are NumPy's, in float64, on A of y = x A + b, after training towards a matrix that has no structure.
"""

import copy
import functools
import inspect
import io

import numpy as np
import pytest
import torch
from torch import nn

import linnet.compat.slim as slim
from linnet import LinearMap, catalogue, householder_product
from support.slim_page import PAGE, as_page

TOLERANCE = 2e-5
NATIVE = {cls.__name__: cls for cls in catalogue().values()}
both = pytest.mark.parametrize("kind", ["native", "slim"])

ABSTRACT = {
    "LinearBase": "insize, outsize, bias=False, provide_weights=True",
    "SquareLinear": "insize, outsize, bias=False, provide_weights=True, **kwargs",
}
SQUARE = {
    "DampedSkewSymmetricLinear",
    "GershgorinLinear",
    "OrthogonalLinear",
    "PSDLinear",
    "PowerBoundLinear",
    "SchurDecompositionLinear",
    "SkewSymmetricLinear",
    "SymmetricLinear",
    "SymmetricSVDLinear",
    "SymmetricSpectralLinear",
    "SymplecticLinear",
}
every = pytest.mark.parametrize("name", list(PAGE))


def build(kind, name, insize, outsize, bias=False, **options):
    if kind == "native":
        return NATIVE[name](insize, outsize, bias, **options)
    return getattr(slim, name)(insize, outsize, bias=bias, **options)


def inner(layer):
    """The linnet map."""
    return layer if isinstance(layer, LinearMap) else layer.linear


def effective(layer):
    return layer.weight.mT if isinstance(layer, LinearMap) else layer.effective_W()


def matrix(layer):
    return effective(layer).detach().double().numpy()


def penalty(layer):
    return layer.penalty() if isinstance(layer, LinearMap) else layer.reg_error()


def parts(layer):
    """B and C of A = B − C, (in, out)."""
    b, c = (part.detach().double().numpy() for part in (layer.B, layer.C))
    return b, c


@functools.cache
def trained(kind, name, insize, outsize, **options):
    """The layer after 40 steps towards noise of three times its size, with a large learning rate and weight decay."""
    torch.manual_seed(0)
    layer = build(kind, name, insize, outsize, **options)
    x, target, start = torch.randn(32, insize), 3 * torch.randn(insize, outsize), matrix(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        (layer(x) - x @ target).square().mean().backward()
        optimizer.step()
    assert np.abs(matrix(layer) - start).max() > 1e-3, "it has learned"
    return layer


def eigenvalues(a):
    return np.linalg.eigvals(a)


def singular_values(a):
    return np.linalg.svd(a, compute_uv=False)


def reflected(vectors):
    """H₁H₂⋯H_k, Hᵢ = I − 2vᵢvᵢᵀ/‖vᵢ‖², factor by factor."""
    product = np.eye(vectors.shape[1])
    for v in vectors.detach().double().numpy():
        product = product @ (np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v))
    return product


def between(values, low, high):
    return np.min(values) >= low - TOLERANCE * high and np.max(values) <= high * (1 + TOLERANCE)


# ------------------------------------------------------------------------------------------- names and signatures


@every
def test_the_constructor_is_the_page_s(name):
    signature, base = PAGE[name]
    cls = getattr(slim.linear, name)
    assert as_page(inspect.signature(cls)) == as_page(inspect.signature(eval(f"lambda {signature}: 0")))
    assert getattr(slim, name) is cls
    ancestors = {name, base, "LinearBase"}
    while base != "LinearBase":
        base = PAGE[base][1] if base in PAGE else "LinearBase"
        ancestors.add(base)
    assert {other for other in (*PAGE, *ABSTRACT) if issubclass(cls, getattr(slim, other))} == ancestors


@every
def test_the_options_of_the_native_class_are_the_page_s(name):
    own = inspect.signature(NATIVE[name]).parameters
    for option, kind, default in as_page(inspect.signature(eval(f"lambda {PAGE[name][0]}: 0"))):
        if option not in ("insize", "outsize", "bias") and kind is not inspect.Parameter.VAR_KEYWORD:
            assert own[option].default == default and type(own[option].default) is type(default)


@pytest.mark.parametrize("name", list(ABSTRACT))
def test_the_constructor_of_the_base_classes_is_the_page_s(name):
    cls = getattr(slim.linear, name)
    assert as_page(inspect.signature(cls)) == as_page(inspect.signature(eval(f"lambda {ABSTRACT[name]}: 0")))
    assert inspect.isabstract(cls) and issubclass(cls, nn.Module) and issubclass(cls, slim.LinearBase)


def test_the_functions_are_the_page_s():
    assert list(inspect.signature(slim.Hprod).parameters) == ["x", "u", "k"]
    assert issubclass(slim.IdentityGradReLU, torch.autograd.Function)
    assert list(inspect.signature(slim.IdentityGradReLU.forward).parameters) == ["ctx", "input"]
    assert list(inspect.signature(slim.IdentityGradReLU.backward).parameters) == ["ctx", "grad_output"]


# ------------------------------------------------------------------------------------------- sentence by sentence


@every
@both
@pytest.mark.parametrize("bias", [False, True])
def test_drop_in_replacement_for_nn_linear(kind, name, bias):
    sizes = (4, 4) if name in SQUARE else (4, 6)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, sizes[0]), build(kind, name, *sizes, bias=bias), nn.ReLU(), nn.Linear(sizes[1], 2))
    layer = net[1]
    assert (layer.in_features, layer.out_features) == sizes
    assert (layer.bias is not None) == bias and (not bias or layer.bias.shape == sizes[1:])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for shape in ((3,), (5, 3), (2, 5, 3), (2, 1, 5, 3), (0, 3)):
        optimizer.zero_grad()
        y = net(torch.randn(shape))
        assert y.shape == (*shape[:-1], 2)
        y.square().sum().backward()
        optimizer.step()
    net.eval()
    x = torch.randn(7, sizes[0])
    plain = nn.Linear(*sizes)
    with torch.no_grad():
        plain.weight.copy_(effective(layer).mT)
        plain.bias.copy_(layer.bias if bias else torch.zeros(sizes[1]))
        assert torch.allclose(layer(x), plain(x), atol=1e-5)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(net)
    for p in twin.parameters():
        nn.init.normal_(p)
    twin.load_state_dict(torch.load(file))
    assert torch.equal(twin(torch.ones(3)), net(torch.ones(3)))


NORMS = {
    1: lambda a: np.abs(a).sum(0).max(),
    2: lambda a: singular_values(a)[0],
    np.inf: lambda a: np.abs(a).sum(1).max(),
}


@both
@pytest.mark.parametrize("p", list(NORMS))
@pytest.mark.parametrize(("low", "high"), [(0.1, 1.0), (200.0, 300.0)])
def test_bounded_norm_sigma_min_le_norm_p_le_sigma_max(kind, p, low, high):
    layer = trained(kind, "BoundedNormLinear", 5, 7, p=p, sigma_min=low, sigma_max=high)
    assert between(NORMS[p](matrix(layer)), low, high)


@both
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("increasing", [True, False])
def test_butterfly_is_a_sparse_structured_map_a_product_of_butterfly_factors(kind, tied, increasing):
    layer = trained(kind, "ButterflyLinear", 16, 16, tied_weight=tied, increasing_stride=increasing)
    twiddle = inner(layer).twiddle.detach().double().numpy()
    assert twiddle.size == (4 * 15 if tied else 2 * 16 * 4)  # not 256
    w = np.eye(16)
    for k in range(4) if increasing else reversed(range(4)):
        s, factor = 2**k, np.zeros((16, 16))
        for pair in range(8):
            block, j = divmod(pair, s)
            t = twiddle[s - 1 + j] if tied else twiddle[k, pair]
            places = block * 2 * s + j + np.array([0, s])
            factor[np.ix_(places, places)] = t
        w = factor @ w
    assert np.abs(matrix(layer) - w.T).max() <= TOLERANCE * np.abs(w).max()


@both
def test_butterfly_with_ortho_init_starts_orthogonal(kind):
    torch.manual_seed(0)
    a = matrix(build(kind, "ButterflyLinear", 16, 16, ortho_init=True))
    assert np.abs(a.T @ a - np.eye(16)).max() <= TOLERANCE


@both
def test_damped_skew_symmetric_is_skew_symmetric_with_damping(kind):
    a = matrix(trained(kind, "DampedSkewSymmetricLinear", 6, 6))
    damping = -np.diag(a)
    assert np.ptp(damping) <= TOLERANCE and between(damping, 0.1, 0.5)
    s = a + damping.mean() * np.eye(6)
    assert np.abs(s + s.T).max() <= TOLERANCE * np.abs(a).max()
    assert between(-eigenvalues(a).real, 0.1, 0.5)  # x' = x A is damped


@both
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.5, 0.25)])
def test_gershgorin_constrains_eigenvalues_of_the_matrix(kind, low, high):
    values = eigenvalues(matrix(trained(kind, "GershgorinLinear", 6, 6, sigma_min=low, sigma_max=high)))
    assert np.abs(values.imag).max() <= TOLERANCE and values.real.min() >= low - TOLERANCE
    assert values.real.max() <= high + TOLERANCE
    center, radius = (low + high) / 2, (high - low) / 2
    a = matrix(trained(kind, "GershgorinLinear", 6, 6, sigma_min=low, sigma_max=high, real=False))
    assert np.abs(eigenvalues(a) - center).max() <= radius * (1 + TOLERANCE)
    assert np.abs(eigenvalues(a).imag).max() > 0.01  # which the others cannot


@both
@pytest.mark.parametrize("k", [1, 3, 5])
def test_hprod_matrix_multiply_via_householder_reflection(kind, k):
    rng = np.random.default_rng(k)
    x, u = rng.normal(size=(4, 5)), rng.normal(size=5)
    v = np.concatenate([np.zeros(5 - k), u[5 - k :]])
    h = np.eye(5) - 2 * np.outer(v, v) / (v @ v)
    if kind == "native":
        found = householder_product(torch.tensor(x), torch.tensor(v)[None])
    else:
        found = slim.Hprod(torch.tensor(x), torch.tensor(u), k)
    assert found.shape == (4, 5) and np.abs(found.numpy() - x @ h).max() < 1e-12


def test_identity_grad_relu_the_gradient_is_identity():
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0], requires_grad=True)
    y = slim.IdentityGradReLU.apply(x)
    assert y.tolist() == [0, 0, 0, 3]
    grad = torch.tensor([1.0, -2.0, 3.0, 4.0])
    y.backward(grad)
    assert torch.equal(x.grad, grad)


@both
@pytest.mark.parametrize("sizes", [(5, 5), (3, 5), (5, 3)])
def test_identity_init_linear_map_initialized_to_identity(kind, sizes):
    layer = build(kind, "IdentityInitLinear", *sizes, bias=kind == "slim")
    assert np.array_equal(matrix(layer), np.eye(*sizes))
    if kind == "slim":
        assert torch.equal(layer(torch.eye(sizes[0])), torch.eye(*sizes))
    assert np.abs(matrix(trained(kind, "IdentityInitLinear", *sizes)) - np.eye(*sizes)).max() > 0.1


@both
def test_identity_operation_compatible_with_all_linear_base_functionality(kind):
    layer = build(kind, "IdentityLinear", 4, 4, bias=kind == "slim")
    x = torch.randn(2, 3, 4)
    assert torch.equal(layer(x), x) and np.array_equal(matrix(layer), np.eye(4)) and float(penalty(layer)) == 0
    assert not any(p.requires_grad for p in layer.parameters())
    if kind == "slim":
        assert layer.eig().real.tolist() == [1] * 4 and layer.device.type == "cpu"


@both
def test_l0_regularization_for_the_input_units(kind):
    torch.manual_seed(0)
    layer = build(kind, "L0Linear", 8, 3, bias=True, weight_decay=0.0)
    target = torch.randn(8, 3).sign() + torch.randn(8, 3) / 10
    target[3:] = 0  # five inputs have no effect
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    before = float(penalty(layer).detach())
    for _ in range(400):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        ((layer(x) - x @ target).square().mean() + 0.005 * penalty(layer)).backward()
        optimizer.step()
    layer.eval()
    a = matrix(layer)
    assert (a[3:] == 0).all() and (a[:3] != 0).all(), "whole inputs are switched off"
    assert np.abs(a - target.numpy()).max() < 0.3
    assert 0 < float(penalty(layer).detach()) < before, "the penalty falls with the number of inputs in use"


@both
def test_l0_penalty_is_the_expected_number_of_entries(kind):
    torch.manual_seed(0)
    layer = build(kind, "L0Linear", 5, 4, bias=True, weight_decay=0.0, lamda=2.0, temperature=0.5)
    layer.train()
    rows = effective(layer)  # what the map does to a unit vector is a row of it, gate included
    assert rows.shape == (5, 4)
    gone = 0
    for _ in range(400):
        y = layer(torch.eye(5)) - layer.bias
        gone += int((y.detach().abs() <= 1e-7).all(-1).sum())
    expected = 2.0 * 4 * (5 - gone / 400)
    assert float(penalty(layer).detach()) == pytest.approx(expected, rel=0.05)


def test_l0_the_sampling_need_not_be_the_same_for_each_input_in_the_minibatch():
    torch.manual_seed(0)
    x = torch.ones(64, 6)
    for noise, distinct in (("batch", 1), ("sample", 64)):
        y = NATIVE["L0Linear"](6, 3, noise=noise)(x)
        assert len({tuple(row) for row in y.detach().tolist()}) == distinct


def test_l0_the_sampling_need_not_differ_for_each_call_in_a_recurrent_computation():
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    held = NATIVE["L0Linear"](6, 6, noise="held")
    first = held(x)
    assert torch.equal(held(x), first)
    held.resample()
    assert not torch.equal(held(x), first)
    drawn = slim.L0Linear(6, 6)
    assert not torch.equal(drawn(x), drawn(x))
    # slim.RNN draws one sample for a sequence: for a unit vector as input every step multiplies by the same matrix
    rnn = slim.RNN(6, 6, cell_args={"hidden_map": slim.L0Linear, "nonlin": nn.Identity(), "bias": False})
    silence = torch.zeros(3, 6, 6)
    output, _ = rnn(silence, torch.eye(6)[None])
    assert torch.allclose(output[1], output[0] @ output[0], atol=1e-5)
    assert not torch.equal(rnn(silence, torch.eye(6)[None])[0], output)


@both
@pytest.mark.parametrize("name", ["LassoLinear", "LassoLinearRELU"])
def test_lasso_shrinks_entries_to_exactly_zero(kind, name):
    torch.manual_seed(0)
    layer = build(kind, name, 8, 3, gamma=0.1)
    target = torch.randn(8, 3).sign()
    target[3:] = 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(200):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        ((layer(x) - x @ target).square().sum(-1).mean() / 2).backward()
        optimizer.step()
        inner(layer).prox(0.1)
    a = matrix(layer)
    assert (a[3:] == 0).mean() > 0.9 and np.abs(a - target.numpy()).max() < 0.2
    assert float(penalty(layer).detach()) == pytest.approx(0.1 * np.abs(a).sum(), rel=1e-5)


@both
def test_left_stochastic_each_column_sums_to_1(kind):
    for sizes in ((6, 6), (4, 7)):
        a = matrix(trained(kind, "LeftStochasticLinear", *sizes))
        assert a.min() >= 0 and np.abs(a.sum(0) - 1).max() <= TOLERANCE


@both
def test_linear_is_nn_linear_with_methods_returning_matrix_eigenvectors_eigenvalues_and_error(kind):
    torch.manual_seed(0)
    layer = build(kind, "Linear", 5, 5, bias=True)
    torch.manual_seed(0)
    plain = nn.Linear(5, 5)
    assert torch.equal(layer.weight, plain.weight) and torch.equal(layer.bias, plain.bias)
    x = torch.randn(3, 5)
    assert torch.equal(layer(x), plain(x))
    a = plain.weight.detach().double().numpy().T
    assert np.array_equal(matrix(layer), a) and float(penalty(layer)) == 0
    if kind == "slim":
        values, vectors = (found.detach().numpy() for found in layer.eig(eigenvectors=True))
        assert np.abs(a @ vectors - vectors * values).max() < 1e-5
        values = layer.eig().detach().numpy()
    else:
        values = layer.eigvals().detach().numpy()
    assert np.abs(np.sort_complex(values) - np.sort_complex(eigenvalues(a))).max() < 1e-5


@every
@both
def test_effective_w_has_shape_insize_outsize_and_is_the_matrix_used_in_the_product(kind, name):
    sizes = (4, 4) if name in SQUARE else (4, 6)
    torch.manual_seed(1)
    layer = build(kind, name, *sizes, bias=True).eval()
    a, x = matrix(layer), torch.randn(3, 4)
    assert a.shape == sizes
    expected = x.double().numpy() @ a + layer.bias.detach().double().numpy()
    assert np.abs(layer(x).detach().numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("name", sorted(SQUARE))
def test_eig_returns_eigenvalues_optionally_a_tuple_including_a_matrix_of_eigenvectors(name):
    torch.manual_seed(0)
    layer = build("slim", name, 4, 4)
    a, values = matrix(layer), layer.eig().detach().numpy()
    assert values.shape == (4,) and np.iscomplexobj(values)
    for exact in eigenvalues(a):
        assert np.abs(values - exact).min() < 1e-3
    values, vectors = (found.detach().numpy() for found in layer.eig(eigenvectors=True))
    assert vectors.shape == (4, 4) and np.abs(a @ vectors - vectors * values).max() < 1e-5


@both
def test_nonnegative_positive_parametrization(kind):
    a = matrix(trained(kind, "NonNegativeLinear", 5, 7))
    assert a.min() >= 0


@both
def test_orthogonal_parametrization_via_householder_reflection(kind):
    layer = trained(kind, "OrthogonalLinear", 6, 6)
    a = matrix(layer)
    assert np.abs(a.T @ a - np.eye(6)).max() <= TOLERANCE
    product = reflected(inner(layer).vectors)  # in which order the reflections act is not promised
    assert min(np.abs(np.abs(a @ p) - np.eye(6)).max() for p in (product, product.T)) <= TOLERANCE


@both
def test_psd_symmetric_positive_semidefinite(kind):
    a = matrix(trained(kind, "PSDLinear", 6, 6))
    assert np.abs(a - a.T).max() <= TOLERANCE * np.abs(a).max()
    assert np.linalg.eigvalsh((a + a.T) / 2).min() >= -TOLERANCE * np.linalg.norm(a, 2)


@both
@pytest.mark.parametrize(("low", "high"), [(0.8, 1.0), (0.2, 0.9)])
def test_perron_frobenius_dominant_eigenvalue_between_the_bounds(kind, low, high):
    a = matrix(trained(kind, "PerronFrobeniusLinear", 6, 6, sigma_min=low, sigma_max=high))
    assert a.min() >= 0 and between(np.abs(eigenvalues(a)).max(), low, high)
    assert between(
        matrix(trained(kind, "PerronFrobeniusLinear", 4, 7, sigma_min=low, sigma_max=high)).sum(1), low, high
    )


@both
@pytest.mark.parametrize("max_p", [1, 0.5])
def test_power_bound_constrained_spectral_radius(kind, max_p):
    a = matrix(trained(kind, "PowerBoundLinear", 6, 6, max_p=max_p, pwr_iters=20))
    assert np.abs(eigenvalues(a)).max() <= max_p * (1 + TOLERANCE)


@both
def test_right_stochastic_each_row_sums_to_1(kind):
    for sizes in ((6, 6), (4, 7)):
        a = matrix(trained(kind, "RightStochasticLinear", *sizes))
        assert a.min() >= 0 and np.abs(a.sum(1) - 1).max() <= TOLERANCE


@both
@pytest.mark.parametrize("sizes", [(6, 6), (4, 7), (7, 4)])
@pytest.mark.parametrize("name", ["SVDLinear", "SpectralLinear", "SVDLinearLearnBounds"])
def test_svd_u_sigma_v_with_orthogonal_factors_and_bounded_singular_values(kind, name, sizes):
    layer = trained(kind, name, *sizes)
    a, r = matrix(layer), min(sizes)
    assert between(singular_values(a), 0.1, 1.0)
    u, v = (reflected(vectors)[:, :r] for vectors in (inner(layer).u_vectors, inner(layer).v_vectors))
    core = u.T @ a @ v
    assert np.abs(core - np.diag(np.diag(core))).max() <= TOLERANCE
    assert np.abs(np.sort(np.abs(np.diag(core)))[::-1] - singular_values(a)).max() <= TOLERANCE
    assert float(penalty(layer)) == 0, "hard: there is nothing to penalize"


@both
def test_svd_the_constraint_bounds_eigenvalues(kind):
    values = np.abs(eigenvalues(matrix(trained(kind, "SVDLinear", 6, 6, sigma_min=0.2, sigma_max=0.7))))
    assert between(values, 0.2, 0.7)


@both
def test_svd_learn_bounds_stay_ordered(kind):
    low, high = (float(bound.detach()) for bound in inner(trained(kind, "SVDLinearLearnBounds", 6, 6)).bounds)
    s = singular_values(matrix(trained(kind, "SVDLinearLearnBounds", 6, 6)))
    assert 0.1 <= low <= high <= 1.0 and between(s, low, high)


@both
def test_schur_decomposition_of_a_non_normal_matrix_with_a_penalty_on_moduli(kind):
    layer = trained(kind, "SchurDecompositionLinear", 6, 6)
    a = matrix(layer)
    moduli = np.abs(eigenvalues(a))
    assert moduli.max() <= 1 + TOLERANCE
    assert np.abs(a @ a.T - a.T @ a).max() > 0.01, "not normal"
    assert penalty(layer).dim() == 0 and float(penalty(layer).detach()) >= 0
    at_start = build(kind, "SchurDecompositionLinear", 6, 6, l2=0.5)
    optimizer = torch.optim.Adam(at_start.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        penalty(at_start).backward()
        optimizer.step()
    assert np.abs(eigenvalues(matrix(at_start))).min() > 0.9, "the penalty draws the moduli to 1"


@both
def test_skew_symmetric_transpose_equals_negative(kind):
    a = matrix(trained(kind, "SkewSymmetricLinear", 6, 6))
    assert np.array_equal(a.T, -a)


@both
def test_spectral_via_householder_reflection_with_fewer_reflectors(kind):
    layer = trained(kind, "SpectralLinear", 6, 4, n_U_reflectors=2, n_V_reflectors=3, sigma_min=0.3, sigma_max=0.6)
    assert inner(layer).u_vectors.shape == (2, 6) and inner(layer).v_vectors.shape == (3, 4)
    assert between(singular_values(matrix(layer)), 0.3, 0.6)


@both
@pytest.mark.parametrize("name", ["SplitLinear", "StableSplitLinear"])
def test_split_a_equals_b_minus_c_nonnegative(kind, name):
    for sizes in ((6, 6), (4, 7)):
        layer = trained(kind, name, *sizes)
        b, c = parts(layer)
        assert b.shape == sizes and b.min() >= 0 and c.min() >= 0
        assert np.abs(matrix(layer) - (b - c)).max() <= TOLERANCE * max(b.max(), c.max())


@pytest.mark.parametrize("name", sorted(SQUARE))
@both
def test_square_assumes_a_square_matrix(kind, name):
    with pytest.raises(ValueError, match="3"):
        build(kind, name, 3, 5)


@both
def test_stable_split_with_stable_b_and_stable_c(kind):
    layer = trained(kind, "StableSplitLinear", 6, 6, sigma_min=0.1, sigma_max=0.8)
    for part in (*parts(layer), matrix(layer)):
        assert np.abs(eigenvalues(part)).max() <= 0.8 * (1 + TOLERANCE)


@both
def test_symmetric_equals_its_transpose(kind):
    a = matrix(trained(kind, "SymmetricLinear", 6, 6))
    assert np.array_equal(a, a.T)


@both
@pytest.mark.parametrize("name", ["SymmetricSVDLinear", "SymmetricSpectralLinear"])
def test_symmetric_svd_u_equals_v(kind, name):
    layer = trained(kind, name, 6, 6)
    a = matrix(layer)
    assert np.abs(a - a.T).max() <= TOLERANCE and between(singular_values(a), 0.1, 1.0)
    u = reflected(inner(layer).vectors)
    core = u.T @ a @ u
    assert np.abs(core - np.diag(np.diag(core))).max() <= TOLERANCE
    if name == "SymmetricSpectralLinear":
        assert between(np.linalg.eigvalsh((a + a.T) / 2), 0.1, 1.0)


@both
def test_symplectic_matrix_keeps_the_form(kind):
    a = matrix(trained(kind, "SymplecticLinear", 6, 6))
    j = np.block([[np.zeros((3, 3)), np.eye(3)], [-np.eye(3), np.zeros((3, 3))]])
    assert np.abs(a.T @ j @ a - j).max() <= TOLERANCE * max(1, np.linalg.norm(a, 2) ** 2)


@both
@pytest.mark.parametrize("rank", [None, 2])
def test_trivial_null_space(kind, rank):
    a = matrix(trained(kind, "TrivialNullSpaceLinear", 4, 7, rank=rank, epsilon=0.2))
    assert singular_values(a)[-1] >= 0.2 * (1 - TOLERANCE)
    x = np.random.default_rng(0).normal(size=(3, 4))
    assert np.abs(np.linalg.lstsq(a.T, (x @ a).T, rcond=None)[0].T - x).max() < 1e-8, "no input is lost"

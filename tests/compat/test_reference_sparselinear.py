"""The documentation of sparselinear as tests, sentence by sentence, in its order.

Every test runs on linnet's class ("native") and on the class of the same name in linnet.compat.sparselinear ("compat").
"""

import copy
import inspect
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import linnet
import linnet.compat.sparselinear as sl

KINDS = {"native": linnet, "compat": sl}
both = pytest.mark.parametrize("kind", KINDS)


def layer(kind: str, *args, **kwargs):
    return KINDS[kind].SparseLinear(*args, **kwargs)


def dense(m) -> np.ndarray:
    """W by a loop over the connections."""
    w = np.zeros((m.out_features, m.in_features))
    for (row, col), value in zip(m.indices.T.tolist(), m.values.tolist(), strict=True):
        w[row, col] += value
    return w


def train(m, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.01)
    for _ in range(steps):
        x = torch.randn(16, m.in_features, generator=generator)
        optimizer.zero_grad()
        m(x).square().sum().backward()
        optimizer.step()


# ---------------------------------------------------------------------- Project description


@both
def test_extremely_wide_and_sparse_linear_layers_efficiently(kind):
    m = layer(kind, 100_000, 100_000, sparsity=0.9999)
    assert m.values.numel() == 1_000_000
    stored = sum(t.numel() * t.element_size() for t in (*m.parameters(), *m.buffers()))
    assert stored < 20 * 1_000_000  # bytes; dense: 40 000 000 000
    y = m(torch.randn(2, 100_000))
    y.sum().backward()
    assert y.shape == (2, 100_000) and m.values.grad.shape == (1_000_000,)


@both
def test_each_node_is_connected_to_a_fraction_of_available_nodes(kind):
    m = layer(kind, 200, 300, sparsity=0.9)
    for unit, nodes, available in ((0, 300, 200), (1, 200, 300)):
        degree = torch.bincount(m.indices[unit], minlength=nodes)
        assert degree.min() >= 1 and degree.max() < available / 4


@both
def test_the_layer_and_the_activation_are_compatible_with_backpropagation(kind):
    module = KINDS[kind]
    net = nn.Sequential(module.SparseLinear(20, 30, sparsity=0.5), module.ActivationSparsity(), nn.Linear(30, 4))
    x = torch.randn(8, 20, requires_grad=True)
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (x, *net.parameters()))
    twin = net[0].double()
    x = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(twin, (x,), fast_mode=True)


@both
def test_the_sparse_linear_layer_is_initialized_with_sparsity(kind):
    for sparsity in (0.5, 0.9, 0.987):
        m = layer(kind, 64, 48, sparsity=sparsity)
        assert m.values.numel() == round((1 - sparsity) * 64 * 48) == m.indices.unique(dim=1).shape[1]


@both
def test_supports_unstructured_sparsity(kind):
    m = layer(kind, 40, 40)
    degree = torch.bincount(m.indices[0], minlength=40)
    assert degree.unique().numel() > 2  # no pattern of equal rows
    assert m.weight.to_dense().count_nonzero() == 160


@both
def test_allows_dynamic_growth_and_pruning(kind):
    m = layer(kind, 40, 40, dynamic=True, deltaT=2)
    before = set(map(tuple, m.indices.T.tolist()))
    train(m, 8)
    after = set(map(tuple, m.indices.T.tolist()))
    assert before - after and after - before and len(after) == len(before)


# ---------------------------------------------------------------------- More about SparseLinear


@both
def test_the_default_arguments_initialize_random_connections(kind):
    first, second = layer(kind, 30, 20), layer(kind, 30, 20)
    assert not torch.equal(first.indices, second.indices)
    torch.manual_seed(3)
    third = layer(kind, 30, 20)
    torch.manual_seed(3)
    assert torch.equal(third.indices, layer(kind, 30, 20).indices)


@both
def test_applies_a_linear_transformation_to_the_incoming_data(kind):
    m = layer(kind, 30, 20)
    x = torch.randn(7, 30)
    expected = x.numpy() @ dense(m).T + m.bias.detach().numpy()
    np.testing.assert_allclose(m(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_parameters_of_compat_are_those_of_the_page():
    signature = (
        "(in_features, out_features, bias=True, sparsity=0.9, connectivity=None, small_world=False, dynamic=False, "
        "deltaT=6000, Tend=150000, alpha=0.1, max_size=1e8)"
    )
    expected = inspect.signature(eval(f"lambda {signature[1:-1]}: 0"))
    found = inspect.signature(sl.SparseLinear)
    assert [(p.name, p.default, p.kind) for p in found.parameters.values()] == [
        (p.name, p.default, p.kind) for p in expected.parameters.values()
    ]
    own = inspect.signature(linnet.SparseLinear).parameters
    assert all(own[p.name].default == p.default for p in expected.parameters.values())
    found = inspect.signature(sl.ActivationSparsity)
    assert str(found).replace(": float", "").replace(" = ", "=").startswith("(alpha=0.1, beta=1.5, act_sparsity=0.65)")
    own = inspect.signature(linnet.ActivationSparsity).parameters
    assert [own[name].default for name in ("alpha", "beta", "act_sparsity")] == [0.1, 1.5, 0.65]


@both
def test_in_features_and_out_features_are_the_sizes_of_the_samples(kind):
    m = layer(kind, 17, 23, sparsity=0.5)
    assert (m.in_features, m.out_features) == (17, 23) and m(torch.randn(2, 17)).shape == (2, 23)
    with pytest.raises(ValueError, match="in_features=17"):
        m(torch.randn(2, 16))


@both
def test_bias_false_learns_no_additive_bias(kind):
    m = layer(kind, 17, 23, bias=False)
    assert m.bias is None and not m(torch.zeros(2, 17)).any()
    assert layer(kind, 17, 23).bias.requires_grad
    assert layer(kind, 17, 23, False).bias is None


@both
def test_sparsity_is_that_of_the_weight_matrix(kind):
    m = layer(kind, 100, 50, sparsity=0.8)
    assert float((m.weight.to_dense() == 0).double().mean()) == 0.8 == m.sparsity
    assert layer(kind, 100, 50).sparsity == 0.9
    for wrong in (1.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="sparsity must lie"):
            layer(kind, 100, 50, sparsity=wrong)


@both
def test_connectivity_is_a_user_defined_sparsity_matrix(kind):
    pairs = torch.tensor([[0, 2, 1, 2], [1, 0, 3, 3]])
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[tuple(pairs)] = True
    for connectivity in (pairs, pairs[:, [2, 0, 3, 1]], mask):
        m = layer(kind, 4, 3, connectivity=connectivity)
        assert sorted(map(tuple, m.indices.T.tolist())) == sorted(map(tuple, pairs.T.tolist()))


@both
def test_small_world_is_a_boolean_flag(kind):
    m = layer(kind, 60, 60, small_world=True)
    assert m.small_world is True and layer(kind, 60, 60).small_world is False
    assert m.values.numel() == 360
    with pytest.raises(ValueError, match="Either connectivity or small_world"):
        layer(kind, 4, 3, small_world=True, connectivity=torch.tensor([[0], [1]]))


@both
def test_dynamic_is_a_boolean_flag(kind):
    m = layer(kind, 40, 40, dynamic=False)
    before = m.indices
    train(m, 5)
    assert torch.equal(m.indices, before) and m.dynamic is False


@both
def test_delta_t_is_the_frequency_of_the_update_step(kind):
    m = layer(kind, 40, 40, dynamic=True, deltaT=3, alpha=0.5)
    changed = []
    for step in range(1, 13):
        before = m.indices
        train(m, 1, seed=step)
        if not torch.equal(m.indices, before):
            changed.append(step)
    assert changed == [3, 6, 9, 12]


@both
def test_t_end_is_the_stopping_time_of_the_update_step(kind):
    m = layer(kind, 40, 40, dynamic=True, deltaT=1, Tend=5, alpha=0.5)
    train(m, 5)
    before = m.indices
    train(m, 5)
    assert torch.equal(m.indices, before)


@both
def test_alpha_is_the_f_decay_parameter_of_cosine_updates(kind):
    # f(t) = alpha / 2 (1 + cos(pi t / Tend)) of the connections are exchanged
    m = layer(kind, 60, 60, sparsity=0.5, dynamic=True, deltaT=1, Tend=20, alpha=0.4)
    for t in range(1, 20):
        weakest = m.values.detach().abs().sort().values
        k = int(0.2 * (1 + math.cos(math.pi * t / 20)) * 1800)
        kept = set(m.cells()[m.values.detach().abs() > (weakest[k - 1] if k else -1)].tolist())
        train(m, 1, seed=t)
        now = set(m.cells().tolist())
        assert kept <= now and len(now) == 1800


@both
def test_max_size_is_the_number_of_entries_before_chunking_occurs(kind):
    whole = layer(kind, 40, 50, dynamic=True, deltaT=1)
    pieces = layer(kind, 40, 50, dynamic=True, deltaT=1, max_size=100)
    pieces.load_state_dict(whole.state_dict())
    for m in (whole, pieces):
        train(m, 4)
    assert torch.equal(whole.indices, pieces.indices) and torch.equal(whole.values, pieces.values)


@both
@pytest.mark.parametrize("lead", [(5,), (5, 2), (5, 2, 3), (0,), (5, 0)])
def test_shape_all_but_the_last_dimension_are_the_same(kind, lead):
    m = layer(kind, 12, 9)
    x = torch.randn(*lead, 12)
    y = m(x)
    assert y.shape == (*lead, 9)
    np.testing.assert_allclose(y.detach(), x.numpy() @ dense(m).T + m.bias.detach().numpy(), rtol=1e-4, atol=1e-5)


@both
def test_weight_has_shape_out_features_in_features_and_is_learnable(kind):
    m = layer(kind, 12, 9)
    assert m.weight.shape == (9, 12) and m.weight.is_sparse
    np.testing.assert_allclose(m.weight.detach().to_dense(), dense(m), rtol=1e-6)
    before = m.weight.to_dense().detach().clone()
    train(m, 3)
    assert not torch.equal(m.weight.to_dense(), before)


@both
def test_bias_has_shape_out_features(kind):
    m = layer(kind, 12, 9)
    assert m.bias.shape == (9,) and isinstance(m.bias, nn.Parameter)


@both
def test_the_values_are_initialized_from_a_uniform_distribution(kind):
    # the page's formula is U(-sqrt(k), sqrt(k)) with k one over the fan-in: here that of the connections that exist
    m = layer(kind, 400, 300, sparsity=0.5)
    fan_in = torch.bincount(m.indices[0], minlength=300)
    scaled = m.values.detach() * fan_in[m.indices[0]].sqrt()
    assert scaled.abs().max() <= 1 and abs(float(scaled.mean())) < 0.02
    assert abs(float(scaled.std()) - 3**-0.5) < 0.01
    assert m.bias.abs().max() <= 400**-0.5


def test_the_example_of_the_page():
    nn.SparseLinear = sl.SparseLinear
    try:
        m = nn.SparseLinear(20, 30)
        input = torch.randn(128, 20)
        output = m(input)
        assert output.size() == torch.Size([128, 30])
    finally:
        del nn.SparseLinear


# ---------------------------------------------------------------------- User-defined Sparsity


@both
def test_the_connectivity_flag_accepts_a_long_tensor_of_rows_and_columns(kind):
    rows, cols = torch.tensor([4, 0, 2, 2]), torch.tensor([1, 2, 0, 1])
    m = layer(kind, 3, 5, connectivity=torch.stack([rows, cols]))
    w = dense(m)
    assert w.shape == (5, 3) and set(zip(*np.nonzero(w), strict=True)) == {(4, 1), (0, 2), (2, 0), (2, 1)}
    again = torch.tensor([[0, 4, 0], [1, 2, 1]])
    if kind == "compat":  # the package's notebook draws pairs at random, so some come twice
        assert layer(kind, 3, 5, connectivity=again).indices.tolist() == [[0, 4], [1, 2]]
    else:
        with pytest.raises(ValueError, match="given once"):
            layer(kind, 3, 5, connectivity=again)
    for wrong, message in (
        (torch.tensor([[5], [0]]), "output indices must lie"),
        (torch.tensor([[0], [3]]), "input indices must lie"),
        (torch.tensor([[0.0], [1.0]]), "LongTensor"),
        (torch.empty(2, 0, dtype=torch.long), "must have a connection"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(kind, 3, 5, connectivity=wrong)


@both
def test_self_defined_sparsity_is_static(kind):
    m = layer(kind, 3, 5, connectivity=torch.tensor([[0, 1, 4], [0, 1, 2]]))
    before = m.indices
    train(m, 5)
    m.reset_parameters()
    assert torch.equal(m.indices, before)


# ---------------------------------------------------------------------- Small-world Sparsity


@both
def test_connections_are_distance_dependent(kind):
    m = layer(kind, 300, 300, sparsity=0.95, small_world=True)
    row, col = m.indices
    distance = (row - col).abs()
    near, far = (distance <= 10).double().mean(), (distance > 150).double().mean()
    uniform = layer(kind, 300, 300, sparsity=0.95).indices
    near_uniform = ((uniform[0] - uniform[1]).abs() <= 10).double().mean()
    assert near > 3 * near_uniform and far > 0


def test_small_world_behavior():
    from linnet.sparse.metrics import small_world

    generator = torch.Generator().manual_seed(0)
    m = linnet.SparseLinear(300, 300, sparsity=0.98, small_world=True, generator=generator)
    found = small_world(m, generator=generator)
    assert found.sigma > 1.5 and found.path_length < 1.2 * found.random_path_length


@both
def test_the_default_static_sparsity_is_random(kind):
    m = layer(kind, 300, 300, sparsity=0.95)
    row, col = m.indices
    assert abs(float((row - col).abs().double().mean()) - 100) < 10  # a third of the size


# ---------------------------------------------------------------------- Dynamic Growing and Pruning Algorithm


@both
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_units_grow_and_are_pruned_during_training_starting_from_a_sparse_configuration(kind, optimizer):
    m = layer(kind, 40, 40, dynamic=True, deltaT=2, alpha=0.3)
    made = getattr(torch.optim, optimizer)(m.parameters(), lr=0.01)
    parameter, before = m.values, m.indices
    for i in range(6):
        made.zero_grad()
        m(torch.randn(8, 40)).square().sum().backward()
        made.step()
        assert m.values is parameter and m.indices.unique(dim=1).shape[1] == 160, i
    assert not torch.equal(m.indices, before)
    still = m.values.detach().clone()
    made.zero_grad()
    m(torch.randn(8, 40)).square().sum().backward()
    made.step()
    assert (m.values != still).all()  # all weights still learn, as they did not in the package


@both
def test_the_implementation_is_based_on_rigging_the_lottery(kind):
    m = layer(kind, 12, 10, sparsity=0.5, dynamic=True, deltaT=1, Tend=100, alpha=0.5).double()
    x, g = torch.randn(6, 12, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    k = int(0.25 * (1 + math.cos(math.pi / 100)) * 60)
    order = m.values.detach().abs().argsort(descending=True)
    kept = set(m.cells()[order[: 60 - k]].tolist())
    slope = (g.T @ x).abs().flatten()
    grown = [c for c in slope.argsort(descending=True).tolist() if c not in kept][:k]
    old = dict(zip(m.cells().tolist(), m.values.tolist(), strict=True))
    m(x).backward(g)
    torch.optim.SGD(m.parameters(), lr=0.1).step()
    now = dict(zip(m.cells().tolist(), m.values.tolist(), strict=True))
    assert set(now) == kept | set(grown)
    assert now == {c: old.get(c, 0.0) for c in now}


# ---------------------------------------------------------------------- Dynamic Activation Sparsity


@both
def test_alpha_is_used_in_updating_the_duty_cycle(kind):
    asy = KINDS[kind].ActivationSparsity(alpha=0.25, act_sparsity=0.5)
    asy(torch.tensor([[4.0, 3, 2, 1]]))
    assert asy.duty_cycle.tolist() == [0.25, 0.25, 0, 0]
    asy(torch.tensor([[9.0, 0, 8, 1], [9, 0, 1, 8]]))
    np.testing.assert_allclose(asy.duty_cycle, [0.25 * 0.75 + 0.25, 0.25 * 0.75, 0.125, 0.125], rtol=1e-6)


@both
def test_beta_boosts_neurons_not_activated_in_the_previous_duty_cycle(kind):
    for beta, expected in ((0.0, [1, 1, 0, 0]), (5.0, [0, 0, 1, 1])):
        asy = KINDS[kind].ActivationSparsity(alpha=0.9, beta=beta, act_sparsity=0.5)
        asy(torch.tensor([[2.0, 2, 1, 1]]))
        assert (asy(torch.tensor([[2.0, 2, 1.5, 1.5]])) != 0).int().tolist() == [expected]


@both
def test_act_sparsity_is_the_fraction_used_in_calculating_k(kind):
    for act_sparsity, n in ((0.65, 20), (0.9, 10), (0.5, 7), (0.0, 5)):
        asy = KINDS[kind].ActivationSparsity(act_sparsity=act_sparsity)
        k = math.floor((1 - act_sparsity) * n + 1e-9)
        assert (asy(torch.rand(6, n) + 1) != 0).sum(-1).tolist() == [k] * 6


@both
@pytest.mark.parametrize("shape", [(4, 10), (4, 3, 10), (4, 2, 3, 10)])
def test_the_output_has_the_shape_of_the_input(kind, shape):
    asy, x = KINDS[kind].ActivationSparsity(), torch.randn(shape)
    y = asy(x)
    assert y.shape == x.shape and ((y == x) | (y == 0)).all()


def test_the_example_of_activation_sparsity():
    asy = sl
    x = asy.ActivationSparsity(10)
    input = torch.randn(3, 10)
    output = x(input)
    assert output.shape == (3, 10) and (output != 0).sum(-1).tolist() == [3, 3, 3]
    with pytest.raises(ValueError, match="10"):
        x(torch.randn(3, 11))


# ---------------------------------------------------------------------- what works there and must go on working


@both
def test_copies_pickles_and_state_dicts(kind):
    m = layer(kind, 30, 20, dynamic=True, deltaT=2)
    train(m, 3)
    x = torch.randn(4, 30)
    buffer = io.BytesIO()
    torch.save(m.state_dict(), buffer)
    buffer.seek(0)
    fresh = layer(kind, 30, 20, dynamic=True, deltaT=2)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), fresh):
        assert torch.equal(other(x), m(x)) and int(other.step) == 3


def test_attributes_of_the_package():
    m = sl.SparseLinear(30, 20, alpha=0.3, deltaT=7)
    assert isinstance(m.weights, nn.Parameter) and m.weights is m.values and m.weights.shape == (60,)
    assert m.indices.shape == (2, 60) and m.indices.dtype == torch.int64
    assert (m.deltaT, m.Tend, m.alpha, m.max_size) == (7, 150000, 0.3, 1e8)
    assert m.weight.coalesce().values().shape == (60,)
    assert type(copy.deepcopy(m)) is sl.SparseLinear
    plain = nn.Linear(5, 4, dtype=torch.float64)
    taken = sl.SparseLinear.from_linear(plain, sparsity=0.5)
    assert taken.values.dtype == torch.float64 and torch.equal(taken.bias, plain.bias)

"""constrain(): the maps on tensors of other modules."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import linnet
from linnet import NonNegativeLinear, OrthogonalLinear, SparseLinear, StiefelLinear, SVDLinear, constrain
from linnet.testing import cases
from support.promises import PROMISES

LAYERS = {name: cls for name, cls in linnet.catalogue().items() if cls.__module__.startswith("linnet.")}


def train(module, x, steps=5):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        y = module(x)
        (y if isinstance(y, torch.Tensor) else y[0]).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "sparse"])
def test_every_map_on_an_nn_linear(name):
    case = next(iter(cases(LAYERS[name])))
    plain = nn.Linear(case.in_features, case.out_features, dtype=torch.float64)
    expected = case.cls.from_linear(copy.deepcopy(plain), **case.options)
    constrain(plain, "weight", case.cls, **case.options)
    torch.testing.assert_close(plain.eval().weight, expected.weight)
    plain.train()
    if any(p.requires_grad for p in plain.parametrizations.parameters()):
        train(plain, torch.randn(8, case.in_features, dtype=torch.float64))
    layer = plain.parametrizations.weight[0].map
    if case.cls.hard and case.cls.promise != "none":
        assert PROMISES[case.cls.__name__](plain.weight.mT.detach().numpy(), layer) <= linnet.tolerance(torch.float64)


@pytest.mark.parametrize(("kind", "blocks"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_the_recurrent_matrices_of_torch(kind, blocks):
    net = kind(3, 6, batch_first=True)
    constrain(net, "weight_hh_l0", OrthogonalLinear, blocks=blocks)
    x = torch.randn(2, 5, 3)
    before = net(x)[0]
    train(net, x)
    assert not torch.equal(before, net(x)[0])
    for w in net.weight_hh_l0.detach().double().numpy().reshape(blocks, 6, 6):
        assert np.abs(w @ w.T - np.eye(6)).max() < 1e-5
    plain = kind(3, 6, batch_first=True)  # a net that owns the matrix computes the same
    plain.load_state_dict({name: getattr(net, name).detach() for name in plain.state_dict()})
    torch.testing.assert_close(net(x)[0], plain(x)[0])
    net = net.double()
    assert net(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolution_kernels_are_flattened(kind):
    conv = constrain(kind(2, 5, 3), "weight", StiefelLinear)
    train(conv, torch.randn(4, 2, *[6] * (conv.weight.dim() - 2)))
    w = conv.weight.detach().double().reshape(5, -1).numpy()  # (out, rest)
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    assert np.abs(gram - np.eye(len(gram))).max() < 1e-5


def test_the_value_is_taken_and_so_are_later_ones():
    plain = nn.Linear(4, 4)
    with torch.no_grad():
        plain.weight.abs_()
    old = plain.weight.detach().clone()
    constrain(plain, "weight", NonNegativeLinear)
    torch.testing.assert_close(plain.weight, old)
    plain.weight = torch.full((4, 4), 0.25)
    torch.testing.assert_close(plain.weight, torch.full((4, 4), 0.25))
    plain.weight = -torch.ones(4, 4)
    assert (plain.weight >= 0).all()


def test_the_rest_of_linnet_sees_the_map():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    constrain(model[0], "weight", linnet.LassoLinear, gamma=2.0)
    constrain(model[1], "weight_hh_l0", OrthogonalLinear, blocks=4)
    torch.testing.assert_close(linnet.penalty(model), 2 * model[0].weight.abs().sum())
    assert linnet.violation(model) < 1e-5
    decaying, rest = linnet.param_groups(model, 0.1)
    assert model[0].parametrizations.weight[0].map.entries is decaying["params"][0]
    assert any(p is model[1].parametrizations.weight_hh_l0[0].map.vectors for p in rest["params"])


def test_w_is_computed_once_where_it_is_frozen(monkeypatch):
    made, build = [], OrthogonalLinear._weight
    cell = constrain(nn.RNNCell(3, 6), "weight_hh", OrthogonalLinear)
    monkeypatch.setattr(OrthogonalLinear, "_weight", lambda self, **raw: made.append(1) or build(self, **raw))
    h = torch.zeros(2, 6)
    with linnet.frozen(cell):
        for x in torch.randn(10, 2, 3):
            h = cell(x, h)
    h.sum().backward()
    assert len(made) == 1 and cell.parametrizations.weight_hh[0].map.vectors.grad.abs().sum() > 0


def test_the_way_out():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    constrain(model[0], "weight", SVDLinear)
    x = torch.randn(2, 2, 6, 6)
    train(model, x)
    baked = linnet.bake(model)
    assert list(baked.state_dict()) == ["0.bias", "0.weight", "2.weight", "2.bias"]
    torch.testing.assert_close(baked(x), model(x))
    assert nn.utils.parametrize.is_parametrized(model[0])
    lstm = constrain(nn.LSTM(3, 4), "weight_hh_l0", OrthogonalLinear, blocks=4)
    x = torch.randn(5, 2, 3)
    expected = lstm(x)[0]
    for _ in range(2):
        torch.testing.assert_close(linnet.bake(lstm)(x)[0], expected)
    assert type(linnet.bake(lstm)) is nn.LSTM
    pickle.loads(pickle.dumps(linnet.bake(lstm)))
    plain = nn.Bilinear(3, 3, 4)
    nn.utils.parametrize.register_parametrization(plain, "bias", nn.Softplus())
    plain.weight = nn.Parameter(torch.randn(4, 9))
    constrain(plain, "weight", StiefelLinear)  # beside a parametrization that is not ours
    baked = linnet.bake(plain)
    torch.testing.assert_close(baked.weight, plain.weight)
    torch.testing.assert_close(baked.bias, plain.bias)
    assert list(baked.parametrizations) == ["bias"] and len(plain.parametrizations) == 2


def test_saving_goes_through_the_state_dict():
    def build():
        return constrain(nn.LSTM(3, 4), "weight_hh_l0", OrthogonalLinear, blocks=4)

    first, second, x = build(), build(), torch.randn(5, 2, 3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x)[0], second(x)[0])
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(first)


def test_vmap_and_functional_call():
    model, x = constrain(nn.Linear(4, 4), "weight", OrthogonalLinear), torch.randn(3, 4)
    others = [constrain(nn.Linear(4, 4), "weight", OrthogonalLinear) for _ in range(3)]
    states = [other.state_dict() for other in others]  # torch's own helper wants one class, parametrize makes many
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    found = torch.func.vmap(lambda state: torch.func.functional_call(model, state, (x,)))(stacked)
    torch.testing.assert_close(found, torch.stack([other(x) for other in others]))
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_a_buffer_and_a_frozen_parameter_stay_without_gradient():
    module = nn.Linear(3, 3).requires_grad_(False)
    constrain(module, "weight", OrthogonalLinear)
    assert not any(p.requires_grad for p in module.parameters()) and not module.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("wight", OrthogonalLinear), {}, r"module's own tensors \(weight, bias\), got 'wight'"),
        (("bias", OrthogonalLinear), {}, r"bias must have at least 2 axes, .* got shape \(6,\)"),
        (("weight", OrthogonalLinear), {}, "in_features must equal out_features, got 3 and 6"),
        (("weight", OrthogonalLinear), {"blocks": 4}, r"weight must have .*divisible by blocks=4, got shape \(6, 3\)"),
        (("weight", OrthogonalLinear), {"blocks": 0}, "blocks must be a positive integer, got 0"),
        (("weight", SparseLinear), {}, "must be dense, got SparseLinear"),
    ],
)
def test_mistakes_are_named(arguments, options, message):
    module = nn.Linear(3, 6)
    with pytest.raises(ValueError, match=message):
        constrain(module, *arguments, **options)
    assert not nn.utils.parametrize.is_parametrized(module)


def test_more_mistakes():
    module = constrain(nn.Linear(3, 3), "weight", OrthogonalLinear)
    with pytest.raises(ValueError, match="weight is parametrized already; a tensor can be constrained only once"):
        constrain(module, "weight", SVDLinear)
    with pytest.raises(TypeError, match="cls must be a LinearMap class"):
        constrain(nn.Linear(3, 3), "weight", nn.Linear)
    with pytest.raises(TypeError, match="sigma"):
        constrain(nn.Linear(3, 3), "weight", OrthogonalLinear, sigma=1)
    with pytest.raises(ValueError, match="finite"):
        module.weight = torch.full((3, 3), torch.nan)


def test_a_map_with_noise_is_sampled_at_every_reading():
    module = constrain(nn.Linear(8, 4), "weight", linnet.L0Linear)
    assert not torch.equal(module.weight, module.weight)
    assert torch.equal(module.eval().weight, module.weight)
    with pytest.raises(ValueError, match=r"one matrix; L0Linear.*one for every sample"):
        constrain(nn.Linear(8, 4), "weight", linnet.L0Linear, noise="sample")


def test_on_the_meta_device():
    module = constrain(nn.Linear(4, 4, device="meta"), "weight", OrthogonalLinear)
    module = module.to_empty(device="cpu")
    module.parametrizations.weight[0].map.reset_parameters()
    w = module.weight.detach().double().numpy()
    assert np.abs(w @ w.T - np.eye(4)).max() < 1e-5


@pytest.mark.parametrize("option", ["beings", "bias", "device", "dtype"])
def test_what_the_tensor_decides_is_no_option(option):
    with pytest.raises(TypeError, match=rf"determines bias, beings \(by blocks=\), .*; remove the option {option}"):
        constrain(nn.Linear(4, 4), "weight", OrthogonalLinear, **{option: 2})

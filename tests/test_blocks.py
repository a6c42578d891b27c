import functools

import pytest
import torch
from torch import nn

from linnet import MLP, Linear, OrthogonalLinear, Spread, SymmetricLinear, catalogue


def test_the_default_is_the_mlp_of_the_textbook():
    net = MLP(input_size=20, hidden_size=256, output_size=10)
    assert [type(m) for m in net] == [Linear, nn.ReLU, Linear]
    assert net(torch.rand(2, 20)).shape == (2, 10)
    assert net.carriers == 2


def test_it_is_drawn_and_computed_as_nn_linear_would():
    torch.manual_seed(0)
    net = MLP(20, 32, 10, depth=3)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    x = torch.randn(4, 20)
    assert torch.equal(net(x), plain(x))
    plain.load_state_dict(net.state_dict())


@pytest.mark.parametrize("layer", ["orthogonal", OrthogonalLinear, functools.partial(OrthogonalLinear, reflectors=3)])
def test_a_square_layer_goes_from_hidden_to_hidden(layer):
    net = MLP(20, 32, 10, depth=4, layer=layer)
    assert [type(m) for m in net[::2]] == [Linear, OrthogonalLinear, OrthogonalLinear, Linear]
    assert net.carriers == 2
    with pytest.raises(ValueError, match="depth must be at least 3"):
        MLP(20, 32, 10, layer=layer)


@pytest.mark.parametrize("layer", list(catalogue()))
@pytest.mark.parametrize("beings", [None, 3])
def test_every_layer_fits(layer, beings):
    net = MLP(6, 8, 8, depth=3, layer=layer, beings=beings)  # sizes that every class admits
    x = torch.randn(4, 6)
    y = net(x) if beings is None else nn.Sequential(Spread(), net)(x)
    assert y.shape == (4, 8) if beings is None else (4, 3, 8)
    y.sum().backward()
    assert net.carriers == (1 if catalogue()[layer].square else 3)


def test_nn_linear_and_other_factories_are_layers_too():
    net = MLP(6, 8, 5, layer=nn.Linear)
    assert type(net[0]) is nn.Linear


def test_options_go_to_the_layer_of_the_kind():
    net = MLP(6, 8, 5, depth=3, layer="orthogonal", reflectors=2)
    assert net[2].reflectors == 2
    with pytest.raises(TypeError, match="foo"):
        MLP(6, 8, 5, depth=3, layer="orthogonal", foo=2)


def test_activations_with_parameters_belong_to_one_being():
    net = MLP(6, 8, 5, activation=nn.PReLU, beings=3)
    assert [tuple(p.shape) for n, p in net.named_parameters() if "function" in n] == [(3, 1)]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="depth must be a positive integer, however: 0"):
        MLP(6, 8, 5, depth=0)
    with pytest.raises(ValueError, match="did you mean symmetric"):
        MLP(6, 8, 5, layer="symetric")
    with pytest.raises(ValueError, match="hidden_size"):
        MLP(6, 0, 5)


def test_dtype_and_device_reach_every_part():
    net = MLP(6, 8, 5, depth=3, layer=SymmetricLinear, activation=nn.PReLU, dtype=torch.float64, beings=2)
    assert {p.dtype for p in net.parameters()} == {torch.float64}

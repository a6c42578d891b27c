import functools

import pytest
import torch
from torch import nn

from linnet import (
    MLP,
    FixedRandom,
    Linear,
    OrthogonalLinear,
    Parallel,
    Repeat,
    Residual,
    Spread,
    SymmetricLinear,
    catalogue,
)


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
    with pytest.raises(ValueError, match="depth must be a positive integer, got 0"):
        MLP(6, 8, 5, depth=0)
    with pytest.raises(ValueError, match="unknown layer 'symetric'; did you mean 'symmetric'"):
        MLP(6, 8, 5, layer="symetric")
    with pytest.raises(ValueError, match="hidden_size"):
        MLP(6, 0, 5)


def test_dtype_and_device_reach_every_part():
    net = MLP(6, 8, 5, depth=3, layer=SymmetricLinear, activation=nn.PReLU, dtype=torch.float64, beings=2)
    assert {p.dtype for p in net.parameters()} == {torch.float64}


@pytest.mark.parametrize("layer", list(catalogue()))
@pytest.mark.parametrize("beings", [None, 3])
def test_blocks_hold_every_layer(layer, beings):
    torch.manual_seed(0)
    cls = catalogue()[layer]
    f, g = (cls(8, 8, beings=beings).double().eval() for _ in range(2))
    x = torch.randn(4, *([] if beings is None else [beings]), 8, dtype=torch.float64)
    for block, expected in (
        (Residual(f), x + f(x)),
        (Residual(f, shortcut=g), g(x) + f(x)),
        (Parallel(f, g), torch.cat([f(x), g(x)], -1)),
        (Parallel(f, g, merge="sum"), f(x) + g(x)),
        (Parallel(f, g, f, merge="mean"), (2 * f(x) + g(x)) / 3),
        (Repeat(f, 3), f(f(f(x)))),
    ):
        torch.testing.assert_close(block(x), expected)
        assert {id(p) for p in block.parameters()} <= {id(p) for m in (f, g) for p in m.parameters()}


@pytest.mark.parametrize("layer", [None, nn.Linear, *catalogue()])
@pytest.mark.parametrize("beings", [None, 3])
def test_what_is_fixed_never_moves(layer, beings):
    if layer is nn.Linear and beings:
        return
    options = {"beings": beings, "bias": True, "layer": layer}
    fixed = FixedRandom(8, 8, **options)
    net = nn.Sequential(Linear(8, 8, beings=beings), fixed)
    x = torch.randn(4, *([] if beings is None else [beings]), 8)
    before = {name: value.clone() for name, value in fixed.state_dict().items()}
    net.requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in fixed.state_dict().items())
    assert (net[0].weight.grad is not None and net[0].weight.grad.abs().sum() > 0) or layer in ("lasso-relu", "l0")
    other = FixedRandom(8, 8, **options)
    other.load_state_dict(fixed.state_dict())
    assert torch.equal(other.eval()(x), fixed.eval()(x))
    assert fixed.double()(x.double()).dtype == torch.float64
    made = FixedRandom(8, 8, **options, device="meta").to_empty(device="cpu")
    made.reset_parameters()
    assert made(x).isfinite().all()


def test_the_fixed_matrix_of_the_chapter():
    torch.manual_seed(0)
    fixed = FixedRandom(20, 300)
    x = torch.randn(2, 20)
    r = dict(fixed.named_buffers())["layer.weight"]
    assert 0 <= r.min() and r.max() < 1 and abs(r.mean() - 0.5) < 0.02 and abs(r.std() - 12**-0.5) < 0.02
    torch.testing.assert_close(fixed(x), torch.mm(x, r.mT))


def test_what_blocks_refuse():
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match=r"must return the shape of its input, \(2, 8\), got \(2, 1\)"):
        Residual(nn.Linear(8, 1))(x)  # which would broadcast
    with pytest.raises(ValueError, match="at least one module"):
        Parallel()
    with pytest.raises(ValueError, match="merge must be"):
        Parallel(nn.Linear(8, 8), merge="max")
    with pytest.raises(ValueError, match="must return equal shapes"):
        Parallel(nn.Linear(8, 8), nn.Linear(8, 1), merge="sum")(x)
    with pytest.raises(ValueError, match="differ in the last size only"):
        Parallel(nn.Linear(8, 8), nn.Flatten(0))(x)
    with pytest.raises(ValueError, match="times must be a positive integer"):
        Repeat(nn.Linear(8, 8), 0)
    for make in (Residual, Parallel, lambda f: Repeat(f, 2)):
        with pytest.raises(TypeError, match="must be a module"):
            make(torch.relu)

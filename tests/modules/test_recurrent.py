"""RNN and RNNCell: torch's own as the oracle, any map in either place, one W for a sequence."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import linnet
from linnet import RNN, Linear, OrthogonalLinear, RNNCell, SchurStableLinear
from linnet.testing import cases

SQUARE = {
    name: cls
    for name, cls in linnet.catalogue().items()
    if cls.__module__.startswith("linnet.") and (cls.square or name in ("svd", "l0", "monarch", "low-rank", "sparse"))
}


def torch_twin(net, input_size, hidden_size, layers, **options):
    twin = nn.RNN(input_size, hidden_size, layers, dtype=torch.float64, **options)
    with torch.no_grad():
        for i, cell in enumerate(net.cells):
            for name, layer in (("ih", cell.input_map), ("hh", cell.hidden_map)):
                getattr(twin, f"weight_{name}_l{i}").copy_(layer.weight)
                if options.get("bias", True):
                    getattr(twin, f"bias_{name}_l{i}").copy_(layer.bias)
    return twin


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [Linear, OrthogonalLinear])
def test_agrees_with_torch(layers, nonlinearity, bias, batch_first, kind):
    options = {"bias": bias, "batch_first": batch_first, "nonlinearity": nonlinearity}
    net = RNN(3, 5, layers, hidden_map=kind, dtype=torch.float64, **options)
    twin = torch_twin(net, 3, 5, layers, **options)
    for shape, start in (((4, 6, 3), (layers, 4 if batch_first else 6, 5)), ((6, 3), (layers, 5))):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for h in (None, torch.randn(start, dtype=torch.float64)):
            for found, expected in zip(net(x, h), twin(x, h), strict=True):
                torch.testing.assert_close(found, expected)
            g, e = (torch.autograd.grad((n(x, h)[0] ** 2).sum() + n(x, h)[1].sum(), x)[0] for n in (net, twin))
            torch.testing.assert_close(g, e)


def test_the_cell_agrees_with_torch_and_with_the_sequence():
    cell, twin = RNNCell(3, 5, dtype=torch.float64), nn.RNNCell(3, 5, dtype=torch.float64)
    twin.load_state_dict(
        {
            f"{name}_{place}": getattr(layer, name).detach()
            for place, layer in (("ih", cell.input_map), ("hh", cell.hidden_map))
            for name in ("weight", "bias")
        }
    )
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    h, states = None, []
    for row in x:
        h, expected = cell(row, h), twin(row, h)
        torch.testing.assert_close(h, expected)
        states.append(h)
    torch.testing.assert_close(cell.sequence(x, torch.zeros(4, 5, dtype=torch.float64)), torch.stack(states))


@pytest.mark.parametrize("name", SQUARE)
def test_any_map_and_populations_of_it(name):
    case = next(iter(cases(SQUARE[name])))
    n = case.in_features
    if not case.cls.square:
        n = min(case.in_features, case.out_features)
    options = {} if name != "l0" else {"noise": "held"}
    nets = RNN(3, n, 2, hidden_map=name, hidden_options=options, beings=3, dtype=torch.float64).eval()
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    output, last = nets(x)
    assert output.shape == (6, 4, 3, n) and last.shape == (2, 4, 3, n)
    for i in range(3):  # every being as an nn.RNN of its own
        single = copy.deepcopy(nets)
        for cell in single.cells:
            cell.beings = None
            cell.input_map = cell.input_map.to_linears()[i]
            cell.hidden_map = cell.hidden_map.to_linears()[i]
        single.beings = None
        torch.testing.assert_close(single(x[:, :, i])[0], output[:, :, i])
    output.square().sum().backward()
    one = nets(x[:, :1, :1])[0]  # one input for all
    torch.testing.assert_close(one, nets(x[:, :1, :1].expand(-1, -1, 3, -1))[0])
    assert nets(x[:, 0])[0].shape == (6, 3, n)


def test_w_is_computed_once_for_a_sequence_and_anew_after_a_step(monkeypatch):
    made, build = [], OrthogonalLinear._weight
    monkeypatch.setattr(OrthogonalLinear, "_weight", lambda self, **raw: made.append(1) or build(self, **raw))
    net = RNN(3, 8, hidden_map=OrthogonalLinear)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    x = torch.randn(50, 4, 3)
    for steps in (1, 2, 3):
        net(x)[0].square().sum().backward()
        optimizer.step()
        assert len(made) == steps
    first, second = net(x)[0].sum(), net(x)[1].sum()
    first.backward()
    second.backward()


def test_the_mask_of_l0_is_one_for_a_sequence():
    net = RNN(1, 64, hidden_map="l0", hidden_options={"weight_decay": 0.0}, nonlinearity=lambda z: z, bias=False)
    with torch.no_grad():
        net.cells[0].input_map.weight = torch.ones(64, 1)
        net.cells[0].hidden_map.weight = torch.eye(64)
    x = torch.zeros(4, 1, 1)
    x[0] = 1
    states = net(x)[0].squeeze(1)  # zᵗ for gates z
    gates = states[1]
    assert gates.std() > 0.1
    torch.testing.assert_close(states[2], gates**2)
    torch.testing.assert_close(states[3], gates**3)
    assert not torch.equal(net(x)[0], net(x)[0])


def test_memory_over_a_long_time():
    """An orthogonal recurrence preserves the norm, a stable one forgets."""
    x = torch.zeros(1000, 2, 8)
    x[0] = torch.randn(2, 8)
    keep = RNN(8, 8, hidden_map="orthogonal", input_map="identity", nonlinearity=lambda z: z, bias=False)
    lost = RNN(8, 8, hidden_map=SchurStableLinear, input_map="identity", nonlinearity=lambda z: z, bias=False)
    torch.testing.assert_close(keep(x)[1][0].norm(dim=-1), x[0].norm(dim=-1), rtol=1e-4, atol=0)
    assert lost(x)[1].norm() < 100 * 0.99**1000 * x[0].norm()


def test_a_net_over_a_stable_map_trains():
    torch.manual_seed(0)
    net = RNN(1, 16, hidden_map="schur-stable", batch_first=True, hidden_options={"bound": 0.95})
    head = nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-2)
    t = torch.linspace(0, 6 * math.pi, 60)
    x = t.sin()[None, :, None]
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (head(net(x[:, :-1])[0]) - x[:, 1:]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    assert linnet.violation(net) <= linnet.tolerance(torch.float32)


def test_dropout_between_layers_only_in_training():
    net, x = RNN(3, 5, 2, dropout=0.5), torch.randn(6, 4, 3)
    assert not torch.equal(net(x)[0], net(x)[0])
    assert torch.equal(net.eval()(x)[0], net(x)[0])
    shallow = RNN(3, 5, 1, dropout=0.5)
    assert torch.equal(shallow(x)[0], shallow(x)[0])


def test_as_a_module():
    net, x = RNN(3, 5, 2, hidden_map="orthogonal", nonlinearity=nn.PReLU()), torch.randn(6, 4, 3)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(net(x)[0], other(x)[0])
    other = RNN(3, 5, 2, hidden_map="orthogonal", nonlinearity=nn.PReLU())
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x)[0], other(x)[0])
    baked = linnet.bake(net)
    assert all(isinstance(cell.hidden_map, nn.Linear) for cell in baked.cells)
    torch.testing.assert_close(net(x)[0], baked(x)[0])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], net(x)[0])
    exported = torch.export.export(net, (x,), dynamic_shapes=({1: torch.export.Dim.AUTO},)).module()
    torch.testing.assert_close(exported(torch.randn(6, 9, 3))[0].shape, torch.Size([6, 9, 5]))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x)[0].dtype == torch.bfloat16
    assert "batch_first" not in repr(net) and "OrthogonalLinear" in repr(net)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RNN(0, 5), "input_size must be a positive integer, got 0"),
        (lambda: RNN(3, 5, 0), "num_layers must be a positive integer, got 0"),
        (lambda: RNN(3, 5, dropout=2.0), r"dropout must be a probability in \[0, 1\], got 2.0"),
        (
            lambda: RNN(3, 5, nonlinearity="sigmoid"),
            "tanh, relu or a callable, got 'sigmoid'",
        ),
        (lambda: RNN(3, 5, input_map="orthogonal"), "in_features must equal out_features, got 3 and 5"),
        (lambda: RNN(3, 5, hidden_map="ortogonal"), "unknown layer 'ortogonal'; did you mean 'orthogonal'"),
        (
            lambda: RNN(3, 5)(torch.randn(3)),
            r"\(length, \[batch,\] input_size\), got \(3,",
        ),
        (lambda: RNN(3, 5)(torch.randn(2, 4, 4)), "in_features=3"),
        (lambda: RNN(3, 5)(torch.randn(0, 4, 3)), "at least one step, got"),
        (lambda: RNN(3, 5)(torch.randn(2, 4, 3), torch.zeros(4, 5)), r"states must have shape \(1, 4, 5\), got"),
        (lambda: RNN(3, 5, beings=2)(torch.randn(6, 3)), r"\(length, \[batch,\] beings or 1, input_size\), got"),
        (
            lambda: RNNCell(3, 5)(torch.randn(4, 3), torch.zeros(3, 5)),
            r"must have shape \(4, 5\), got \(3, 5\)",
        ),
        (lambda: RNN(3, 5)(nn.utils.rnn.pack_sequence([torch.randn(4, 3)])), "got PackedSequence"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_options_that_a_map_does_not_have():
    with pytest.raises(TypeError, match="sigma"):
        RNN(3, 5, hidden_map="orthogonal", hidden_options={"sigma": 1})
    with pytest.raises(TypeError, match="nonlinearity must be a name or a function"):
        RNN(3, 5, nonlinearity=3)


def test_a_frozen_net_computes_w_once_for_all_sequences(monkeypatch):
    made, build = [], OrthogonalLinear._weight
    monkeypatch.setattr(OrthogonalLinear, "_weight", lambda self, **raw: made.append(1) or build(self, **raw))
    net, x = RNN(3, 8, hidden_map=OrthogonalLinear), torch.randn(6, 4, 3)
    with linnet.frozen(net):
        for _ in range(4):
            net(x)
    assert len(made) == 1
    noisy = RNN(3, 8, hidden_map="l0")
    with linnet.frozen(noisy):
        assert not torch.equal(noisy(x)[0], noisy(x)[0])  # a sample for each sequence


def test_hooks_on_the_hidden_map_run_at_every_step():
    net, seen = RNN(3, 8, hidden_map=OrthogonalLinear), []
    expected = net(torch.ones(6, 4, 3))[0]
    net.cells[0].hidden_map.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(net(torch.ones(6, 4, 3))[0], expected)
    assert len(seen) == 6


def test_more_mistakes():
    with pytest.raises(TypeError, match="A map must be a layer class"):
        RNN(3, 5, hidden_map=nn.Linear(5, 5))
    with pytest.raises(TypeError, match="function of a tensor, got <class"):
        RNN(3, 5, nonlinearity=nn.GELU)
    with pytest.raises(ValueError, match=r"states must have shape \(1, 4, 5\), got tuple"):
        RNN(3, 5)(torch.randn(2, 4, 3), (torch.zeros(1, 4, 5), torch.zeros(1, 4, 5)))

"""linnet.compat.slim, used the way programs written for neuromancer use slim."""

import copy
import inspect
import itertools
import math
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import linnet
import linnet.compat.slim as slim
from support.slim_page import PAGE, as_page

CLASSES = [getattr(slim, name) for name in PAGE]
every = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)

KEYS = (
    "l0 linear nneg lasso lstochastic rstochastic pf symmetric skew_symetric damp_skew_symmetric split stable_split "
    "spectral softSVD learnSVD orthogonal psd symplectic butterfly schur identity gershgorin bounded_Lp_norm "
    "trivial_nullspace Power_bound"
).split()


def sizes(cls):
    return (4, 4) if cls in slim.square_maps else (4, 6)


class Circular(slim.LinearBase):
    """A user's map that defines effective_W only."""

    def effective_W(self):
        return (self.weight + self.weight.roll(1, 0)) / 2


class Rotated(slim.SquareLinear):
    def effective_W(self):
        return torch.linalg.matrix_exp(self.weight - self.weight.mT)


class Doubled(slim.OrthogonalLinear):
    """A subclass of a shipped map that changes its matrix."""

    def effective_W(self):
        return 2 * super().effective_W()


# ------------------------------------------------------------------------------------------- names


def test_the_registries():
    assert list(slim.maps)[: len(KEYS)] == KEYS and len(KEYS) == 25
    assert set(slim.maps.values()) == set(CLASSES) and len(slim.maps) == len(CLASSES) == 29
    assert slim.maps["skew_symetric"] is slim.SkewSymmetricLinear and slim.maps["softSVD"] is slim.SVDLinear
    assert slim.maps["lasso_relu"] is slim.LassoLinearRELU and slim.maps["symmetric_SVD"] is slim.SymmetricSVDLinear
    assert len(slim.square_maps) == 11 and slim.tall_maps == {slim.TrivialNullSpaceLinear}
    for cls in slim.maps.values():
        if cls in slim.square_maps:
            with pytest.raises(ValueError, match="3"):
                cls(3, 5)
        else:
            assert cls(3, 5).effective_W().shape == (3, 5)
        if cls not in slim.square_maps | slim.tall_maps:
            assert cls(5, 3).effective_W().shape == (5, 3)


def test_modules_and_names():
    assert {slim.linear.__name__, slim.rnn.__name__, slim.butterfly.__name__} == {
        f"linnet.compat.slim.{name}" for name in ("linear", "rnn", "butterfly")
    }
    for name in slim.linear.__all__:
        assert getattr(slim, name) is getattr(slim.linear, name)
    assert slim.RNN is slim.rnn.RNN and slim.RNNCell is slim.rnn.RNNCell
    assert slim.Butterfly is slim.butterfly.Butterfly


@pytest.mark.parametrize(
    ("cls", "signature"),
    [
        (slim.RNN, "input_size, hidden_size=16, num_layers=1, cell_args={}"),
        (
            slim.RNNCell,
            "input_size, hidden_size, bias=False, nonlin=F.gelu, hidden_map=slim.Linear, input_map=slim.Linear, "
            "input_args={}, hidden_args={}",
        ),
        (
            slim.Butterfly,
            "in_size, out_size, bias=True, complex=False, tied_weight=True, increasing_stride=True, ortho_init=False",
        ),
    ],
)
def test_signatures_beside_the_page(cls, signature):
    assert as_page(inspect.signature(cls)) == as_page(inspect.signature(eval(f"lambda {signature}: 0")))


def test_linnet_does_not_import_it():
    root = Path(linnet.__file__).parent
    for file in root.rglob("*.py"):
        if "compat" not in file.relative_to(root).parts:
            assert not re.search(r"import.*\bcompat\b|\bcompat\b.*import", file.read_text()), file


# ------------------------------------------------------------------------------------------- the interface


@every
@pytest.mark.parametrize("bias", [False, True])
def test_interface(cls, bias):
    i, o = sizes(cls)
    layer = cls(i, o, bias=bias).eval()
    assert (layer.in_features, layer.out_features, layer.use_bias) == (i, o, bias)
    assert (layer.bias.shape == (o,)) if bias else layer.bias is None
    assert layer.device == torch.device("cpu")
    for shape in ((i,), (5, i), (2, 5, i), (2, 1, 5, i), (0, i)):
        x = torch.randn(shape)
        expected = x @ layer.effective_W() + (layer.bias if bias else 0)
        assert torch.allclose(layer(x), expected, atol=1e-5)
    error = layer.reg_error()
    assert error.shape == () and float(error.detach()) >= 0
    with pytest.raises(ValueError, match="features"):
        layer(torch.randn(2, i + 1))
    if i != o:
        with pytest.raises(ValueError, match="square"):
            layer.eig()


@every
def test_it_moves_copies_and_pickles(cls):
    torch.manual_seed(0)
    i, o = sizes(cls)
    layer = cls(i, o, bias=True).eval()
    x = torch.randn(3, i)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x)) and type(twin) is cls
        assert all(a is not b for a, b in zip(twin.parameters(), layer.parameters(), strict=True))
    other = cls(i, o, bias=True).eval()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x)) and "linear.bias" in layer.state_dict()
    wide = copy.deepcopy(layer).double()
    assert wide(x.double()).dtype == wide.effective_W().dtype == torch.float64
    assert torch.allclose(wide(x.double()).float(), layer(x), atol=1e-4)
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    if cls in slim.square_maps:
        assert half.eig().dtype == torch.complex64
    meta = copy.deepcopy(layer).to("meta")
    assert meta(x.to("meta")).shape == (3, o) and meta.device.type == "meta" and meta.reg_error().device.type == "meta"


@every
def test_what_learns_learns_in_float64_too(cls):
    torch.manual_seed(0)
    i, o = sizes(cls)
    layer = cls(i, o, bias=True).double()
    loss = layer(torch.randn(9, i, dtype=torch.float64)).square().sum() + layer.reg_error()
    if cls is slim.IdentityLinear:
        assert not loss.requires_grad
    else:
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_weight_and_bias_can_be_set():
    layer = slim.Linear(3, 2, bias=True)
    layer.weight = nn.Parameter(torch.ones(2, 3))
    layer.bias = nn.Parameter(torch.zeros(2))
    assert layer(torch.ones(3)).tolist() == [3, 3] and layer.linear.weight is layer.weight
    assert sorted(layer.state_dict()) == ["linear.bias", "linear.weight"] and len(list(layer.parameters())) == 2
    nn.init.zeros_(layer.linear.weight)
    assert not layer.effective_W().any()
    layer.bias = None
    assert layer(torch.ones(3)).tolist() == [0, 0]
    norm = slim.BoundedNormLinear(3, 2)
    norm.weight = torch.ones(2, 3) / 10
    assert torch.allclose(norm.effective_W(), torch.full((3, 2), 0.1))


def test_l0_takes_slim_s_droprate_of_zero_and_no_keywords():
    assert slim.L0Linear(3, 2, droprate_init=0.0).linear.droprate_init == 0.5
    with pytest.raises(TypeError):
        slim.L0Linear(3, 2, gamma=1.0)


# ------------------------------------------------------------------------------------------- keywords


@every
def test_options_of_other_classes_pass_and_unknown_ones_warn(cls):
    i, o = sizes(cls)
    if cls is slim.L0Linear:
        return
    foreign = {"sigma_min": 0.1, "sigma_max": 0.9, "gamma": 2.0, "real": True, "p": 2, "rank": None, "l2": 0.1}
    cls(i, o, bias=True, **foreign)
    with pytest.warns(UserWarning, match=rf"{cls.__name__} ignores 'sigma_mni', which is neither") as caught:
        cls(i, o, sigma_mni=0.1)
    assert len(caught) == 1


def test_the_warning_points_at_the_caller():
    for cls in (slim.PSDLinear, slim.SVDLinear, slim.SymmetricSVDLinear):
        with pytest.warns(UserWarning) as caught:
            cls(4, 4, blas=1)
        assert caught[0].filename == __file__


@every
def test_device_and_dtype_reach_the_map(cls):
    if cls is slim.L0Linear:
        return
    layer = cls(*sizes(cls), bias=True, device="meta", dtype=torch.float64)
    assert layer.device.type == "meta" and layer.bias.dtype == layer.effective_W().dtype == torch.float64


# ------------------------------------------------------------------------------------------- subclasses of a user


@pytest.mark.parametrize("bias", [False, True])
def test_a_subclass_with_effective_w_alone_works(bias):
    torch.manual_seed(0)
    layer = Circular(4, 6, bias=bias)
    assert layer.weight.shape == (4, 6) and layer.weight.abs().max() <= 0.5
    x = torch.randn(2, 5, 4)
    w = layer.weight.detach().numpy()
    expected = x.numpy() @ ((w + np.roll(w, 1, 0)) / 2) + (layer.bias.detach().numpy() if bias else 0)
    assert np.allclose(layer(x).detach().numpy(), expected, atol=1e-6)
    assert float(layer.reg_error()) == 0 and layer(x[0, 0]).shape == (6,)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert not list(Circular(4, 6, provide_weights=False).parameters())


def test_a_square_subclass_is_square():
    layer = Rotated(4, 4, bias=True, gamma=1.0, dtype=torch.float64)
    assert layer.weight.dtype == layer.bias.dtype == torch.float64
    assert np.allclose(np.abs(layer.eig().detach().numpy()), 1)
    with pytest.raises(ValueError, match="insize must equal outsize, got 4 and 5"):
        Rotated(4, 5)
    with pytest.warns(UserWarning, match="Rotated ignores 'gama'"):
        Rotated(4, 4, gama=1.0)
    for cls in (slim.LinearBase, slim.SquareLinear):
        with pytest.raises(TypeError, match="abstract"):
            cls(4, 4)
    with pytest.raises(ValueError, match="insize must be a positive integer, got 0"):
        Circular(0, 4)


def test_a_subclass_of_a_shipped_class_is_multiplied_by_its_own_matrix():
    layer = Doubled(4, 4, bias=True)
    x = torch.randn(3, 4)
    assert torch.allclose((layer(x) - layer.bias).norm(dim=-1), 2 * x.norm(dim=-1), atol=1e-5)
    rnn = slim.RNN(4, 4, cell_args={"hidden_map": Doubled, "nonlin": nn.Identity()})
    output, _ = rnn(torch.zeros(3, 2, 4), torch.ones(1, 2, 4))
    assert torch.allclose(output.norm(dim=-1), 2 * torch.tensor([[2.0], [4.0], [8.0]]).expand(3, 2), atol=1e-4)


# ------------------------------------------------------------------------------------------- the rest of linnet


def test_linnet_s_functions_see_the_maps_inside():
    torch.manual_seed(0)
    model = nn.Sequential(slim.LassoLinear(4, 5, bias=True, gamma=2.0), nn.ReLU(), slim.OrthogonalLinear(5, 5))
    x = torch.randn(3, 4)
    assert torch.equal(linnet.penalty(model), model[0].reg_error())
    assert float(linnet.violation(model)) <= linnet.tolerance(torch.float32)
    plain = linnet.bake(model)
    assert torch.allclose(plain(x), model(x), atol=1e-5)
    assert type(plain[2].linear) is nn.Linear and torch.allclose(plain[2].effective_W(), model[2].effective_W())
    assert float(plain[0].reg_error()) == 0
    with linnet.frozen(model):
        assert torch.allclose(model(x), plain(x), atol=1e-5)


# ------------------------------------------------------------------------------------------- recurrent nets


def recurrence(rnn, x, start, gelu):
    """The plain loop of a stack, in NumPy float64."""
    sequence, last = x.double().numpy(), []
    for cell, h in zip(rnn.rnn_cells, start, strict=True):
        a, b = (m.effective_W().detach().double().numpy() for m in (cell.lin_in, cell.lin_hidden))
        shift = sum(m.bias.detach().double().numpy() for m in (cell.lin_in, cell.lin_hidden) if m.bias is not None)
        h, states = h.detach().double().numpy(), []
        for step in sequence:
            h = gelu(h @ b + step @ a + shift)
            states.append(h)
        sequence = np.stack(states)
        last.append(h)
    return sequence, np.stack(last)


gelu = np.vectorize(lambda t: t * (1 + math.erf(t / math.sqrt(2))) / 2)


@every
@pytest.mark.parametrize("bias", [False, True])
def test_rnn_over_any_map(cls, bias):
    torch.manual_seed(0)
    rnn = slim.RNN(3, 4, num_layers=2, cell_args={"hidden_map": cls, "bias": bias}).eval()
    x = torch.randn(6, 5, 3)
    output, last = rnn(x)
    assert output.shape == (6, 5, 4) and last.shape == (2, 5, 4) and torch.equal(output[-1], last[-1])
    expected, expected_last = recurrence(rnn, x, [s.expand(5, 4) for s in rnn.init_states], gelu)
    assert np.allclose(output.detach().numpy(), expected, atol=1e-5)
    assert np.allclose(last.detach().numpy(), expected_last, atol=1e-5)
    (output.square().sum() + rnn.reg_error()).backward()
    assert all(p.grad is not None for p in rnn.parameters() if p.requires_grad)
    assert torch.equal(pickle.loads(pickle.dumps(rnn))(x)[0], output)


def test_rnn_initial_states():
    rnn = slim.RNN(3, 4, num_layers=2)
    assert [s.shape for s in rnn.init_states] == [(1, 4)] * 2 and not any(s.any() for s in rnn.init_states)
    x, start = torch.randn(6, 5, 3), torch.randn(2, 5, 4)
    expected, _ = recurrence(rnn, x, start, gelu)
    for given in (start, list(start), iter(start)):
        assert np.allclose(rnn(x, given)[0].detach().numpy(), expected, atol=1e-5)
    first, state = rnn(x[:2], init_states=start)
    second, _ = rnn(x[2:], init_states=state)
    assert torch.allclose(torch.cat([first, second]), rnn(x, start)[0], atol=1e-6)


def test_rnn_computes_the_hidden_matrix_once_for_a_sequence(monkeypatch):
    calls = []
    build = linnet.OrthogonalLinear._weight
    monkeypatch.setattr(
        linnet.OrthogonalLinear, "_weight", lambda self, **raw: calls.append(1) or build(self, **raw), raising=True
    )
    rnn = slim.RNN(4, 4, cell_args={"hidden_map": slim.OrthogonalLinear, "input_map": slim.Linear})
    rnn(torch.randn(20, 5, 4))
    assert len(calls) == 1
    rnn(torch.randn(20, 5, 4))
    assert len(calls) == 2


def test_rnn_over_nn_linear_and_over_maps_of_a_user():
    torch.manual_seed(0)
    for cls in (nn.Linear, Rotated):
        rnn = slim.RNN(4, 4, num_layers=2, cell_args={"hidden_map": cls, "input_map": nn.Linear, "bias": True})
        x = torch.randn(5, 2, 4)
        output, _ = rnn(x)
        h = [state.expand(2, 4) for state in rnn.init_states]
        for t in range(5):
            below = x[t]
            for k, cell in enumerate(rnn.rnn_cells):
                below = h[k] = cell(below, h[k])
            assert torch.allclose(output[t], below, atol=1e-5)
        assert float(rnn.reg_error()) == 0


def test_rnn_reg_error_is_the_mean_over_cells_of_the_mean_of_both_maps():
    args = {"hidden_map": slim.LassoLinear, "hidden_args": {"gamma": 0.5}, "input_map": slim.LassoLinear}
    rnn = slim.RNN(3, 4, num_layers=2, cell_args=args)
    terms = [
        (
            float(cell.lin_in.effective_W().detach().abs().sum())
            + 0.5 * float(cell.lin_hidden.effective_W().detach().abs().sum())
        )
        / 2
        for cell in rnn.rnn_cells
    ]
    assert float(rnn.reg_error().detach()) == pytest.approx(sum(terms) / 2)


def test_rnn_calls_what_has_hooks():
    rnn = slim.RNN(4, 4, cell_args={"hidden_map": slim.OrthogonalLinear})
    seen = []
    rnn.rnn_cells[0].lin_hidden.register_forward_hook(lambda *_: seen.append(1))
    rnn(torch.randn(7, 2, 4))
    assert len(seen) == 7


@pytest.mark.parametrize("shape", [(5, 3), (3,), (1, 2, 5, 3), (5, 2, 4), (0, 2, 3)])
def test_rnn_refuses_other_sequences(shape):
    with pytest.raises(ValueError, match=r"must have shape \(seq_len >= 1, batch, input_size=3\), got"):
        slim.RNN(3, 4)(torch.zeros(shape))


@pytest.mark.parametrize("shapes", [[(2, 4)], [(2, 4)] * 3, [(3, 4)] * 2, [(2, 5)] * 2, [(4,)] * 2])
def test_rnn_refuses_other_initial_states(shapes):
    with pytest.raises(ValueError, match="There must be num_layers=2 initial states"):
        slim.RNN(3, 4, num_layers=2)(torch.zeros(5, 2, 3), [torch.zeros(shape) for shape in shapes])


def test_rnn_needs_a_layer():
    with pytest.raises(ValueError, match="num_layers must be a positive integer, got 0"):
        slim.RNN(3, 4, num_layers=0)


# ------------------------------------------------------------------------------------------- Hprod and butterflies


def test_hprod_for_any_leading_shape():
    x, u = torch.randn(2, 3, 5), torch.randn(5)
    rows = slim.Hprod(x.reshape(-1, 5), u, 4).reshape(2, 3, 5)
    assert torch.allclose(slim.Hprod(x, u, 4), rows) and torch.allclose(slim.Hprod(x[0, 0], u, 4), rows[0, 0])
    assert slim.Hprod(x[:0], u, 4).shape == (0, 3, 5)
    assert torch.equal(slim.Hprod(x, torch.zeros(5), 5), x), "no NaN"
    assert torch.allclose(slim.Hprod(slim.Hprod(x, u, 5), u, 5), x, atol=1e-5)
    x, u = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, u: slim.Hprod(x, u, 3), (x.requires_grad_(), u.requires_grad_()))


@pytest.mark.parametrize(("n", "k"), [(5, 0), (5, 6), (5, -1), (4, 3)])
def test_hprod_refuses(n, k):
    with pytest.raises(ValueError, match="must be"):
        slim.Hprod(torch.zeros(2, 5), torch.zeros(n), k)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("increasing", [True, False])
def test_complex_butterfly(tied, increasing):
    torch.manual_seed(0)
    module = slim.Butterfly(8, 8, complex=True, tied_weight=tied, increasing_stride=increasing)
    t = torch.view_as_complex(module.twiddle.detach().double().contiguous()).numpy()
    w = np.eye(8, dtype=complex)
    for k in range(3) if increasing else (2, 1, 0):
        s, factor = 2**k, np.zeros((8, 8), dtype=complex)
        for pair in range(4):
            block, j = divmod(pair, s)
            places = block * 2 * s + j + np.array([0, s])
            factor[np.ix_(places, places)] = t[s - 1 + j] if tied else t[k, pair]
        w = factor @ w
    x = torch.randn(2, 5, 8, 2)
    found = torch.view_as_complex(module(x).detach()).numpy()
    shift = torch.view_as_complex(module.bias.detach()).numpy()
    assert np.allclose(found, torch.view_as_complex(x).numpy() @ w.T + shift, atol=1e-5)
    layer = slim.ButterflyLinear(8, 8, complex=True, tied_weight=tied, increasing_stride=increasing)
    layer.linear.load_state_dict({"twiddle": module.linear.twiddle})
    assert np.allclose(layer.effective_W().detach().numpy(), w.T, atol=1e-5)
    assert np.allclose(torch.view_as_complex(layer(x).detach()).numpy(), found - shift, atol=1e-5)
    assert (layer.in_features, layer.out_features) == (8, 8) and layer.eig().shape == (8,)


@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize(("i", "o"), [(8, 8), (5, 3), (3, 5), (1, 1), (6, 20)])
def test_butterfly_module(complex, i, o):
    module = slim.Butterfly(i, o, complex=complex)
    tail = (2,) if complex else ()
    for shape in ((), (7,), (2, 3), (0,)):
        assert module(torch.randn(*shape, i, *tail)).shape == (*shape, o, *tail)
    assert module.bias.shape == (o, *tail) and slim.Butterfly(i, o, bias=False, complex=complex).bias is None
    assert (module.in_size, module.out_size, module.complex) == (i, o, complex)
    layer = slim.ButterflyLinear(i, o, bias=True, complex=complex)
    assert layer.effective_W().shape == (i, o) and layer(torch.randn(4, i, *tail)).shape == (4, o, *tail)
    with pytest.raises(ValueError, match="must have shape"):
        module(torch.randn(4, i + 1, *tail))
    before = module.twiddle.clone()
    module.reset_parameters()
    assert not torch.equal(module.twiddle, before)


# ------------------------------------------------------------------------------------------- as neuromancer calls them


class Net(nn.Module):
    """Hidden layers as neuromancer's blocks build them: positionally, the bias by name, one dict of options for all."""

    def __init__(self, insize, outsize, bias, linear_map, hsizes, linargs):
        super().__init__()
        sizes = [insize, *hsizes, outsize]
        self.linear = nn.ModuleList(linear_map(a, b, bias=bias, **linargs) for a, b in itertools.pairwise(sizes))

    def reg_error(self):
        return sum(k.reg_error() for k in self.linear if hasattr(k, "reg_error"))

    def forward(self, x):
        for layer in self.linear[:-1]:
            x = torch.tanh(layer(x))
        return self.linear[-1](x)


class Convex(Net):
    """An input convex net: the maps between layers are non-negative, and get the options of the others."""

    def __init__(self, insize, outsize, bias, linear_map, hsizes, linargs):
        super().__init__(insize, outsize, bias, linear_map, hsizes, linargs)
        self.direct = linear_map(insize, outsize, bias=bias, **linargs)
        self.positive = slim.NonNegativeLinear(hsizes[-1], outsize, bias=False, **linargs)

    def forward(self, x):
        return self.positive(F.relu(self.linear[0](x))) + self.direct(x)


@pytest.mark.parametrize("net", [Net, Convex])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cls", [*CLASSES, nn.Linear], ids=lambda cls: cls.__name__)
def test_blocks_over_any_map(net, bias, cls):
    torch.manual_seed(0)
    linargs = {"sigma_min": 0.2, "sigma_max": 0.9} if cls not in (slim.L0Linear, nn.Linear) else {}
    n, m = (4, 4) if cls in slim.square_maps else (3, 6)
    model = net(n, m, bias, cls, [m], linargs)
    if not any(p.requires_grad for p in model.parameters()):
        return
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.randn(8, n)).square().mean() + model.reg_error()).backward()
        optimizer.step()
    assert model(torch.randn(8, n)).isfinite().all()


# ------------------------------------------------------------------------------------------- the real neuromancer


def neuromancer(*modules):
    with warnings.catch_warnings():  # of neuromancer's dependencies
        warnings.simplefilter("ignore")
        return [pytest.importorskip(f"neuromancer.{name}") for name in modules]


@pytest.mark.slow
def test_neuromancer_s_own_blocks_run_on_our_maps(monkeypatch):
    blocks, recurrent, integrators = neuromancer("modules.blocks", "modules.rnn", "dynamics.integrators")
    for module in (blocks, recurrent):
        monkeypatch.setattr(module, "slim", slim)  # their import line
    for cls in slim.maps.values():
        linargs = {} if cls is slim.L0Linear else {"sigma_max": 0.9}
        i, h, o = (8, 8, 8) if cls in slim.square_maps else (4, 8, 8) if cls in slim.tall_maps else (6, 8, 3)
        for bias in (True, False):
            for block in (blocks.Linear, blocks.MLP, blocks.MLPDropout, blocks.ResMLP, blocks.InputConvexNN):
                hsizes = {} if block is blocks.Linear else {"hsizes": [h, h]}
                model = block(i, o, bias=bias, linear_map=cls, linargs=linargs, **hsizes)
                y = model(torch.randn(12, i))
                assert y.shape == (12, o)
                loss = y.square().mean() + model.reg_error()
                if loss.requires_grad:
                    loss.backward()
            model = blocks.RNN(i, o, bias=bias, linear_map=cls, hsizes=[h], linargs=linargs)
            assert model(torch.randn(5, 12, i)).shape[-1] == o
            rnn = recurrent.RNN(8, hsizes=(8, 8), bias=bias, linear_map=cls, linargs=linargs)
            output, last = rnn(torch.randn(4, 5, 8))
            assert output.shape == (4, 5, 8) and last.shape == (2, 5, 8)
            model = blocks.MLP(8, 8, bias=bias, linear_map=cls, hsizes=[8], linargs=linargs)
            integrator = integrators.RK4(model, h=0.1)
            assert integrator(torch.randn(5, 8)).shape == (5, 8)
            assert float(torch.as_tensor(integrator.reg_error()).detach()) >= 0


@pytest.mark.slow
def test_neuromancer_s_koopman_problem_trains_on_our_svd_map():
    system, blocks, constraint, loss, problem = neuromancer("system", "modules.blocks", "constraint", "loss", "problem")
    torch.manual_seed(0)
    k = slim.linear.SVDLinear(10, 10, sigma_min=0.01, sigma_max=1.0, bias=False)
    encode = blocks.MLP(2, 10, linear_map=slim.Linear, nonlin=nn.ELU, hsizes=[20])
    decode = blocks.MLP(10, 2, linear_map=slim.Linear, nonlin=nn.ELU, hsizes=[20])
    nodes = [
        system.Node(encode, ["Y0"], ["x"], name="encoder"),
        system.System([system.Node(k, ["x"], ["x"], name="K")], nsteps=6),
        system.Node(decode, ["x"], ["yhat"], name="decoder"),
    ]
    yhat, y = constraint.variable("yhat"), constraint.variable("Y")
    objectives = [(yhat[:, 1:, :] == y[:, 1:, :]) ^ 2, 1.0 * (constraint.variable(k.reg_error()) == 0.0)]
    koopman = problem.Problem(nodes, loss.PenaltyLoss(objectives, []))
    rotation = torch.tensor([[0.96, 0.28], [-0.28, 0.96]])
    start = torch.rand(50, 2) * 2 - 1
    data = torch.stack([start @ torch.linalg.matrix_power(rotation, t) for t in range(7)], 1)
    batch = {"Y": data, "Y0": data[:, :1], "name": "train"}
    optimizer = torch.optim.Adam(koopman.parameters(), lr=0.005)
    losses = []
    for _ in range(100):
        value = koopman(batch)["train_loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.1 * losses[0]
    s = torch.linalg.svdvals(k.effective_W())
    assert float(s.detach().min()) >= 0.01 - 1e-5 and float(s.detach().max()) <= 1 + 1e-5


@pytest.mark.slow
def test_signatures_and_registries_are_neuromancer_s():
    (theirs,) = neuromancer("slim")
    for key in KEYS:
        assert as_page(inspect.signature(slim.maps[key])) == as_page(inspect.signature(theirs.maps[key]))
        assert slim.maps[key].__name__ == theirs.maps[key].__name__
    for registry in ("square_maps", "tall_maps"):
        ours, other = ({cls.__name__ for cls in getattr(package, registry)} for package in (slim, theirs))
        assert ours == other
    for name in ("RNN", "RNNCell", "Butterfly", "IdentityInitLinear", "LassoLinearRELU", "LinearBase", "SquareLinear"):
        own, other = (as_page(inspect.signature(getattr(package, name))) for package in (slim, theirs))
        assert [part[:2] for part in own] == [part[:2] for part in other]

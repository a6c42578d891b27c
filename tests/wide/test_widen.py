"""widen, stack, single, unstack against loops over ordinary modules."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import linnet
from linnet import (
    KWinners,
    Linear,
    OrthogonalLinear,
    SparseLinear,
    Spread,
    Wide,
    WideDeep,
    catalogue,
    evolve,
    stack,
    unstack,
    widen,
)
from linnet import single as one_of
from linnet.wide.kernels import leaves


class Block(nn.Module):
    """Operations whose axes are correct only without an axis of beings."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.memory = nn.LSTM(6, 6, batch_first=True)
        self.head = nn.Linear(12, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        z = self.first(x).relu()
        over_time, _ = self.memory(z)
        self.seen = self.seen + len(x)  # put in the place of the old one, not written into it
        joined = torch.cat([over_time.mean(1), z.flatten(1)[:, :6]], dim=1)
        return self.head(joined) @ self.first.weight.T


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, scale=None):
        y = self.norm(x + self.body(self.body(x)))
        return y if scale is None else {"y": y * scale, "none": None}


def chain(*parts):
    return lambda: nn.Sequential(*(part() for part in parts))


def numbers(*shape):
    return lambda beings: torch.randn(shape[0], beings, *shape[1:])


def tokens(*shape):
    return lambda beings: torch.randint(10, (shape[0], beings, *shape[1:]))


MEMBERS = {
    "linear": (lambda: nn.Linear(3, 2), numbers(6, 3)),
    "mlp": (chain(lambda: nn.Linear(3, 8), nn.Tanh, lambda: nn.Linear(8, 2)), numbers(6, 3)),
    "MLP": (lambda: linnet.MLP(3, 8, 2), numbers(6, 3)),
    "orthogonal": (chain(lambda: OrthogonalLinear(4, 4), nn.ReLU, lambda: SparseLinear(4, 3)), numbers(6, 4)),
    "cnn": (
        chain(
            lambda: nn.Conv2d(3, 4, 3, padding=1),
            lambda: nn.BatchNorm2d(4),
            nn.ReLU,
            lambda: nn.MaxPool2d(2),
            nn.Flatten,
            lambda: nn.Linear(64, 2),
        ),
        numbers(6, 3, 8, 8),
    ),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, stride=2, bias=False), numbers(6, 4, 9)),
    "circular": (lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), numbers(6, 3, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), numbers(6, 3, 8, 8)),
    "batch norm": (lambda: nn.BatchNorm1d(5), numbers(6, 5)),
    "batch norm, no statistics": (lambda: nn.BatchNorm1d(5, track_running_stats=False), numbers(6, 5, 3)),
    "layer norm": (lambda: nn.LayerNorm((4, 5)), numbers(6, 4, 5)),
    "layer norm, no bias": (lambda: nn.LayerNorm(5, bias=False), numbers(6, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), numbers(6, 4, 3)),
    "instance norm": (lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), numbers(6, 4, 3)),
    "rms norm": (lambda: nn.RMSNorm(5), numbers(6, 5)),
    "embedding": (lambda: nn.Embedding(10, 4), tokens(6, 3)),
    "embedding, padded": (lambda: nn.Embedding(10, 4, padding_idx=0), tokens(6, 3)),
    "embedding bag": (lambda: nn.EmbeddingBag(10, 4, mode="max"), tokens(6, 3)),
    "rnn": (lambda: nn.RNN(3, 5, nonlinearity="relu"), numbers(6, 7, 3)),
    "lstm": (lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True), numbers(6, 7, 3)),
    "lstm, no batch": (lambda: nn.LSTM(3, 5, bias=False), numbers(6, 3)),
    "gru": (lambda: nn.GRU(3, 5, num_layers=2), numbers(6, 7, 3)),
    "rnn cell": (lambda: nn.RNNCell(3, 5), numbers(6, 3)),
    "lstm cell": (lambda: nn.LSTMCell(3, 5), numbers(6, 3)),
    "gru cell": (lambda: nn.GRUCell(3, 5), numbers(6, 3)),
    "prelu, softmax": (chain(lambda: nn.Linear(3, 8), nn.PReLU, lambda: nn.Softmax(dim=1)), numbers(6, 3)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), numbers(6, 7, 8)),
    "block": (Block, numbers(6, 7, 3)),
    "residual": (Residual, numbers(6, 4)),
    "parametrized": (lambda: linnet.constrain(nn.Linear(4, 4), "weight", OrthogonalLinear), numbers(6, 4)),
}


def first(y):
    return y if isinstance(y, Tensor) else y[0]


def relative(found, expected):
    scale = max(1.0, *(tensor.abs().max().item() for tensor in expected if tensor.numel()))
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)) / scale


def check_is_loop(wide, members, x, tolerance=1e-6):
    """Forward, buffers and gradients of the parameters and of the input."""
    members = [copy.deepcopy(member) for member in members]
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    y = first(wide(inputs[0]))
    expected = torch.stack([first(member(inputs[1][:, i])) for i, member in enumerate(members)], 1)
    assert y.shape == expected.shape
    assert relative([y], [expected]) < tolerance
    y.square().sum().backward()
    expected.square().sum().backward()
    if x.is_floating_point():
        assert relative([inputs[0].grad], [inputs[1].grad]) < 10 * tolerance
    for name, parameter in wide.named_parameters():
        rows = [dict(member.named_parameters())[name] for member in members]
        if all(row.grad is None for row in rows):
            continue  # vmap gives zeros where a loop gives nothing
        assert relative([parameter.grad], [torch.stack([row.grad for row in rows])]) < 10 * tolerance, name
    for name, buffer in wide.named_buffers():
        if name != "dropout_streams":
            rows = [dict(member.named_buffers())[name] for member in members]
            assert relative([buffer.double()], [torch.stack(rows).double()]) < tolerance, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MEMBERS)
def test_population_is_the_loop_over_its_members(name, training):
    factory, inputs = MEMBERS[name]
    torch.manual_seed(len(name))
    for beings in (3, 14):  # few may be looped
        members = [factory().train(training) for _ in range(beings)]
        check_is_loop(stack(members), members, inputs(beings))


@pytest.mark.parametrize("options", [{"strategy": "loop"}, {"strategy": "vmap"}, {"chunk_size": 3}])
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "layer norm", "embedding"])
def test_every_strategy_gives_the_same(name, options):
    factory, inputs = MEMBERS[name]
    members = [factory() for _ in range(4)]
    check_is_loop(stack(members, **options), members, inputs(4), 2e-6)


def test_strategy_of_one_part():
    members = [MEMBERS["cnn"][0]() for _ in range(4)]
    check_is_loop(stack(members, strategy={"": "auto", "0": "vmap", "5": "loop"}), members, torch.randn(6, 4, 3, 8, 8))
    with pytest.raises(ValueError, match="strategy must be one of auto, vmap, loop, or a dict from names"):
        stack(members, strategy={"nowhere": "loop"})
    with pytest.raises(ValueError, match="strategy must be one of auto, vmap, loop, or a dict from names"):
        stack(members, strategy="fast")


@given(
    beings=st.integers(1, 5),
    batch=st.integers(0, 4),
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shared=st.booleans(),
    chunk=st.sampled_from([None, 1, 2]),
)
@settings(max_examples=40, deadline=None)
def test_stacks_of_linears_of_all_sizes(beings, batch, sizes, dtype, shared, chunk):
    members = [
        nn.Sequential(*(nn.Linear(i, o, dtype=dtype) for i, o in itertools.pairwise(sizes))).to(dtype)
        for _ in range(beings)
    ]
    x = torch.randn(batch, 1 if shared else beings, sizes[0], dtype=dtype)
    expected = torch.stack([member(x[:, 0 if shared else i]) for i, member in enumerate(members)], 1)
    torch.testing.assert_close(stack(members, chunk_size=chunk)(x), expected)


def test_a_kernel_that_swaps_beings_is_seen(monkeypatch):
    members = [nn.Linear(3, 2) for _ in range(4)]
    right = leaves.KERNELS[nn.Linear]
    monkeypatch.setitem(leaves.KERNELS, nn.Linear, lambda *args: right(*args).roll(1, 0))
    with pytest.raises(AssertionError):
        check_is_loop(stack(members), members, torch.randn(6, 4, 3))


def test_float64_to_rounding():
    for name in ("mlp", "cnn", "lstm", "gru", "transformer", "block"):
        factory, inputs = MEMBERS[name]
        members = [factory().double() for _ in range(3)]
        check_is_loop(stack(members), members, inputs(3).double(), 1e-13)


# ---------------------------------------------------------------------- drawing, taking out, putting back

SEEDED = {
    "Linear": (lambda: nn.Linear(4, 3), numbers(2, 4)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 3), numbers(2, 2, 4, 4)),
    "LSTM": (lambda: nn.LSTM(3, 4), numbers(5, 2, 3)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), numbers(8, 4)),
    "LayerNorm": (lambda: nn.LayerNorm(4), numbers(2, 4)),
}


def same_states(population, members):
    for alone, member in zip(unstack(population), members, strict=True):
        state = alone.state_dict()
        assert list(state) == list(member.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in member.state_dict().items())
        assert type(alone) is type(member)


@pytest.mark.parametrize("name", SEEDED)
def test_thousand_seeds_are_a_thousand_ordinary_modules(name):
    factory, inputs = SEEDED[name]
    population = widen(factory, 1000, seeds=range(1000))
    members = []
    for seed in range(1000):
        torch.manual_seed(seed)
        members.append(factory())
    same_states(population, members)
    x = inputs(1000)
    with torch.no_grad():
        expected = torch.stack([first(member(x[:, i])) for i, member in enumerate(members)], 1)
        assert relative([first(population(x))], [expected]) < 1e-6


def check_map_by_seeds(name, beings):
    cls = catalogue()[name]
    for options in cls.examples()[:1]:
        options = dict(options)
        sizes = options.pop("in_features", 4), options.pop("out_features", 4)
        population = widen(lambda sizes=sizes, options=options: cls(*sizes, **options), beings, seeds=range(beings))
        members = []
        for seed in range(beings):
            torch.manual_seed(seed)
            members.append(cls(*sizes, **options))
        same_states(population, members)
        population.eval()
        x = torch.randn(3, beings, sizes[0])
        with torch.no_grad():
            expected = torch.stack([member.eval()(x[:, i]) for i, member in enumerate(members)], 1)
            assert relative([population(x)], [expected]) < 1e-6


@pytest.mark.parametrize("name", catalogue())
def test_every_map_by_seeds(name):
    check_map_by_seeds(name, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue())
def test_thousand_seeds_of_every_map(name):
    check_map_by_seeds(name, 1000)


def test_copies_are_exact_and_independent():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    population = widen(net, 3)
    same_states(population, [net] * 3)
    with torch.no_grad():
        net[0].weight.zero_()
    assert population.state_dict()["0.weight"].abs().sum() > 0
    alone = one_of(population, 1)
    with torch.no_grad():
        alone[0].weight.fill_(7.0)
    assert not (population.state_dict()["0.weight"] == 7).any()


def test_frozen_parameters_and_modes_are_carried():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).eval()
    net[0].bias.requires_grad_(False)
    population = widen(net, 3)
    assert not population.training and not dict(population.named_parameters())["0.bias"].requires_grad
    assert not one_of(population, 0)[0].bias.requires_grad and not one_of(population, 0)[1].training


def test_tied_tensors_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward = nn.Linear(3, 3, bias=False)
            self.outward = nn.Linear(3, 3, bias=False)
            self.outward.weight = self.inward.weight

        def forward(self, x):
            return self.outward(self.inward(x).tanh())

    members = [Tied() for _ in range(4)]
    population = stack(members)
    assert len(list(population.parameters())) == 1
    check_is_loop(population, members, torch.randn(6, 4, 3))
    alone = one_of(population, 2)
    assert alone.inward.weight is alone.outward.weight


def test_module_that_stands_twice_runs_twice():
    layer, phi = nn.Linear(3, 3), nn.Tanh()
    net = nn.Sequential(layer, phi, layer, phi)
    check_is_loop(widen(net, 4), [net] * 4, torch.randn(6, 4, 3))


def test_one_being_is_put_back():
    factory, _ = MEMBERS["cnn"]
    population = widen(factory, 3)
    before = {name: tensor.clone() for name, tensor in population.state_dict().items()}
    net = factory()
    population.assign_being(1, net)
    for name, tensor in population.state_dict().items():
        assert torch.equal(tensor[1], net.state_dict()[name])
        assert torch.equal(tensor[[0, 2]], before[name][[0, 2]])
    with pytest.raises(ValueError, match="The module must have the tensors of one being"):
        population.assign_being(0, nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"Indices of beings must lie in 0\.\.2"):
        one_of(population, 3)


def test_view_of_one_being_fills_its_row_alone():
    population = widen(MEMBERS["block"][0], 3)
    x = torch.randn(6, 7, 3)
    view = population.get_single(1)
    assert not list(view.parameters())
    torch.testing.assert_close(view(x), one_of(population, 1)(x))
    view(x).sum().backward()
    for parameter in population.parameters():
        assert parameter.grad[1].any() and not parameter.grad[[0, 2]].any()


def test_single_takes_a_being_out_of_everything_that_has_beings():
    sparse = SparseLinear(5, 4, sparsity=0.5, beings=3, dynamic=True)
    nets = {
        "maps": (nn.Sequential(Spread(), OrthogonalLinear(4, 4, beings=3), nn.ReLU(), Linear(4, 2, beings=3)), 4),
        "winners": (nn.Sequential(Spread(), Linear(4, 10, beings=3), KWinners(10, beings=3)), 4),
        "deep": (nn.Sequential(Spread(), WideDeep(3, 4, 5, 2, 2, nn.PReLU())), 4),
        "widened": (nn.Sequential(Spread(), widen(lambda: nn.Linear(4, 2), 3)), 4),
        "sparse": (nn.Sequential(Spread(), sparse), 5),
        "recurrent": (linnet.RNNCell(4, 3, beings=3), 4),
    }
    for name, (population, size) in nets.items():
        population.eval()
        x = torch.randn(7, size)
        y = population(x[:, None] if name == "recurrent" else x)
        for i, alone in enumerate(unstack(population)):
            torch.testing.assert_close(alone(x), y[:, i])
            assert not any(getattr(module, "beings", None) for module in alone.modules()), name
            assert len(list(alone.parameters())) == len(list(population.parameters()))
    with pytest.raises(ValueError, match=r"A population must have beings, got .* call linnet\.widen"):
        one_of(nn.Linear(3, 2), 0)


# ---------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize("shape", [(), (3,), (6, 3), (6, 5, 3), (4, 3)])
def test_inputs_without_the_axis_of_beings_are_refused(shape):
    with pytest.raises(ValueError, match="must have size beings=4 "):
        widen(lambda: nn.Linear(3, 2), 4)(torch.zeros(shape))


def test_beings_elsewhere():
    members = [nn.Linear(3, 2) for _ in range(4)]
    x = torch.randn(4, 3)
    expected = torch.stack([member(x[i]) for i, member in enumerate(members)])
    torch.testing.assert_close(stack(members, in_dims=0, out_dims=0)(x), expected)
    torch.testing.assert_close(stack(members, in_dims=-2, out_dims=-2)(x), expected)
    torch.testing.assert_close(stack(members, in_dims=None)(x[:1]), stack(members)(x[:1, None]))
    bilinear = [nn.Bilinear(3, 2, 5) for _ in range(4)]
    mixed = stack(bilinear, in_dims=(0, None), out_dims=0)(x.unsqueeze(1), torch.ones(1, 2))
    torch.testing.assert_close(mixed, torch.stack([m(x[i : i + 1], torch.ones(1, 2)) for i, m in enumerate(bilinear)]))
    with pytest.raises(ValueError, match="An output of a population must have an axis out_dims=3"):
        widen(lambda: nn.Flatten(0), 4, in_dims=0, out_dims=3)(torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match="must have one entry for each positional argument"):
        stack(members, in_dims=(0, 0))(x)
    with pytest.raises(TypeError, match="in_dims must be"):
        stack(members, in_dims="beings")


def test_arguments_by_name_and_results_of_any_structure():
    population = widen(Residual, 4)
    x, scale = torch.randn(6, 4, 4), torch.randn(1, 4, 4)
    found = population.eval()(x, scale=scale)
    assert found["none"] is None
    torch.testing.assert_close(found["y"], population(x) * scale)


def test_members_must_be_alike():
    with pytest.raises(ValueError, match=r"All modules must have the same structure; in module 1 .* must be .*, got "):
        stack([nn.Linear(3, 2), nn.Linear(3, 4)])
    with pytest.raises(ValueError, match=r"All modules must have the same structure; in module 1 .* must be .*, got "):
        stack([nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())])
    with pytest.raises(ValueError, match=r"All modules must have the same structure; in module 1 .* must be .*, got "):
        stack([nn.Linear(3, 2), nn.Linear(3, 2).eval()])
    with pytest.raises(ValueError, match="stack needs a list of at least one module"):
        stack([])


def test_what_cannot_be_widened():
    with pytest.raises(ValueError, match="widen and stack need a module without beings"):
        widen(WideDeep(2, 3, 3, 1, 3), 4)
    with pytest.raises(ValueError, match="Dynamic sparse training cannot be widened"):
        widen(SparseLinear(4, 3, dynamic=True), 4)
    with pytest.raises(ValueError, match="seeds= needs a factory"):
        widen(nn.Linear(3, 2), 2, seeds=[0, 1])
    with pytest.raises(ValueError, match="one int for each being"):
        widen(lambda: nn.Linear(3, 2), 2, seeds=[0])
    with pytest.raises(TypeError, match="a function that builds one"):
        widen(3, 2)
    with pytest.raises(ValueError, match="beings must be a positive integer"):
        widen(nn.Linear(3, 2), 0)


def test_a_wrong_size_is_said_in_the_members_words():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        widen(lambda: nn.Linear(3, 2), 4)(torch.zeros(6, 4, 5))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        widen(lambda: nn.BatchNorm1d(3), 4)(torch.zeros(6, 4, 3, 2, 2))
    with pytest.raises(IndexError):
        widen(lambda: nn.Embedding(10, 4), 4)(torch.full((6, 4), 10))


def test_what_vmap_cannot_do_is_looped_and_said():
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            y = self.norm(self.layer(x))
            return y if x.sum() > 0 else -y

    members = [Choosy() for _ in range(12)]
    population, x = stack(members), torch.randn(6, 12, 3)
    with pytest.warns(UserWarning, match="torch.vmap cannot run Choosy; its beings run one after another"):
        check_is_loop(population, members, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        population(x)
        check_is_loop(stack(members, strategy="loop"), members, x)
    with pytest.raises(RuntimeError, match="vmap"):
        stack(members, strategy="vmap")(x)


# ---------------------------------------------------------------------- dropout


def test_dropout_of_a_being_depends_on_its_stream_alone():
    nets = widen(nn.Dropout(0.5), 4)
    x = torch.ones(8, 4, 100)
    state = copy.deepcopy(nets.state_dict())
    masks = [nets(x), nets(x)]
    assert not torch.equal(*masks)
    assert all(not torch.equal(masks[0][:, i], masks[0][:, j]) for i in range(4) for j in range(i))
    for options in ({}, {"strategy": "loop"}, {"chunk_size": 1}):
        again = widen(nn.Dropout(0.5), 4, **options)
        again.load_state_dict(state)
        assert torch.equal(again(x), masks[0]) and torch.equal(again(x), masks[1])
    fewer = widen(nn.Dropout(0.5), 2)
    fewer.load_state_dict({"dropout_streams": state["dropout_streams"][[3, 1]]})
    assert torch.equal(fewer(x[:, :2]), masks[0][:, [3, 1]])


def test_dropout_keeps_the_right_share_and_scale():
    y = widen(nn.Dropout(0.2), 3)(torch.ones(1000, 3, 100))
    assert set(y.unique().tolist()) == {0.0, 1.25}
    torch.testing.assert_close((y == 0).float().mean((0, 2)), torch.full((3,), 0.2), atol=0.01, rtol=0)
    channels = widen(nn.Dropout2d(0.5), 3)(torch.ones(40, 3, 10, 4, 4))
    assert bool((channels.flatten(3).amax(3) == channels.flatten(3).amin(3)).all())
    assert torch.equal(widen(nn.Dropout(0.2), 3).eval()(y), y)


def test_dropout_inside_a_forward_and_between_layers_of_an_lstm_is_the_same_in_a_loop():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = nn.LSTM(3, 4, num_layers=2, dropout=0.5)
            self.drop = nn.Dropout(0.3)

        def forward(self, x):
            return self.drop(self.memory(x)[0])

    fast = widen(Inside, 3, seeds=[1, 2, 3])
    slow = widen(Inside, 3, seeds=[1, 2, 3], strategy="loop")
    x = torch.randn(5, 3, 2, 3)
    torch.testing.assert_close(fast(x), slow(x))
    torch.testing.assert_close(fast(x), slow(x))
    assert torch.equal(fast.dropout_streams, slow.dropout_streams)
    view = fast.get_single(1)
    state = copy.deepcopy(fast.state_dict())
    y = view(x[:, 1])
    fast.load_state_dict(state)
    torch.testing.assert_close(fast(x)[:, 1], y)


# ---------------------------------------------------------------------- among the rest of torch and linnet


def test_evolution_acts_on_it():
    nets = widen(MEMBERS["cnn"][0], 4)
    optimizer = torch.optim.Adam(nets.parameters())
    x = torch.randn(6, 4, 3, 8, 8)
    nets(x).square().sum().backward()
    optimizer.step()
    before, moments = unstack(nets), optimizer.state[next(nets.parameters())]["exp_avg"].clone()
    evolve.reproduce(nets, [2, 2, 0, 1], optimizer)
    same_states(nets, [before[i] for i in (2, 2, 0, 1)])
    assert torch.equal(optimizer.state[next(nets.parameters())]["exp_avg"], moments[[2, 2, 0, 1]])
    evolve.mutate(nets, evolve.Gaussian(0.1), seed=0, generation=1, keep=1)
    assert torch.equal(one_of(nets, 0)[0].weight, before[2][0].weight)
    assert not torch.equal(one_of(nets, 1)[0].weight, before[2][0].weight)
    assert evolve.beings_of(nn.Sequential(nets)) == 4


def test_streams_move_with_their_beings():
    nets = widen(nn.Dropout(0.5), 4)
    streams = nets.dropout_streams.clone()
    evolve.reproduce(nets, [3, 0, 0, 1])
    assert torch.equal(nets.dropout_streams, streams[[3, 0, 0, 1]])


def test_duty_cycles_of_winners_move_with_their_beings():
    winners = KWinners(10, beings=3)
    winners(torch.randn(7, 3, 10))
    duty = winners.duty_cycle.clone()
    evolve.reproduce(nn.Sequential(winners), [2, 2, 0])
    assert torch.equal(winners.duty_cycle, duty[[2, 2, 0]])


def test_clone_being_in_the_middle_of_a_backward_is_an_error():
    nets = widen(MEMBERS["mlp"][0], 3)
    y = nets(torch.randn(6, 3, 3))
    nets.clone_being(0, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with pytest.raises(ValueError, match="each destination once"):
        nets.clone_being([0, 1], [2, 2])


@pytest.mark.parametrize("name", ["mlp", "cnn", "block", "lstm"])
def test_copy_pickle_move_and_state_dict(name, tmp_path):
    factory, inputs = MEMBERS[name]
    nets, x = widen(factory, 3).eval(), inputs(3)
    y = first(nets(x))
    for other in (copy.deepcopy(nets), pickle.loads(pickle.dumps(nets))):
        assert torch.equal(first(other(x)), y)
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert torch.equal(first(nets(x)), y)
        assert not torch.equal(first(other(x)), y)  # its members see what its parameters hold
    fresh = widen(factory, 3).eval()
    fresh.load_state_dict(nets.state_dict())
    assert torch.equal(first(fresh(x)), y)
    linnet.save(nets, tmp_path / "nets.safetensors")
    fresh = widen(factory, 3).eval()
    linnet.load(tmp_path / "nets.safetensors", into=fresh)
    assert torch.equal(first(fresh(x)), y)
    assert first(nets.double()(x.double())).dtype == torch.float64
    assert list(nets.state_dict()) == list(factory().state_dict())


def test_it_stands_inside_other_modules():
    net = nn.Sequential(Spread(), widen(lambda: nn.Linear(3, 4), 5), nn.ReLU(), Linear(4, 2, beings=5))
    assert net(torch.randn(6, 3)).shape == (6, 5, 2)
    assert len(net.state_dict()) == 4
    net.eval()
    assert not net[1].training and not net[1]._member[0].training


def test_hooks_of_the_members_parts_are_called():
    for beings, calls in ((3, 3), (20, 1)):  # few are looped, many are called once, as one member sees it
        nets, seen = widen(MEMBERS["mlp"][0], beings), []
        nets.get_submodule("0").register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(tuple(args[0].shape))
        )
        nets(torch.randn(6, beings, 3))
        assert seen == [(6, 3)] * calls


def test_one_function_transform_around_it():
    nets, x = widen(MEMBERS["mlp"][0], 3), torch.randn(6, 3, 3)
    parameters = dict(nets.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(nets, parameters, (x,)).square().sum()

    gradients = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    nets(x).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_bfloat16_autocast():
    nets, x = widen(MEMBERS["mlp"][0], 3), torch.randn(6, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = nets(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), nets(x), atol=0.05, rtol=0.05)


def test_population_that_trains_as_its_members_would():
    """In float64: Adam makes a full step of a gradient that is nothing but rounding."""
    torch.manual_seed(0)
    factory, _ = MEMBERS["residual"]
    members = [factory().double() for _ in range(3)]
    nets = stack(members)
    x, target = torch.randn(20, 3, 4).double(), torch.randn(20, 3, 4).double()
    wide = torch.optim.Adam(nets.parameters(), lr=0.01)
    each = [torch.optim.Adam(member.parameters(), lr=0.01) for member in members]
    for _ in range(20):
        wide.zero_grad()
        F.mse_loss(nets(x), target, reduction="none").mean((0, 2)).sum().backward()
        wide.step()
        for i, (member, optimizer) in enumerate(zip(members, each, strict=True)):
            optimizer.zero_grad()
            F.mse_loss(member(x[:, i]), target[:, i]).backward()
            optimizer.step()
    for name, parameter in nets.named_parameters():
        rows = torch.stack([dict(member.named_parameters())[name] for member in members])
        torch.testing.assert_close(parameter, rows, atol=2e-5, rtol=1e-4)


def test_its_repr_names_the_member():
    assert repr(widen(nn.Linear(3, 2), 4)) == "Wide(Linear(in_features=3, out_features=2, bias=True), beings=4)"
    assert "beings=4" in repr(widen(MEMBERS["cnn"][0], 4)) and isinstance(widen(nn.ReLU(), 4), Wide)


def test_it_compiles_in_one_graph_and_exports_with_a_dynamic_batch():
    torch.compiler.reset()
    nets, x = widen(MEMBERS["mlp"][0], 20), torch.randn(6, 20, 3)
    compiled = torch.compile(nets, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), nets(x))
    compiled(x).square().sum().backward()
    found = [parameter.grad.clone() for parameter in nets.parameters()]
    nets.zero_grad()
    nets(x).square().sum().backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in nets.parameters()])
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(nets, (x,), dynamic_shapes=(({0: batch},),))
    more = torch.randn(9, 20, 3)
    torch.testing.assert_close(program.module()(more), nets(more))


@pytest.mark.parametrize("name", catalogue())
def test_penalty_and_violation_are_those_of_the_members(name):
    cls = catalogue()[name]
    options = dict(cls.examples()[0])
    sizes = options.pop("in_features", 4), options.pop("out_features", 4)
    members = [nn.Sequential(cls(*sizes, **options)) for _ in range(3)]
    with torch.no_grad():
        for member in members:
            for parameter in member.parameters():
                parameter.add_(torch.randn_like(parameter))
    nets = stack(members)
    torch.testing.assert_close(linnet.penalty(nets), sum(linnet.penalty(member) for member in members))
    torch.testing.assert_close(linnet.violation(nets), max(linnet.violation(member) for member in members))
    outside = nn.Sequential(nets, cls(*sizes, **options))
    torch.testing.assert_close(linnet.penalty(outside), linnet.penalty(nets) + outside[1].penalty())


def test_what_the_rest_of_linnet_makes_of_a_widened_module():
    nets = widen(lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), OrthogonalLinear(4, 4)), 3)
    shrinking, rest = linnet.param_groups(nets, 0.1)
    assert [p.shape for p in shrinking["params"]] == [(3, 4, 4)] and len(rest["params"]) == 5
    torch.testing.assert_close(linnet.matrix_decay(nets), torch.tensor(0.5 * 4 * 3))
    x = torch.randn(6, 3, 4)
    with torch.no_grad(), linnet.frozen(nets):
        frozen = nets(x)
    torch.testing.assert_close(frozen, nets(x))
    for convert in (linnet.bake, lambda net: linnet.replace(net, "orthogonal"), lambda net: linnet.sparsify(net, 0.5)):
        with pytest.raises(
            ValueError,
            match=r"a widened module have the tensors of all beings .*; .* is widened",
        ):
            convert(nets)
    baked = stack([linnet.bake(member) for member in unstack(nets)])
    torch.testing.assert_close(baked(x), nets(x), atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------------- what a user found


def test_settings_that_no_repr_shows_must_be_alike():
    with pytest.raises(ValueError, match="num_heads"):
        stack([nn.MultiheadAttention(8, heads) for heads in (2, 4)])
    with pytest.raises(ValueError, match=r"All modules must have the same structure; in module 1 .* must be .*, got "):
        stack([nn.TransformerEncoderLayer(8, 2, norm_first=first_norm) for first_norm in (False, True)])


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return self.layer(F.relu_(x.mul_(2.0))) * self.count


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("beings", [2, 8, 40])
def test_what_a_member_changes_in_place_is_its_own_affair(beings, shared):
    members = [InPlace() for _ in range(beings)]
    nets, stem = stack(members), nn.Linear(3, 3)
    x = torch.randn(4, 1 if shared else beings, 3)
    y = nets(stem(x).clone())
    expected = torch.stack([m(stem(x)[:, 0 if shared else i].clone()) for i, m in enumerate(members)], 1)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    rows = torch.stack([member.layer.weight.grad for member in members])
    torch.testing.assert_close(nets.get_parameter("layer.weight").grad, rows)


def test_a_failed_attempt_leaves_the_inputs_and_a_later_call_may_be_looped():
    class Hard(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, hard=False):
            x = x.mul_(2.0)
            y = self.layer(x)
            return -y if hard and y.sum() > 0 else y

    members = [Hard() for _ in range(20)]
    nets, x = stack(members), torch.randn(4, 20, 3)
    for hard in (False, True):
        expected = torch.stack([member(x[:, i].clone(), hard) for i, member in enumerate(members)], 1)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.testing.assert_close(nets(x.clone(), hard=hard), expected)
        assert len(said) == hard


def test_results_that_cannot_be_those_of_all_are_refused():
    class Number(nn.Linear):
        def forward(self, x):
            return x, float(x.sum())

    class Thing(nn.Linear):
        def forward(self, x):
            return {x}

    with pytest.raises(ValueError, match="must be the same for all beings"):
        widen(Number(3, 3), 4)(torch.randn(2, 4, 3))
    for beings in (2, 40):
        with pytest.raises(TypeError, match="A member must return tensors, numbers, strings or None"):
            widen(Thing(3, 3), beings)(torch.randn(2, beings, 3))


@pytest.mark.parametrize("beings", [3, 40])
@pytest.mark.parametrize("inside", [False, True])
def test_padding_learns_nothing(beings, inside):
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(7, 4, padding_idx=2)

        def forward(self, x):
            return self.words(x)

    members = [Inside() if inside else nn.Embedding(7, 4, padding_idx=2) for _ in range(beings)]
    check_is_loop(stack(members), members, torch.randint(7, (4, beings, 5)))

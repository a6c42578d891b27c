"""DNI against the algorithm written out by hand."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from torch import nn

from linnet import DNI, Linear, LinearSynthesizer, OrthogonalLinear, Spread, SymmetricLinear, Synthesizer, per_being


def network(dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).to(dtype)


def batches(count: int, dtype=torch.float64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 5, generator=generator, dtype=dtype), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def train(net, optimizer, data, order="before"):
    for x, y in data:
        if order == "before":
            optimizer.zero_grad()
        output = net(x)
        if order == "between":
            optimizer.zero_grad()
        F.cross_entropy(output, y).backward()
        optimizer.step()


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class ByHand:
    """The paper's step for a net of three layers, with every gradient asked for explicitly."""

    def __init__(self, net: nn.Sequential, lr: float):
        self.stages = [net[:2], net[2:4], net[4:]]
        self.weights = [torch.zeros(n, n, dtype=torch.float64, requires_grad=True) for n in (7, 6)]
        self.biases = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (7, 6)]
        pairs = zip(self.weights, self.biases, strict=True)
        self.optimizers = [torch.optim.Adam(pair, lr=lr) for pair in pairs]
        self.rms, self.sum, self.mass = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]

    def step(self, x, y):
        """Sets .grad of every parameter, then trains the two synthesizers."""
        first = list(self.stages[0].parameters())
        h1 = self.stages[0](x)
        s1 = h1.detach()
        n1 = s1 / s1.square().mean().sqrt()
        g1 = self.rms[0] / 8 * (n1 @ self.weights[0].detach().T + self.biases[0].detach())
        for p, g in zip(first, torch.autograd.grad(h1, first, g1), strict=True):
            p.grad = g
        leaf1 = s1.clone().requires_grad_()
        h2 = self.stages[1](leaf1)
        s2 = h2.detach()
        n2 = s2 / s2.square().mean().sqrt()
        g2 = self.rms[1] / 8 * (n2 @ self.weights[1].detach().T + self.biases[1].detach())
        below = list(self.stages[1].parameters())
        target1, *grads = torch.autograd.grad(h2, [leaf1, *below], g2)
        for p, g in zip(below, grads, strict=True):
            p.grad = g
        leaf2 = s2.clone().requires_grad_()
        top = list(self.stages[2].parameters())
        target2, *grads = torch.autograd.grad(F.cross_entropy(self.stages[2](leaf2), y), [leaf2, *top])
        for p, g in zip(top, grads, strict=True):
            p.grad = g
        for i, (state, target) in enumerate(((n1, target1), (n2, target2))):
            target = target * 8
            size = float(target.square().mean().sqrt())
            if size == 0:
                continue
            self.mass[i] = 0.9 * self.mass[i] + 0.1
            self.sum[i] = 0.9 * self.sum[i] + 0.1 * size
            self.rms[i] = self.sum[i] / self.mass[i]
            self.optimizers[i].zero_grad()
            prediction = state @ self.weights[i].T + self.biases[i]
            (prediction - target / self.rms[i]).square().mean().backward()
            self.optimizers[i].step()


def differences(net, other) -> float:
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    return max(float((p.grad - q.grad).abs().max()) for p, q in pairs)


def test_every_gradient_is_that_of_the_algorithm_by_hand():
    net, other = network(), network()
    dni = DNI(net, synthesizer_optim=partial(torch.optim.Adam, lr=0.01))
    hand = ByHand(other, lr=0.01)
    optimizers = [torch.optim.Adam(n.parameters(), lr=0.01) for n in (net, other)]
    for x, y in batches(8):
        optimizers[0].zero_grad()
        F.cross_entropy(dni(x), y).backward()
        hand.step(x, y)
        assert differences(net, other) < 1e-12
        for optimizer in optimizers:
            optimizer.step()
    assert float(net[0].weight.grad.abs().max()) > 1e-4  # the synthesizers did speak


def test_the_comparison_by_hand_can_fail():
    net, other = network(), network()
    dni, hand = DNI(net), ByHand(other, lr=0.02)  # another learning rate of the synthesizers
    optimizers = [torch.optim.Adam(n.parameters(), lr=0.01) for n in (net, other)]
    for x, y in batches(4):
        F.cross_entropy(dni(x), y).backward()
        hand.step(x, y)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    F.cross_entropy(dni(x), y).backward()
    hand.step(x, y)
    assert differences(net, other) > 1e-6


def test_outputs_are_those_of_the_network_bit_for_bit():
    net = network()
    dni = DNI(net)
    x, _ = batches(1)[0]
    assert torch.equal(dni(x), net(x))
    dni.eval()
    assert torch.equal(dni(x), net(x))


def test_no_true_gradient_passes_a_cut_and_the_top_learns_from_the_loss():
    grads = []
    for scale in (1.0, 100.0):
        net = network()
        dni = DNI(net)
        train(dni, torch.optim.SGD(net.parameters(), lr=0.1), batches(3))
        net.zero_grad()
        x, y = batches(4)[3]
        (scale * F.cross_entropy(dni(x), y)).backward()
        grads.append([p.grad.clone() for p in net.parameters()])
        plain = copy.deepcopy(net)
        plain.zero_grad()
        (scale * F.cross_entropy(plain(x), y)).backward()
        for p, q in zip(net[4].parameters(), plain[4].parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    for small, large in list(zip(*grads, strict=True))[:4]:
        assert torch.equal(small, large) and small.abs().max() > 0


def test_training_starts_without_made_up_gradients():
    net = network()
    (x, y), *_ = batches(1)
    F.cross_entropy(DNI(net)(x), y).backward()
    assert all(not p.grad.any() for p in net[:4].parameters())
    assert all(p.grad.any() for p in net[4].parameters())


def test_the_order_of_zero_grad_does_not_matter():
    nets = [network(), network()]
    for net, order in zip(nets, ("before", "between"), strict=True):
        train(DNI(net), torch.optim.Adam(net.parameters(), lr=0.01), batches(6), order)
    assert states_equal(*nets)


def test_gradients_accumulate():
    net = network()
    dni = DNI(net)
    train(dni, torch.optim.SGD(net.parameters(), lr=0.1), batches(3))
    first, second = batches(5)[3:]
    before = copy.deepcopy(dni)
    net.zero_grad()
    single = []
    for x, y in (first, second):
        F.cross_entropy(dni(x), y).backward()
    total = [p.grad.clone() for p in net.parameters()]
    for x, y in (first, second):
        before.network.zero_grad()
        F.cross_entropy(before(x), y).backward()
        single.append([p.grad.clone() for p in before.network.parameters()])
    for p, a, b in zip(total, *single, strict=True):
        torch.testing.assert_close(p, a + b)


def test_two_forwards_then_two_backwards():
    net = network()
    dni = DNI(net)
    train(dni, torch.optim.SGD(net.parameters(), lr=0.1), batches(3))
    (x1, y1), (x2, y2) = batches(5)[3:]
    net.zero_grad()
    one, two = dni(x1), dni(x2)
    F.cross_entropy(one, y1).backward()
    F.cross_entropy(two, y2).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_without_training_nothing_happens(how):
    net = network()
    dni = DNI(net, example=batches(1)[0][0])
    before = copy.deepcopy(dni.state_dict())
    x, _ = batches(1)[0]
    if how == "eval":
        dni.eval()
        assert dni(x).grad_fn is not None  # a plain network, with its whole graph
    else:
        with torch.no_grad():
            assert dni(x).grad_fn is None
    after = dni.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in dni.parameters())


def test_a_forward_without_backward_leaves_nothing_behind():
    dni = DNI(network())
    x, _ = batches(1)[0]
    output = dni(x)
    gone = weakref.ref(output)
    state = copy.deepcopy(dni.state_dict())
    del output
    gc.collect()
    assert gone() is None
    assert all(torch.equal(state[key], value) for key, value in dni.state_dict().items())
    assert all(p.grad is None for p in dni.parameters())


def test_graphs_below_a_cut_are_freed_in_forward():
    class Token:
        pass

    kept = []

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.token = Token()
            kept.append(weakref.ref(ctx.token))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Watch(nn.Module):
        def forward(self, x):
            return Keep.apply(x)

    output = DNI(nn.Sequential(nn.Linear(5, 6), Watch(), nn.Linear(6, 3)), at=[1])(torch.randn(4, 5))
    gc.collect()
    assert output is not None and kept[0]() is None
    whole = nn.Sequential(nn.Linear(5, 6), Watch(), nn.Linear(6, 3))(torch.randn(4, 5))
    gc.collect()
    assert whole is not None and kept[1]() is not None  # an ordinary forward keeps it


def test_synthesizers_are_left_alone_by_an_optimizer_that_holds_them():
    net = network()
    dni = DNI(net, example=batches(1)[0][0])
    other = copy.deepcopy(dni)
    train(dni, torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.5), batches(4))
    train(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.5), batches(4))
    assert states_equal(dni, other)


@pytest.mark.parametrize("sized", [True, False])
def test_training_resumes_from_the_state_dict_bit_for_bit(sized):
    data = batches(10)
    net = network()
    dni, optimizer = DNI(net), torch.optim.Adam(net.parameters(), lr=0.01)
    train(dni, optimizer, data[:5])
    state = load(save({key: value.clone() for key, value in dni.state_dict().items()}))  # tensors only
    steps = copy.deepcopy(optimizer.state_dict())
    train(dni, optimizer, data[5:])
    fresh_net = network()
    fresh = DNI(fresh_net, example=data[0][0] if sized else None)
    fresh.load_state_dict(state)
    fresh_optimizer = torch.optim.Adam(fresh_net.parameters(), lr=0.01)
    fresh_optimizer.load_state_dict(steps)
    train(fresh, fresh_optimizer, data[5:])
    assert states_equal(dni, fresh)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_trains_on_as_the_original(copied):
    net = network()
    dni = DNI(net)
    train(dni, torch.optim.SGD(net.parameters(), lr=0.1), batches(3))
    other = copied(dni)
    for each in (dni, other):
        train(each, torch.optim.SGD(each.network.parameters(), lr=0.1), batches(6)[3:])
    assert states_equal(dni, other)


def test_an_example_sizes_the_synthesizers_and_touches_nothing_else():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
    state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    dni = DNI(net, example=torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert dni.cuts["2"].synthesizer.weight.shape == (6, 6)


def test_default_cuts_keep_norms_and_activations_with_their_layer():
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(5, 6),
        nn.BatchNorm1d(6),
        nn.PReLU(),
        nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU()),
        nn.Dropout(),
        nn.Linear(6, 3),
        nn.Identity(),
    )
    assert DNI(net).at == ("3", "5")


def test_cuts_by_name_and_position():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
            self.head = nn.Linear(6, 3)

        def forward(self, x, *, scale=1.0):
            return {"logits": self.head(self.encoder(x)) * scale}

    net = Net()
    dni = DNI(net, at=["encoder"])
    output = dni(torch.randn(4, 5), scale=2.0)["logits"]
    output.square().mean().backward()
    assert net.head.weight.grad.any() and net.encoder[0].weight.grad is not None
    assert DNI(network(), at=[1, 3]).at == DNI(network(), at=["1", "3"]).at == ("1", "3")


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        (["9"], ValueError, "at must name modules of the network"),
        ([9], ValueError, "An index in at must lie in"),
        ([], ValueError, "at least one module"),
        ([4], ValueError, "is the last"),
        ([1.5], TypeError, "at must hold indices and names"),
    ],
)
def test_bad_cuts_are_named(at, error, message):
    with pytest.raises(error, match=message):
        DNI(network(), at=at)


def test_a_network_that_cannot_be_cut_says_why():
    with pytest.raises(ValueError, match=r"must be an nn\.Sequential, whose order is known"):
        DNI(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="two layers with parameters"):
        DNI(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_a_parameter_on_both_sides_of_a_cut_is_refused_by_name():
    shared = nn.Linear(5, 5)
    with pytest.raises(ValueError, match=r"used .* and again"):
        DNI(nn.Sequential(shared, nn.ReLU(), shared))(torch.randn(2, 5))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(5, 5)
            self.two = nn.Linear(5, 5)

        def forward(self, x):
            return self.two(self.one(x)) @ self.one.weight

    with pytest.raises(ValueError, match=r"one\.weight is used below the cut"):
        DNI(Tied(), at=["one"])(torch.randn(2, 5))


def test_a_skip_around_a_cut_is_refused():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            h = self.one(x)
            return self.three(self.two(h)) + h

    with pytest.raises(ValueError, match="must not skip over a cut"):
        DNI(Skip(), at=["two"])(torch.randn(2, 5))


def test_an_optimizer_of_something_else_is_refused():
    net = network()
    with pytest.raises(ValueError, match=r"0\.weight, .* are not in it"):
        DNI(net, optim=torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
        DNI(net, optim=torch.optim.SGD)
    DNI(net, optim=torch.optim.SGD(net.parameters(), lr=0.1))


def test_the_input_gets_a_synthetic_gradient():
    net = network()
    dni = DNI(net)
    train(dni, torch.optim.SGD(net.parameters(), lr=0.1), batches(4))
    x = batches(1)[0][0].requires_grad_()
    before = nn.Linear(5, 5).double()
    dni(before(x)).square().mean().backward()
    assert x.grad.any() and before.weight.grad.any()


def test_a_synthesizer_of_ones_own_needs_only_the_base_class():
    class MyDNI(Synthesizer):
        def __init__(self, input_size, hidden_size, output_size, **kwargs):
            super().__init__(input_size, hidden_size, output_size)
            self.net = nn.Sequential(nn.Linear(input_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, output_size))

        def forward(self, input, hidden):
            return self.net(input), None

    net = network()
    dni = DNI(net, synthesizer=MyDNI, hidden_size=16, example=batches(1)[0][0])
    train(dni, torch.optim.Adam(net.parameters()), batches(3))
    assert isinstance(dni.cuts["1"].synthesizer, MyDNI)
    with pytest.raises(TypeError, match="must make a Synthesizer"):
        DNI(network(), synthesizer=lambda i, h, o: nn.Linear(i, o), example=batches(1)[0][0])


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [OrthogonalLinear(6, 6), nn.Tanh(), SymmetricLinear(6, 6), nn.Tanh(), Linear(6, 3)],
        lambda: [nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)],
        lambda: [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)],
    ],
)
def test_layers_of_all_kinds_learn(layers):
    torch.manual_seed(0)
    net = nn.Sequential(*layers())
    dni = DNI(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    before = copy.deepcopy(net)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(dni(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
        optimizer.step()
    for old, new in zip(before.parameters(), net.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_a_population_is_decoupled_too():
    torch.manual_seed(0)
    net = nn.Sequential(Spread(), Linear(6, 8, beings=3), nn.ReLU(), Linear(8, 4, beings=3))
    dni = DNI(net)
    for _ in range(3):
        per_being(F.cross_entropy)(dni(torch.randn(16, 6)), torch.randint(4, (16,))).sum().backward()
    assert dni.at == ("2",) and net[1].weight.grad.any()


def test_autocast_predicts_in_float32():
    net = network(torch.float32)
    dni = DNI(net)
    for x, y in batches(3, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(dni(x), y)
        loss.backward()
    assert net[0].weight.grad.dtype == torch.float32 and net[0].weight.grad.any()
    assert dni.cuts["1"].synthesizer.weight.dtype == torch.float32


def test_digits_are_learned_better_than_by_the_top_layer_alone():
    """Errors on this split in three seeds: backpropagation 2 %, DNI 4 to 6 %, the top layer alone 13 to 14 %."""
    x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - x.mean(0)) / (x.std(0) + 0.02)).float()[order], y[order]
    errors = {}
    for kind in ("top", "dni"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        learning = net[4] if kind == "top" else net
        optimizer = torch.optim.Adam(learning.parameters(), lr=1e-3)
        model = DNI(net, optim=optimizer) if kind == "dni" else net
        for _ in range(800):
            batch = torch.randint(1297, (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            errors[kind] = float((net(x[1297:]).argmax(1) != y[1297:]).double().mean())
    assert errors["dni"] < 0.08 and errors["dni"] < errors["top"] - 0.02


def test_a_linear_synthesizer_is_zero_at_the_start_and_has_no_hidden_layer():
    gradient, hidden = LinearSynthesizer(4, None, 4)(torch.randn(3, 4), None)
    assert not gradient.any() and hidden is None
    with pytest.raises(ValueError, match="hidden_size of a LinearSynthesizer must be None"):
        LinearSynthesizer(4, 5, 4)

"""The public programs of the reference packages: their README files, notebooks, tasks and tests, run on linnet.

Each test repeats the calls of a program in their order; only the import line is changed for linnet. The files
test_reference_*.py test the sentences of the documentation with their examples, and test_compat_slim.py tests slim.RNN
over every map.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn, optim


@pytest.fixture(scope="module")
def digits():
    """Images (n, 1, 8, 8) of mean 0 and standard deviation 1, and labels: a training set and a test set."""
    images, labels = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    images = ((images - images.mean()) / images.std()).float().view(-1, 1, 8, 8)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return (images[order[:1300]], labels[order[:1300]]), (images[order[1300:]], labels[order[1300:]])


def batches(data, size=64):
    return zip(data[0].split(size), data[1].split(size), strict=True)


def accuracy(model, data):
    model.eval()
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).double().mean())


# ---------------------------------------------------------------------- neuromancer: tests/slim/test_dims.py


def test_every_map_of_the_registry_takes_batches():
    import linnet.compat.slim as slim

    def check(cls, insize, outsize, batch):
        layer, x = cls(insize, outsize).eval(), torch.rand(batch, insize)
        expected = x.double() @ layer.effective_W().double()
        expected = expected if layer.bias is None else expected + layer.bias
        torch.testing.assert_close(layer(x), expected.float())
        assert layer.train()(x).shape == (batch, outsize) and layer.reg_error().shape == ()

    torch.manual_seed(0)
    for cls in set(slim.maps.values()) - slim.square_maps:
        check(cls, 3, 5, 8)
        if cls not in slim.tall_maps:
            check(cls, 8, 3, 3)
    for cls in slim.square_maps:
        check(cls, 8, 8, 8)
        check(cls, 8, 8, 3)


# ---------------------------------------------------------------------- neuromancer: tests/slim/test_maps.py


def samples(truth, count):
    with torch.no_grad():
        x = torch.rand(count, len(truth.weight))
        return x, truth(x)


@pytest.mark.parametrize("name", ["L0Linear", "LassoLinear", "LassoLinearRELU", "ButterflyLinear", "Linear"])
def test_maps_learn_a_sparse_matrix_from_samples(name):
    import linnet.compat.slim as slim

    class Quarter(slim.LinearBase):
        """A matrix with a quarter of nonzero entries."""

        def __init__(self, n):
            super().__init__(n, n)
            nn.init.sparse_(self.weight, 0.75)

        def effective_W(self):
            return self.weight.T

    torch.manual_seed(0)
    truth = Quarter(16).to("cpu")
    assert (truth.effective_W() == 0).sum(1).tolist() == [12] * 16
    learn(getattr(slim, name), truth, share=0.25)


@pytest.mark.parametrize("name", ["PerronFrobeniusLinear", "SVDLinear", "SVDLinearLearnBounds", "SpectralLinear"])
def test_maps_learn_a_matrix_of_bounded_spectrum_from_samples(name):
    import linnet.compat.slim as slim

    class Bounded(slim.LinearBase):
        """Singular values below 1; its factors are plain tensors."""

        def __init__(self, n):
            super().__init__(n, n)
            self.left, self.right = (nn.init.orthogonal_(torch.empty(n, n)) for _ in range(2))
            self.values = torch.rand(n)

        def effective_W(self):
            return self.left * self.values @ self.right

    torch.manual_seed(0)
    # Rows of a Perron-Frobenius matrix sum to at least 0.8, those of the target to anything: the error stays positive
    learn(getattr(slim, name), Bounded(16), share=0.8 if name == "PerronFrobeniusLinear" else 0.05)


def learn(layer, truth, share):
    """On the test set the error falls to at most this share of the error before training."""
    seen, held_out = samples(truth, 400), samples(truth, 100)
    layer = layer(16, 16).to("cpu")
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.02)

    def measured():
        layer.eval()
        with torch.no_grad():
            distance = torch.norm(truth.effective_W() - layer.effective_W(), p=1)
            return F.mse_loss(layer(held_out[0]), held_out[1]).item(), distance.item()

    error, distance = measured()
    layer.train()
    for _ in range(100):
        for rows in torch.randperm(400).split(200):
            optimizer.zero_grad()
            (F.mse_loss(layer(seen[0][rows]), seen[1][rows]) + 1e-3 * layer.reg_error()).backward()
            optimizer.step()
    error_then, distance_then = measured()
    assert error_then < share * error and distance_then < distance
    expected = held_out[0].double() @ layer.effective_W().double()
    expected = expected if layer.bias is None else expected + layer.bias
    torch.testing.assert_close(layer(held_out[0]), expected.float())


# ---------------------------------------------------------------------- neuromancer: examples/ODEs, Koopman operators


def test_a_koopman_operator_is_stable_far_beyond_the_training_horizon():
    from linnet.compat.slim import slim

    torch.manual_seed(0)
    K = slim.linear.SVDLinear(6, 6, sigma_min=0.01, sigma_max=1.0, bias=False)
    rotation = torch.tensor([[0.96, 0.28], [-0.28, 0.96]], dtype=torch.float64)
    x = torch.eye(2, dtype=torch.float64)
    states = torch.stack([x @ torch.linalg.matrix_power(0.99 * rotation, t) for t in range(8)]).float()  # (8, 2, 2)
    encode, decode = nn.Linear(2, 6, bias=False), nn.Linear(6, 2, bias=False)
    optimizer = torch.optim.Adam([*K.parameters(), *encode.parameters(), *decode.parameters()], lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 150)
    for _ in range(150):
        z, loss = encode(states[0]), torch.zeros(())
        for state in states:
            loss = loss + (decode(z) - state).square().sum()
            z = K(z)
        optimizer.zero_grad()
        (loss + K.reg_error()).backward()
        optimizer.step()
        schedule.step()
    assert float(loss.detach()) < 0.05
    a = K.effective_W().detach().double().numpy()
    eig, eig_vec = torch.linalg.eig(K.effective_W())
    assert eig.abs().max() <= 1 + 1e-5 and np.abs(np.linalg.eigvals(a)).max() <= 1 + 1e-5
    torch.testing.assert_close(
        K.effective_W() @ eig_vec[..., 0].real, (eig[0] * eig_vec[..., 0]).real, atol=1e-4, rtol=0
    )
    s = np.linalg.svd(a, compute_uv=False)
    assert s.min() >= 0.01 - 1e-5 and s.max() <= 1 + 1e-5
    z = encode(states[0]).detach()
    far = np.linalg.matrix_power(a, 10_000)
    assert np.abs(z.double().numpy() @ far).max() <= 1.2 * float(z.norm())


def test_a_koopman_operator_with_control_inputs():
    from linnet.compat.slim import slim

    class Controlled(nn.Module):
        def __init__(self, operator):
            super().__init__()
            self.operator = operator

        def forward(self, state, push):
            return self.operator(state) + push

    torch.manual_seed(0)
    A, B = torch.tensor([[0.9, 0.2], [-0.2, 0.8]]), torch.tensor([[0.5], [1.0]])

    def simulate(starts, controls):
        states = [starts]
        for u in controls:
            states.append(states[-1] @ A.T + u @ B.T)
        return torch.stack(states)

    K = slim.linear.SVDLinear(4, 4, sigma_min=0.01, sigma_max=1.0, bias=False)
    model, encode_U = Controlled(K), torch.nn.Linear(1, 4, bias=False)
    encode, decode = torch.nn.Linear(2, 4, bias=False), torch.nn.Linear(4, 2, bias=False)
    parts = nn.ModuleList([model, encode_U, encode, decode])

    def rollout(starts, controls):
        x, predicted = encode(starts), []
        for u in controls:
            x = model(x, encode_U(u))
            predicted.append(decode(x))
        return torch.stack(predicted)

    optimizer = torch.optim.Adam(parts.parameters(), lr=0.02)
    for _ in range(200):
        starts, controls = torch.randn(32, 2), torch.randn(6, 32, 1)
        loss = F.mse_loss(rollout(starts, controls), simulate(starts, controls)[1:]) + K.reg_error()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    starts, controls = torch.randn(100, 2), torch.randn(30, 100, 1)  # five times the length it was trained for
    with torch.no_grad():
        found, expected = rollout(starts, controls), simulate(starts, controls)[1:]
    assert F.mse_loss(found, expected) < 0.1 * expected.var()


# ---------------------------------------------------------------------- neuromancer: maps by name, one dict of options


@pytest.mark.parametrize(
    ("name", "low", "high", "real"),
    [
        ("gershgorin", 0.9, 1.1, False),
        ("gershgorin", 0.0, 1.0, True),
        ("pf", 0.95, 1.0, False),
        ("spectral", 0.99, 1.1, False),
        ("softSVD", 0.0, 1.0, False),
    ],
)
def test_a_net_of_maps_by_name_has_the_eigenvalues_that_its_options_ask_for(name, low, high, real):
    from linnet.compat import slim

    torch.manual_seed(0)
    linmap, linargs = slim.linear.maps[name], {"sigma_min": low, "sigma_max": high, "real": real}
    fx = nn.Sequential(*(linmap(8, 8, bias=True, **linargs) for _ in range(4)))
    assert fx(torch.randn(5, 8)).shape == (5, 8)
    for layer in fx:
        moduli = np.abs(np.linalg.eigvals(layer.effective_W().detach().double().numpy()))
        assert moduli.max() <= high + 1e-5
        assert moduli.max() >= low - 1e-5 if name == "pf" else moduli.min() >= low - 1e-5  # pf: the dominant one


# ---------------------------------------------------------------------- sparselinear: tutorials/SparseLinearDemo.ipynb


def test_the_notebook_shows_a_layer():
    import linnet.compat.sparselinear as sl

    layer = sl.SparseLinear(10, 20)
    shown = "in_features=10, out_features=20, bias=True, sparsity=0.9, connectivity=None, small_world=False"
    assert layer.extra_repr() == shown
    assert (layer.weight.shape, layer.bias.shape) == ((20, 10), (20,))
    assert layer.weight.is_sparse and "nnz=20" in repr(layer.weight)


def test_the_notebook_sends_one_vector_through_a_wide_layer():
    import linnet.compat.sparselinear as sl

    torch.manual_seed(0)
    layer = sl.SparseLinear(2000, 3000, sparsity=0.99)
    vector = torch.rand(2000)
    out = layer(vector)
    out.sum().backward()
    dense = torch.zeros(3000, 2000, dtype=torch.float64)
    for (row, col), value in zip(layer.indices.T.tolist(), layer.weights.tolist(), strict=True):
        dense[row, col] += value
    torch.testing.assert_close(out.double(), dense @ vector.double() + layer.bias, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.weights.grad, vector[layer.indices[1]])
    assert layer.weights.numel() == 60_000


def test_the_notebook_descends_by_hand():
    import linnet.compat.sparselinear as sl

    torch.manual_seed(0)
    questions, answers = torch.randn(64, 200), torch.randn(64, 10)
    net = nn.Sequential(sl.SparseLinear(200, 1000), nn.ReLU(), sl.SparseLinear(1000, 10))
    for _ in range(200):
        error = nn.MSELoss(reduction="sum")(net(questions), answers)
        net.zero_grad()
        error.backward()
        with torch.no_grad():
            for weights in net.parameters():
                weights -= 1e-3 * weights.grad
    assert error < 0.1  # of about 700 at the start


class Flatten(nn.Module):
    def forward(self, images):
        return images.flatten(1)


def two_layers(sl, name):
    """The models of the notebook, narrower, with the learning rates of the notebook."""
    if name == "user":
        torch.manual_seed(1)
        pairs = torch.stack([torch.randint(200, (1280,)), torch.arange(1280) // 20])  # some are drawn twice
        first, second, rate = sl.SparseLinear(64, 200, connectivity=pairs), sl.SparseLinear(200, 10), 1e-1
        assert first.weights.numel() == len({tuple(pair) for pair in pairs.T.tolist()}) < 1280
    elif name == "dynamic":
        first, second, rate = sl.SparseLinear(64, 200, dynamic=True), sl.SparseLinear(200, 10, dynamic=True), 5e-3
    elif name == "moving":
        schedule = {"dynamic": True, "deltaT": 20, "Tend": 120, "alpha": 0.3}
        first, second, rate = sl.SparseLinear(64, 200, **schedule), sl.SparseLinear(200, 10, **schedule), 5e-3
    elif name == "small world":
        first, second, rate = (
            sl.SparseLinear(64, 200, small_world=True),
            sl.SparseLinear(200, 10, small_world=True),
            1e-1,
        )
    elif name == "winners, dense":
        first, second, rate = nn.Linear(64, 200), nn.Linear(200, 10), 5e-3
    elif name == "winners":
        first, second, rate = sl.SparseLinear(64, 200), sl.SparseLinear(200, 10), 5e-2
    else:
        first, second, rate = sl.SparseLinear(64, 200), sl.SparseLinear(200, 10), 1e-1
    between = sl.ActivationSparsity() if name.startswith("winners") else nn.ReLU()
    return nn.Sequential(Flatten(), first, nn.LayerNorm(200), between, second), rate


@pytest.mark.parametrize("name", ["default", "user", "dynamic", "moving", "small world", "winners, dense", "winners"])
def test_the_notebook_trains_on_images(name, digits):
    import linnet.compat.sparselinear as sl

    torch.manual_seed(0)
    model, learning_rate = two_layers(sl, name)
    model = model.to(torch.device("cpu"))
    before = model[1].indices.clone() if name != "winners, dense" else None
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    train, test = digits
    for _ in range(20):
        model.train()
        for images, labels in batches(train):
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert accuracy(model, test) > 0.8
    if name == "default":
        assert model[1].weights.shape == (1280,) and model[1].weight.shape == (200, 64)
        assert model[4].weights.shape == (200,) and model[4].weight.shape == (10, 200)
    if before is not None:
        assert torch.equal(model[1].indices, before) == (name != "moving")  # the default deltaT is 6000 steps
    if name.startswith("winners"):  # act_sparsity is 0.65 by default: k = (1 - 0.65) * 200
        hidden = model[3](model[2](model[1](model[0](test[0][:7]))))
        assert (hidden != 0).sum(-1).tolist() == [70] * 7


def test_the_notebook_trains_a_very_wide_model(digits):
    import linnet.compat.sparselinear as sl

    class Wide(nn.Module):
        """Repeat every pixel ten times, scaled and shifted; sum many outputs for each class."""

        def __init__(self, width):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(640)), nn.Parameter(torch.zeros(640))
            self.maps = nn.ModuleList(sl.SparseLinear(n, width, sparsity=0.98) for n in (640, width, width))
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

        def forward(self, images):
            h = self.scale * images.flatten(1).repeat_interleave(10, dim=1) + self.shift
            for layer, norm in zip(self.maps, self.norms, strict=False):
                h = F.relu(norm(layer(h)))
            return self.maps[2](h).unflatten(1, (-1, 10)).sum(1)

    torch.manual_seed(0)
    model = Wide(1000).to("cpu")
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    train, test = digits
    for _ in range(5):
        model.train()
        for images, labels in batches(train):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert accuracy(model, test) > 0.85


# ---------------------------------------------------------------------- widelinears: the checks under __main__


def test_the_checks_of_the_layer(capsys):
    from linnet.compat.widelinears import LinearWidePointer, WideLinear

    hive = WideLinear(100, 3, 4)
    inputs = torch.randn(3), torch.randn(100, 3), torch.randn(2, 100, 3)
    outputs = [hive(x) for x in inputs]
    assert [tuple(y.shape) for y in outputs] == [(100, 4), (100, 4), (2, 100, 4)]
    for wrong in (torch.randn(100, 4), torch.randn(101, 3)):
        with pytest.raises(ValueError, match="The input of a population"):
            hive(wrong)
    pointer = hive.get_single(1)
    linear = pointer.to_linear()
    print(pointer, linear)
    assert "LinearWidePointer(in_features=3, out_features=4, bias=True)" in capsys.readouterr().out
    own = inputs[0], inputs[1][1], inputs[2][:, 1, :]
    for x, y in zip(own, (outputs[0][1], outputs[1][1], outputs[2][:, 1, :]), strict=True):
        torch.testing.assert_close(pointer(x), y)
        torch.testing.assert_close(linear(x), y)
    assert pointer.hive is hive and pointer.being == 1
    assert LinearWidePointer(hive, 5).being == 5
    assert len(hive.to_linears()) == 100


def test_the_checks_of_the_network():
    from linnet.compat.widelinears import WideDeep, WideLinear

    nets = WideDeep(100, 5, 3, 2, 4)
    assert "beings=100, in_features=5, out_features=3" in repr(nets)
    assert nets(torch.randn(100, 5)).shape == (100, 4)
    assert all(type(layer) is WideLinear for layer in nets.linears)


def test_agents_that_evolve():
    """The use that the README recommends: the best agent is cloned over the others, which then vary."""
    from linnet.compat.widelinears import WideDeep

    torch.manual_seed(0)
    beings = 40
    agents = WideDeep(beings=beings, input_size=5, hidden_size=8, depth=2, output_size=1)
    singles = [layer.to_linears() for layer in agents.linears]
    x = torch.randn(300, 5)
    wanted = (x[:, 0] > x[:, 1]).float()

    def fitness(x, wanted):
        with torch.no_grad():
            y = agents(x.unsqueeze(1).repeat(1, beings, 1))  # (batch, beings, input) -> (batch, beings, output)
        return -(y[..., 0] - wanted[:, None]).square().mean(0)

    by_hand = torch.stack([torch.sigmoid(b(torch.relu(a(x)))) for a, b in zip(*singles, strict=True)], 1)
    torch.testing.assert_close(fitness(x, wanted), -(by_hand[..., 0] - wanted[:, None]).square().mean(0).detach())
    for _ in range(60):
        best = int(fitness(x, wanted).argmax())
        for other in range(beings):
            if other != best:
                agents.clone_being(best, other)
        with torch.no_grad():
            for parameter in agents.parameters():
                noise = 0.15 * torch.randn_like(parameter)
                noise[best] = 0  # the best of a generation stays
                parameter += noise
    held_out = torch.randn(300, 5)
    answers = (held_out[:, 0] > held_out[:, 1]).float()
    best = int(fitness(x, wanted).argmax())
    assert fitness(held_out, answers)[best] > -0.12  # a constant has -0.25 at best
    assert agents(held_out[0]).shape == (beings, 1)


# ---------------------------------------------------------------------- pytorch-dni: README of the repository


def whatever_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def test_everything_that_programs_import_with_a_star():
    namespace = {}
    exec("from linnet.compat.dni import *\nfrom linnet.compat.dni import _DNI", namespace)
    for name in "DNI DNINetwork LinearDNI LinearSigmoidDNI LinearBatchNormDNI RNNDNI Conv2dDNI".split():
        assert issubclass(namespace[name], nn.Module)
    detached = namespace["detach_all"]([(torch.ones(1, requires_grad=True), None), {"a": 3}])
    assert not detached[0][0].requires_grad and detached[0][1] is None and detached[1] == {"a": 3}
    for size in range(5, 12):
        for kernel in range(1, 6):
            conv = nn.Conv2d(1, 1, kernel, padding=namespace["get_padding"](size, kernel, 1, 1))
            assert F.max_pool2d(conv(torch.zeros(1, 1, size, size)), 2).shape == (1, 1, size, size)


def test_a_network_is_optimized_without_a_step_of_the_loop(digits):
    from linnet.compat.dni import DNI

    torch.manual_seed(0)
    net = whatever_network()
    opt = optim.Adam(net.parameters(), lr=0.001)
    net = DNI(net, grad_optim="adam", grad_lr=0.001)
    train, test = digits
    for _ in range(10):
        for input, target_output in batches(train):
            opt.zero_grad()
            output = net(input)
            loss = F.cross_entropy(output, target_output)
            loss.backward()
    assert accuracy(net, test) > 0.85


def test_a_step_of_the_loop_updates_by_backpropagation_too():
    from linnet.compat.dni import DNI

    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    weight = layers[2].weight.detach().clone()
    opt = optim.SGD(layers.parameters(), lr=0.5)
    net = DNI(layers, grad_optim="sgd", grad_lr=0.25)
    opt.zero_grad()
    net(torch.randn(3, 4)).square().sum().backward()
    torch.testing.assert_close(layers[2].weight, weight - 0.25 * layers[2].weight.grad)
    opt.step()
    torch.testing.assert_close(layers[2].weight, weight - 0.75 * layers[2].weight.grad)


class Blocks(nn.Module):
    """Blocks of which some are wrapped; a list holds them, and attributes."""

    def __init__(self, width=48, wrapped=(), **options):
        super().__init__()
        self.options = options
        self.blocks = []
        for place in range(3):
            block = self.block(width if place else 64, width)
            self.blocks.append(self.wrap(block) if place in wrapped else block)
            setattr(self, f"block{place}", self.blocks[place])
        self.final = self.block(width, 10)

    def block(self, inputs, outputs):
        return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs))

    def wrap(self, block):
        from linnet.compat.dni import DNI

        return DNI(block, hidden_size=32, grad_optim="adam", grad_lr=0.001, recursive=False, **self.options)

    def forward(self, images):
        h = images.flatten(1)
        for block in self.blocks:
            h = F.relu(block(h))
        return F.log_softmax(self.final(h), dim=-1)


def test_chosen_layers_are_wrapped(digits):
    torch.manual_seed(0)
    net = Blocks(wrapped=[1, 2])
    opt = optim.Adam([*net.block0.parameters(), *net.final.parameters()], lr=0.003)
    inner = [block.network.network[0] for block in (net.block1, net.block2)]
    before = copy.deepcopy(inner)
    train, test = digits
    for _ in range(15):
        net.train()
        for images, labels in batches(train):
            opt.zero_grad()
            F.nll_loss(net(images), labels).backward()
            opt.step()
    assert accuracy(net, test) > 0.85
    assert all(not torch.equal(a.weight, b.weight) for a, b in zip(before, inner, strict=True))


@pytest.mark.parametrize("λ", [1, -1, 0.5, 0])
def test_wrapped_layers_get_the_share_of_the_true_gradient_that_λ_says(λ, digits):
    """While the synthetic gradient is 0: λ = 1 and -1 pass the true gradient, 0.5 half of it at every wrapped layer."""
    images, labels = digits[0][0][:32], digits[0][1][:32]
    torch.manual_seed(0)
    plain, net = Blocks(), Blocks(wrapped=[0, 2], λ=λ)
    with torch.no_grad():
        for mine, other in zip(net.parameters(), plain.parameters(), strict=True):
            mine.copy_(other)
    for model in (plain, net):
        F.nll_loss(model(images), labels).backward()
    share = 1 if λ == -1 else λ
    found = [net.block0.network.network, net.block1, net.block2.network.network, net.final]
    expected = [plain.block0, plain.block1, plain.block2, plain.final]
    shares = [share**2, share, share, 1]  # block0 is below two wrappers, block1 below one
    for block, other, part in zip(found, expected, shares, strict=True):
        torch.testing.assert_close(block[0].weight.grad, part * other[0].weight.grad, atol=1e-6, rtol=1e-4)


def test_a_custom_dni_net_with_parameters(digits):
    from linnet.compat.dni import DNI, DNINetwork

    class Mine(DNINetwork):
        """Hidden layers in a list, and an attribute for each; the module stores its own sizes."""

        def __init__(self, input_size, hidden_size, output_size, num_layers=2, bias=True):
            super().__init__(input_size, hidden_size, output_size)
            self.hidden_size, self.num_layers, self.bias = 4 * hidden_size, num_layers, bias
            sizes = [input_size] + [self.hidden_size] * num_layers
            self.net = [nn.Linear(a, b, bias) for a, b in itertools.pairwise(sizes)]
            for place, linear in enumerate(self.net):
                setattr(self, f"layer{place}", linear)
            self.final = nn.Linear(self.hidden_size, output_size)

        def forward(self, input, hidden):
            for linear in self.net:
                input = F.relu(linear(input))
            return self.final(input), None

    torch.manual_seed(0)
    options = {"num_layers": 3, "bias": True}
    net = DNI(whatever_network(), grad_optim="adam", grad_lr=0.001, dni_network=Mine, dni_params=options)
    train, test = digits
    for _ in range(10):
        for images, labels in batches(train):
            net.zero_grad()
            F.cross_entropy(net(images), labels).backward()
    assert accuracy(net, test) > 0.85
    (source,) = net.cuts.values()
    assert source.synthesizer.num_layers == 3 and source.synthesizer.layer2.in_features == 40
    assert net.diagnostics()["cosine/3"] > 0.1  # it has learned from the gradients that came


# ---------------------------------------------------------------------- pytorch-dni: tasks/


def test_the_task_of_fully_connected_layers(digits):
    from linnet.compat.dni import DNI, LinearBatchNormDNI

    torch.manual_seed(0)
    model = Blocks(width=32)
    optimizer = optim.Adam(model.parameters(), lr=0.003)
    model = DNI(model, hidden_size=16, dni_network=LinearBatchNormDNI, λ=0.2, grad_optim="adam", grad_lr=0.003)
    train, test = digits
    for _ in range(20):
        model.train()
        for images, labels in batches(train):
            optimizer.zero_grad()
            F.nll_loss(model(images), labels).backward()
    assert accuracy(model, test) > 0.8
    assert len(model.cuts) == 3


@pytest.mark.parametrize(("λ", "enough"), [(0.0, 0.4), (0.5, 0.75)])  # its --lambda
def test_the_task_of_convolutions(λ, enough, digits):
    from linnet.compat.dni import DNI, Conv2dDNI, get_padding

    class Convolutions(nn.Module):
        """Each convolution doubles the size of its image, and pooling halves it again."""

        def __init__(self, filters):
            super().__init__()
            self.first, self.second = (self.wrap(self.block(n, filters), filters) for n in (1, filters))
            self.final = nn.Sequential(nn.Linear(filters * 64, 50), nn.Linear(50, 10))

        def block(self, inputs, filters):
            padding = get_padding(8, 5, 1, 1)
            return nn.Sequential(nn.Conv2d(inputs, filters, kernel_size=5, padding=padding), nn.BatchNorm2d(filters))

        def wrap(self, block, filters):
            options = {"convolutions": filters, "kernel_size": 5, "num_layers": 2, "padding": "SAME"}
            return DNI(
                block,
                hidden_size=256,
                dni_network=Conv2dDNI,
                dni_params=options,
                λ=λ,
                grad_optim="adam",
                grad_lr=0.003,
                gpu_id=-1,
                recursive=False,
            )

        def forward(self, images):
            h = F.relu(F.max_pool2d(self.first(images), 2))
            h = F.relu(F.avg_pool2d(self.second(h), 2))
            return F.log_softmax(self.final(h.flatten(1)), dim=-1)

    torch.manual_seed(0)
    model = Convolutions(6)
    optimizer = optim.Adam(model.final.parameters(), lr=0.003)
    inner = [wrapper.network.network[0] for wrapper in (model.first, model.second)]
    before = copy.deepcopy(inner)
    train, test = digits
    for _ in range(3):
        model.train()
        for images, labels in batches(train):
            optimizer.zero_grad()
            F.nll_loss(model(images), labels).backward()
            optimizer.step()
    assert accuracy(model, test) > enough
    assert all(not torch.equal(a.weight, b.weight) for a, b in zip(before, inner, strict=True))
    assert model.first.cuts["place"].synthesizer.net[1].out_channels == 6


def test_the_task_of_images_in_colour(digits):
    """The layers of the network are attributes of the wrapper; the optimizer gets only the last layer."""
    from linnet.compat.dni import DNI, LinearDNI

    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            self.last_layer = nn.Linear(64, 10)

        def forward(self, x):
            return self.last_layer(self.features(x).flatten(1))

    torch.manual_seed(0)
    net = DNI(Images(), hidden_size=16, grad_optim="adam", grad_lr=1e-3, dni_network=LinearDNI, λ=0)
    optimizer = optim.Adam(net.last_layer.parameters(), lr=1e-3)
    train, test = digits
    for _ in range(8):
        net.train()
        for inputs, targets in batches(train):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
    assert accuracy(net, test) > 0.6


class Language(nn.Module):
    """A language model whose recurrent part is wrapped."""

    def __init__(self, kind, tokens, size, layers):
        from linnet.compat.dni import DNI, RNNDNI

        super().__init__()
        self.table, self.drop = nn.Embedding(tokens, size), nn.Dropout(0.1)
        self.recurrent = DNI(
            kind(size, size, layers, dropout=0.1),
            dni_network=RNNDNI,
            hidden_size=size,
            grad_optim="adam",
            grad_lr=0.001,
            recursive=False,
            gpu_id=-1,
            format_fn=lambda output: output[0],
        )
        self.guess = nn.Linear(size, tokens)

    def forward(self, text, state):
        h, state = self.recurrent(self.drop(self.table(text)), state)
        return self.guess(self.drop(h)), state

    def start(self, batch):
        parameter = next(self.recurrent.network.parameters()).data
        lstm = isinstance(self.recurrent.network.network, nn.LSTM)
        states = [parameter.new_zeros(self.recurrent.num_layers, batch, self.recurrent.hidden_size) for _ in range(2)]
        return tuple(states) if lstm else states[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_task_of_a_language_model(kind, tmp_path):
    from linnet.compat.dni import detach_all

    torch.manual_seed(0)
    tokens, window = 8, 10
    steps = torch.tensor([1, 3, 1, 3])  # of the four texts, each of which goes round all tokens
    text = (torch.arange(401).view(-1, 1) * steps).remainder(tokens)  # (time, batch)
    model = Language(kind, tokens, 32, 2)
    opt = optim.Adam(model.parameters(), lr=0.005, eps=1e-9, betas=(0.9, 0.98))
    for _ in range(5):
        model.train()
        state = model.start(4)
        for i in range(0, 400, window):
            state = detach_all(state)
            opt.zero_grad()
            guess, state = model(text[i : i + window], state)
            F.cross_entropy(guess.flatten(0, 1), text[i + 1 : i + 1 + window].flatten()).backward()
            if hasattr(model, "step_optimizers"):  # it has not, its part has
                model.step_optimizers()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            opt.step()
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    again.recurrent.flatten_parameters()
    for net in (model, again):
        net.eval()
        with torch.no_grad():
            guess, _ = net(text[:200], net.start(4))
        # one has to see which text it is
        assert F.cross_entropy(guess.flatten(0, 1), text[1:201].flatten()) < 0.75 * math.log(2)


class Remembering(nn.Module):
    """The replacement of the tasks' network with a memory: it takes and returns three states."""

    def __init__(self, size, hidden_size):
        super().__init__()
        self.recurrent, self.read = nn.LSTM(size, hidden_size, batch_first=True), nn.Linear(hidden_size, size)

    def forward(self, input, states, reset_experience=False, pass_through_memory=True):
        h, controller = self.recurrent(input, states[0])
        return self.read(h), (controller, None, None)


def copies(rng, batch, length, size):
    """Random bits, a marker, and the same bits again: (batch, 2 length + 1, size)."""
    bits = torch.from_numpy(rng.integers(0, 2, (batch, length, size - 1))).float()
    question, answer = torch.zeros(2, batch, 2 * length + 1, size)
    question[:, :length, :-1] = answer[:, length + 1 :, :-1] = bits
    question[:, length, -1] = 1
    return question, answer


@pytest.mark.parametrize("name", ["RNN_DNI", "Linear_DNI", "Linear_Sigmoid_DNI"])
def test_the_copy_task(name, tmp_path):
    from linnet.compat import dni

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    rnn = Remembering(6, 32)
    optimizer = optim.Adam(rnn.parameters(), lr=0.01, eps=1e-9, betas=(0.9, 0.98))
    debug_enabled = hasattr(rnn, "debug") and rnn.debug
    rnn = dni.DNI(rnn, hidden_size=32, optim=optimizer, dni_network=getattr(dni, name))
    before = rnn.recurrent.weight_ih_l0.detach().clone()
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        question, answer = copies(rng, 20, int(rng.integers(1, 3)), 6)
        output, (chx, mhx, rv) = rnn(question, (None, None, None), reset_experience=True, pass_through_memory=True)
        loss = F.binary_cross_entropy_with_logits(output, answer)
        loss.backward()
        nn.utils.clip_grad_norm_(rnn.parameters(), 50)
        optimizer.step()
        losses.append(loss.item())
    assert not debug_enabled and mhx is None and rv is None and chx[0].shape == (1, 20, 32)
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])
    assert not torch.equal(before, rnn.recurrent.weight_ih_l0)
    torch.save(rnn.state_dict(), tmp_path / "step_150.pth")
    fresh = dni.DNI(Remembering(6, 32), hidden_size=32, dni_network=getattr(dni, name))
    fresh.load_state_dict(torch.load(tmp_path / "step_150.pth"))
    states = None, None, None
    torch.testing.assert_close(fresh.eval()(question, states)[0], rnn.eval()(question, states)[0])


# ---------------------------------------------------------------------- pytorch-dni: examples/ and the scripts of tests


@pytest.mark.parametrize("λ", [1.0, 0.5, 0.0, -1])
def test_the_demonstration_of_λ(λ):
    from linnet.compat.dni import DNI

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
    dni_net = DNI(net, hidden_size=16, λ=λ, recursive=True, skip_last_layer=True)
    optimizer = optim.Adam(dni_net.parameters(), lr=0.01)
    losses = []
    for _ in range(200):
        x = torch.randn(16, 10)
        optimizer.zero_grad()
        loss = F.mse_loss(dni_net(x), torch.sum(x, dim=1, keepdim=True))
        loss.backward()
        dni_net.step_optimizers()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:5])


@pytest.mark.parametrize("λ", [0.0, 0.5])
def test_the_demonstration_of_a_recurrent_classifier(λ):
    from linnet.compat.dni import DNI, RNNDNI

    torch.manual_seed(0)
    lstm = nn.LSTM(input_size=4, hidden_size=16, num_layers=2, batch_first=True)
    dni_lstm = DNI(lstm, dni_network=RNNDNI, hidden_size=12, λ=λ, recursive=False, format_fn=lambda x: x[0])
    classifier = nn.Linear(16, 2)
    lstm_opt = optim.Adam(dni_lstm.parameters(), lr=0.005)
    class_opt = optim.Adam(classifier.parameters(), lr=0.01)
    before = lstm.weight_ih_l0.detach().clone()

    def data(samples):
        x = torch.randn(samples, 6, 4)
        return x, (torch.sum(x[:, -1, :], dim=1) > 0).long()

    def gradient(x, y):
        lstm_opt.zero_grad()
        class_opt.zero_grad()
        lstm_out, _ = dni_lstm(x)
        output = classifier(lstm_out[:, -1, :])
        loss = F.cross_entropy(output, y)
        loss.backward()
        return lstm.weight_ih_l0.grad.clone()

    for _ in range(120):
        gradient(*data(32))
        dni_lstm.step_optimizers()
        lstm_opt.step()
        class_opt.step()
    assert not torch.equal(before, lstm.weight_ih_l0)
    x, y = data(500)
    with torch.no_grad():
        lstm_out, hidden = dni_lstm.eval()(x)
    assert [h.shape for h in hidden] == [(2, 500, 16)] * 2
    if λ:
        assert (classifier(lstm_out[:, -1, :]).argmax(1) == y).double().mean() > 0.9
    else:  # the synthetic gradient is there before the loss, so the labels are not in it
        twin = copy.deepcopy(dni_lstm.train())
        first = gradient(x, y)
        lstm, dni_lstm = twin.network.network, twin
        torch.testing.assert_close(gradient(x, 1 - y), first)


def test_the_demonstration_of_wrapped_features(digits):
    from linnet.compat.dni import DNI, LinearDNI

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
            self.head = nn.Linear(32, 10)

        def forward(self, images):
            return F.log_softmax(self.head(self.features(images)), dim=1)

    torch.manual_seed(0)
    model = Classifier()
    model.features = DNI(
        model.features, dni_network=LinearDNI, hidden_size=16, λ=0.3, recursive=True, skip_last_layer=True
    )
    optimizer = optim.Adam(model.parameters(), lr=0.001)
    train, test = digits
    for _ in range(8):
        model.train()
        for data, target in batches(train):
            optimizer.zero_grad()
            loss = F.nll_loss(model(data), target)
            loss.backward()
            if hasattr(model.features, "step_optimizers"):
                model.features.step_optimizers()
            optimizer.step()
    assert accuracy(model, test) > 0.85

"""DNI against a step written by hand, and against planted faults of the synthetic gradient."""

import copy
import functools
import gc
import math
import pickle
import subprocess
import sys
import weakref

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import linnet
from linnet.decoupled import DNI, LinearSynthesizer, Synthesizer, Synthetic
from linnet.decoupled.engine import forward_pass as boundary
from linnet.decoupled.sources import synthetic

WIDTH = 6


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices
    yield
    torch.set_num_threads(threads)


def network(dtype=torch.float64, seed=0, width=WIDTH):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)).to(
        dtype
    )


def batches(count, dtype=torch.float64, seed=1, sizes=(7, 5, 9, 3, 6)):
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        size = sizes[i % len(sizes)]
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64).to(dtype)
        yield x, torch.randint(0, 3, (size,), generator=generator)


def adam(net, lr=1e-2, **options):
    return torch.optim.Adam(net.parameters(), lr=lr, **options)


def train(dni, opt, data):
    for x, y in data:
        opt.zero_grad()
        F.cross_entropy(dni(x), y).backward()
        opt.step()


def grads(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def same_state(first, second):
    a, b = first.state_dict(), second.state_dict()
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def alive(monkeypatch):
    """Counts the states of cuts and the predictions that have not been freed."""
    references = []

    def watch(cls):
        def make(*args):
            made = cls(*args)
            references.append((cls.__name__, weakref.ref(made)))
            return made

        return make

    monkeypatch.setattr(boundary, "CutState", watch(boundary.CutState))
    monkeypatch.setattr(synthetic, "Prediction", watch(synthetic.Prediction))
    return lambda kind="": sum(name.startswith(kind) and found() is not None for name, found in references)


class ByHand:
    """The step of a DNI with two cuts, from the formulas: no graph between stages, Adam and linear regression by hand.

    It keeps its own copy of the network, whose gradients it computes stage by stage, and two linear synthesizers.
    """

    def __init__(self, net, lr, synthesizer_lr):
        self.stages = [copy.deepcopy(net[:2]), copy.deepcopy(net[2:4]), copy.deepcopy(net[4:])]
        self.parameters = [p for stage in self.stages for p in stage.parameters()]
        self.lr, self.synthesizer_lr, self.moments = lr, synthesizer_lr, {}
        self.theta = [[torch.zeros(WIDTH, WIDTH).double(), torch.zeros(WIDTH).double()] for _ in range(2)]
        self.rms, self.weight, self.mean = [0.0, 0.0], [0.0, 0.0], [torch.zeros(WIDTH).double() for _ in range(2)]

    def adam(self, name, tensor, gradient, lr):
        m, v, t = self.moments.get(name, (0.0, 0.0, 0))
        m, v, t = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, t + 1
        self.moments[name] = m, v, t
        with torch.no_grad():
            tensor -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    def step(self, x, y):
        batch, gradients, targets, inputs = len(x), [], [], []
        for i in range(2):
            stage, (w, b) = self.stages[i], self.theta[i]
            x = x.detach().requires_grad_(i > 0)
            h = stage(x)
            scaled = h.detach() / (h.detach() ** 2).mean().sqrt()
            g = self.rms[i] * ((scaled - self.mean[i]) @ w.T + b) / batch
            found = torch.autograd.grad(h, [*([x] if i else []), *stage.parameters()], g)
            targets += found[: 1 if i else 0]
            gradients += found[1 if i else 0 :]
            inputs.append(scaled)
            x = h.detach()
        x.requires_grad_()
        found = torch.autograd.grad(F.cross_entropy(self.stages[2](x), y), [x, *self.stages[2].parameters()])
        targets.append(found[0])
        gradients += found[1:]
        for i in range(2):
            self.regress(i, inputs[i], targets[i] * batch)
        for i, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            self.adam(i, parameter, gradient, self.lr)
        return gradients

    def regress(self, i, scaled, target):
        size = float((target**2).mean().sqrt())
        if size == 0:
            return
        self.weight[i] = 0.9 * self.weight[i] + 0.1
        self.rms[i] += 0.1 / self.weight[i] * (size - self.rms[i])
        w, b = self.theta[i]
        centred = scaled - self.mean[i]
        error = 2 / target.numel() * (centred @ w.T + b - target / self.rms[i])
        self.mean[i] = self.mean[i] + 0.1 / self.weight[i] * (scaled.mean(0) - self.mean[i])
        self.adam((i, "w"), w, error.T @ centred, self.synthesizer_lr)
        self.adam((i, "b"), b, error.sum(0), self.synthesizer_lr)


def distance_from_hand(steps=5):
    """The largest difference of any gradient from the hand-written step."""
    net = network()
    hand = ByHand(net, lr=1e-2, synthesizer_lr=1e-2)
    opt = adam(net)
    dni = DNI(net, opt, gradient=Synthetic(optim=functools.partial(torch.optim.Adam, lr=1e-2)))
    worst, seen = 0.0, 0.0
    for x, y in batches(steps):
        opt.zero_grad()
        F.cross_entropy(dni(x), y).backward()
        for mine, other in zip(grads(net), hand.step(x, y), strict=True):
            worst = max(worst, float((mine - other).abs().max()))
        seen = max(seen, float(net[0].weight.grad.abs().max()))
        opt.step()
    assert seen > 1e-4  # the synthetic gradients are not all zero
    return worst


# ---------------------------------------------------------------------- the gradients


def test_five_steps_equal_the_step_written_by_hand():
    assert distance_from_hand() < 1e-10


@pytest.mark.parametrize("fault", ["batch", "decay", "size", "doubled", "untaught", "leak"])
def test_the_hand_written_step_catches(fault, monkeypatch):
    if fault == "batch":
        monkeypatch.setattr(synthetic, "batch_size", lambda h: 1)
    elif fault == "decay":
        monkeypatch.setattr(synthetic, "DECAY", 0.99)
    elif fault == "size":
        monkeypatch.setattr(synthetic, "root_mean_square", lambda x: x.abs().mean())
    elif fault == "doubled":
        backward = boundary.CutState.backward
        monkeypatch.setattr(boundary.CutState, "backward", lambda *args: tuple(2 * g for g in backward(*args)))
    elif fault == "untaught":
        monkeypatch.setattr(synthetic.Synthetic, "learn", lambda *args: None)
        with pytest.raises(AssertionError):
            distance_from_hand()
        return
    else:  # no cut at all: the true gradient passes

        def leaking(self, name, sources, outputs):
            return outputs

        monkeypatch.setattr(boundary.ForwardPass, "cut", leaking)
    assert distance_from_hand() > 1e-6


def test_the_top_stage_gets_the_gradient_of_backpropagation():
    net = network()
    plain, dni = copy.deepcopy(net), DNI(net)
    opt = adam(net)
    train(dni, opt, batches(3))
    plain.load_state_dict(net.state_dict())
    x, y = next(batches(1, seed=5))
    for model in (plain, dni):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
    assert torch.equal(plain[4].weight.grad, net[4].weight.grad)
    assert torch.equal(plain[4].bias.grad, net[4].bias.grad)
    assert not torch.allclose(plain[2].weight.grad, net[2].weight.grad)


def test_nothing_of_the_loss_passes_a_cut():
    """For another loss after the same forward the gradients below the top cut are equal bit for bit."""
    first = DNI(network())
    train(first, adam(first.network), batches(4))
    second = copy.deepcopy(first)
    x, y = next(batches(1, seed=5))
    for dni, loss in ((first, F.cross_entropy), (second, lambda o, t: -7 * o.square().sum())):
        dni.zero_grad()
        loss(dni(x), y).backward()
    assert same(grads(first.network[:4]), grads(second.network[:4]))
    assert first.network[0].weight.grad.abs().max() > 0
    assert not torch.equal(first.network[4].weight.grad, second.network[4].weight.grad)


def test_the_first_synthetic_gradient_is_zero():
    dni = DNI(network())
    x, y = next(batches(1))
    F.cross_entropy(dni(x), y).backward()
    assert all(bool((g == 0).all()) for g in grads(dni.network[:4]))
    assert dni.network[4].weight.grad.abs().max() > 0


@pytest.mark.parametrize("leaf", [True, False])
def test_the_input_gets_the_synthetic_gradient_of_the_first_stage(leaf):
    dni = DNI(network())
    train(dni, adam(dni.network), batches(4))
    before = copy.deepcopy(dni.cuts["1"])
    x, y = next(batches(1, seed=5))
    x.requires_grad_()
    F.cross_entropy(dni(x if leaf else x.exp()), y).backward()
    layer, synthesizer = dni.network[0], before.synthesizer
    with torch.no_grad():
        z = x if leaf else x.exp()
        h = torch.tanh(z @ layer.weight.mT + layer.bias)
        g = before.rms * ((h / (h**2).mean().sqrt() - before.mean) @ synthesizer.weight.mT + synthesizer.bias) / len(x)
        expected = (g * (1 - h**2)) @ layer.weight * (1 if leaf else z)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(x.grad, expected)


def test_in_populations_and_sequences_the_synthesizer_acts_on_the_last_axis():
    dni = DNI(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)).double())
    for _ in range(3):
        dni(torch.randn(6, 3, 4, dtype=torch.float64)).square().mean().backward()
    source = copy.deepcopy(dni.cuts["0"])
    assert source.synthesizer.weight.shape == (5, 5)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    dni.zero_grad()
    dni(x).square().mean().backward()
    h = dni.network[0](x).detach()
    inputs = h / (h**2).mean().sqrt() - source.mean
    g = source.rms * (inputs @ source.synthesizer.weight.mT + source.synthesizer.bias) / 6
    torch.testing.assert_close(dni.network[0].bias.grad, g.sum((0, 1)))


# ---------------------------------------------------------------------- loops


def test_zero_grad_may_stand_anywhere():
    results = []
    for order in ("before", "between", "after"):
        dni = DNI(network())
        opt = adam(dni.network)
        for x, y in batches(5):
            if order == "before":
                opt.zero_grad()
            loss = F.cross_entropy(dni(x), y)
            if order == "between":
                opt.zero_grad()
            loss.backward()
            opt.step()
            if order == "after":
                opt.zero_grad()
        results.append(list(dni.state_dict().values()))
    assert same(results[0], results[1]) and same(results[0], results[2])


def test_gradients_accumulate():
    dni = DNI(network())
    train(dni, adam(dni.network), batches(3))
    dni.zero_grad()
    other = copy.deepcopy(dni)
    alone = []
    for x, y in batches(2, seed=5):
        F.cross_entropy(dni(x), y).backward()
        other.zero_grad()
        F.cross_entropy(other(x), y).backward()
        alone.append(grads(other.network))
    assert same(grads(dni.network), [a + b for a, b in zip(*alone, strict=True)])


def test_two_forwards_then_two_backwards():
    dni = DNI(network())
    train(dni, adam(dni.network), batches(3))
    dni.zero_grad()
    apart, in_turn = [copy.deepcopy(dni), copy.deepcopy(dni)], copy.deepcopy(dni)
    data = list(batches(2, seed=5))
    for loss in [F.cross_entropy(dni(x), y) for x, y in data]:
        loss.backward()
    for model, (x, y) in zip(apart, data, strict=True):
        F.cross_entropy(model(x), y).backward()
        F.cross_entropy(in_turn(x), y).backward()
    sums = [a + b for a, b in zip(grads(apart[0].network), grads(apart[1].network), strict=True)]
    assert same(grads(dni.network), sums)
    # what the top synthesizer learns depends on no other one: the same as one pass after the other
    assert same(list(dni.cuts["3"].state_dict().values()), list(in_turn.cuts["3"].state_dict().values()))


def test_a_second_backward_is_refused():
    dni = DNI(network())
    x, y = next(batches(1))
    output = dni(x)
    F.cross_entropy(output, y).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"at most one backward.*; a second one reached the cut after '3'"):
        output.sum().backward()


def test_torch_autograd_grad_sees_the_synthetic_gradients():
    dni = DNI(network())
    train(dni, adam(dni.network), batches(3))
    dni.zero_grad()
    other = copy.deepcopy(dni)
    x, y = next(batches(1, seed=5))
    F.cross_entropy(dni(x), y).backward()
    found = torch.autograd.grad(F.cross_entropy(other(x), y), list(other.network.parameters()))
    assert same(grads(dni.network), list(found))


def test_hooks_on_parameters_run_once():
    dni = DNI(network())
    train(dni, adam(dni.network), batches(3))
    dni.zero_grad()
    other = copy.deepcopy(dni)
    calls = []
    other.network[0].weight.register_hook(lambda g: calls.append(0) or 3 * g)
    other.network[0].bias.register_post_accumulate_grad_hook(lambda p: calls.append(1))
    x, y = next(batches(1, seed=5))
    for model in (dni, other):
        F.cross_entropy(model(x), y).backward()
    assert sorted(calls) == [0, 1]
    assert torch.equal(other.network[0].weight.grad, 3 * dni.network[0].weight.grad)


def test_a_penalty_in_the_loss_reaches_the_layers_below_too():
    dni = DNI(network())
    train(dni, adam(dni.network), batches(3))
    dni.zero_grad()
    other = copy.deepcopy(dni)
    x, y = next(batches(1, seed=5))
    F.cross_entropy(dni(x), y).backward()
    weight = other.network[0].weight
    (F.cross_entropy(other(x), y) + 3 * weight.square().sum()).backward()
    torch.testing.assert_close(weight.grad, dni.network[0].weight.grad + 6 * weight.detach())


def test_checkpointed_stages():
    class Checkpointed(nn.Module):
        def __init__(self, stage):
            super().__init__()
            self.stage = stage

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.stage, x, use_reentrant=False)

    net, other = network(), network()
    train(DNI(net), adam(net), batches(4))
    train(DNI(nn.Sequential(Checkpointed(other[:2]), Checkpointed(other[2:4]), other[4])), adam(other), batches(4))
    assert same(list(net.parameters()), list(other.parameters()))


def test_after_a_change_of_the_loss_scale_the_synthetic_gradients_follow():
    dni = DNI(network())
    before, after = [], []
    x, y = next(batches(1))
    for step in range(200):
        dni.zero_grad()
        scale = 1.0 if step < 150 else 1024.0
        (F.cross_entropy(dni(x), y) * scale).backward()
        (before if step < 150 else after).append(dni.network[2].weight.grad / scale)
    assert (after[0] - before[-1]).abs().max() > 0.9 * before[-1].abs().max()  # the old scale still
    torch.testing.assert_close(after[-1], before[-1], rtol=0.1, atol=0.1 * float(before[-1].abs().max()))


def test_clipping_and_an_optimizer_that_was_given_the_synthesizers():
    """Weight decay and momentum of a wrong optimizer do not reach the synthesizers."""
    states = []
    for wrong in (False, True):
        dni = DNI(network(), example=torch.zeros(1, 4, dtype=torch.float64))
        opt = torch.optim.AdamW((dni if wrong else dni.network).parameters(), lr=1e-2, weight_decay=0.5)
        for x, y in batches(5):
            opt.zero_grad()
            F.cross_entropy(dni(x), y).backward()
            assert all(p.grad is None for p in dni.cuts.parameters())
            nn.utils.clip_grad_norm_((dni if wrong else dni.network).parameters(), 0.1)
            opt.step()
        states.append(list(dni.state_dict().values()))
    assert same(*states)


# ---------------------------------------------------------------------- outputs, modes, memory


def busy(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 6), nn.LayerNorm(6), nn.PReLU(),
        nn.Linear(6, 3),
    ).to(dtype)  # fmt: skip


def test_outputs_and_buffers_are_those_of_the_network_bit_for_bit():
    plain, dni = busy(), DNI(busy())
    assert dni.at == ("3", "6")
    x, _ = next(batches(1))
    for _ in range(3):
        torch.manual_seed(7)
        expected = plain(x)
        torch.manual_seed(7)
        assert torch.equal(dni(x), expected)
    assert same(list(plain.buffers()), list(dni.network.buffers()))


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference"])
def test_eval_and_no_grad_are_the_network_alone(mode, alive):
    dni = DNI(network())
    x, y = next(batches(1))
    if mode == "eval":
        plain = copy.deepcopy(dni.network)
        dni.eval()
        output = dni(x)
        assert torch.equal(output, plain(x))
        F.cross_entropy(output, y).backward()
        F.cross_entropy(plain(x), y).backward()
        assert same(grads(plain), grads(dni.network))
    else:
        with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
            assert torch.equal(dni(x), dni.network(x))
    assert dni.cuts["1"].synthesizer is None and float(dni.cuts["1"].rms) == 0
    assert alive() == 0


def test_forwards_without_backward_leave_nothing_behind(alive):
    dni = DNI(network())
    x, y = next(batches(1))
    train(dni, adam(dni.network), batches(2))
    dni.zero_grad()
    gc.collect()
    gc.disable()  # reference counting alone must do
    try:
        before = {name: value.clone() for name, value in dni.state_dict().items()}
        for _ in range(300):
            output = dni(x)
            assert alive() == 4  # two cuts of this pass, none of the pass before
        del output
        assert alive() == 0
        assert all(torch.equal(before[name], value) for name, value in dni.state_dict().items())
        assert all(p.grad is None for p in dni.parameters())
        loss = F.cross_entropy(dni(x), y)
        loss.backward()
        assert alive("Prediction") == 0 and loss is not None  # though the loss still lives
    finally:
        gc.enable()


def test_the_activations_of_a_stage_are_freed_at_its_cut():
    """Saved by autograd at the end of forward: the last stage's activations and the synthesizers' inputs."""
    net = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Tanh(), nn.Tanh()) for _ in range(4)])
    saved, freed = [], []

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor
            saved.append(0)

        def __del__(self):
            freed.append(0)

    x = torch.randn(5, 8)
    counts = {}
    for name, model in (("plain", net), ("dni", DNI(net, at=["0", "1", "2"]))):
        saved.clear()
        freed.clear()
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            output = model(x)
        counts[name] = len(saved) - len(freed)
        del output
    assert counts["plain"] >= 16
    assert counts["dni"] <= counts["plain"] / 4 + 3 * 3  # one stage of four; at each cut one synthesizer and its error


def test_no_hook_stays_on_the_network():
    net = network()
    dni = DNI(net)
    x, _ = next(batches(1))
    dni(x)
    with pytest.raises(RuntimeError):
        dni(torch.zeros(2, 5, dtype=torch.float64))
    assert all(not module._forward_hooks for module in net.modules())
    net(x).sum().backward()  # the network itself still backpropagates
    assert net[0].weight.grad.abs().max() > 0


# ---------------------------------------------------------------------- state


OPTIMIZERS = {
    "adam": functools.partial(torch.optim.Adam, lr=1e-2),
    "sgd": functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
    "nadam": functools.partial(torch.optim.NAdam, lr=1e-2),
    "adafactor": functools.partial(torch.optim.Adafactor, lr=1e-2),
}


def copies(dni, opt, how, optimizer):
    """The same DNI and optimizer after a save and load into fresh ones, a deepcopy, or a pickle."""
    if how == "deepcopy":
        return copy.deepcopy((dni, opt))
    if how == "pickle":
        return pickle.loads(pickle.dumps((dni, opt)))
    net = network(seed=99)
    other = DNI(net, gradient=Synthetic(optim=OPTIMIZERS[optimizer]))
    state = dni.state_dict()
    if how == "safetensors":
        state = safetensors.torch.load(safetensors.torch.save(state))
    if how == "assign":
        state = copy.deepcopy(state)
    other.load_state_dict(state, assign=how == "assign")
    fresh = adam(net)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    return other, fresh


@pytest.mark.parametrize("how", ["state_dict", "safetensors", "assign", "deepcopy", "pickle"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_bit_for_bit_after(how, optimizer):
    net = network()
    dni, opt = DNI(net, gradient=Synthetic(optim=OPTIMIZERS[optimizer])), adam(net)
    data = list(batches(10))
    train(dni, opt, data[:5])
    state = {name: value.clone() for name, value in dni.state_dict().items()}
    other, fresh = copies(dni, opt, how, optimizer)
    train(dni, opt, data[5:])
    assert not torch.equal(state["cuts.1.synthesizer.weight"], dni.state_dict()["cuts.1.synthesizer.weight"])
    now = other.state_dict()
    assert set(now) == set(state) and all(torch.equal(now[name], state[name]) for name in state)  # a true copy
    train(other, fresh, data[5:])
    assert same_state(other, dni)


def test_the_names_in_the_state_dict():
    dni = DNI(network())
    unsized = set(dni.state_dict())
    train(dni, adam(dni.network), batches(1))
    extra = {f"cuts.{i}.{name}" for i in (1, 3) for name in ("synthesizer.weight", "synthesizer.bias")}
    assert set(dni.state_dict()) >= unsized | extra
    assert unsized == {f"network.{name}" for name in dni.network.state_dict()} | {
        f"cuts.{i}.{name}" for i in (1, 3) for name in ("rms", "seen", "features", "mean")
    }
    assert "cuts.3.optimizer.weight.exp_avg" in dni.state_dict()
    assert "cuts.1.optimizer.weight.exp_avg" not in dni.state_dict()  # its target was 0: it has taken no step
    fresh = DNI(network())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fresh.load_state_dict(dni.state_dict() | {"cuts.3.nonsense": torch.zeros(1)})
    early = DNI(network())
    early.load_state_dict(fresh.network.state_dict() and DNI(network(seed=3)).state_dict())
    assert early.cuts["1"].synthesizer is None
    assert torch.equal(early.network[0].weight, network(seed=3)[0].weight)


def test_a_state_that_is_not_tensors_is_refused():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["count"] = self.state[p].get("count", 0) + 1

    dni = DNI(network(), gradient=Synthetic(optim=functools.partial(Counting, lr=0.1)))
    train(dni, adam(dni.network), batches(2))
    with pytest.raises(TypeError, match="must be tensors, got int for 'count'"):
        dni.state_dict()


def test_example_sizes_without_a_trace():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return x + 0 * torch.rand_like(x)

    net = nn.Sequential(nn.Linear(4, 6), Counter(), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3), nn.Linear(3, 2))
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    dni = DNI(net, example=torch.randn(8, 4, generator=torch.Generator()))
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert dni.at == ("3", "4") and all(not module._forward_hooks for module in net.modules())
    assert [dni.cuts[name].synthesizer.input_size for name in dni.at] == [6, 3]
    assert len(list(dni.parameters())) == len(list(net.parameters())) + 4


def test_building_a_random_synthesizer_at_first_use_leaves_the_random_state():
    dni = DNI(busy(), gradient=Synthetic(Tanh, 5))
    plain = busy()
    x, _ = next(batches(1))
    torch.manual_seed(3)
    expected = plain(x)
    torch.manual_seed(3)
    assert torch.equal(dni(x), expected)


def test_moving_and_casting():
    dni = DNI(network(torch.float32))
    opt = adam(dni.network)
    train(dni, opt, batches(3, torch.float32))
    dni.double()
    assert {t.dtype for t in dni.state_dict().values() if t.dim() and t.is_floating_point()} == {torch.float64}
    train(dni, adam(dni.network), batches(3))
    dni.to(torch.bfloat16)
    assert dni.network[0].weight.dtype == torch.bfloat16
    assert dni.cuts["1"].synthesizer.weight.dtype == dni.cuts["1"].rms.dtype == torch.float32
    train(dni, torch.optim.SGD(dni.network.parameters(), lr=0.01), batches(3, torch.bfloat16))
    assert all(bool(t.isfinite().all()) for t in dni.state_dict().values())


def test_meta_device_and_assign():
    trained = DNI(network())
    train(trained, adam(trained.network), batches(3))
    with torch.device("meta"):
        dni = DNI(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double())
    dni.load_state_dict(copy.deepcopy(trained.state_dict()), assign=True)
    for model in (trained, dni):
        train(model, adam(model.network), batches(3, seed=5))
    assert same_state(trained, dni)


# ---------------------------------------------------------------------- precision


def test_low_precision_networks_have_float32_synthesizers():
    dni = DNI(network(torch.bfloat16))
    train(dni, torch.optim.SGD(dni.network.parameters(), lr=0.05), batches(5, torch.bfloat16))
    assert dni.cuts["3"].synthesizer.weight.dtype == torch.float32
    assert dni.network[0].weight.grad.dtype == torch.bfloat16 and dni.network[0].weight.grad.abs().max() > 0


def test_autocast():
    dni = DNI(network(torch.float32, width=32))
    opt = adam(dni.network)
    kinds = set()
    for x, y in batches(5, torch.float32):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = dni(x)
            kinds.add(output.dtype)
            loss = F.cross_entropy(output, y)
        loss.backward()
        opt.step()
    assert kinds == {torch.bfloat16}
    source = dni.cuts["3"]
    assert source.synthesizer.weight.dtype == source.rms.dtype == torch.float32 and float(source.rms) > 0
    assert dni.network[0].weight.grad.dtype == torch.float32 and dni.network[0].weight.grad.abs().max() > 0


def test_a_constant_loss_scale_changes_nothing():
    """A power of two: targets, their size and the synthetic gradients scale exactly."""
    nets = []
    for scale in (None, 2.0**16):
        net = network()
        opt, dni = adam(net), DNI(net)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=1000, enabled=scale is not None)
        for x, y in batches(8):
            opt.zero_grad()
            scaler.scale(F.cross_entropy(dni(x), y)).backward()
            scaler.step(opt)
            scaler.update()
        nets.append(net)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_target_that_is_not_finite_is_refused_or_with_a_scaler_teaches_nothing():
    dni = DNI(network())
    train(dni, adam(dni.network), batches(3))
    x, y = next(batches(1, seed=5))
    with pytest.raises(ValueError, match=r"at the cut after '3' must be finite, got NaN or infinity .*scaler="):
        (F.cross_entropy(dni(x), y) * math.nan).backward()
    dni = DNI(network(), scaler=torch.amp.GradScaler("cpu", init_scale=1.0))
    train(dni, adam(dni.network), batches(3))
    before = {name: value.clone() for name, value in dni.cuts["3"].state_dict().items()}
    x, y = next(batches(1, seed=5))
    (F.cross_entropy(dni(x), y) * math.inf).backward()
    assert all(torch.equal(before[name], value) for name, value in dni.cuts["3"].state_dict().items())


def test_an_empty_batch():
    dni = DNI(network())
    train(dni, adam(dni.network), batches(3))
    before = copy.deepcopy(dni.cuts.state_dict())
    dni(torch.zeros(0, 4, dtype=torch.float64)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in dni.cuts.state_dict().items())


# ---------------------------------------------------------------------- where to cut


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (None, ("3", "6")),
        ([0, 2], ("0", "2")),
        (["3", 3], ("3",)),
        ("?", None),
        ("3", ("3",)),
        (("6", 4), ("6", "4")),
    ],
)
def test_cuts_of_a_sequential(at, expected):
    if expected is None:
        with pytest.raises(ValueError, match="'7' is the last"):
            DNI(busy(), at=at)
    else:
        dni = DNI(busy(), at=at)
        assert dni.at == expected
        x, _ = next(batches(1))
        dni(x).sum().backward()
        assert all(dni.cuts[name].synthesizer is not None for name in expected)


def test_nested_sequentials_and_blocks():
    inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    net = nn.Sequential(nn.Flatten(), nn.Sequential(inner, nn.ReLU()), Residual(), nn.Tanh(), nn.Linear(4, 2))
    assert DNI(net).at == ("1.1", "3")
    dni = DNI(net, at=["1.0.*", 1])
    assert dni.at == ("1.0.0", "1.0.1", "1")
    for _ in range(2):
        dni(torch.randn(3, 4)).sum().backward()
    assert "cuts.1/0/1.synthesizer.weight" in dni.state_dict()


@pytest.mark.parametrize(
    ("at", "match"),
    [
        ([], "at least one module, got an empty list"),
        (["layer"], r"must name modules of the network, got 'layer'; it has 0, 1, 2, 3, 4"),
        (["1", "5"], "got '5'"),
        ([5], r"must lie in 0\.\.3, got 5"),
        ([-1], r"must lie in 0\.\.3, got -1"),
        ([4], "must leave a module above it; '4' is the last"),
        ("*.*", r"got '\*\.\*'"),
        ([0.5], "must hold int indices and names of modules, got 0.5"),
    ],
)
def test_bad_places_are_refused(at, match):
    with pytest.raises((ValueError, TypeError), match=match):
        DNI(network(), at=at)


def test_networks_that_cannot_be_cut():
    with pytest.raises(ValueError, match=r"two layers with parameters to cut between, got 1"):
        DNI(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()))
    with pytest.raises(ValueError, match=r"An index in at needs an nn.Sequential, got Residual"):
        DNI(Residual(), at=[0])
    with pytest.raises(ValueError, match="network already contains a DNI; DNI modules cannot be nested"):
        DNI(nn.Sequential(DNI(network()), nn.Linear(3, 3)))
    with pytest.raises(TypeError, match=r"must be an nn.Module, got function"):
        DNI(lambda x: x)
    with pytest.raises(ValueError, match="must follow a module that is called; 'blocks' is only a container"):
        DNI(Branches(), at="blocks")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Branches(nn.Module):
    """A stem, two branches, a dict as output, a keyword, and in-place arithmetic."""

    def __init__(self):
        super().__init__()
        self.keys = nn.Linear(4, 4)  # the name of a method of nn.ModuleDict
        self.blocks = nn.ModuleList([Residual(), Residual()])
        self.head = nn.Linear(4, 2)

    def forward(self, x, *, scale):
        h = self.keys(x)
        h /= 2
        left, right = self.blocks[0](h), self.blocks[1](x)
        return {"out": self.head(left + scale * right), "features": [left]}


def test_any_module_by_name():
    net = Branches()
    dni = DNI(net, at=["keys", "blocks.*"])
    assert dni.at == ("keys", "blocks.0", "blocks.1")
    x = torch.randn(6, 4)
    for _ in range(4):
        dni.zero_grad()
        output = dni(x, scale=torch.ones(()))
        (output["out"].square().mean() + output["features"][0].sum()).backward()
    assert all(source.synthesizer.weight.abs().max() > 0 for source in dni.cuts.values())
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    assert [name.split(".")[1] for name in dni.state_dict() if name.endswith("rms")] == [
        "keys/",
        "blocks/0",
        "blocks/1",
    ]
    again = DNI(Branches(), at=["keys", "blocks.*"])
    again.load_state_dict(dni.state_dict())
    assert same_state(again, dni)


def test_a_target_gathers_what_the_stage_above_sends_by_every_way():
    """y = a + b(a) with a cut after a: the target of the synthesizer is the sum over both paths."""

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

        def forward(self, x):
            h = self.a(x)
            return h + self.b(h)

    net = Fork()
    dni = DNI(net, at="a")
    x = torch.randn(5, 4, dtype=torch.float64)
    dni(x).sum().backward()
    target = torch.ones(5, 4).double() @ (torch.eye(4).double() + net.b.weight.detach())
    torch.testing.assert_close(dni.cuts["a"].rms, 5 * (target**2).mean().sqrt())


def test_a_module_of_a_chain_that_stands_twice():
    act = nn.ReLU()
    torch.manual_seed(0)
    shared = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 6), act, nn.Linear(6, 3)).double()
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    for at in (None, ["3"], ["1"]):
        states = []
        for net in (copy.deepcopy(shared), copy.deepcopy(own)):
            dni = DNI(net, at=at)
            train(dni, adam(net), batches(4))
            states.append(list(dni.state_dict().values()))
        assert same(*states)


def test_in_place_arithmetic_behind_a_cut():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()
    other = copy.deepcopy(net)
    other[1].inplace = False
    for model in (net, other):
        train(DNI(model, at=[0]), adam(model), batches(4))
    assert same(list(net.parameters()), list(other.parameters()))


@pytest.mark.parametrize("at", [["0"], ["1"]])
def test_parameters_on_both_sides_of_a_cut_are_refused_by_name(at):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].bias = net[0].bias
    with pytest.raises(ValueError, match=rf"0.bias = 2.bias is used below the cut after '{at[0]}' and again above"):
        DNI(net, at=at)(torch.randn(2, 4))
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"0.weight = 1.weight.*below the cut after '1'|0.bias = 1.bias"):
        DNI(nn.Sequential(layer, layer, nn.Linear(4, 2)))(torch.randn(2, 4))
    DNI(nn.Sequential(layer, layer, nn.Linear(4, 2)), at=[1])(torch.randn(2, 4))  # both in one stage


def test_connections_that_skip_a_cut_are_refused():
    net = Residual()
    assert DNI(net, at="a")(torch.randn(2, 4)).requires_grad  # x has nothing below it to learn
    stem = nn.Sequential(nn.Linear(4, 4), Residual())
    with pytest.raises(ValueError, match=r"must not skip over a cut.*below the cut after '1.a' is used again above"):
        DNI(stem, at="1.a")(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"must not skip over a cut.*below the cut after '1.a' is used again above"):
        DNI(stem, at=["0", "1.a"])(torch.randn(2, 4))
    x = torch.randn(2, 4, requires_grad=True)
    DNI(net, at="a")(x * 2).sum().backward()  # the input may skip: it is not part of a stage
    assert x.grad.abs().max() > 0


def test_a_module_that_is_called_again_or_never():
    class Odd(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.first, self.act, self.last, self.times = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), times

        def forward(self, x):
            x = self.first(x)
            for _ in range(self.times):
                x = self.act(x)
            return self.last(x)

    DNI(Odd(1), at="act")(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"'act' must be called once in a forward, got one call more"):
        DNI(Odd(2), at="act")(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"must reach a cut; none of the modules \['act'\]"):
        DNI(Odd(0), at="act")(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"must reach every cut; the modules \['act'\]"):
        DNI(Odd(0), at=["first", "act"], example=torch.ones(2, 4))


def test_activations_that_have_no_gradient():
    class Chosen(nn.Module):
        def forward(self, x):
            return x.argmax(-1)

    rounds = nn.Sequential(nn.Linear(4, 4), Chosen(), nn.Embedding(4, 2))
    with pytest.raises(ValueError, match=r"'1' before a cut must return a floating tensor.*got torch.int64 \(2,\)"):
        DNI(rounds)(torch.zeros(2, 4))
    dni = DNI(network())
    dni.network[:4].requires_grad_(False)  # nothing below the cuts can learn
    x, y = next(batches(1))
    F.cross_entropy(dni(x), y).backward()
    assert dni.cuts["1"].synthesizer is None and dni.network[4].weight.grad is not None


# ---------------------------------------------------------------------- synthesizers and optimizers


class Tanh(Synthesizer):
    """As the reference's custom network: two linear layers, the last at zero."""

    def __init__(self, input_size, hidden_size, output_size, **kwargs):
        super().__init__(input_size, hidden_size, output_size, **kwargs)
        self.net = nn.Sequential(nn.Linear(input_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, output_size))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def forward(self, input, hidden):
        return self.net(input), None


def test_a_synthesizer_of_ones_own():
    dni = DNI(network(), gradient=Synthetic(Tanh, 5, OPTIMIZERS["adam"]))
    train(dni, adam(dni.network), batches(5))
    assert dni.cuts["1"].synthesizer.net[0].weight.shape == (5, 6)
    assert dni.network[0].weight.grad.abs().max() > 0
    other = DNI(network(seed=4), gradient=Synthetic(Tanh, 5, OPTIMIZERS["adam"]))
    other.load_state_dict(dni.state_dict())
    assert same_state(other, dni)


class Einsum(Synthesizer):
    """A synthesizer whose weight gradient has other strides than the weight."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__(input_size, hidden_size, output_size)
        self.weight = nn.Parameter(torch.zeros(3, output_size, input_size))

    def forward(self, input, hidden):
        return torch.einsum("nbi,boi->nbo", input, self.weight), None


class Columns(nn.Module):
    """A linear layer whose weight gradient has other strides than the weight."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, features) / features)

    def forward(self, input):
        return torch.einsum("ni,oi->no", input, self.weight)


@pytest.mark.parametrize("fused", [False, True])
def test_optimizers_see_gradients_with_the_strides_of_their_parameters(fused):
    """A fused optimizer on a CPU reads gradients in memory order and would misread other strides."""
    seen = []

    class Watched(torch.optim.Adam):
        def step(self, closure=None):
            seen.extend((p.stride(), p.grad.stride()) for group in self.param_groups for p in group["params"])
            return super().step(closure)

    source = Synthetic(Einsum, optim=functools.partial(Watched, lr=0.1, fused=fused))
    torch.manual_seed(0)
    x, weights = torch.randn(64, 3, 6), torch.randn(3, 6, 6)
    for _ in range(200):
        _, memory = source.predict(x, None)
        source.learn(memory, torch.einsum("nbi,boi->nbo", x, weights) / 64)
    assert seen and all(ours == theirs for ours, theirs in seen)
    assert float(source.measured()["cosine"]) > 0.99


def test_immediate_updates_by_a_fused_optimizer():
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(Columns(6), nn.Tanh(), Columns(6))
        opt = torch.optim.Adam(net.parameters(), lr=0.01, fused=fused)
        dni = DNI(net, opt, update="immediate", example=torch.zeros(1, 6))
        for _ in range(5):
            opt.zero_grad()
            dni(torch.randn(8, 6)).square().mean().backward()
            opt.step()
        found.append(net[0].weight.detach())
    torch.testing.assert_close(*found)


def test_each_being_has_a_synthesizer_of_its_own():
    torch.manual_seed(0)
    many = Synthetic(functools.partial(LinearSynthesizer, beings=3), context=2)
    shared = Synthetic(context=2)
    x, y, weights = torch.randn(64, 3, 6), torch.randint(2, (64,)), torch.randn(3, 6, 6)
    for _ in range(300):
        for source in (many, shared):
            gradient, memory = source.predict(x, y)
            source.learn(memory, torch.einsum("nbi,boi->nbo", x, weights) / 64)
    assert gradient.shape == (64, 3, 6) and many.synthesizer.weight.shape == (3, 6, 8)
    assert float(many.measured()["cosine"]) > 0.99 and float(shared.measured()["cosine"]) < 0.9
    for i in range(3):
        alone = LinearSynthesizer(8, None, 6)
        alone.load_state_dict({name: value[i] for name, value in many.synthesizer.state_dict().items()})
        torch.testing.assert_close(many.synthesizer(memory.state)[0][:, i], alone(memory.state[:, i])[0])
    other = Synthetic(functools.partial(LinearSynthesizer, beings=3), context=2)
    other.load_state_dict(many.state_dict())
    assert same_state(other, many)
    assert str(many.synthesizer) == "LinearSynthesizer(8, 6, beings=3)"
    with pytest.raises(ValueError, match=r"beings=3 or 1, in_features=8\), got \(64, 2, 8\)"):
        many.synthesizer(memory.state[:, :2])
    with pytest.raises(ValueError, match="beings must be a positive integer"):
        LinearSynthesizer(6, None, 6, beings=0)


def test_a_frozen_synthesizer_does_not_change_by_a_bit():
    dni = DNI(network(), example=torch.zeros(1, 4, dtype=torch.float64))
    dni.cuts["1"].synthesizer.requires_grad_(False)
    train(dni, adam(dni.network), batches(5))
    assert bool((dni.cuts["1"].synthesizer.weight == 0).all()) and bool((dni.cuts["1"].mean == 0).all())
    assert dni.cuts["3"].synthesizer.weight.abs().max() > 0


def test_bad_synthesizers():
    x, _ = next(batches(1))
    with pytest.raises(TypeError, match="must return a Synthesizer, got Linear"):
        DNI(network(), gradient=Synthetic(lambda i, h, o: nn.Linear(i, o)))(x)
    with pytest.raises(TypeError, match="must return an Optimizer, got list"):
        DNI(network(), gradient=Synthetic(optim=list))(x)
    with pytest.raises(ValueError, match="hidden_size of a LinearSynthesizer must be None, got 10"):
        DNI(network(), gradient=Synthetic(hidden_size=10))(x)
    with pytest.raises(ValueError, match=r"for 2 features needs activations \(batch, \*, 2\), got \(7, 6\)"):
        DNI(network(), gradient=Synthetic(lambda i, h, o: LinearSynthesizer(i, h, 2)))(x)
    with pytest.raises(ValueError, match="input_size must be a positive integer"):
        LinearSynthesizer(0, None, 3)
    with pytest.raises(TypeError, match="abstract"):
        Synthesizer(3, None, 3)
    with pytest.raises(TypeError, match="unexpected keyword"):
        Tanh(3, 4, 3, nonsense=1)
    sized = DNI(network(), example=x)
    sized.network[0], sized.network[2] = nn.Linear(4, 5).double(), nn.Linear(5, 6).double()
    with pytest.raises(ValueError, match=r"for 6 features needs activations \(batch, \*, 6\), got \(7, 5\)"):
        sized(x)


def test_the_optimizer_is_checked():
    net = network()
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got type"):
        DNI(net, optim=torch.optim.Adam)
    with pytest.raises(ValueError, match=r"missing: 0.weight, 0.bias, 2.weight, 2.bias"):
        DNI(net, optim=adam(net[4]))
    net[:4].requires_grad_(False)
    opt = adam(net[4])
    DNI(net, opt)
    assert len(opt.param_groups) == 1 and len(opt.param_groups[0]["params"]) == 2


# ---------------------------------------------------------------------- with the rest of linnet, and learning


def chimera():
    torch.manual_seed(0)
    return nn.Sequential(
        linnet.SymmetricLinear(8, 8),
        nn.Tanh(),
        linnet.OrthogonalLinear(8, 8),
        nn.LayerNorm(8),
        nn.Tanh(),
        linnet.Spread(),
        linnet.Linear(8, 5, beings=3),
        nn.ReLU(),
        linnet.OrthogonalLinear(5, 5, beings=3),
        linnet.Linear(5, 2, beings=3),
    )


@pytest.mark.parametrize("at", [None, [1, 5]])
def test_a_population_of_structured_layers(at):
    net = chimera()
    opt = torch.optim.Adam(net.parameters(), lr=1e-2)
    dni = DNI(net, opt, at=at)
    assert dni.at == (("1", "5", "7", "8") if at is None else ("1", "5"))
    x = torch.randn(64, 8)
    y = torch.stack([x[:, :2], x[:, 2:4], -x[:, :2]], 1)  # (64, 3, 2): a task for each being
    losses = []
    for _ in range(8 if at is None else 150):
        opt.zero_grad()
        loss = F.mse_loss(dni(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    start = chimera().state_dict()
    trained = [name for name, _ in net.named_parameters()]
    assert all(not torch.equal(start[name], net.state_dict()[name]) for name in trained)
    assert float(linnet.violation(net)) < linnet.tolerance(torch.float32)
    assert at is None or losses[-1] < 0.8 * losses[0]


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1297]], y[order[:1297]], x[order[1297:]], y[order[1297:]]


def digits_accuracy(kind, seed, steps):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    start = copy.deepcopy(net)
    if kind == "top":
        net[:4].requires_grad_(False)
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    model = DNI(net, opt) if kind == "dni" else net
    x, y, test_x, test_y = digits()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(0, len(x), (64,), generator=generator)
        opt.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        opt.step()
    model.eval()
    with torch.no_grad():
        moved = min(float((net[i].weight - start[i].weight).norm() / start[i].weight.norm()) for i in (0, 2))
        return float((model(test_x).argmax(1) == test_y).double().mean()), moved


def test_digits_are_learned_far_better_than_by_the_last_layer_alone():
    accuracy, moved = digits_accuracy("dni", seed=0, steps=250)
    frozen, _ = digits_accuracy("top", seed=0, steps=250)
    assert moved > 0.05
    assert accuracy > frozen + 0.05 and accuracy > 0.85


@pytest.mark.slow
def test_digits_are_learned_better_than_by_the_last_layer_alone_longer():
    found = [[digits_accuracy(kind, seed, steps=800)[0] for kind in ("dni", "top")] for seed in range(5)]
    assert all(accuracy > frozen for accuracy, frozen in found), found
    accuracy, frozen = torch.tensor(found).mean(0).tolist()
    assert accuracy > frozen + 0.05 and accuracy > 0.88, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it in every input
def test_torch_compile():
    """A compiled stage, and the compiled DNI, whose cuts run uncompiled."""
    torch.compiler.reset()
    expected = DNI(network())
    train(expected, adam(expected.network), batches(4))
    whole = DNI(network())
    train(torch.compile(whole, backend="aot_eager"), adam(whole.network), batches(4))
    staged = network()
    stages = [torch.compile(part, backend="aot_eager") for part in (staged[:2], staged[2:4], staged[4:])]
    dni = DNI(nn.Sequential(*stages))
    train(dni, adam(staged), batches(4))
    for net in (whole.network, staged):
        for a, b in zip(expected.network.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_import_of_linnet_leaves_the_compiler_alone():
    """torch.compiler takes longer to import than all of linnet."""
    code = "import sys, linnet; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

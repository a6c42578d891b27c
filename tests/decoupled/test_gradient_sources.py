"""Every gradient source against backpropagation or its formula; updates, contexts, places of cuts in any network."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import linnet
from linnet import DNI, Backprop, Delayed, DirectFeedback, LocalLoss, Synthetic
from support.stages import (
    SOURCES,
    adam,
    batches,
    close,
    grads,
    network,
    output_of,
    same_state,
    step,
    train,
    true_gradients,
)

SGD = functools.partial(torch.optim.SGD, lr=0.1)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("source", ["backprop", "observed"])
def test_backpropagation_through_cuts_is_backpropagation(source):
    dni = DNI(network(), gradient=SOURCES[source])
    opt = adam(dni.network)
    for x, y in batches(4):
        expected = true_gradients(dni.network, x, y)
        step(dni, opt, x, y)
        assert close(grads(dni.network), expected)
    if source == "observed":  # and the synthesizers have learned
        assert all(s.synthesizer.weight.abs().max() > 0 for s in dni.cuts.values())


@pytest.mark.parametrize("mix", [0.0, 0.25, 0.5, 1.0])
def test_a_mix_is_the_mean_of_both_gradients(mix):
    """At the only cut: (1 - λ) Jᵀ g + λ Jᵀ (gradient of the loss), with g as a DNI without mix predicts it."""
    dni = DNI(network(), at=[1], gradient=Synthetic(context=3))
    train(dni, adam(dni.network), batches(5))
    x, y = next(batches(1, seed=9))
    for p in dni.parameters():
        p.grad = None
    mixed = copy.deepcopy(dni)
    mixed.mix = mix
    for model in (dni, mixed):
        with model.context(y):
            F.cross_entropy(model(x), y).backward()
    true = true_gradients(dni.network, x, y)
    expected = [(1 - mix) * g + mix * t for g, t in zip(grads(dni.network[:2]), true, strict=False)]
    assert close(grads(mixed.network[:2]), expected)
    assert not close(expected, true[:2], 1e-6) or mix == 1
    assert mixed.mix == mix and same_state(dni.cuts, mixed.cuts)  # what was learned does not depend on the mix


def test_true_targets_are_the_gradients_of_the_loss():
    dni = DNI(network(), gradient=Synthetic(targets="true"))
    plain = DNI(network())
    for model in (dni, plain):
        train(model, adam(model.network), batches(5))
    seen = []
    for key, source in dni.cuts.items():
        source.learn = lambda memory, target, key=key: seen.append((key, target))
    x, y = next(batches(1, seed=9))
    hs = []
    h = x
    net = copy.deepcopy(dni.network)
    for i, layer in enumerate(net):
        h = layer(h)
        if i in (1, 3):
            h.retain_grad()
            hs.append(h)
    F.cross_entropy(h, y).backward()
    before = copy.deepcopy(dni)
    before.cuts["1"].true_targets = before.cuts["3"].true_targets = False
    dni.zero_grad()
    before.zero_grad()
    for model in (dni, before):
        F.cross_entropy(model(x), y).backward()
    assert [key for key, _ in seen] == ["3", "1"] or len(seen) == 4
    targets = dict(seen[:2])
    torch.testing.assert_close(targets["3"], hs[1].grad)
    torch.testing.assert_close(targets["1"], hs[0].grad)
    assert close(grads(dni.network), grads(before.network))  # what the stages get is synthetic all the same


def test_without_a_context_targets_of_the_same_batch_do_not_matter_below_the_top_cut():
    first = DNI(network())
    train(first, adam(first.network), batches(5))
    second = copy.deepcopy(first)
    x, y = next(batches(1, seed=9))
    for dni, target in ((first, y), (second, (y + 1) % 3)):
        dni.zero_grad()
        F.cross_entropy(dni(x), target).backward()
    below = [torch.equal(a, b) for a, b in zip(grads(first.network[:4]), grads(second.network[:4]), strict=True)]
    assert all(below) and not torch.equal(first.network[4].weight.grad, second.network[4].weight.grad)


def test_a_context_changes_the_gradients_as_its_column_says():
    dni = DNI(network(), at=[1], gradient=Synthetic(context=3))
    train(dni, adam(dni.network), batches(5))
    source = copy.deepcopy(dni.cuts["1"])
    x, y = next(batches(1, seed=9))
    dni.zero_grad()
    with dni.context(y):
        output = dni(x)
    F.cross_entropy(output, y).backward()
    with torch.no_grad():
        h = dni.network[:2](x)
        inputs = torch.cat([h / h.square().mean().sqrt(), F.one_hot(y, 3).double()], 1) - source.mean
        g = source.rms * (inputs @ source.synthesizer.weight.mT + source.synthesizer.bias) / len(x)
        expected = (g * (1 - h**2)).mT @ x
    assert source.synthesizer.weight[:, 6:].abs().max() > 0
    torch.testing.assert_close(dni.network[0].weight.grad, expected)


def test_a_local_loss_is_the_gradient_of_its_head():
    dni = DNI(network(), gradient=LocalLoss(F.cross_entropy, 3, optim=SGD))
    x, y = next(batches(1))
    step(dni, adam(dni.network, lr=0.0), x, y)
    other = copy.deepcopy(dni)
    weight = dni.cuts["1"].head.weight.detach().clone()
    step(dni, adam(dni.network, lr=0.0), x, y)
    stage, head = other.network[:2], other.cuts["1"].head
    other.zero_grad()
    F.cross_entropy(head(stage(x)), y).backward()
    assert close(grads(dni.network[:2]), grads(stage))
    torch.testing.assert_close(dni.cuts["1"].head.weight, weight - 0.1 * head.weight.grad)
    h = stage(x).detach()
    other.network.zero_grad()
    F.cross_entropy(other.cuts["3"].head(other.network[2:4](h)), y).backward()
    assert close(grads(dni.network[2:4]), grads(other.network[2:4]))


def test_direct_feedback_is_the_error_times_a_fixed_matrix():
    dni = DNI(network(), gradient=DirectFeedback())
    opt = adam(dni.network)
    train(dni, opt, batches(2))
    matrices = {key: source.feedback.clone() for key, source in dni.cuts.items()}
    assert not torch.equal(matrices["1"][:, :3], matrices["3"][:, :3])  # equal shapes, drawn apart
    x, y = next(batches(1, seed=9))
    net = copy.deepcopy(dni.network)
    step(dni, opt, x, y)
    h1 = net[:2](x)
    h3 = net[2:4](h1.detach())
    output = net[4](h3.detach())
    e = torch.autograd.grad(F.cross_entropy(output, y), output, retain_graph=True)[0]
    net.zero_grad()
    h1.backward(e @ matrices["1"])
    h3.backward(e @ matrices["3"])
    F.cross_entropy(output, y).backward()
    assert close(grads(dni.network), grads(net))
    assert all(torch.equal(matrices[key], source.feedback) for key, source in dni.cuts.items())


def test_a_loaded_seed_brings_its_own_matrix():
    """Loading into a network that has drawn its matrix already."""
    trained, used = (DNI(network(seed), gradient=DirectFeedback()) for seed in (0, 5))
    for dni in (trained, used):
        train(dni, adam(dni.network), batches(2))
    trained.cuts["1"].seed += 1
    trained.cuts["1"].feedback = None
    train(trained, adam(trained.network), batches(1))
    used.load_state_dict(trained.state_dict())
    train(used, adam(used.network), batches(1))
    assert torch.equal(used.cuts["1"].feedback, trained.cuts["1"].feedback)


def test_in_a_population_feedback_stays_with_its_being():
    torch.manual_seed(0)
    net = nn.Sequential(linnet.Linear(4, 5, beings=3), nn.Tanh(), linnet.Linear(5, 2, beings=3)).double()
    dni = DNI(net, gradient=DirectFeedback())
    output = dni(torch.randn(6, 1, 4, dtype=torch.float64))
    assert output.shape == (6, 3, 2)
    output[:, 1].sum().backward()
    weight = net[0].weight.grad
    assert weight[1].abs().max() > 0 and weight[0].abs().max() == weight[2].abs().max() == 0


def test_delayed_gradients_are_those_of_earlier_batches():
    dni = DNI(network(), gradient={"1": Delayed(2), "3": Delayed(1)})
    opt = adam(dni.network)
    expected = []
    for i, (x, y) in enumerate(batches(6)):
        expected.append(true_gradients(dni.network, x, y))
        step(dni, opt, x, y)
        found = [p.grad for p in dni.network.parameters()]
        for parameters, delay in ((slice(0, 2), 2), (slice(2, 4), 1), (slice(4, 6), 0)):
            if i < delay:
                assert all(bool((g == 0).all()) for g in found[parameters])
            else:
                assert close(found[parameters], expected[i - delay][parameters])


# ---------------------------------------------------------------------- all of them alike


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_training_goes_on_bit_for_bit(name, how):
    dni = DNI(network(), gradient=SOURCES[name])
    opt = adam(dni.network)
    data = list(batches(8))
    train(dni, opt, data[:4])
    if how == "state_dict":
        other = DNI(network(seed=5), gradient=SOURCES[name])
        other.load_state_dict(copy.deepcopy(dni.state_dict()))
        fresh = adam(other.network)
        fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    elif how == "deepcopy":
        other, fresh = copy.deepcopy((dni, opt))
    else:
        other, fresh = pickle.loads(pickle.dumps((dni, opt)))
    assert same_state(dni, other)
    train(dni, opt, data[4:])
    train(other, fresh, data[4:])
    assert same_state(dni, other)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_saves_and_loads_without_executing_code(name, tmp_path):
    dni = DNI(network(), gradient=SOURCES[name])
    train(dni, adam(dni.network), batches(3))
    linnet.save(dni, tmp_path / "net.safetensors")
    other = DNI(network(seed=5), gradient=SOURCES[name])
    linnet.load(tmp_path / "net.safetensors", into=other)
    assert same_state(dni, other)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_learns_and_passes_eval_through(name):
    torch.manual_seed(0)
    dni = DNI(network(width=16), gradient=SOURCES[name])
    opt = adam(dni.network)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    losses = [step(dni, opt, x, y).item() for _ in range(150)]
    assert losses[-1] < 0.5 * losses[0]
    dni.eval()
    assert torch.equal(dni(x), dni.network(x))
    assert "Cut" not in str(dni(x).grad_fn.next_functions)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_a_loss_scale_that_is_given_changes_nothing(name, scale):
    """For a power of two exactly, also in the first steps and directly after a change of the scale."""
    nets = []
    for scaled in (False, True):
        net = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2, enabled=scaled)
        dni, opt = DNI(net, gradient=SOURCES[name], scaler=scaler if scaled else None), SGD(net.parameters())
        for x, y in batches(5):
            opt.zero_grad()
            scaler.scale(F.cross_entropy(output_of(dni, x, y), y)).backward()
            scaler.step(opt)
            scaler.update()
        nets.append(net)
    assert close(nets[0].parameters(), nets[1].parameters(), 1e-9)


# ---------------------------------------------------------------------- immediate updates


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("own", [False, True])
def test_below_the_cuts_weights_have_changed_before_the_loss_exists(own):
    net = network()
    opt = adam(net)
    options = {"stage_optim": functools.partial(torch.optim.Adam, lr=1e-2)} if own else {}
    dni = DNI(net, opt, update="immediate", gradient=Synthetic(context=3), **options)
    train(dni, opt, batches(3))
    x, y = next(batches(1, seed=9))
    opt.zero_grad()
    before = weights(net)
    with dni.context(y):
        loss = F.cross_entropy(dni(x), y)
    inside = weights(net)
    loss.backward()
    assert [p.grad is None for p in net.parameters()] == [True] * 4 + [False] * 2
    opt.step()
    after = weights(net)
    assert [torch.equal(a, b) for a, b in zip(before, inside, strict=True)] == [False] * 4 + [True] * 2
    assert [torch.equal(a, b) for a, b in zip(inside, after, strict=True)] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("own", [False, True])
def test_immediate_updates_are_the_deferred_ones(own):
    """Each stage uses its old weights in the pass itself, so that Adam's steps are equal bit for bit."""
    nets = []
    for update in ("deferred", "immediate"):
        net = network()
        opt = torch.optim.AdamW(
            [{"params": net[:2].parameters(), "lr": 3e-3}, {"params": net[2:].parameters()}], lr=1e-2, weight_decay=0.1
        )
        schedule = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
        options = {}
        if own and update == "immediate":
            if nets:
                opt.param_groups[0]["lr"] = opt.param_groups[1]["lr"] = 1e-2
        if own:
            opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.ConstantLR(opt, 1.0)
            options = {"stage_optim": functools.partial(torch.optim.AdamW, lr=1e-2)} if update == "immediate" else {}
        dni = DNI(net, opt, update=update, gradient=Synthetic(context=3), **options)
        for x, y in batches(6):
            step(dni, opt, x, y)
            schedule.step()
        nets.append(net)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_immediate_updates_with_clipping_hooks_and_an_empty_group():
    net = network()
    opt = torch.optim.SGD([{"params": net.parameters()}, {"params": [nn.Parameter(torch.ones(1))]}], lr=0.1)
    dni = DNI(net, opt, update="immediate", gradient=LocalLoss(F.cross_entropy, 3))
    net[0].weight.register_hook(lambda g: g * 0)
    before = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    train(dni, opt, batches(2))
    assert torch.equal(net[0].weight, before[0]) and not torch.equal(net[0].bias, before[1])
    assert [len(group["params"]) for group in opt.param_groups] == [6, 1]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
def test_immediate_training_goes_on_bit_for_bit(own, how):
    options = {"stage_optim": functools.partial(torch.optim.Adam, lr=1e-2)} if own else {}

    def build(seed=0):
        net = network(seed)
        opt = adam(net)
        return DNI(net, opt, update="immediate", gradient=Synthetic(context=3), **options), opt

    dni, opt = build()
    data = list(batches(8))
    train(dni, opt, data[:4])
    if how == "state_dict":
        other, fresh = build(5)
        other.load_state_dict(copy.deepcopy(dni.state_dict()))
        fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    else:
        other, fresh = copy.deepcopy((dni, opt))
    assert same_state(dni, other)
    train(dni, opt, data[4:])
    train(other, fresh, data[4:])
    assert same_state(dni, other)


def test_what_immediate_updates_refuse():
    net = network()
    opt = adam(net)
    for source, match in (
        (Synthetic(mix=0.5), r"Synthetic with mix = 0.5 waits for backward"),
        (Synthetic(targets="true"), r"with true targets waits"),
        (Backprop(), "Backprop waits"),
        (DirectFeedback(), "DirectFeedback waits"),
        (Delayed(), "Delayed waits"),
    ):
        with pytest.raises(ValueError, match=match):
            DNI(net, opt, update="immediate", gradient=source)
    with pytest.raises(ValueError, match="steps before the loss is scaled; leave scaler= out"):
        DNI(net, opt, update="immediate", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="update='immediate' needs optim="):
        DNI(net, update="immediate")
    with pytest.raises(ValueError, match="'deferred' or 'immediate', got 'now'"):
        DNI(net, opt, update="now")
    with pytest.raises(ValueError, match="stage_optim needs update='immediate', got update='deferred'"):
        DNI(net, opt, stage_optim=SGD)
    dni = DNI(net, opt, update="immediate")
    with pytest.raises(ValueError, match=r"mix must be 0 with update='immediate', which cannot wait .* got 0.5"):
        dni.mix = 0.5
    data = list(batches(2))
    for x, y in data[:1]:
        F.cross_entropy(dni(x), y).backward()
    with pytest.raises(RuntimeError, match="gradients cannot accumulate"):
        F.cross_entropy(dni(data[1][0]), data[1][1]).backward()
    opt.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(F.cross_entropy(dni(data[1][0]), data[1][1])).backward()
    with pytest.raises(RuntimeError, match="a GradScaler cannot step the optimizer"):
        scaler.step(opt)


# ---------------------------------------------------------------------- any network


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, x):
        h = self.act(self.norm1(self.conv1(x)))
        return self.act(x + self.norm2(self.conv2(h)))


class ResNet(nn.Module):
    """Residual blocks with one activation used twice, functional pooling, a dict as output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(self.hidden(x.mean((2, 3))).relu())}


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(5, 4), nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, tokens):
        states, (h, _) = self.rnn(self.embed(tokens))
        return self.head(states), h


def test_default_cuts_of_any_network():
    torch.manual_seed(0)
    net = ResNet()
    before = copy.deepcopy(net.state_dict())
    dni = DNI(net, example=torch.randn(5, 1, 8, 8))
    assert dni.at == ("stem", "blocks.0", "blocks.1", "hidden")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [source.synthesizer.output_size for source in dni.cuts.values()] == [4, 4, 4, 8]
    lazy = DNI(copy.deepcopy(net))  # found at first use
    x, y = torch.randn(5, 1, 8, 8), torch.randint(0, 3, (5,))
    for model in (dni, lazy):
        for _ in range(8):
            model.zero_grad()
            F.cross_entropy(model(x)["logits"], y).backward()
    assert lazy.at == dni.at
    assert close(grads(dni.network), grads(lazy.network))
    assert all(p.grad.abs().max() > 1e-4 for p in net.parameters() if p.dim() > 1)
    other = DNI(ResNet())  # found in the state_dict
    other.load_state_dict(dni.state_dict())
    assert other.at == dni.at and same_state(other, dni)


def test_modules_that_give_tuples_are_cut_in_each_tensor():
    torch.manual_seed(0)
    net = Tagger()
    dni = DNI(net)
    opt = adam(net)
    tokens = torch.randint(0, 5, (8, 6))
    for _ in range(5):
        opt.zero_grad()
        logits, h = dni(tokens)
        (F.cross_entropy(logits.flatten(0, 1), (tokens % 3).flatten()) + h.square().mean()).backward()
        opt.step()
    assert dni.at == ("embed", "rnn")
    assert sorted(dni.cuts) == ["embed", "rnn", "rnn#1", "rnn#2"]
    assert dni.cuts["rnn#1"].synthesizer.weight.abs().max() > 0  # h is in the loss
    assert bool((dni.cuts["rnn#2"].synthesizer.weight == 0).all())  # the cell's state is not
    assert net.embed.weight.grad.abs().max() > 0
    other = DNI(Tagger())
    other.load_state_dict(dni.state_dict())
    assert same_state(other, dni)


def test_backpropagation_through_default_cuts_of_any_network():
    for net, args in ((ResNet(), (torch.randn(5, 1, 8, 8),)), (Tagger(), (torch.randint(0, 5, (8, 6)),))):
        plain = copy.deepcopy(net)
        for model in (plain, DNI(net, gradient=Backprop())):
            output = model(*args)
            sum(t.square().sum() for t in (output.values() if isinstance(output, dict) else output)).backward()
        for a, b in zip(plain.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_networks_without_a_place_to_cut():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    with pytest.raises(ValueError, match=r"Twice has no place between two layers that every path goes through"):
        DNI(Twice())(torch.randn(2, 4))


def test_a_convolution_is_cut_along_its_channels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    dni = DNI(net, at=["2", "3"], gradient=Synthetic(context=3))
    x, y = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randint(0, 3, (6,))
    opt = adam(net)
    for _ in range(4):
        step(dni, opt, x, y)
    assert dni.cuts["2"].synthesizer.weight.shape == (4, 4 + 3) and dni.cuts["3"].features == 144
    source = copy.deepcopy(dni.cuts["2"])
    h = net[:3](x).detach()
    gradient, _ = source.predict(h, y)
    label = F.one_hot(y, 3).double()[:, :, None, None].expand(6, 3, 6, 6)
    inputs = torch.cat([h / h.square().mean().sqrt(), label], 1) - source.mean[:, None, None]
    expected = torch.einsum("oi,bihw->bohw", source.synthesizer.weight, inputs)
    expected = (expected + source.synthesizer.bias[:, None, None]) * source.rms / 6
    torch.testing.assert_close(gradient, expected)


# ---------------------------------------------------------------------- synthesizers


SYNTHESIZERS = {
    "least squares": (functools.partial(linnet.LeastSquaresSynthesizer, every=1), None),
    "low rank": (linnet.LowRankSynthesizer, None),
    "sigmoid": (linnet.SigmoidSynthesizer, None),
    "two-layer sigmoid": (linnet.SigmoidSynthesizer, 12),
    "mlp": (linnet.MLPSynthesizer, 12),
    "deep": (functools.partial(linnet.MLPSynthesizer, layers=2), None),
    "batch norm": (linnet.BatchNormSynthesizer, 12),
    "lstm": (linnet.RecurrentSynthesizer, 12),
    "gru": (functools.partial(linnet.RecurrentSynthesizer, kind="gru", layers=2), 12),
}


@pytest.mark.parametrize("name", SYNTHESIZERS)
@pytest.mark.parametrize("context", [None, 3])
def test_every_synthesizer_starts_at_zero_learns_and_resumes(name, context):
    make, hidden = SYNTHESIZERS[name]
    source = Synthetic(make, hidden, functools.partial(torch.optim.Adam, lr=1e-2), context=context)
    dni = DNI(network(), gradient=source)
    opt = adam(dni.network)
    data = list(batches(6))
    step(dni, opt, *data[0])
    assert all(bool((g == 0).all()) for g in grads(dni.network[:4]))
    train(dni, opt, data[1:4])
    assert all(g.abs().max() > 0 for g in grads(dni.network))
    other = DNI(network(seed=3), gradient=source)
    other.load_state_dict(copy.deepcopy(dni.state_dict()))
    fresh = adam(other.network)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(dni, opt, data[4:])
    train(other, fresh, data[4:])
    assert same_state(dni, other)


@pytest.mark.parametrize("name", ["linear", *SYNTHESIZERS])
def test_every_synthesizer_can_follow_a_gradient_it_can_represent(name):
    """Regress h -> -h: the mean squared error falls below a tenth of that of predicting 0."""
    make, hidden = SYNTHESIZERS.get(name, (linnet.LinearSynthesizer, None))
    source = Synthetic(make, hidden, functools.partial(torch.optim.Adam, lr=3e-2)).double()
    generator = torch.Generator().manual_seed(0)
    size = 1 if name == "low rank" else 4
    for _ in range(400):
        h = torch.randn(32, size, generator=generator, dtype=torch.float64)
        _, memory = source.predict(h, None)
        source.learn(memory, -h)
    assert float(source.measured()["loss"]) < 0.15
    assert float(source.measured()["cosine"]) > 0.9


def test_least_squares_are_those_of_numpy():
    """Weighted, with a ridge, on batches of different sizes; in between nothing changes."""
    decay, ridge = 0.7, 0.3
    synthesizer = linnet.LeastSquaresSynthesizer(5, None, 3, decay=decay, ridge=ridge, every=2).double()
    rng = np.random.default_rng(0)
    seen, weights = [], []
    for more in range(6):
        h, target = rng.normal(size=(7 + more, 5)), rng.normal(size=(7 + more, 3))
        seen.append((np.c_[h, np.ones(len(h))], target))
        weights = [w * decay for w in weights] + [1.0]
        before = synthesizer.weight.clone()
        synthesizer.fit(synthesizer.moments(torch.tensor(h), torch.tensor(target)))
        if more % 2 == 0:
            assert torch.equal(before, synthesizer.weight)
            continue
        mass = sum(w * len(h) for w, (h, _) in zip(weights, seen, strict=True))
        rows = [h * np.sqrt(w / mass) for w, (h, _) in zip(weights, seen, strict=True)] + [np.sqrt(ridge) * np.eye(6)]
        goals = [t * np.sqrt(w / mass) for w, (_, t) in zip(weights, seen, strict=True)] + [np.zeros((6, 3))]
        expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(goals), rcond=None)[0]
        np.testing.assert_allclose(synthesizer.weight.numpy(), expected[:-1].T, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(synthesizer.bias.numpy(), expected[-1], rtol=1e-9, atol=1e-12)
    for options in ({"decay": 1.0}, {"ridge": 0.0}, {"every": 0}):
        with pytest.raises(ValueError, match="got"):
            linnet.LeastSquaresSynthesizer(5, None, 3, **options)
    with pytest.raises(ValueError, match="hidden_size of a LeastSquaresSynthesizer must be None"):
        linnet.LeastSquaresSynthesizer(5, 4, 3)


def test_a_convolutional_synthesizer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    make = functools.partial(linnet.ConvSynthesizer, kernel_size=3, layers=1)
    dni = DNI(net, at=["1", "3"], gradient=Synthetic(make, 8, functools.partial(torch.optim.Adam, lr=1e-2), context=3))
    opt = adam(net)
    x, y = torch.randn(6, 1, 8, 8), torch.randint(0, 3, (6,))
    losses = [step(dni, opt, x, y).item() for _ in range(30)]
    assert net[0].weight.grad.abs().max() > 0 and losses[-1] < losses[0]
    with pytest.raises(ValueError, match=r"needs images \(batch, channels, \*\) after a convolution, got \(7, 6\)"):
        DNI(network(), gradient=Synthetic(linnet.ConvSynthesizer))(next(batches(1))[0])


def test_diagnostics():
    dni = DNI(network(), gradient=Synthetic(context=3))
    opt = adam(dni.network)
    assert dni.diagnostics() == {}
    train(dni, opt, batches(5))
    seen = {}
    learn = Synthetic.learn
    for key, source in dni.cuts.items():

        def watched(memory, target, key=key, source=source):
            seen[key] = memory.output.detach().clone(), target * len(target)
            learn(source, memory, target)

        source.learn = watched
    step(dni, opt, *next(batches(1, seed=9)))
    found = dni.diagnostics()
    assert sorted(found) == sorted(f"{name}/{key}" for name in ("cosine", "norm_ratio", "loss") for key in dni.at)
    for key, (output, target) in seen.items():
        target = target / dni.cuts[key].rms
        torch.testing.assert_close(found[f"loss/{key}"], F.mse_loss(output, target))
        torch.testing.assert_close(found[f"norm_ratio/{key}"], output.norm() / target.norm())
        torch.testing.assert_close(found[f"cosine/{key}"], F.cosine_similarity(output.ravel(), target.ravel(), 0))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Synthetic(mix=1.5), r"mix must lie in \[0, 1\], got 1.5"),
        (lambda: Synthetic(targets="later"), "targets must be 'bootstrapped' or 'true', got 'later'"),
        (lambda: Synthetic(context=0), "context must be a positive integer"),
        (lambda: Delayed(0), "steps must be a positive integer"),
        (lambda: DNI(network(), gradient="local"), "gradient must be a gradient source .* got str"),
        (lambda: DNI(network(), gradient={"7": Synthetic()}), "got '7'"),
        (lambda: linnet.RecurrentSynthesizer(3, 3, 3, kind="tcn"), "kind must be one of lstm, gru, rnn"),
        (lambda: linnet.ConvSynthesizer(3, 3, 3, kernel_size=4), "kernel_size must be odd"),
    ],
)
def test_bad_options(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()


def test_bad_contexts():
    x, y = next(batches(1))
    dni = DNI(network(), gradient=Synthetic(context=3))
    with pytest.raises(ValueError, match=r"needs the context of the batch.*net.context\(labels\)"):
        dni(x)
    for context, match in (
        (y + 1, r"labels must lie in 0..2, got 1..3"),
        (y[:3], r"leading axes of the activations \(7, 6\), got \(3,\)"),
        (torch.zeros(7, 2), r"floats must have shape \(batch, \*, 3\), got \(7, 2\)"),
    ):
        with pytest.raises(ValueError, match=match), dni.context(context):
            dni(x)
    with pytest.raises(ValueError, match="needs a gradient source that takes a context"), DNI(network()).context(y):
        pass
    with pytest.raises(TypeError, match="must be a tensor, got list"), dni.context([0, 1]):
        pass
    local = DNI(network(), gradient=LocalLoss(F.cross_entropy, 3))
    with pytest.raises(ValueError, match=r"A local loss needs the context"):
        local(x)
    dni.eval()
    dni(x)  # no context needed


def test_features_as_context():
    dni = DNI(network(), gradient=Synthetic(context=2))
    opt = adam(dni.network)
    for x, y in batches(4):
        opt.zero_grad()
        with dni.context(torch.stack([y == 0, y == 1], 1).double()):
            loss = F.cross_entropy(dni(x), y)
        loss.backward()
        opt.step()
    assert dni.cuts["1"].synthesizer.weight.shape == (6, 8) and dni.network[0].weight.grad.abs().max() > 0


# ---------------------------------------------------------------------- full unlock


def unlocked(seed=0, **options):
    net = network(seed, width=12)
    opt = adam(net)
    return linnet.Unlocked(net, opt, gradient=Synthetic(context=3), **options), opt


def test_a_fully_unlocked_step_is_the_step_written_by_hand():
    net, opt = unlocked()
    train(net, opt, batches(5))
    x, y = next(batches(1, seed=9))
    old = copy.deepcopy(net)
    opt.zero_grad()
    with net.context(y):
        output = net(x)
    F.cross_entropy(output, y).backward()
    stages = [old.network[:2], old.network[2:4], old.network[4:]]
    keys, targets, activations = ["1", "3"], {}, {}
    inputs = x
    for key, stage in zip(keys, stages, strict=False):
        inputs = inputs.detach().requires_grad_(key != "1")
        h = stage(inputs)
        g, _ = old.cuts[key].predict(h.detach(), y)
        stage.zero_grad()
        h.backward(g)
        if key != "1":
            targets["1"] = inputs.grad
        activations[key] = h.detach()
        model = old.inputs[key]
        inputs = (model.rms * model.model(x, None)[0]).detach()
    inputs.requires_grad_()
    expected = stages[2](inputs)
    assert torch.equal(output, expected)
    stages[2].zero_grad()
    F.cross_entropy(expected, y).backward()
    targets["3"] = inputs.grad
    assert close(grads(net.network), grads(old.network))
    assert grads(net.network)[0].abs().max() > 0
    with torch.no_grad():
        for key in keys:  # and both kinds of model learned from what they stand for
            source, model = old.cuts[key], old.inputs[key]
            size = 7 * targets[key].square().mean().sqrt()
            rms = source.rms + 0.1 / (0.9 * source.seen + 0.1) * (size - source.rms)
            torch.testing.assert_close(net.cuts[key].rms, rms)
            rms = model.rms + 0.1 / (0.9 * model.seen + 0.1) * (activations[key].square().mean().sqrt() - model.rms)
            torch.testing.assert_close(net.inputs[key].rms, rms)


def test_stages_that_do_not_act_get_no_gradient():
    net, opt = unlocked(probability=0.5)
    torch.manual_seed(1)
    patterns = set()
    for x, y in batches(80):
        step(net, opt, x, y)
        patterns.add(tuple(net.network[i].weight.grad is not None for i in (0, 2, 4)))
    assert len(patterns) == 8  # each stage by itself


def test_a_fully_unlocked_network_learns():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 3),
    ).double()  # fmt: skip
    opt = adam(net)
    fast = functools.partial(torch.optim.Adam, lr=1e-2)
    net = linnet.Unlocked(net, opt, probability=0.7, gradient=Synthetic(context=3), hidden_size=64, input_optim=fast)
    x = torch.randn(128, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    with torch.no_grad():
        first = F.cross_entropy(net.network(x), y)
    for _ in range(300):
        step(net, opt, x, y)
    net.eval()
    with torch.no_grad():
        assert F.cross_entropy(net(x), y) < 0.5 * first


def test_fully_unlocked_training_goes_on_bit_for_bit():
    net, opt = unlocked(probability=0.6)
    torch.manual_seed(1)
    train(net, opt, batches(4))
    other, fresh = unlocked(7, probability=0.6)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    third = copy.deepcopy((net, opt))
    fourth = pickle.loads(pickle.dumps((net, opt)))
    for model, optimizer in ((net, opt), (other, fresh), third, fourth):
        torch.manual_seed(2)
        train(model, optimizer, batches(4, seed=8))
    for model in (other, third[0], fourth[0]):
        assert same_state(net, model)


def test_what_a_fully_unlocked_network_refuses():
    with pytest.raises(ValueError, match=r"must be an nn.Sequential, .*got ResNet"):
        linnet.Unlocked(ResNet())
    with pytest.raises(ValueError, match=r"gradient must be known in forward, .*; Backprop waits for backward"):
        linnet.Unlocked(network(), gradient=Backprop())
    with pytest.raises(ValueError, match=r"probability must lie in \(0, 1\], got 0"):
        linnet.Unlocked(network(), probability=0)
    with pytest.raises(ValueError, match=r"Unlocked takes one tensor, got 2 positional arguments"):
        linnet.Unlocked(network())(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="must be a gradient source, got str"):
        linnet.Unlocked(network(), gradient="dni")
    with pytest.raises(ValueError, match="network already contains an Unlocked; Unlocked modules cannot be nested"):
        DNI(nn.Sequential(linnet.Unlocked(network()), nn.Linear(3, 3)))

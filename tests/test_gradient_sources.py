"""Every gradient source at a cut against backpropagation or its formula; updates, contexts, places of any network."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import linnet
from linnet import DNI, Backprop, Delayed, DirectFeedback, LocalLoss, Synthetic

SGD = functools.partial(torch.optim.SGD, lr=0.1)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices
    yield
    torch.set_num_threads(threads)


def network(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    ).double()


def batches(count, seed=1, size=7):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        yield x, torch.randint(0, 3, (size,), generator=generator)


def adam(net, lr=1e-2):
    return torch.optim.Adam(net.parameters(), lr=lr)


def step(dni, opt, x, y, criterion=F.cross_entropy):
    opt.zero_grad()
    if any(source.conditioned for source in dni.cuts.values()):
        with dni.context(y):
            output = dni(x)
    else:
        output = dni(x)
    loss = criterion(output, y)
    loss.backward()
    opt.step()
    return loss.detach()


def train(dni, opt, data):
    for x, y in data:
        step(dni, opt, x, y)


def grads(module):
    return [p.grad.clone() for p in module.parameters()]


def close(first, second, tolerance=1e-12):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(first, second, strict=True))


def same_state(first, second):
    a, b = first.state_dict(), second.state_dict()
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def true_gradients(net, x, y):
    plain = copy.deepcopy(net)
    plain.zero_grad()
    F.cross_entropy(plain(x), y).backward()
    return grads(plain)


SOURCES = {
    "synthetic": Synthetic(),
    "conditioned": Synthetic(context=3),
    "mixed": Synthetic(context=3, mix=0.5),
    "observed": Synthetic(mix=1.0),
    "true targets": Synthetic(targets="true"),
    "local": LocalLoss(F.cross_entropy, 3),
    "feedback": DirectFeedback(),
    "delayed": Delayed(2),
    "backprop": Backprop(),
}


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
        inputs = torch.cat([h / h.square().mean().sqrt(), F.one_hot(y, 3).double()], 1)
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
                assert all(g is None for g in found[parameters])
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
    """A power of two: also not in the first steps, and right after it has changed."""
    nets = []
    for scaled in (False, True):
        net = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2, enabled=scaled)
        dni, opt = DNI(net, gradient=SOURCES[name], scaler=scaler if scaled else None), SGD(net.parameters())
        for x, y in batches(5):
            opt.zero_grad()
            if dni.cuts["1"].conditioned:
                with dni.context(y):
                    output = dni(x)
            else:
                output = dni(x)
            scaler.scale(F.cross_entropy(output, y)).backward()
            scaler.step(opt)
            scaler.update()
        nets.append(net)
    assert close(nets[0].parameters(), nets[1].parameters(), 1e-9)

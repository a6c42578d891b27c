"""TruncatedBPTT: windows of a sequence against loops written by hand in float64."""

import copy
import functools
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import linnet
from linnet import DNI, MLPSynthesizer, Synthesizer, Synthetic, TruncatedBPTT
from linnet.decoupled.bptt.windows import Auxiliary, Boundaries, flat
from linnet.decoupled.engine.owned_optimizer import OwnedOptimizer

STILL = functools.partial(torch.optim.SGD, lr=0.0)
SGD = functools.partial(torch.optim.SGD, lr=0.05)
LENGTH, BATCH, INPUT, HIDDEN, WINDOW = 8, 5, 3, 4, 3  # windows of 3, 3 and 2 steps


class Generic(nn.Module):
    """An embedding, a cell and a head, with a nested state: any module called as (input, state)."""

    batch_first = True

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(INPUT, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, input: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        pair, count = (None, torch.zeros(len(input)).double()) if state is None else (state["pair"], state["count"])
        outputs = []
        for x in input.unbind(1):
            pair, count = self.cell(x, pair), count + 1
            outputs.append(self.head(pair[0]))
        return torch.stack(outputs, 1), {"pair": pair, "count": count}


NETWORKS = {
    "lstm": lambda: nn.LSTM(INPUT, HIDDEN, num_layers=2),
    "lstm proj": lambda: nn.LSTM(INPUT, HIDDEN, proj_size=2, batch_first=True),
    "gru": lambda: nn.GRU(INPUT, HIDDEN, batch_first=True),
    "rnn": lambda: nn.RNN(INPUT, HIDDEN),
    "lstm cell": lambda: nn.LSTMCell(INPUT, HIDDEN),
    "gru cell": lambda: nn.GRUCell(INPUT, HIDDEN),
    "rnn cell": lambda: nn.RNNCell(INPUT, HIDDEN),
    "linnet rnn": lambda: linnet.RNN(INPUT, HIDDEN, num_layers=2, hidden_map="orthogonal"),
    "linnet cell": lambda: linnet.RNNCell(INPUT, HIDDEN, hidden_map=linnet.SchurStableLinear),
    "generic": Generic,
}
every_network = pytest.mark.parametrize("name", NETWORKS)


class Fixed(Synthesizer):
    """A gradient of its own, from the start: g = tanh(h A)."""

    def __init__(self, input_size: int, hidden_size: int | None, output_size: int) -> None:
        super().__init__(input_size, hidden_size, output_size)
        self.matrix = nn.Parameter(torch.linspace(-1, 1, input_size * output_size).view(input_size, output_size))

    def forward(self, input: Tensor, hidden: None) -> tuple[Tensor, None]:
        return torch.tanh(input @ self.matrix), None


def wrapped(name: str, window: int = WINDOW, gradient: Synthetic | None = None, **options) -> TruncatedBPTT:
    torch.manual_seed(3)
    return TruncatedBPTT(NETWORKS[name]().double(), window, gradient, **options)


def data(net: TruncatedBPTT, length: int = LENGTH, batch: int = BATCH, seed: int = 5) -> Tensor:
    x = torch.randn(length, batch, INPUT, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.transpose(0, 1) if net.batch_first else x


def steps(net: nn.Module, name: str, x: Tensor, state) -> tuple[Tensor, object]:
    """One window by hand: the outputs and the state; x is as the network wants it."""
    if "cell" not in name:
        return net(x) if state is None else net(x, state)
    outputs = []
    for row in x:
        state = net(row, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs), state


def parts(state) -> list[Tensor]:
    """The tensors of a state that can carry a gradient."""
    if isinstance(state, Tensor):
        return [state]
    return [*state["pair"], state["count"]] if isinstance(state, dict) else list(state)


def rebuilt(state, new: list[Tensor]):
    if isinstance(state, Tensor):
        return new[0]
    return {"pair": tuple(new[:2]), "count": new[2]} if isinstance(state, dict) else tuple(new)


def axis(name: str) -> int:
    return 0 if "cell" in name or name == "generic" else 1


def flattened(name: str, tensors: list[Tensor]) -> Tensor:
    return torch.cat([torch.stack([s.flatten() for s in t.unbind(axis(name))]) for t in tensors], 1)


def unflattened(name: str, rows: Tensor, like: list[Tensor]) -> list[Tensor]:
    found, start = [], 0
    for tensor in like:
        size = tensor.numel() // len(rows)
        samples = [row[start : start + size].view_as(t) for row, t in zip(rows, tensor.unbind(axis(name)), strict=True)]
        found.append(torch.stack(samples, axis(name)))
        start += size
    return found


def weights(output: Tensor) -> Tensor:
    """A loss whose gradient differs at every step and sample."""
    return torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output).sin()


def by_hand(net: TruncatedBPTT, name: str, x: Tensor, loss_of, predict):
    """Windows from the last to the first: the gradients of the parameters, and the gradient in each start state.

    Args:
        loss_of: (outputs of a window, number) -> its loss.
        predict: states (batch, features) -> the gradient to hand in.
    """
    core, time = net.network, int(net.batch_first)
    starts, ends, losses, state = [], [], [], None
    for i, piece in enumerate(x.split(net.window, time)):
        if state is not None:
            leaves = [t.detach().requires_grad_() for t in parts(state)]
            starts.append(leaves)
            state = rebuilt(state, leaves)
        output, state = steps(core, name, piece, state)
        losses.append(loss_of(output, i))
        ends.append(parts(state))
    total = [torch.zeros_like(p) for p in core.parameters()]
    targets = []
    for i in reversed(range(len(losses))):
        roots, seeds = [losses[i]], [torch.ones_like(losses[i])]
        if i + 1 < len(losses):
            given = unflattened(name, predict(flattened(name, [t.detach() for t in ends[i]])), ends[i])
            reached = [(t, g) for t, g in zip(ends[i], given, strict=True) if t.requires_grad]
            roots += [t for t, _ in reached]
            seeds += [g for _, g in reached]
        wanted = [*core.parameters(), *(starts[i - 1] if i else [])]
        found = torch.autograd.grad(roots, wanted, seeds, allow_unused=True)
        for t, g in zip(total, found, strict=False):
            t += 0 if g is None else g
        if i:
            pairs = zip(starts[i - 1], found[len(total) :], strict=True)
            given = [torch.zeros_like(t) if g is None else g for t, g in pairs]
            targets.insert(0, flattened(name, given))
    return total, targets


def weighted(x: Tensor, net: TruncatedBPTT):
    """The loss of a window as a part of the loss of the whole output."""
    shape = net.eval()(x)[0].detach()
    pieces = weights(shape).split(net.window, int(net.batch_first))
    net.train()
    return lambda output, i: (output * pieces[i]).sum() / BATCH


def backward(net: TruncatedBPTT, x: Tensor) -> None:
    output, _ = net(x)
    ((output * weights(output)).sum() / BATCH).backward()


def gradients(net: TruncatedBPTT) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in net.network.parameters()]


# ---------------------------------------------------------------------- what the weights get


@every_network
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_gradients_are_those_of_a_loop_by_hand(name, factor):
    source = Synthetic(Fixed, optim=STILL)
    net = wrapped(name, gradient=source, factor=factor)
    x = data(net)
    backward(net, x)  # sizes the synthesizer and sees the targets: rms is not 0 from now on
    net.zero_grad()
    rms, mean = float(net.cuts["state"].rms), net.cuts["state"].mean.clone()
    assert rms > 0

    def predict(h: Tensor) -> Tensor:
        matrix = torch.linspace(-1, 1, h.shape[1] ** 2).view(h.shape[1], -1).double()
        return factor * rms / BATCH * torch.tanh((h / h.square().mean().sqrt() - mean) @ matrix)

    expected, _ = by_hand(net, name, x, weighted(x, net), predict)
    backward(net, x)
    torch.testing.assert_close(gradients(net), expected, rtol=1e-7, atol=1e-9)


@every_network
@pytest.mark.parametrize("gradient", [None, Synthetic(Fixed)], ids=["none", "factor 0"])
def test_without_a_synthetic_gradient_it_is_truncated(name, gradient):
    net = wrapped(name, gradient=gradient, factor=0)
    x = data(net)
    expected, _ = by_hand(net, name, x, weighted(x, net), torch.zeros_like)
    backward(net, x)
    torch.testing.assert_close(gradients(net), expected, rtol=1e-9, atol=1e-12)


@every_network
@pytest.mark.parametrize("how", ["one window", "all true"])
def test_one_window_and_mix_1_are_full_backpropagation(name, how):
    source = Synthetic(Fixed, mix=float(how == "all true"))
    net = wrapped(name, WINDOW if how == "all true" else LENGTH, source, factor=1.0)
    x = data(net)
    for _ in range(2):
        net.zero_grad()
        backward(net, x)
    output, _ = steps(net.network, name, x, None)
    expected = torch.autograd.grad(
        (output * weights(output)).sum() / BATCH, list(net.network.parameters()), allow_unused=True
    )
    pairs = zip(expected, net.network.parameters(), strict=True)
    expected = [torch.zeros_like(p) if g is None else g for g, p in pairs]
    torch.testing.assert_close(gradients(net), expected, rtol=1e-9, atol=1e-12)
    assert (how == "all true") == bool(net.diagnostics())


def test_half_a_mix_is_between_them():
    found = {}
    for mix in (0.0, 0.5, 1.0):
        net = wrapped("gru", 4, Synthetic(Fixed, optim=STILL, mix=mix), factor=1.0)
        x = data(net)
        net.cuts["state"].size(torch.zeros(1, HIDDEN, dtype=torch.float64))
        net.cuts["state"].rms.fill_(2.0)
        backward(net, x)  # two windows: one boundary, at which the mix is linear
        found[mix] = gradients(net)
    for low, middle, high in zip(*found.values(), strict=True):
        torch.testing.assert_close(middle, (low + high) / 2)
        assert low.shape[0] and not torch.allclose(low, high)


def test_nothing_of_a_later_loss_reaches_an_earlier_window():
    """Of two losses that differ behind the first window, and a synthesizer that stands still."""
    for options in ({"factor": 0.0}, {"factor": 1.0}):
        source = Synthetic(Fixed, optim=STILL)
        net = wrapped("gru", gradient=source, **options)
        net.cuts["state"].size(torch.zeros(1, HIDDEN, dtype=torch.float64))
        net.cuts["state"].rms.fill_(1.0)
        found = []
        for seed in (0, 1):
            x = data(net).requires_grad_()
            output, _ = net(x)
            later = torch.randn(output[:, WINDOW:].shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
            (output[:, :WINDOW].square().sum() + (output[:, WINDOW:] * later).sum()).backward()
            net.cuts["state"].rms.fill_(1.0)
            net.cuts["state"].mean.fill_(0.0)
            found.append(x.grad)
        assert torch.equal(found[0][:, :WINDOW], found[1][:, :WINDOW])
        assert not torch.equal(found[0][:, -2:], found[1][:, -2:])


# ---------------------------------------------------------------------- what the synthesizer learns from


@every_network
def test_targets_are_bootstrapped(name, monkeypatch):
    """The losses of the next window and the prediction at its end, pulled back to its start; nothing past the end."""
    net = wrapped(name, gradient=Synthetic(Fixed, optim=STILL), factor=0.3)
    x, source = data(net), net.cuts["state"]
    backward(net, x)
    rms, mean = float(source.rms), source.mean.clone()

    def predict(h: Tensor) -> Tensor:
        matrix = torch.linspace(-1, 1, h.shape[1] ** 2).view(h.shape[1], -1).double()
        return 0.3 * rms / BATCH * torch.tanh((h / h.square().mean().sqrt() - mean) @ matrix)

    _, expected = by_hand(net, name, x, weighted(x, net), predict)
    seen = []
    monkeypatch.setattr(source, "learn", lambda memory, target: seen.append(target))
    backward(net, x)
    (target,) = seen
    torch.testing.assert_close(target, torch.stack(expected, 1), rtol=1e-7, atol=1e-9)


def test_it_learns_in_units_of_their_size():
    """One SGD step of a linear synthesizer by hand: on the mean squared error of all boundaries at once."""
    net = wrapped("gru", gradient=Synthetic(optim=SGD), factor=1.0)
    x = data(net)
    _, targets = by_hand(net, "gru", x, weighted(x, net), torch.zeros_like)
    states = []
    state = None
    for piece in x.split(WINDOW, 1)[:-1]:
        _, state = net.network(piece) if state is None else net.network(piece, state)
        states.append(flattened("gru", [state]).detach())
    backward(net, x)
    h = torch.stack([s / s.square().mean().sqrt() for s in states], 1)
    t = torch.stack(targets, 1) * BATCH
    rms = t.square().mean().sqrt()
    weight = torch.zeros(HIDDEN, HIDDEN, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(HIDDEN, dtype=torch.float64, requires_grad=True)
    F.mse_loss(F.linear(h, weight, bias), t / rms).backward()
    synthesizer = net.cuts["state"].synthesizer
    torch.testing.assert_close(net.cuts["state"].rms, rms)
    torch.testing.assert_close(synthesizer.weight.data, -0.05 * weight.grad)
    torch.testing.assert_close(synthesizer.bias.data, -0.05 * bias.grad)
    assert all(parameter.grad is None for parameter in synthesizer.parameters())


def test_a_linear_synthesizer_finds_the_true_gradient():
    """For a loss linear in the last state the true gradient at a boundary is constant, and it is learned."""
    torch.manual_seed(0)
    cell = nn.RNNCell(1, 2, nonlinearity="tanh").double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(0.02)  # tanh(z) ~ z
    net = TruncatedBPTT(cell, 1, Synthetic(optim=functools.partial(torch.optim.Adam, lr=0.02)), factor=1.0)
    for _ in range(300):
        x = torch.zeros(3, 4, 1, dtype=torch.float64)
        output, _ = net(x)
        output[-1].sum().div(4).backward()
    net.zero_grad()
    output, _ = net(x)
    output[-1].sum().div(4).backward()
    found = gradients(net)
    net.network.zero_grad()
    output, _ = TruncatedBPTT(cell, 3)(x)
    output[-1].sum().div(4).backward()
    one, true = flat([g.view(1, -1) for g in found], 0), flat([g.view(1, -1) for g in gradients(net)], 0)
    assert F.cosine_similarity(one, true).item() > 0.99


# ---------------------------------------------------------------------- a call for each window


@pytest.mark.parametrize("name", ["lstm", "gru cell", "generic", "linnet rnn"])
def test_calls_for_each_window_give_the_same_gradients(name):
    found = []
    for pieces in (1, 3):
        net = wrapped(name, gradient=Synthetic(Fixed, optim=STILL), factor=1.0)
        x = data(net)
        backward(net, x)
        net.zero_grad()
        net.cuts["state"].rms.fill_(1.5)
        if pieces == 1:
            backward(net, x)
        else:
            state, time = None, int(net.batch_first)
            with torch.no_grad():
                all_weights = weights(net(x)[0]).split(WINDOW, time)
            for i, (piece, w) in enumerate(zip(x.split(WINDOW, time), all_weights, strict=True)):
                output, state = net(piece, state, more=i < 2)
                assert i == 2 or not any(t.requires_grad for t in parts(state))
                ((output * w).sum() / BATCH).backward()
                net.cuts["state"].rms.fill_(1.5)
        found.append(gradients(net))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_the_optimizer_may_step_between_windows():
    """In-place changes of the network and of the synthesizer, whose predictions are still in use."""
    torch.manual_seed(0)
    net = TruncatedBPTT(nn.LSTM(1, 8), 2, Synthetic(MLPSynthesizer, 16))
    opt = torch.optim.Adam(net.network.parameters(), lr=0.01)
    state, before = None, copy.deepcopy(net.network.state_dict())
    for i in range(10):
        opt.zero_grad()
        output, state = net(torch.randn(2, 4, 1), state, more=i < 9)
        output.square().mean().backward()
        opt.step()
    assert float(net.diagnostics()["norm_ratio/state"]) > 0
    assert all(not torch.equal(value, before[key]) for key, value in net.network.state_dict().items())


def test_two_forwards_before_their_backwards():
    """The first backward steps the synthesizer in place; the second still learns."""
    net = wrapped("gru", gradient=Synthetic(optim=SGD), factor=1.0)
    losses = [net(data(net, seed=seed))[0].square().mean() for seed in (0, 1)]
    learned = []
    for loss in losses:
        loss.backward()
        learned.append(net.cuts["state"].synthesizer.weight.clone())
    assert learned[0].any() and not torch.equal(*learned)


def test_a_window_without_a_loss_learns_from_what_lies_ahead():
    net = wrapped("gru", gradient=Synthetic(Fixed), factor=1.0)
    backward(net, data(net))
    net.zero_grad()
    output, _ = net(data(net, 3), more=True)
    (0 * output.sum()).backward()
    assert all(g.any() for g in gradients(net))


def test_a_mix_has_nothing_true_to_mix_in_behind_the_call():
    found = []
    for mix in (0.0, 0.75):
        net = wrapped("gru", LENGTH, Synthetic(Fixed, mix=mix), factor=1.0)
        net.cuts["state"].size(torch.zeros(1, HIDDEN, dtype=torch.float64))
        net.cuts["state"].rms.fill_(1.0)
        output, _ = net(data(net), more=True)
        (0 * output.sum()).backward()
        found.append(gradients(net))
    assert found[0][0].any()
    torch.testing.assert_close([0.25 * g for g in found[0]], found[1])


def test_a_given_state_that_needs_a_gradient_gets_it():
    """A state that requires a gradient gets that of the first window and the synthetic one at its end."""
    net = wrapped("gru", gradient=Synthetic(Fixed), factor=0)
    start = torch.randn(1, BATCH, HIDDEN, dtype=torch.float64).requires_grad_()
    x = data(net)
    net(x, start)[0].sum().backward()
    output, _ = net.network(x[:, :WINDOW], start)
    torch.testing.assert_close(start.grad, torch.autograd.grad(output.sum(), start)[0])


def test_a_population_without_prediction_is_each_being_alone():
    torch.manual_seed(0)
    both = linnet.RNN(INPUT, HIDDEN, beings=2, hidden_map="orthogonal").double()
    x = torch.randn(LENGTH, BATCH, 2, INPUT, dtype=torch.float64)
    net = TruncatedBPTT(both, WINDOW, Synthetic())
    assert net(x)[0].shape == (LENGTH, BATCH, 2, HIDDEN)
    net(x)[0].square().sum().backward()  # the prediction is 0, for no target has been seen
    assert net.cuts["state"].synthesizer.output_size == 2 * HIDDEN
    for being in range(2):
        alone = linnet.RNN(INPUT, HIDDEN, hidden_map="orthogonal").double()
        alone.load_state_dict({key: value[being] for key, value in both.state_dict().items()})
        TruncatedBPTT(alone, WINDOW)(x[:, :, being])[0].square().sum().backward()
        for one, many in zip(alone.parameters(), both.parameters(), strict=True):
            torch.testing.assert_close(one.grad, many.grad[being])


# ---------------------------------------------------------------------- context, auxiliary task


def test_context_for_each_boundary():
    calls = []
    per_step = torch.randn(LENGTH + 1, BATCH, 2, dtype=torch.float64)
    net = wrapped("gru", gradient=Synthetic(optim=SGD, context=2))

    def at(t: int) -> Tensor:
        calls.append(t)
        return per_step[t]

    with net.context(at):
        output, _ = net(data(net), more=True)
        output.sum().backward()
    assert calls == [0, 3, 6, 8]  # the first to see what it gives
    assert net.cuts["state"].synthesizer.input_size == HIDDEN + 2
    with net.context(torch.zeros(BATCH, dtype=torch.int64)):
        backward(net, data(net))
    with pytest.raises(ValueError, match="needs the context"):
        net(data(net))
    with (
        pytest.raises(ValueError, match="a gradient source that takes a context"),
        wrapped("gru").context(per_step[0]),
    ):
        pass
    with pytest.raises(TypeError, match="must be a tensor"), net.context("labels"):
        pass


def test_the_auxiliary_task_foretells_the_next_synthetic_gradient():
    """It adds the gradient of its loss in the state at the end of each window; the target after the last is 0."""
    plain, aux = (wrapped("gru", gradient=Synthetic(Fixed, optim=STILL), factor=1.0, auxiliary=w) for w in (0, 0.7))
    x = data(plain)
    for net in (plain, aux):
        backward(net, x)
        net.zero_grad()
    matrix = torch.randn(HIDDEN, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = aux.cuts["auxiliary"]
    head.owned = OwnedOptimizer(STILL, "optim")
    head.synthesizer.weight.data.copy_(matrix)
    head.synthesizer.bias.data.zero_()
    mean = plain.cuts["state"].mean.clone()
    for net in (plain, aux):
        backward(net, x)
    first, second, _ = x.split(WINDOW, 1)
    states = [plain.network(first)[1]]
    states.append(plain.network(second, states[0].detach())[1])
    ones = [h[0] / h.square().mean().sqrt() for h in states]
    fixed = torch.linspace(-1, 1, HIDDEN**2).view(HIDDEN, HIDDEN).double()
    loss = (
        F.mse_loss(ones[0] @ matrix.T, torch.tanh((ones[1] - mean) @ fixed).detach())
        + (ones[1] @ matrix.T).square().mean()
    )
    added = torch.autograd.grad(0.7 * loss, list(plain.network.parameters()))
    found = [with_task - without for with_task, without in zip(gradients(aux), gradients(plain), strict=True)]
    torch.testing.assert_close(found, list(added), rtol=1e-7, atol=1e-10)


def test_the_auxiliary_task_is_learned():
    head, h = Auxiliary(), torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    target = h @ torch.eye(4).roll(1, 0) * 0.2
    sizes = [head.gradient(h, target).norm() for _ in range(500)]
    assert sizes[0] == 0 and sizes[-1] < max(sizes) / 5  # no gradient from nothing, and none left where all is foretold


# ---------------------------------------------------------------------- eval, state, copies, scale


@every_network
def test_in_eval_mode_it_is_the_network(name):
    net = wrapped(name, gradient=Synthetic(optim=SGD))
    x = data(net)
    expected, last = steps(net.network, name, x, None)
    for found, state in (net.eval()(x), torch.no_grad()(net.train())(x)):
        assert torch.equal(found, expected) and all(map(torch.equal, parts(state), parts(last)))
    trained, state = net(x)
    torch.testing.assert_close(trained, expected)
    torch.testing.assert_close(parts(state), parts(last))
    assert "cuts.state.synthesizer.weight" in net.state_dict()


def train(net: TruncatedBPTT, opt: torch.optim.Optimizer, count: int, start: int = 0) -> list[float]:
    losses = []
    for i in range(start, start + count):
        opt.zero_grad()
        loss = net(data(net, seed=i))[0].square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("auxiliary", [0.0, 0.5])
def test_state_dict_resumes_bit_for_bit(auxiliary):
    def fresh() -> tuple[TruncatedBPTT, torch.optim.Optimizer]:
        net = wrapped("lstm", gradient=Synthetic(MLPSynthesizer, 16), factor=1.0, auxiliary=auxiliary)
        return net, torch.optim.Adam(net.network.parameters(), lr=0.01)

    net, opt = fresh()
    train(net, opt, 4)
    saved = copy.deepcopy((net.state_dict(), opt.state_dict()))
    pickled, twin = pickle.loads(pickle.dumps(net)), copy.deepcopy(net)
    rest = train(net, opt, 3, 4)
    other, other_opt = fresh()
    other.load_state_dict(saved[0])
    other_opt.load_state_dict(copy.deepcopy(saved[1]))
    assert train(other, other_opt, 3, 4) == rest
    for again in (pickled, twin):
        optimizer = torch.optim.Adam(again.network.parameters(), lr=0.01)
        optimizer.load_state_dict(copy.deepcopy(saved[1]))
        assert train(again, optimizer, 3, 4) == rest
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_random_numbers_stay_as_they_were():
    found = []
    for source in (None, Synthetic(MLPSynthesizer, 8)):
        net = wrapped("gru", gradient=source)
        torch.manual_seed(7)
        backward(net, data(net))
        found.append(torch.rand(3))
    assert torch.equal(*found)


def test_a_grad_scaler_changes_nothing():
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        net = wrapped("lstm", gradient=Synthetic(Fixed, optim=SGD), factor=1.0, auxiliary=0.3, scaler=scaler)
        opt = torch.optim.SGD(net.network.parameters(), lr=0.1)
        for i in range(3):
            opt.zero_grad()
            loss = net(data(net, seed=i))[0].square().mean()
            if scaler is None:
                loss.backward()
                opt.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
        found.append([*net.network.parameters(), net.cuts["state"].rms, *net.cuts["state"].synthesizer.parameters()])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_autocast_keeps_the_synthesizer_in_float32():
    torch.manual_seed(0)
    net = TruncatedBPTT(linnet.RNN(INPUT, HIDDEN), WINDOW, Synthetic(), factor=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = net(torch.randn(LENGTH, BATCH, INPUT))
        loss = output.float().square().mean()
    loss.backward()
    assert net.cuts["state"].synthesizer.weight.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in net.network.parameters())


def test_forwards_without_backward_leave_nothing(monkeypatch):
    """No cycle that only the garbage collector would find, with a backward or without."""
    made = []

    class Watched(Boundaries):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr("linnet.decoupled.bptt.truncated.Boundaries", Watched)
    net = wrapped("gru", gradient=Synthetic(MLPSynthesizer, 8), auxiliary=0.1)
    gc.disable()
    try:
        for learning in (True, False):
            output, state = net(data(net), more=not learning)
            loss = output.sum()
            if learning:
                loss.backward()
            assert made[-1]() is not None
            del output, state, loss
            assert made[-1]() is None
    finally:
        gc.enable()


def test_what_is_frozen_stays_as_it_is():
    torch.manual_seed(0)
    core, head = nn.GRU(INPUT, HIDDEN), nn.Linear(HIDDEN, 1)
    net = TruncatedBPTT(core.requires_grad_(False), WINDOW, Synthetic(MLPSynthesizer, 8), auxiliary=0.1)
    state = None
    for _ in range(2):  # carried on, the state is a place where a gradient is taken, though nothing behind it learns
        output, state = net(torch.randn(LENGTH, BATCH, INPUT), state, more=True)
        head(output).square().mean().backward()
    assert head.weight.grad.any() and all(parameter.grad is None for parameter in core.parameters())
    core.requires_grad_(True)
    net.cuts.requires_grad_(False)
    before = copy.deepcopy(net.cuts)
    net(torch.randn(LENGTH, BATCH, INPUT))[0].square().mean().backward()
    for (name, one), two in zip(net.cuts.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at that of every input
def test_torch_compile():
    """Of the network inside, and of the whole."""
    torch.compiler.reset()
    found = []
    for how in ("not", "network", "whole"):
        torch.manual_seed(0)
        core = linnet.RNN(INPUT, HIDDEN)
        inner = torch.compile(core, backend="aot_eager") if how == "network" else core
        net = TruncatedBPTT(inner, WINDOW, Synthetic(), factor=1.0, state_axis=1)
        call = torch.compile(net, backend="aot_eager") if how == "whole" else net
        draws = torch.Generator().manual_seed(1)
        for _ in range(2):
            net.zero_grad()
            call(torch.randn(2 * WINDOW, BATCH, INPUT, generator=draws))[0].square().mean().backward()
        found.append([parameter.grad for parameter in core.parameters()])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


# ---------------------------------------------------------------------- errors


def test_errors_state_the_rule():
    gru = nn.GRU(INPUT, HIDDEN)
    with pytest.raises(ValueError, match="window must be a positive integer, got 0"):
        TruncatedBPTT(gru, 0)
    with pytest.raises(TypeError, match=r"gradient must be Synthetic\(...\) or None, got Backprop"):
        TruncatedBPTT(gru, 2, linnet.Backprop())
    with pytest.raises(ValueError, match="gradient must have targets='bootstrapped'"):
        TruncatedBPTT(gru, 2, Synthetic(targets="true"))
    with pytest.raises(ValueError, match="factor must be a finite number >= 0, got -1"):
        TruncatedBPTT(gru, 2, factor=-1)
    with pytest.raises(ValueError, match=r"auxiliary= predicts synthetic gradients and needs gradient="):
        TruncatedBPTT(gru, 2, auxiliary=0.1)
    with pytest.raises(ValueError, match="network already contains a DNI; DNI modules cannot be nested"):
        TruncatedBPTT(DNI(gru), 2)
    net = TruncatedBPTT(gru, 2, Synthetic())
    with pytest.raises(TypeError, match="input must be a tensor, got PackedSequence"):
        net(nn.utils.rnn.pack_sequence([torch.zeros(2, INPUT)]))
    with pytest.raises(ValueError, match=r"\(length, batch, \*\) with at least one step and one sample, got \(4, 3\)"):
        net(torch.zeros(4, INPUT))
    with pytest.raises(ValueError, match="with at least one step and one sample"):
        net(torch.zeros(0, 2, INPUT))
    with pytest.raises(ValueError, match=r"samples of the batch along axis 0, got shape \(1, 4, 4\); set state_axis="):
        TruncatedBPTT(gru, 2, Synthetic(), state_axis=0)(torch.zeros(4, 4, INPUT)[:, :, :].expand(4, 4, INPUT))
    with pytest.raises(TypeError, match=r"must return \(output, state\), got Tensor"):
        TruncatedBPTT(nn.Linear(3, 3), 2)(torch.zeros(4, 2, INPUT))


def test_a_second_backward_is_refused_and_so_is_nan():
    net = wrapped("gru", gradient=Synthetic())
    loss = net(data(net))[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="at most one backward"):
        loss.backward()
    with pytest.raises(ValueError, match="must be finite"):
        (net(data(net))[0] * float("nan")).sum().backward()

"""The training loop behind ``linnet train``: what it computes, when it looks at which split, and that it resumes."""

import dataclasses
import json
import typing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import linnet
from linnet.checkpoint import info
from linnet.cli.data.data_sets import Data, Split, make_data
from linnet.cli.report import write_results
from linnet.cli.train import cost as measuring
from linnet.cli.train import run as opening
from linnet.cli.train import training as module
from linnet.cli.train.cost import Cost, measure, peak_memory
from linnet.cli.train.layer_spec import layer_options, parse_layer
from linnet.cli.train.pictures import draw
from linnet.cli.train.report import results_of
from linnet.cli.train.run import Run, open_run
from linnet.cli.train.settings import Settings
from linnet.cli.train.training import fit

TINY = {"epochs": 3, "hidden": 8, "depth": 3, "batch_size": 32, "seeds": 1}


@pytest.fixture(autouse=True)
def fast(monkeypatch, threads_back):
    monkeypatch.setattr(measuring, "_ROUNDS", (3, 7))


@pytest.fixture
def small_data(monkeypatch):
    """150 noisy points of 4 classes in place of the digits: fast, and not learnt at once."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 150)
    x = np.eye(4, 6)[y] * 2 + rng.normal(0, 1, (150, 6))
    data = make_data("digits", (x[:100], y[:100], x[100:], y[100:]), classes=4, val=30)
    monkeypatch.setattr(opening, "load_data", lambda *args, **options: data)
    return data


def run_of(tmp_path, *layers, **settings) -> Run:
    return open_run(Settings(**{**TINY, **settings, "layers": layers or ("linear",)}), tmp_path / "run")


def one(run, seed=0, watch=None):
    return fit(run, run.specs[0], seed, watch)


# ---------------------------------------------------------------------- layers as text


class Toy(linnet.Linear, catalogue=False):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        count: int = 3,
        rate: float | None = 0.5,
        flag: bool = False,
        mode: typing.Literal["fast", "slow"] = "fast",
        name: str = "x",
        bare=2.5,  # no annotation: its default tells the type
        thing: Tensor | None = None,
        beings: int | None = None,
        device: typing.Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)


class Passing(Toy, catalogue=False):
    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, extra: int = 1, **rest: typing.Any):
        super().__init__(in_features, out_features, bias, **rest)


TOY = f"{__name__}:Toy"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("count=4", {"count": 4}),
        ("rate=2", {"rate": 2.0}),
        ("rate=1e-3,count=-1", {"rate": 1e-3, "count": -1}),
        ("rate=none", {"rate": None}),
        ("flag=true", {"flag": True}),
        ("flag=False", {"flag": False}),
        ("mode=slow", {"mode": "slow"}),
        ("name=a:b", {"name": "a:b"}),
        ("name=", {"name": ""}),
        ("bare=3", {"bare": 3.0}),
        ("thing=none", {"thing": None}),
        ("beings=5, bias=false", {"beings": 5, "bias": False}),
    ],
)
def test_options_are_read_as_their_types(text, options):
    spec = parse_layer(f"{TOY}:{text}")
    assert spec.kind.__name__ == "Toy"
    assert spec.options == options
    assert {key: type(value) for key, value in spec.options.items()} == {k: type(v) for k, v in options.items()}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("orthogona", "unknown layer 'orthogona'; did you mean 'orthogonal'"),
        ("orthogona:reflectors=3", "cannot import layer"),
        ("orthogona:", "did you mean 'orthogonal'"),
        ("nowhere.mod:Class", "cannot import layer"),
        (f"{__name__}:Nothing", "cannot import layer"),
        ("torch.nn:Linear", "must be a subclass of LinearMap"),
        ("linnet.wide:WideLinear", r"\(in_features, out_features, ...\)"),
        ("linear:reflectors=3", "unknown option 'reflectors' of layer 'linear'; its options are beings, bias"),
        ("orthogonal:reflectors=many", "orthogonal: reflectors must be an integer or none, got 'many'"),
        ("orthogonal:reflectors=2.5", "must be an integer or none"),
        ("orthogonal:reflectors=2,reflectors=3", "option 'reflectors' is given twice"),
        ("orthogonal:reflectors", "option=value, got 'reflectors'"),
        ("orthogonal:reflectors=2,", "option=value"),
        (f"{TOY}:count=2,beings", "option=value, got 'beings'"),
        ("orthogonal:device=cpu", "unknown option 'device'"),
        ("linear:beings=0", "beings must be a positive integer"),
        ("linear:bias=1", "bias must be true or false"),
        ("wide:beings=none", "beings must be a positive integer"),
        (f"{TOY}:mode=medium", "fast or slow"),
        (f"{TOY}:thing=5", "must be none"),
        (f"{TOY}:rate=x", "a number or none|none or a number"),
        ("", "unknown layer ''"),
        (":", "unknown layer|cannot import layer"),
    ],
)
def test_layers_that_are_refused(text, match):
    with pytest.raises(ValueError, match=match) as error:
        parse_layer(text)
    assert "\n" not in str(error.value)


def test_wide_and_options_passed_on():
    assert parse_layer("wide").text == "wide:beings=8"
    assert parse_layer(" wide:beings=3 ").options == {"beings": 3}
    assert parse_layer("wide").kind is linnet.Linear
    names = layer_options(Passing)
    assert set(names) == {"bias", "extra", "count", "rate", "flag", "mode", "name", "bare", "thing", "beings"}


def test_every_option_of_the_catalogue_has_a_type():
    for name, kind in linnet.catalogue().items():
        for option, (_, default) in layer_options(kind).items():
            if isinstance(default, (bool, int, float, str)):
                assert parse_layer(f"{name}:{option}={default}").options == {option: default}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epochs": 0}, "epochs must be a positive integer"),
        ({"seeds": -1}, "seeds must be a positive integer"),
        ({"hidden": 2.5}, "hidden must be a positive integer"),
        ({"depth": True}, "depth must be a positive integer"),
        ({"batch_size": 0}, "batch_size"),
        ({"threads": 0}, "threads"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"seed": -1}, "seed must be an integer from 0 to"),
        ({"seed": 2**32}, "seed must be an integer from 0 to"),
        ({"seed": 2**32 - 1, "seeds": 2}, "must add up to at most"),
        ({"layers": ()}, "at least one layer"),
        ({"layers": ("wide", "wide:beings=8")}, "layers must not repeat a layer, got wide:beings=8 twice"),
        ({"device": "gpu"}, "device must be one of cpu"),
        ({"device": "meta"}, "device must be one of cpu"),
        ({"device": "cuda:99"}, "device must be one of cpu"),
    ],
)
def test_settings_that_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        Settings(**{"layers": ("linear",), **change})


# ---------------------------------------------------------------------- training


def test_training_is_the_loop_that_one_would_write(tmp_path, small_data):
    run = run_of(tmp_path, "linear", depth=2)
    found = one(run, seed=3)

    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.Adam(net.parameters(), lr=run.settings.lr)
    losses, accuracies, states = [], [], []
    for _ in range(3):
        total = 0.0
        order = torch.randperm(70)
        for start in range(0, 70, 32):
            rows = order[start : start + 32]
            optimizer.zero_grad()
            loss = F.cross_entropy(net(small_data.train.inputs[rows]), small_data.train.targets[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / 70)
        right = net(small_data.val.inputs).argmax(1) == small_data.val.targets
        accuracies.append(right.double().mean().item())
        states.append({key: value.clone() for key, value in net.state_dict().items()})
    assert np.allclose(found.train_loss, losses, rtol=1e-6)
    assert found.val_accuracy == pytest.approx(accuracies)
    best = int(np.argmax(accuracies))
    assert found.best_epoch == best + 1
    for ours, theirs in zip(found.net.state_dict().values(), states[best].values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    net.load_state_dict(states[best])
    right = net(small_data.test.inputs).argmax(1) == small_data.test.targets
    assert found.test_accuracy == pytest.approx(right.double().mean().item())


def test_a_population_learns_as_its_members_would_alone(tmp_path, small_data):
    run = run_of(tmp_path, "wide:beings=3", depth=2)
    found = one(run)
    accuracies = []
    for i in range(3):
        torch.manual_seed(0)
        whole = linnet.MLP(6, 8, 4, beings=3)
        layers = [m.to_linears()[i] for m in whole if isinstance(m, linnet.Linear)]
        net = nn.Sequential(layers[0], nn.ReLU(), layers[1])
        optimizer = torch.optim.Adam(net.parameters(), lr=run.settings.lr)
        seen = []
        for _ in range(3):
            for rows in torch.randperm(70).split(32):
                optimizer.zero_grad()
                F.cross_entropy(net(small_data.train.inputs[rows]), small_data.train.targets[rows]).backward()
                optimizer.step()
            right = net(small_data.val.inputs).argmax(1) == small_data.val.targets
            seen.append(right.double().mean().item())
        accuracies.append(seen)
    assert np.allclose(found.val_accuracy, np.mean(accuracies, 0), atol=1e-9)


def test_the_penalty_is_part_of_the_loss(tmp_path, small_data, monkeypatch):
    run = run_of(tmp_path, "linear", epochs=1)
    plain = one(run)
    run.path(run.specs[0], 0).unlink()

    def shrink(net):
        return 10 * sum(p.square().sum() for p in net.parameters())

    monkeypatch.setattr(module, "penalty", shrink)
    punished = one(run)
    sizes = [sum(p.square().sum().item() for p in f.net.parameters()) for f in (plain, punished)]
    assert sizes[1] < sizes[0]
    assert plain.train_loss != punished.train_loss


def test_the_best_epoch_is_the_first_of_the_highest(tmp_path, small_data, monkeypatch):
    scripted = iter([0.2, 0.7, 0.5, 0.7, 0.6, 0.123])  # five epochs, then the test split
    monkeypatch.setattr(module, "accuracy", lambda *args: next(scripted))
    run = run_of(tmp_path, epochs=5)
    states = {}

    def watch(spec, seed, epoch, value):
        found = info(run.path(spec, seed))
        assert found.step == epoch
        model = run.build(spec, seed)
        best = module.checkpoint.load(run.path(spec, seed), into=model, rng=False).extra["best"]
        states[epoch] = (model.state_dict(), best)

    found = one(run, watch=watch)
    assert (found.best_epoch, found.test_accuracy) == (2, 0.123)
    for key, value in found.net.state_dict().items():
        assert torch.equal(value, states[2][0][key])
        assert torch.equal(value, states[5][1][key])
        assert torch.equal(states[1][0][key], states[1][1][key])
    assert any(not torch.equal(value, states[5][0][key]) for key, value in found.net.state_dict().items())


class Spied:
    """Data that notes who looks at the test split."""

    def __init__(self, data: Data, events: list[str]):
        self._data, self._events = data, events

    def __getattr__(self, name):
        if name == "test":
            self._events.append("test")
        return getattr(self._data, name)


def test_the_test_split_is_read_once_and_last(tmp_path, small_data):
    events: list[str] = []
    run = run_of(tmp_path, "linear", "orthogonal", seeds=2)
    run = dataclasses.replace(run, data=Spied(small_data, events))
    for spec in run.specs:
        for seed in range(2):
            events.clear()
            fit(run, spec, seed, lambda s, k, epoch, value: events.append(f"epoch {epoch}"))
            assert events == ["epoch 1", "epoch 2", "epoch 3", "test"]
            fit(run, spec, seed)  # finished: nothing is read again
            assert events.count("test") == 1


# ---------------------------------------------------------------------- interrupted and resumed


class Stop(Exception):
    pass


def stop_at(epoch):
    def watch(spec, seed, done, value):
        if done == epoch:
            raise Stop

    return watch


@pytest.mark.parametrize(
    "layer", ["linear", "symmetric", "orthogonal", "right-stochastic", "wide:beings=2", "orthogonal:beings=2"]
)
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, small_data, layer, epoch):
    run = run_of(tmp_path, layer, epochs=3)
    with pytest.raises(Stop):
        one(run, watch=stop_at(epoch))
    path = run.path(run.specs[0], 0)
    torch.manual_seed(99)  # whatever happens in between
    resumed_run = open_run(run.settings, run.out, resume=True)
    seen = []
    resumed = one(resumed_run, watch=lambda spec, seed, done, value: seen.append(done))
    assert seen == list(range(epoch, 4))
    interrupted = path.read_bytes()
    whole = run_of(tmp_path / "whole", layer, epochs=3)
    undisturbed = one(whole)
    assert resumed.val_accuracy == undisturbed.val_accuracy
    assert interrupted == whole.path(whole.specs[0], 0).read_bytes()


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("linear", "dni"),
        ("orthogonal", "cdni"),
        ("wide:beings=2", "cdni"),
        ("linear", "local"),
        ("wide:beings=2", "local"),
        ("wide:beings=2", "dfa"),
    ],
)
def test_a_decoupled_run_learns_and_resumes_with_the_same_bytes(tmp_path, small_data, layer, kind):
    run = run_of(tmp_path, layer, epochs=4, decouple=kind, lr=0.01)
    with pytest.raises(Stop):
        one(run, watch=stop_at(2))
    own = {"dni": "synthesizer", "cdni": "synthesizer", "local": "head", "dfa": "seed"}[kind]
    assert any(own in key for key in info(run.path(run.specs[0], 0)).shapes)
    resumed = one(open_run(run.settings, run.out, resume=True))
    whole = run_of(tmp_path / "whole", layer, epochs=4, decouple=kind, lr=0.01)
    undisturbed = one(whole)
    assert resumed.val_accuracy == undisturbed.val_accuracy
    assert run.path(run.specs[0], 0).read_bytes() == whole.path(whole.specs[0], 0).read_bytes()
    assert undisturbed.train_loss[-1] < undisturbed.train_loss[0]
    plain = one(run_of(tmp_path / "plain", layer, epochs=4, lr=0.01))
    assert plain.train_loss != undisturbed.train_loss
    if kind == "dni":
        assert measure(whole)[0].peak_bytes > measure(run_of(tmp_path / "costs", layer, lr=0.01))[0].peak_bytes


def test_a_finished_net_is_not_trained_again(tmp_path, small_data, monkeypatch):
    run = run_of(tmp_path)
    first = one(run)
    monkeypatch.setattr(module, "training_step", None)
    again = one(open_run(run.settings, run.out, resume=True))
    assert vars(again).keys() == vars(first).keys()
    assert again.val_accuracy == first.val_accuracy
    assert again.test_accuracy == first.test_accuracy
    assert all(torch.equal(a, b) for a, b in zip(again.net.parameters(), first.net.parameters(), strict=True))


def test_resuming_with_other_settings_or_data_is_refused(tmp_path, small_data, monkeypatch):
    run = run_of(tmp_path, "linear")
    changes = {"epochs": 4, "lr": 0.1, "seed": 1, "hidden": 9, "layers": ("linear", "orthogonal"), "data": "mnist"}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"with other settings: `{name}` was .*, got "):
            open_run(dataclasses.replace(run.settings, **{name: value}), run.out, resume=True)
    with pytest.raises(ValueError, match="no run to resume"):
        open_run(run.settings, tmp_path / "nothing", resume=True)
    with pytest.raises(ValueError, match="new or empty"):
        open_run(run.settings, run.out)
    other = dataclasses.replace(small_data, fingerprint="other")
    monkeypatch.setattr(opening, "load_data", lambda *args, **options: other)
    with pytest.raises(ValueError, match="on other data: digits has changed"):
        open_run(run.settings, run.out, resume=True)


def test_left_over_temporaries_go_and_damaged_checkpoints_are_told_at_once(tmp_path, small_data):
    run = run_of(tmp_path, "linear", "orthogonal")
    with pytest.raises(Stop):
        one(run, watch=stop_at(1))
    left = [run.out / ".run.json.1234.tmp", run.out / "nets" / ".x.safetensors.1234.tmp"]
    for path in left:
        path.write_bytes(b"half")
    open_run(run.settings, run.out, resume=True)
    assert not any(path.exists() for path in left)
    path = run.path(run.specs[0], 0)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        open_run(run.settings, run.out, resume=True)
    for text in ("", "[]", "{}", '{"settings": {"x": 1}, "data_sha256": ""}', '{"settings": 3, "data_sha256": ""}'):
        (run.out / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"cannot resume .*run"):
            open_run(run.settings, run.out, resume=True)


def test_killed_while_the_folder_was_made(tmp_path, small_data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.12ab.tmp").write_text("{")
    run = run_of(tmp_path)  # nothing had begun
    (run.out / "nets").rmdir()
    assert one(open_run(run.settings, run.out, resume=True)).test_accuracy is not None


def test_names_of_checkpoints_are_apart_and_tame(tmp_path, small_data):
    run = run_of(tmp_path, "linear", "wide:beings=2", f"{TOY}:name=../../x y", f"{TOY}:name=/", seeds=2)
    paths = [run.path(spec, seed) for spec in run.specs for seed in range(2)]
    assert len(set(paths)) == 8
    assert {path.parent for path in paths} == {run.out / "nets"}


def test_what_cannot_be_built_is_told_before_the_folder_is_made(tmp_path, small_data):
    for layer, settings, match in (
        ("orthogonal", {"depth": 2}, "depth must be at least 3"),
        ("orthogonal:reflectors=9", {}, "reflectors"),
        ("identity:bias=false", {}, "must have parameters"),
        ("linear", {"depth": 1, "decouple": "dni"}, "two layers"),
    ):
        with pytest.raises(ValueError, match=match):
            run_of(tmp_path, layer, **settings)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- costs


def test_peak_memory_counts_what_a_step_allocates(capfd):
    model = nn.Linear(100, 100, bias=False)
    model.register_buffer("extra", torch.zeros(1000))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    held = 4 * (10_000 + 10_000 + 1000)  # weight, momentum, buffer; the gradient is not there yet

    def step():
        a = torch.empty(1_000_000)
        del a
        b, c = torch.empty(500_000), torch.empty(200_000)
        del b, c

    assert peak_memory(model, optimizer, step) == held + 4_000_000
    assert peak_memory(model, optimizer, lambda: None) == held
    assert capfd.readouterr().err == ""


def test_costs_are_measured_in_turn_with_plain_linear(tmp_path, small_data, monkeypatch):
    run = run_of(tmp_path, "orthogonal", "wide:beings=2")
    calls = []
    real = measuring.training_step

    def spy(model, optimizer, inputs, targets, spec):
        calls.append(spec.text)
        return real(model, optimizer, inputs, targets, spec)

    monkeypatch.setattr(measuring, "training_step", spy)
    costs = measure(run)
    kinds = ["nn.Linear", "orthogonal", "wide:beings=2"]
    rounds = costs[0].rounds
    assert 3 <= rounds <= 7
    assert calls == kinds * (3 + 1 + rounds) + kinds[1:]
    assert all(cost.ratio > 0 and cost.seconds > 0 for cost in costs)
    assert [c.peak_bytes for c in costs] == [c.peak_bytes for c in measure(run)]
    assert costs[1].peak_bytes > costs[0].peak_bytes


# ---------------------------------------------------------------------- results


def test_results_can_be_recomputed_from_the_saved_weights(tmp_path, small_data):
    run = run_of(tmp_path, "linear", "orthogonal", "wide:beings=3", seeds=3, seed=5)
    fits = [[fit(run, spec, seed) for seed in (5, 6, 7)] for spec in run.specs]
    costs = [Cost(0.002, 2.0, 15, 1000)] * 3
    path = write_results(run.out / "results.json", results_of(run, fits, costs))
    found = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert found["settings"]["layers"] == ["linear", "orthogonal", "wide:beings=3"]
    assert found["data"]["test"] == 50
    assert found["versions"]["torch"] == torch.__version__
    options = [{}, {"layer": "orthogonal"}, {"beings": 3}]
    for layer, option, carriers in zip(found["layers"], options, (3, 1, 3), strict=True):
        net = linnet.MLP(6, 8, 4, depth=3, **option)
        accuracies, violations = [], []
        for member in layer["seeds"]:
            linnet.checkpoint.load(run.out / member["weights"], into=net, rng=False)
            out = net(small_data.test.inputs.unsqueeze(1) if "beings" in option else small_data.test.inputs)
            target = small_data.test.targets.unsqueeze(1) if "beings" in option else small_data.test.targets
            accuracies.append((out.argmax(-1) == target).double().mean().item())
            assert member["test_accuracy"] == pytest.approx(accuracies[-1], abs=1e-12)
            assert member["best_epoch"] == int(np.argmax(member["val_accuracy"])) + 1
            violations.append(float(linnet.violation(net)))
        assert layer["test_accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
        assert layer["test_accuracy"]["std"] == pytest.approx(np.std(accuracies, ddof=1))
        assert layer["parameters"] == sum(p.numel() for p in net.parameters())
        assert layer["violation"]["per_seed"] == violations
        assert layer["violation"]["max"] == max(violations)
        assert layer["carriers"] == carriers
        assert layer["step_time"]["ratio"] == 2.0
    broken = results_of(run, fits, [Cost(float("nan"), float("inf"), 15, 1)] * 3)
    found = json.loads(
        write_results(run.out / "broken.json", broken).read_text(), parse_constant=lambda text: pytest.fail(text)
    )
    assert found["layers"][0]["step_time"]["ratio"] is None


@pytest.mark.slow
def test_pictures_of_every_kind(tmp_path, small_data):
    def fits(name):
        try:
            linnet.MLP(6, 8, 4, depth=3, layer=name)
        except ValueError:
            return False  # wants a power of two, say
        return True

    own = [n for n, kind in linnet.catalogue().items() if kind.__module__.startswith("linnet.") and fits(n)]
    assert len(own) > 5
    run = run_of(tmp_path, *own, "wide:beings=2", "orthogonal:beings=2", epochs=1, seeds=2)
    paths = draw(run, [[fit(run, spec, seed) for seed in range(2)] for spec in run.specs])
    assert [path.name for path in paths] == ["curves.png", "spectra.png", "connectivity.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)


@pytest.mark.parametrize(("layer", "depth"), [("linear", 1), ("wide:beings=2", 3), ("sparse:sparsity=0.5", 2)])
def test_pictures_of_small_nets(tmp_path, small_data, layer, depth):
    run = run_of(tmp_path, layer, epochs=1, depth=depth)
    assert len(draw(run, [[one(run)]])) == 3


def test_splits_are_not_mixed_up(tmp_path, small_data, monkeypatch):
    """Training on shuffled labels must not touch what validation and test say of the true ones."""
    seen = []
    real = module.accuracy

    def spy(net, split, spec):
        seen.append(len(split.targets))
        return real(net, split, spec)

    monkeypatch.setattr(module, "accuracy", spy)
    one(run_of(tmp_path))
    assert seen == [30, 30, 30, 50]


def test_a_divergent_run_is_reported_not_hidden(tmp_path, small_data):
    bad = dataclasses.replace(small_data, train=Split(small_data.train.inputs * torch.nan, small_data.train.targets))
    run = dataclasses.replace(run_of(tmp_path, "orthogonal"), data=bad)
    fits = [[one(run)]]
    found = results_of(run, fits, [Cost(1.0, 1.0, 15, 1)])
    assert found["layers"][0]["violation"]["holds"] is False
    text = write_results(run.out / "results.json", found).read_text()
    assert json.loads(text)["layers"][0]["violation"]["max"] is None
    draw(run, fits)

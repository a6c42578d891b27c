"""The tour: its commands and errors on small demos; the demos themselves, as they are shown, are slow."""

import io
import json
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from linnet.cli import main
from linnet.cli.data.data_sets import load_sunspots
from linnet.cli.tour.demos import DEMOS, cartpole, chimera, drift, forecast, memory, population, width
from linnet.cli.tour.tour import run_tour


@pytest.fixture
def small(monkeypatch):
    """Demos of a second."""
    for module, changes in (
        (memory, {"WAIT": 3, "HIDDEN": 8, "EPOCHS": 1, "RATES": (1e-3,)}),
        (population, {"NETS": 4, "EPOCHS": 1, "ROUNDS": 2}),
        (cartpole, {"BEINGS": 20, "GENERATIONS": 1, "SEEDS": (0,), "STEPS": 1}),
        (chimera, {"EPOCHS": 1, "SEEDS": (0,), "EVERY": 4}),
        (drift, {"SEEDS": 2, "EPOCHS": 1, "RATES": (1e-3,)}),
        (width, {"WIDTH": 2000, "CONNECTIONS": 4000}),
        (forecast, {"HIDDEN": 4, "LATENT": 4, "SEEDS": 2, "STEPS": 2, "RATES": (1e-3,), "FAR": 12, "FOREVER": 50}),
    ):
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)


def test_every_demo_gives_a_line_a_panel_and_its_numbers(small, tmp_path):
    console = Console(width=120, record=True, file=io.StringIO())
    threads = torch.get_num_threads()
    demos = run_tour(tmp_path, console=console)
    printed = console.export_text()
    numbers = json.loads((tmp_path / "tour.json").read_text())
    assert list(demos) == list(numbers) == list(DEMOS)
    for name, demo in demos.items():
        assert demo.note in " ".join(printed.split()) and demo.linnet.split()[0] in printed
        assert numbers[name]["holds"] == demo.holds
    assert (tmp_path / "tour.png").read_bytes().startswith(b"\x89PNG")
    assert torch.get_num_threads() == threads


def test_a_claim_that_does_not_come_out_says_so(small, tmp_path, capsys):
    assert main(["tour", "--demo", "memory", "--out", str(tmp_path)]) == 0  # far too little training for it to hold
    assert "NO" in capsys.readouterr().out
    assert json.loads((tmp_path / "tour.json").read_text())["memory"]["holds"] is False


def test_the_former_name_of_the_option_is_accepted(small, tmp_path, capsys):
    assert main(["tour", "--act", "memory", "--demo", "population", "--out", str(tmp_path)]) == 0
    assert set(json.loads((tmp_path / "tour.json").read_text())) == {"memory", "population"}
    assert len(capsys.readouterr().err.splitlines()) == 2  # not a terminal: one line for each demo


def test_the_population_demo_compares_nets_that_are_the_same(small, tmp_path):
    demo = run_tour(tmp_path, ["population"], Console(file=io.StringIO()))["population"]
    assert demo.numbers["largest_weight_difference"] < 1e-6
    assert len(demo.numbers["test_accuracy"]) == 4


def test_the_sunspots_are_the_measured_ones():
    years, numbers = load_sunspots()
    assert years.tolist() == list(range(1700, 2009)) and numbers.shape == (309,) and numbers.dtype == torch.float32
    # known from the literature: the deepest years of the Dalton minimum, the highest maximum, the solar cycle
    assert (
        numbers[1810 - 1700] == 0 and years[numbers.argmax()] == 1957 and float(numbers.max()) == pytest.approx(190.2)
    )
    assert float(numbers.double().sum()) == pytest.approx(15373.4, abs=1e-3)
    spectrum = np.abs(np.fft.rfft(numbers.numpy() - numbers.numpy().mean()))
    assert 10 < 309 / (5 + spectrum[5:].argmax()) < 12


def test_forecast_windows_are_every_stretch_of_the_series_and_stay_inside_their_years():
    series = torch.arange(100.0)
    for start, stop, years in ((0, 60, 6), (60, 100, 20)):
        past, future = forecast.windows(series, start, stop, years)
        first = max(start, forecast.LAGS)
        expected = [
            (list(range(t - forecast.LAGS, t)), list(range(t, t + years))) for t in range(first, stop - years + 1)
        ]
        assert list(zip(past.tolist(), future.tolist(), strict=True)) == expected


@pytest.mark.parametrize("kind", ["nn.Linear", "stable"])
def test_a_forecast_is_the_loop_over_its_years(small, kind):
    torch.manual_seed(0)
    net = forecast.Forecaster(kind)
    past = torch.randn(3, forecast.LAGS)
    with torch.no_grad():
        forecasts = net(past, 7)
        state = net.encoder(past[:, None])
        for year in range(7):
            state = net.transition(state)
            assert torch.allclose(forecasts[..., year], net.readout(state)[..., 0], atol=1e-6)


def test_the_forecasters_start_alike_and_the_stable_one_stays_in_the_disc(small, monkeypatch):
    _, numbers = load_sunspots()
    windows = forecast.windows((numbers - 45) / 40, 0, 150, 6)
    monkeypatch.setattr(forecast, "STEPS", 0)
    plain, stable = (forecast.train(kind, 1e-3, *windows) for kind in ("nn.Linear", "stable"))
    for name, value in plain.state_dict().items():
        assert name.startswith("transition") or torch.equal(value, stable.state_dict()[name]), name
    monkeypatch.setattr(forecast, "STEPS", 40)
    plain, stable = (forecast.train(kind, 0.3, *windows) for kind in ("nn.Linear", "stable"))  # far too large a rate
    for being in range(forecast.SEEDS):
        matrix = stable.transition.weight[being].double().numpy()
        assert np.abs(np.linalg.eigvals(matrix)).max() <= 1 + 1e-5 and np.linalg.norm(matrix, 2) <= 1 + 1e-5
        moved = plain.transition.weight[being].double().numpy()
        inside = forecast.scaled(plain).transition.weight[being].double().numpy()
        radius = np.abs(np.linalg.eigvals(moved)).max()
        assert np.abs(np.linalg.eigvals(inside)).max() <= 1 + 1e-5
        assert np.allclose(inside, moved / max(radius, 1), rtol=1e-5)


def test_the_forecast_demo_measures_every_rate_seed_and_kind(small, tmp_path):
    demo = run_tour(tmp_path, ["forecast"], Console(file=io.StringIO()))["forecast"]
    kinds = demo.numbers["kinds"]
    assert set(kinds) == {"nn.Linear", "weight decay", "scaled", "stable"}
    for measured in kinds.values():
        assert np.shape(measured["test_rms_error_of_every_rate_and_seed"]) == (1, 2)
        assert np.shape(measured["runs_away"]) == (1, 2)
    years, numbers = load_sunspots()
    series, past = numbers.double().numpy(), numbers[years < 1850].double().numpy().mean()
    squares = [(series[t : t + 12] - past) ** 2 for t in range(1930 - 1700, 309 - 12 + 1)]
    assert demo.numbers["test_rms_error_of_the_mean"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
    assert not demo.numbers["runs_away"]["stable"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--demo", "juggling"],
            "--demo must be one of memory, .*cartpole, chimera, forecast, got juggling",
        ),
        (["--out", "/dev/null/tour"], "cannot write to /dev/null/tour: Not a directory"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(arguments, message, capfd):
    assert main(["tour", *arguments]) == 2
    printed = capfd.readouterr()
    assert re.search(message, printed.err) and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.slow
def test_the_claims_come_out_as_the_readme_says(tmp_path):
    demos = run_tour(tmp_path)
    assert all(demo.holds for demo in demos.values()), {name: demo.linnet for name, demo in demos.items()}

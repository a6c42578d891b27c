"""The tour: its commands and errors on small acts; the acts themselves, as they are shown, are slow."""

import io
import json

import pytest
import torch
from rich.console import Console

from linnet.cli import main
from linnet.tasks.acts import ACTS, memory, population, width
from linnet.tasks.tour import run_tour


@pytest.fixture
def small(monkeypatch):
    """Acts of a second."""
    for module, changes in (
        (memory, {"WAIT": 3, "HIDDEN": 8, "EPOCHS": 1, "RATES": (1e-3,)}),
        (population, {"NETS": 4, "EPOCHS": 1, "ROUNDS": 2}),
        (width, {"WIDTH": 2000, "CONNECTIONS": 4000}),
    ):
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)


def test_every_act_gives_a_line_a_panel_and_its_numbers(small, tmp_path):
    console = Console(width=120, record=True, file=io.StringIO())
    threads = torch.get_num_threads()
    acts = run_tour(tmp_path, console=console)
    printed = console.export_text()
    numbers = json.loads((tmp_path / "tour.json").read_text())
    assert list(acts) == list(numbers) == list(ACTS)
    for name, act in acts.items():
        assert act.note in " ".join(printed.split()) and act.linnet.split()[0] in printed
        assert numbers[name]["holds"] == act.holds
    assert (tmp_path / "tour.png").read_bytes().startswith(b"\x89PNG")
    assert torch.get_num_threads() == threads


def test_a_claim_that_does_not_come_out_says_so(small, tmp_path, capsys):
    assert main(["tour", "--act", "memory", "--out", str(tmp_path)]) == 0  # far too little training for it to hold
    assert "NO" in capsys.readouterr().out
    assert json.loads((tmp_path / "tour.json").read_text())["memory"]["holds"] is False


def test_the_population_act_compares_nets_that_are_the_same(small, tmp_path):
    act = run_tour(tmp_path, ["population"], Console(file=io.StringIO()))["population"]
    assert act.numbers["largest_weight_difference"] < 1e-6
    assert len(act.numbers["test_accuracy"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--act", "juggling"], "An act must be one of memory, width, population, however: juggling"),
        (["--out", "/dev/null/tour"], "The output folder must be writable"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(arguments, message, capfd):
    assert main(["tour", *arguments]) == 2
    printed = capfd.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.slow
def test_the_claims_come_out_as_the_readme_says(tmp_path):
    acts = run_tour(tmp_path)
    assert all(act.holds for act in acts.values()), {name: act.linnet for name, act in acts.items()}

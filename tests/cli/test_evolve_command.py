"""``linnet evolve``: environments against loops over single ones, runs that resume, the command for its user."""

import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import linnet
from linnet.cli.evolve.environments import Normalizer, arena_of, word
from linnet.cli.evolve.evolution import Evolution, policy_of
from linnet.cli.evolve.run import open_run
from linnet.cli.evolve.settings import EvolveSettings
from linnet.cli.run_folder import resume_settings
from linnet.evolve import FullRank, LowRank
from support import commands

TINY = EvolveSettings(beings=20, block=10, generations=3, episodes=2, hidden=4, elites=2, target=1e9)


pytestmark = pytest.mark.usefixtures("threads_back")


def command(capsys, *arguments):
    return commands.command(capsys, "evolve", *arguments)


def tiny(folder, *more):
    return [
        *("--beings", 20, "--block", 10, "--generations", 3, "--hidden", 4, "--elites", 2, "--target", 1e9),
        *("--out", folder, *more),
    ]


# ---------------------------------------------------------------------- environments


def alone(environment, policy, seed, scale=None):
    """The return of one episode of one environment, by hand."""
    observation, _ = environment.reset(seed=seed)
    total, steps = 0.0, 0
    while True:
        with torch.no_grad():
            y = policy(torch.from_numpy(observation.astype(np.float32)))
        if isinstance(environment.action_space, gymnasium.spaces.Discrete):
            action = int(y.argmax())
        else:
            low, high = environment.action_space.low, environment.action_space.high
            action = ((low + high) / 2 + (high - low) / 2 * np.tanh(y.numpy())).astype(np.float32)
        observation, reward, ended, cut, _ = environment.step(action)
        total, steps = total + reward, steps + 1
        if ended or cut:
            return total, steps


@pytest.mark.parametrize("name", ["Pendulum-v1", "Acrobot-v1"])
def test_each_episode_is_that_of_a_single_environment(name):
    arena = arena_of(name)
    assert not arena.vectorized
    settings = dataclasses.replace(TINY, env=name)
    torch.manual_seed(0)
    nets = linnet.stack([policy_of(settings, arena) for _ in range(3)])
    with torch.no_grad():
        outcome = arena.play(nets, 3, 2, seed=5)
    steps = 0
    for being in range(3):
        for episode in range(2):  # copy episode * beings + being is seeded by 5 + its number
            expected, took = alone(gymnasium.make(name), linnet.single(nets, being), 5 + episode * 3 + being)
            np.testing.assert_allclose(outcome.returns[being, episode], expected, rtol=1e-4)
            steps += took
    assert outcome.steps == steps


def test_cartpole_counts_steps_until_the_pole_falls():
    arena = arena_of("CartPole-v1")
    assert arena.vectorized and (arena.observations, arena.outputs, arena.target) == (4, 2, 475)

    def always_left(x):
        return torch.tensor([1.0, 0.0]).expand(*x.shape[:2], 2)

    def balance(x):  # a linear law that is known to hold the pole
        push = x @ torch.tensor([0.1, 0.4, 4.0, 1.5])
        return torch.stack([-push, push], -1)

    fallen, held = arena.play(always_left, 6, 3, 0), arena.play(balance, 6, 3, 0)
    assert fallen.returns.shape == (6, 3) and 8 <= fallen.returns.min() and fallen.returns.max() <= 11
    assert fallen.steps == fallen.returns.sum()  # one point for each step
    assert (held.returns == 500).all()
    assert not np.array_equal(arena.play(always_left, 6, 3, 1).returns, fallen.returns)
    assert np.array_equal(arena.play(always_left, 6, 3, 0).returns, fallen.returns)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("CartPole-v9", "env must be one that Gymnasium can make"),
        ("Nothing-v0", "env must be one that Gymnasium can make"),
        ("FrozenLake-v1", "env must have numbers as observations"),
        ("no such thing", "env must be one that Gymnasium can make"),
    ],
)
def test_environments_that_cannot_be_played(name, match):
    with pytest.raises(ValueError, match=match):
        arena_of(name)


def test_seeds_of_different_purposes_differ():
    words = [word(seed, purpose, i) for seed in range(3) for purpose in range(3) for i in range(50)]
    assert len(set(words)) == len(words)


def test_normalizer_has_mean_and_deviation_of_everything_seen():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, [1, 5, 0], (n, 3)) for n in (1, 50, 7)]
    normalizer = Normalizer.fresh(3)
    assert (normalizer.scale() == 1).all()
    for part in parts:
        normalizer.add(len(part), part.sum(0), (part**2).sum(0))
    normalizer.add(0, np.zeros(3), np.zeros(3))
    everything = np.concatenate(parts)
    np.testing.assert_allclose(normalizer.mean, everything.mean(0))
    np.testing.assert_allclose(normalizer.scale()[:2], everything.std(0)[:2])
    assert normalizer.scale()[2] == 1
    policy = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.from_numpy(everything).float()
    expected = policy(((x - torch.from_numpy(normalizer.mean)) / torch.from_numpy(normalizer.scale())).float())
    torch.testing.assert_close(normalizer.fold(policy)(x), expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize("strategy", ["ga", "es", "lowrank"])
@pytest.mark.parametrize("normalize", [False, True])
def test_runs_repeat_and_resume_bit_for_bit(strategy, normalize, tmp_path):
    settings = dataclasses.replace(TINY, strategy=strategy, normalize=normalize)
    whole, broken = open_run(settings, tmp_path / "whole"), open_run(settings, tmp_path / "broken")
    whole.run()
    for _ in range(2):
        broken.step()
        broken.save()
        torch.rand(3)
        broken = open_run(settings, tmp_path / "broken", resume=True)
    broken.run()
    assert broken.curve == whole.curve and len(whole.curve) == 3
    assert np.array_equal(broken.test(), whole.test())
    assert (tmp_path / "whole" / "curve.csv").read_text() == (tmp_path / "broken" / "curve.csv").read_text()
    other = open_run(dataclasses.replace(settings, seed=1), tmp_path / "other")
    other.run()
    assert [g.mean for g in other.curve] != [g.mean for g in whole.curve]


def test_blocks_decide_the_environments_and_nothing_else(tmp_path):
    arena = arena_of("CartPole-v1")
    for make in (FullRank, LowRank):
        population = make(policy_of(TINY, arena), 20)
        population.perturb(0, 0, 0.5)
        with torch.no_grad():
            whole = population(torch.ones(3, 20, 4))
            torch.testing.assert_close(population.part(4, 12)(torch.ones(3, 8, 4)), whole[:, 4:12])
        with pytest.raises(ValueError, match=r"A part must satisfy .* <= 20 \(beings\), got start=4 and stop=22"):
            population.part(4, 22)
    with pytest.raises(ValueError, match="A part must have an even start and stop"):
        population.part(1, 4)


def test_the_champion_is_an_ordinary_module_that_plays_as_well(tmp_path):
    settings = dataclasses.replace(TINY, beings=200, block=100, generations=20, hidden=8, target=None, normalize=True)
    evolution = open_run(settings, tmp_path)
    evolution.run()
    assert evolution.solved and evolution.score >= 475
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    linnet.load(tmp_path / "best.safetensors", into=net)
    returns = [alone(gymnasium.make("CartPole-v1"), net, seed)[0] for seed in range(10)]
    assert np.mean(returns) > 400  # it takes observations as they are


def test_elites_stay_and_fitness_rises(tmp_path):
    evolution = open_run(dataclasses.replace(TINY, beings=100, block=50, generations=6), tmp_path)
    evolution.run()
    assert evolution.curve[-1].mean > evolution.curve[0].mean
    assert all(g.worst <= g.mean <= g.best for g in evolution.curve)
    assert [g.number for g in evolution.curve] == list(range(6))
    steps = [g.steps for g in evolution.curve]
    assert steps == sorted(steps) and steps[0] == round(evolution.curve[0].mean * 100 * 2)


def test_a_being_that_returns_nan_is_worst(tmp_path, monkeypatch):
    evolution = open_run(TINY, tmp_path)
    play = type(evolution.arena).play

    def broken(self, *args):
        outcome = play(self, *args)
        outcome.returns[0] = np.nan
        return outcome

    monkeypatch.setattr(type(evolution.arena), "play", broken)
    evolution.step()
    assert evolution.strategy.generation == 1


# ---------------------------------------------------------------------- the command


def test_the_command_shows_saves_and_draws(capsys, tmp_path):
    code, out, err = command(capsys, *tiny(tmp_path / "run"))
    assert code == 0
    assert re.search(r"CartPole-v1: 3 generations, [\d,]+ steps", out)
    assert "fresh episodes" in out and "The target is not reached" in out
    assert len(re.findall(r"generation +\d+  best +[\d.]+  mean +[\d.]+  [\d.]+ [Mk]? ?steps/s", err)) == 3
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"best.safetensors", "curve.csv", "evolution.png", "report.html", "state.safetensors"}
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").read_text().splitlines()))
    assert [row["number"] for row in rows] == ["0", "1", "2"] and rows[0]["diversity"] > "0"
    code, out, err = command(capsys, "--resume", "--out", tmp_path / "run", "--generations", 4)
    assert code == 0 and "4 generations" in out and err.count("generation ") == 1


def test_an_environment_without_vectorized_entry_point_says_so(capsys, tmp_path):
    arguments = [
        "--env",
        "Pendulum-v1",
        "--beings",
        4,
        "--block",
        4,
        "--elites",
        1,
        "--generations",
        1,
        "--episodes",
        1,
    ]
    code, out, err = command(capsys, *arguments, "--out", tmp_path / "run")
    assert code == 0
    assert "Pendulum-v1 has no vectorized entry point: its 4 copies run one after another" in err
    assert "target" not in out


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--env", "CartPole-v9"], "--env must be one that Gymnasium can make, got 'CartPole-v9'"),
        (["--strategy", "cma"], "--strategy must be one of ga, es, lowrank, got 'cma'"),
        (["--beings", "0"], "--beings must be a positive integer"),
        (["--strategy", "es", "--beings", "11"], "--beings and --block must be even"),
        (["--sigma", "-1"], "--sigma must be positive"),
        (["--elites", "1000"], "--elites must be smaller than --beings, 1000, got 1000"),
        (["--share", "0"], "--share must be positive and at most 1, got 0.0"),
        (["--seed", "-1"], "--seed must be an integer from 0 to"),
        (["--resume"], "--resume needs --out FOLDER"),
        (["--generations", "many"], "should be a valid integer"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("linnet: ")
    assert re.search(match, err), err
    assert not list(tmp_path.iterdir())


def test_mistakes_about_the_folder(capsys, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    for arguments, match in (
        (tiny(tmp_path / "full"), "must be new or empty"),
        (["--resume", "--out", tmp_path / "nowhere"], "no run to resume in"),
        (["--resume", "--out", tmp_path / "full"], "no run to resume in"),
    ):
        code, _, err = command(capsys, *arguments)
        assert code == 2 and match in err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".state.safetensors.0.tmp").touch()  # of a first save that was killed
    assert command(capsys, *tiny(tmp_path / "run", "--generations", 1))[0] == 0
    code, _, err = command(capsys, "--resume", "--out", tmp_path / "run", "--hidden", 5)
    assert code == 2 and "with other settings: --hidden was 4, got 5" in err
    (tmp_path / "run" / "state.safetensors").write_bytes(b"something else")
    assert command(capsys, "--resume", "--out", tmp_path / "run")[0] == 2


@pytest.mark.parametrize(("beings", "elites"), [(1, 0), (2, 0), (5, 0), (11, 1), (99, 9), (100, 10), (1000, 10)])
def test_the_default_number_of_elites_fits_the_population(capsys, tmp_path, beings, elites):
    assert EvolveSettings(beings=beings).elite_count == elites
    out = tmp_path / "run"
    if beings > 11:
        return
    few = ["--beings", beings, "--hidden", 4, "--target", 1e9, "--out", out]
    assert command(capsys, *few, "--generations", 2)[0] == 0
    assert command(capsys, "--resume", "--out", out, "--generations", 3)[0] == 0
    assert resume_settings(EvolveSettings, out) == EvolveSettings(beings=beings, hidden=4, target=1e9, generations=3)


def test_a_run_that_is_stopped_in_its_first_generation_resumes_with_its_settings(capsys, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Evolution, "step", stop)
        code, _, err = command(capsys, *tiny(out, "--strategy", "es"))
    assert code == 130 and f"resume with: linnet evolve --resume --out {out}" in err
    assert resume_settings(EvolveSettings, out) == dataclasses.replace(TINY, strategy="es")
    assert command(capsys, "--resume", "--out", out)[0] == 0
    assert command(capsys, *tiny(tmp_path / "whole", "--strategy", "es"))[0] == 0
    for name in ("curve.csv", "state.safetensors", "best.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_kill_9_in_a_generation_and_resume_give_the_curve_of_a_run_that_was_left_alone(tmp_path):
    settings = dataclasses.replace(TINY, generations=12)
    whole = Evolution(settings, tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    whole.run()
    names = [f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) is not None]
    options = [f"--{name}={getattr(settings, name)}" for name in names if name != "normalize"]
    code = "import sys; from linnet.cli import main; sys.exit(main())"
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "evolve", *options, "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "curve.csv").exists() or len((folder / "curve.csv").read_text().splitlines()) < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    again = open_run(resume_settings(EvolveSettings, folder), folder, resume=True)
    assert 3 <= len(again.curve) < 12, "the run was killed too late to show anything"
    again.run()
    assert again.curve == whole.curve
    assert (folder / "curve.csv").read_bytes() == (tmp_path / "whole" / "curve.csv").read_bytes()
    assert not list(folder.glob(".*"))

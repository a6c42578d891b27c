"""``--nproc``: several processes train and evolve what one does, and a killed one is forgotten."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from linnet import catalogue
from linnet.cli import main
from linnet.cli.torchrun import Workers
from linnet.cli.train.run import open_run
from linnet.cli.train.settings import Settings
from linnet.cli.train.training import fit

SMALL = ["--data", "digits", "--hidden", "16", "--depth", "3", "--batch-size", "150"]


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "linnet", "train", "--out", str(out), *options]


def trained(out: Path, *options: str) -> dict[str, dict[str, torch.Tensor]]:
    done = subprocess.run(command(out, *SMALL, *options), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return weights(out)


def weights(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted((out / "nets").glob("*.safetensors"))}


def processes(out: Path) -> list[int]:
    """The worker processes of a run, found by their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"linnet.cli.worker" in words and str(out).encode() in words:
                found.append(int(entry.name))
    return found


def equal(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    for name, state in a.items():
        assert state.keys() == b[name].keys()
        for key, value in state.items():
            torch.testing.assert_close(value, b[name][key], rtol=tolerance, atol=tolerance, msg=f"{name}: {key}")


def test_the_parts_of_a_batch():
    rows = torch.arange(10)
    for size in (1, 2, 3, 12):
        parts = [Workers(rank, size).own(rows) for rank in range(size)]
        assert torch.cat(parts).tolist() == rows.tolist()
        weights_of = [Workers(rank, size).weight(part, rows) for rank, part in enumerate(parts)]
        assert sum(weights_of) == pytest.approx(size)
        x = torch.randn(10)
        means = [weights_of[rank] * x[part].mean() for rank, part in enumerate(parts) if len(part)]
        assert float(sum(means)) / size == pytest.approx(float(x.mean()), abs=1e-6)


LAYERS = ["linear", "orthogonal", "sparse:dynamic=True,deltaT=3,Tend=100", "wide:beings=3"]


def test_two_processes_one_of_which_is_killed_train_what_one_does(tmp_path):
    settings = Settings(data="digits", hidden=16, depth=3, batch_size=150, epochs=3, seeds=1, layers=tuple(LAYERS))
    run = open_run(settings, tmp_path / "1")
    alone = [fit(run, spec, settings.seed) for spec in run.specs]
    words = [word for layer in LAYERS for word in ("--layer", layer)]
    out = tmp_path / "2"
    options = [*SMALL, "--epochs", "3", "--seeds", "1", *words, "--nproc", "2"]
    child = subprocess.Popen(command(out, *options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not any((out / "nets").glob("*.safetensors")):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    os.kill(processes(out)[0], signal.SIGKILL)
    _, said = child.communicate(timeout=200)
    assert child.returncode == 0, said
    equal(weights(tmp_path / "1"), weights(out), 1e-4)  # float32, other sums
    results = json.loads((out / "results.json").read_text())["layers"]
    for a, b in zip(alone, results, strict=True):
        assert a.test_accuracy == pytest.approx(b["test_accuracy"]["mean"], abs=0.02)


@pytest.mark.slow
def test_every_layer_on_two_processes(tmp_path):
    # of l0 each process draws noise for its own share; the null space of a map that narrows is never trivial
    layers = [name for name in catalogue() if name not in ("l0", "trivial-null-space")]
    options = ["--epochs", "1", *(word for layer in layers for word in ("--layer", layer))]
    equal(trained(tmp_path / "1", *options), trained(tmp_path / "2", *options, "--nproc", "2"), 1e-3)


def killed(out: Path, nproc: int, seed: int, kills: int, options: list[str]) -> int:
    """Run, and kill -9 a process at random moments; one that has no torchrun above it is resumed by hand."""
    rng, done = random.Random(seed), 0
    arguments = [*SMALL, *options, "--nproc", str(nproc)]
    child = subprocess.Popen(command(out, *arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while child.poll() is None:
        time.sleep(rng.uniform(0.5, 4.0))
        victims = processes(out) if nproc > 1 else [child.pid]
        if done < kills and (out / "run.json").exists() and victims and child.poll() is None:
            os.kill(rng.choice(victims), signal.SIGKILL)
            done += 1
            if nproc == 1:
                child.wait()
                child = subprocess.Popen(command(out, "--resume"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert child.returncode == 0
    return done


KILLED = ["--epochs", "60", "--layer", "orthogonal", "--layer", "sparse:dynamic=True,deltaT=3,Tend=1000"]


@pytest.mark.slow
def test_a_killed_process_changes_nothing(tmp_path):
    options = ["--epochs", "40", "--layer", "sparse:dynamic=True,deltaT=3,Tend=1000"]
    undisturbed = trained(tmp_path / "a", *options, "--nproc", "2")
    assert killed(tmp_path / "b", 2, seed=0, kills=1, options=options) == 1
    equal(undisturbed, weights(tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_twenty_kills_change_nothing(tmp_path, nproc):
    undisturbed, done = trained(tmp_path / "a", *KILLED, "--nproc", str(nproc)), 0
    for i in range(20):
        out = tmp_path / f"b{i}"
        done += killed(out, nproc, seed=i, kills=3, options=KILLED)
        equal(undisturbed, weights(out))
        if done >= 20:
            break
    assert done >= 20


def test_what_is_refused(tmp_path):
    done = subprocess.run(
        command(tmp_path / "x", "--nproc", "2", "--decouple", "dni"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "--nproc shares batches of whole networks" in done.stderr
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------- populations

POPULATION = ["--beings", "40", "--block", "10", "--generations", "6", "--elites", "4", "--target", "1e9"]


def generations(out: Path) -> int:
    """How many are on the disk."""
    curve = out / "curve.csv"
    return len(curve.read_text().splitlines()) - 1 if curve.exists() else 0


def evolved(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "linnet", "evolve", "--out", str(out), *POPULATION, *options]


def test_two_processes_one_of_which_is_killed_evolve_what_one_does(tmp_path, threads_back):
    assert main(evolved(tmp_path / "1")[3:]) == 0
    out, temporary = tmp_path / "2", tmp_path / "temporary"
    temporary.mkdir()
    child = subprocess.Popen(
        evolved(out, "--nproc", "2"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    while generations(out) < 1:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    os.kill(processes(out)[0], signal.SIGKILL)
    shown, said = child.communicate(timeout=200)
    assert child.returncode == 0, said
    for name in ("state.safetensors", "best.safetensors", "curve.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (out / name).read_bytes(), name
    assert "6 generations" in shown and (out / "report.html").exists()
    assert not list(out.glob(".*.tmp")) and not list(temporary.glob("torchelastic*"))
    longer = evolved(out, "--nproc", "2", "--resume", "--generations", "7")
    done = subprocess.run(longer, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "7 generations" in done.stdout, done.stderr
    assert generations(out) == 7


@pytest.mark.slow
def test_an_evolution_that_is_stopped_says_how_to_go_on_and_no_more(tmp_path):
    out = tmp_path / "x"
    child = subprocess.Popen(
        evolved(out, "--nproc", "2", "--generations", "1000"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while generations(out) < 1:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    workers = processes(out)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and f"resume with: linnet evolve --resume --out {out}" in said, said
    assert "Traceback" not in said and "KeyboardInterrupt" not in said, said
    assert len(workers) == 2 and not any(os.path.exists(f"/proc/{worker}") for worker in workers)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nproc", "3"], "--beings must be a multiple of --nproc · --block, 3 · 10, got 40"),
        (["--nproc", "0"], "--nproc"),
    ],
)
def test_populations_that_cannot_be_parted(tmp_path, options, said):
    done = subprocess.run(evolved(tmp_path / "x", *options), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "x").exists()

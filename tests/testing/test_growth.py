"""One new class in one file: the commands and the contract tests find it, and nothing else was edited."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import linnet
from support.paths import ROOT

TOY = '''

class ToyLinear(LinearMap):
    """y = x A + b with A = c 1, one number for the whole matrix."""

    promise = "A = c 1"

    def __init__(self, in_features, out_features, bias=True, *, beings=None, device=None, dtype=None):
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.c = nn.Parameter(torch.empty(*self.leading, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def _weight(self, c):
        return c.unsqueeze(-1).expand(*c.shape[:-1], self.out_features, self.in_features)

    def _assign(self, weight):
        return {"c": weight.mean((-2, -1)).unsqueeze(-1)}

    def _violation(self, weight):
        scale = weight.abs().amax((-2, -1)).clamp_min(1e-300)
        return (weight.amax((-2, -1)) - weight.amin((-2, -1))) / scale
'''


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> dict[str, str]:
    """The environment in which linnet is a copy with one class more."""
    folder = tmp_path_factory.mktemp("grown")
    package = Path(linnet.__file__).parent
    shutil.copytree(package, folder / "linnet", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "linnet" / "maps" / "symmetric.py", "a") as file:
        file.write(TOY)
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def python(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_stands_in_the_catalogue(grown):
    printed = python(grown, "linnet", "layers")
    assert "toy" in printed and "A = c 1" in printed


def test_it_can_be_trained_beside_the_others(grown, tmp_path):
    options = ["--layer", "toy", "--epochs", "1", "--hidden", "8", "--out", str(tmp_path / "run")]
    assert "toy" in python(grown, "linnet", "train", *options)


def test_the_contract_tests_find_it(grown):
    tests = [
        str(ROOT / "tests" / "testing" / "test_contract.py"),
        "-k",
        "toy and test_check",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    printed = python(grown, "pytest", *tests)
    assert int(printed.rsplit(" passed", 1)[0].split()[-1]) > 40


def test_the_guard_asks_for_its_name_in_the_lists(grown):
    tests = ROOT / "tests" / "core" / "test_catalogue.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", "shipped"]
    done = subprocess.run(command, env=grown, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "ToyLinear" in done.stdout

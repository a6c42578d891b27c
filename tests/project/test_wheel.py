"""The wheel, in an environment that holds the required dependencies and nothing else."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.paths import ROOT


def required(names: list[str]) -> set[str]:
    """The named distributions and everything they require here without extras."""
    found: set[str] = set()
    while names:
        name = re.split(r"[^A-Za-z0-9._-]", names.pop(), maxsplit=1)[0].lower()
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another platform only
        found.add(name)
        names += [need for need in needs if "extra ==" not in need]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel and links to the required dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("linnet-*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    for name in required(["torch", "numpy", "safetensors"]):
        for file in importlib.metadata.distribution(name).files or []:
            top = file.parts[0]
            link, target = site / top, Path(str(importlib.metadata.distribution(name).locate_file(top)))
            if top != ".." and not link.exists() and target.exists():
                link.symlink_to(target)
    return site


def run(site: Path, code: str) -> subprocess.CompletedProcess:
    clean = f"import sys; sys.path[:0] = [{str(site)!r}]\n{code}"
    return subprocess.run([sys.executable, "-S", "-I", "-c", clean], capture_output=True, text=True, cwd=site)


def test_the_wheel_holds_what_it_must(bare):
    assert (bare / "linnet" / "py.typed").exists()
    assert (bare / "linnet" / "cli" / "data" / "sunspots.csv").exists()
    (info,) = bare.glob("linnet-*.dist-info")
    assert "MIT" in (info / "METADATA").read_text()
    assert list(info.rglob("LICENSE"))
    assert "linnet = linnet.cli:main" in (info / "entry_points.txt").read_text()


def test_it_imports_and_trains_without_the_extras(bare):
    code = """
import linnet, torch
for extra in ("typer", "rich", "matplotlib", "sklearn", "scipy", "onnx"):
    assert extra not in sys.modules, extra
    try: __import__(extra)
    except ImportError: pass
    else: raise SystemExit(extra + " is there: the environment is not bare")
layer = linnet.OrthogonalLinear(4, 4)
layer(torch.randn(2, 4)).sum().backward()
print(linnet.__file__, float(linnet.violation(layer)))
"""
    done = run(bare, code)
    assert done.returncode == 0, done.stderr
    assert str(bare) in done.stdout


def test_the_command_names_the_missing_extra_in_one_line(bare):
    done = run(bare, "sys.argv = ['linnet', 'layers']\nfrom linnet.cli import main\nsys.exit(main())")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "linnet[cli]" in done.stderr

"""Every Python block of the README runs, in order, as one program."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M)
    assert len(blocks) >= 2
    namespace: dict = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert float(capsys.readouterr().out) < 1e-5
    swap = blocks[0].strip().splitlines()
    assert len([line for line in swap if line.strip()]) <= 13


def test_the_two_commands_stand_at_the_top():
    head = README.read_text().split("```python")[0]
    assert "make demo" in head and "make test" in head

"""Every layer in everything that PyTorch users put layers into: tests/matrix.py has rows, columns and cells."""

import re

import pytest

from support import matrix
from support.matrix import COLUMNS, DEAR, NAMES, PAGE, REFUSALS, ROWS, TOGETHER, Result, Row, run, run_together

CHEAP = [name for name in COLUMNS if name not in DEAR]
SLOWEST = "torch.compile, inductor"


def first_of_each_family() -> list[Row]:
    return list({row.family: row for row in reversed(ROWS)}.values())[::-1]


def dear() -> list:
    """One row of each family in one of the dear columns in turn, and all of them, slow."""
    families, columns = first_of_each_family(), [name for name in DEAR if name != SLOWEST]
    fast = {(row.name, sorted(columns)[i % len(columns)]) for i, row in enumerate(families)}
    return [
        pytest.param(row, name, marks=[] if (row.name, name) in fast else [pytest.mark.slow], id=f"{row.name}-{name}")
        for name in sorted(DEAR)
        for row in ROWS
    ]


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_cell(row, name):
    found = run(row, name)
    assert found.said != "fails", found.why


@pytest.mark.parametrize(("row", "name"), dear())
def test_dear_cell(row, name):
    found = run(row, name)
    assert found.said != "fails", found.why


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes(name):
    found = run_together(name, first_of_each_family())
    assert not [(one.row, one.why) for one in found if one.said == "fails"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_all_rows_on_two_processes(name):
    found = run_together(name, ROWS)
    assert not [(one.row, one.why) for one in found if one.said == "fails"]


def test_the_page_is_that_of_these_rows_and_columns():
    text = PAGE.read_text()
    rows = re.findall(r"^\| ([^|]+?) \| ([✓–✗* |]+) \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == [row.name for row in ROWS]
    assert re.findall(r"^\| \d+ \| (.+) \|$", text, re.MULTILINE) == NAMES
    for name, marks in rows:
        for column, mark in zip(NAMES, marks.split(" | "), strict=True):
            refuses = any(col == column and re.fullmatch(pattern, name) for pattern, col in REFUSALS)
            assert mark == ("–" if refuses else "✓"), (name, column)
    cells = len(rows) * len(NAMES)
    passes = sum(marks.count("✓") for _, marks in rows)
    assert f"{cells} cells" in text and f"{passes} pass" in text
    assert passes >= 0.95 * cells


def test_a_planted_fault_is_noticed(monkeypatch):
    row = next(row for row in ROWS if row.name == "OrthogonalLinear")
    broken = Row("broken", lambda **f: BrokenLayer(**f), "torch")
    assert [run(broken, name).said for name in ("used twice", "gradient checkpointing")] == ["fails", "fails"]
    assert run(broken, "nn.Sequential").said == "passes"
    monkeypatch.setitem(matrix.REFUSALS, ("OrthogonalLinear", "deepcopy"), ("never", "it does not"))
    assert run(row, "deepcopy") == Result("OrthogonalLinear", "deepcopy", "fails", "should refuse: it does not")


class BrokenLayer(matrix.nn.Linear):
    def __init__(self, **factory):
        super().__init__(matrix.N, matrix.N, **factory)
        self.calls = 0

    def forward(self, input):
        self.calls += 1
        return super().forward(input) * self.calls

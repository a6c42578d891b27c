"""benchmarks/maps.py runs, measures what its page says, and judges its targets rightly. No figure is judged here."""

import gc
import json
import math
import re
import sys

import pytest
from torch import nn

from linnet import catalogue
from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
SHIPPED = [cls.__name__ for cls in catalogue().values() if cls.__module__.startswith("linnet.")]


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark: its folder is on the path, as when it is run as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import interleaved
    import maps
    import maps_page
    import peers

    monkeypatch.setattr(maps, "RNN_STEPS", 2)  # a smoke run
    yield type("Bench", (), {"clock": interleaved, "maps": maps, "page": maps_page, "peers": peers})
    for name in set(sys.modules) - before:
        if name in ("interleaved", "maps", "maps_page", "peers"):
            del sys.modules[name]


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without header and rule."""
    section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_every_class_has_a_row_and_every_ratio_is_a_finite_number(bench, tmp_path, capsys):
    out, data = tmp_path / "page.md", tmp_path / "times.json"
    bench.maps.main(f"--sizes 8 4 --rounds 2 --no-peers --out {out} --json {data}".split())
    assert capsys.readouterr().out == ""
    page = out.read_text()

    layers = cells(page, "Forward and backward")
    assert sorted(row[0] for row in layers[2:]) == sorted([*SHIPPED, bench.page.REFLECTORS])
    for row in layers[1:]:
        assert len(row) == 4, row
        for cell in row[1:3]:
            assert re.fullmatch(r"[\d.]+ \([\d.]+\)", cell), row
    weights = cells(page, "The matrix and the product")
    assert [row[0] for row in weights] == [row[0] for row in layers[2:]]
    assert all(len(row) == 5 and "–" not in row for row in weights)
    once = cells(page, "Frozen and baked")
    assert {row[0] for row in once} == {f"{name}, n = {n}" for name in bench.page.FROZEN for n in (4, 8)}
    assert [row[0] for row in cells(page, "Recurrent nets")] == list(bench.page.RECURRENT)
    assert "Beside the peers" not in page

    found = json.loads(data.read_text())
    assert found["missing"] == []
    for case in found["cases"]:
        assert case["rounds"] == len(case["seconds"]) == len(case["base_seconds"]) == 2
        assert math.isfinite(case["ratio"]) and case["ratio"] > 0
        assert case["ratio"] == min(case["seconds"]) / min(case["base_seconds"])


def test_only_chooses_rows_by_a_part_of_their_name(bench, capsys):
    bench.maps.main("--sizes 8 --rounds 1 --only circulant torch.nn --no-peers".split())
    page = capsys.readouterr().out
    assert [row[0] for row in cells(page, "Forward and backward")[2:]] == ["CirculantLinear"]
    assert [row[0] for row in cells(page, "Recurrent nets")] == ["torch.nn.RNN"]
    for wrong in ("--only nonsense", "--rounds 0", "--sizes 0"):
        with pytest.raises(SystemExit):
            bench.maps.main(wrong.split())


def test_a_peer_that_is_missing_or_fails_is_a_row_with_the_reason(bench):
    def missing(n: int) -> nn.Module:
        return bench.peers.load("no_such_module").Layer(n)

    def failing(n: int) -> nn.Module:
        raise RuntimeError("size | not\nadmitted")

    own = bench.maps.ours()[0]
    row = bench.peers.Row("absent layer", missing, own.name, "a note", "no-such-package")
    broken = bench.peers.Row("broken layer", failing, own.name, "", "torch")
    rows = [own, row, broken]
    cases, reasons = bench.maps.run(rows, [], [4], 1, 0.1)
    assert set(reasons) == {("absent layer", 4), ("broken layer", 4)}
    table = cells(bench.page.page(cases, rows, reasons, "a machine."), "Beside the peers")
    assert table[0][0] == f"**linnet {own.name}**" and re.fullmatch(r"[\d.]+ \([\d.]+\)", table[0][1])
    assert table[1][:2] == ["absent layer", "–"] and table[1][2].startswith("a note; not installed: No module named")
    assert table[2][:2] == ["broken layer", "–"]
    assert table[2][2] == r"failed: RuntimeError: size \| not admitted"


def test_the_peers_stand_beside_classes_that_exist(bench):
    rows = bench.peers.peers()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.beside in SHIPPED and row.package, row
    torch_rows = [row for row in rows if row.package == "torch"]
    assert len(torch_rows) == 4
    for row in torch_rows:
        assert isinstance(bench.peers.built(row, 8), nn.Linear), row.name


def case(bench, section="layers", name="OrthogonalLinear", size=64, seconds=(6.0, 5.5), base=(1.0, 1.1)):
    step = bench.clock.Step(lambda: None)
    return bench.clock.Case(section, name, size, step, step, 0, list(seconds), list(base), len(seconds))


def test_targets_are_judged_by_the_ratio_of_the_fastest(bench):
    judged = case(bench)
    assert judged.ratio == 5.5 and judged.median == pytest.approx(5.5)
    verdict = bench.page.verdict
    assert verdict(5.0, 5) == "met" and verdict(5.5, 5) == "missed by 10 %" and verdict(0.05, 0.08) == "met"
    text = bench.page.page([case(bench, name="nn.Linear"), judged], bench.maps.ours(), {}, "a machine.")
    assert cells(text, "Targets") == [["OrthogonalLinear, n = 64", "5", "5.50", "missed by 10 %"]]
    assert "* OrthogonalLinear: " in text.split("Why targets are missed:")[1]
    fast = case(bench, seconds=(3.0, 2.0))
    met = bench.page.page([case(bench, name="nn.Linear"), fast], bench.maps.ours(), {}, "a machine.")
    assert cells(met, "Targets")[0][3] == "met" and "Why" not in met


def test_each_target_of_the_page_has_a_row(bench):
    names = {row.name for row in bench.maps.ours()}
    assert set(bench.page.TARGETS) <= names and set(bench.page.FROZEN) <= names
    sections = [case(bench, section, "SVDLinear", n) for n in (64, 256) for section in ("layers", "apply", "baked")]
    sections += [case(bench, "frozen", "SVDLinear"), case(bench, "rnn", "SVDLinear", 128), case(bench, "rnn", "Linear")]
    found = [(what, found.size, target) for what, found, target in bench.page.targets(sections)]
    assert found == [
        ("SVDLinear", 64, 10),
        ("SVDLinear", 256, 9),
        ("frozen forward", 64, 1.05),
        ("frozen forward", 256, 1.05),
        ("baked", 64, 1.05),
        ("baked", 256, 1.05),
        ("RNN over SVDLinear", 128, 1.15),
    ]


def test_rounds_take_turns_and_a_slow_case_has_one_figure(bench):
    order = []

    def step(name):
        return bench.clock.Step(lambda: order.append(name))

    first = bench.clock.Case("layers", "a", 4, step("a"), step("base a"))
    second = bench.clock.Case("layers", "b", 4, step("b"), step("base b"))
    bench.clock.measure([first, second], rounds=5, budget=0.0)
    assert gc.isenabled()
    assert first.rounds == second.rounds == 3  # no budget: three rounds all the same
    assert order[-40:] == ["base a"] * 10 + ["a"] * 10 + ["base b"] * 10 + ["b"] * 10

    order.clear()
    slow = bench.clock.Case("layers", "slow", 4, step("slow"), step("base"))
    bench.clock.measure([slow], rounds=5, budget=9.0, slow=-1.0)
    assert slow.rounds == 0 and len(slow.seconds) == 1 and order.count("slow") == 2
    assert bench.clock.shown(slow).endswith("\\*")


def test_gradients_are_cleared_before_each_step(bench):
    import torch

    layer, x = nn.Linear(3, 3, bias=False), torch.ones(2, 3, requires_grad=True)
    step = bench.clock.training(layer, x, torch.ones(2, 3))
    for _ in range(3):
        step.time()
    assert torch.equal(layer.weight.grad, torch.full((3, 3), 2.0))
    assert torch.allclose(x.grad, layer.weight.detach().sum(0).expand(2, 3))


def test_numbers_have_about_three_digits(bench):
    shown = [bench.clock.number(value) for value in (0.0716, 0.9512, 4.567, 23.41, 351.4, 12345.6)]
    assert shown == ["0.072", "0.95", "4.57", "23.4", "351", "12346"]


def test_the_sparse_benchmark_runs_and_judges(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import sparse
    import sparse_page

    monkeypatch.setitem(sparse_page.TARGETS, (16, 8), (0.0, 1e9, 0.0, 1e9))
    monkeypatch.setattr(sparse, "MEMORY", {(64, 128, 4): 1})
    out, data = tmp_path / "page.md", tmp_path / "times.json"
    sparse.main(f"--sizes 16x8 8x1 --rounds 2 --out {out} --json {data}".split())
    assert capsys.readouterr().out == ""
    page = out.read_text()
    targets = cells(page, "Targets")
    assert [row[3] == "met" for row in targets] == [True, False, True, False]
    times = {(case["section"], case["name"]): case for case in json.loads(data.read_text())["cases"]}
    rows = {row[0]: row for row in cells(page, "16 x 16, batch 8: forward and backward")}
    for i, sparsity in enumerate(sparse_page.SPARSITIES):
        case = times["16 8", f"linnet SparseLinear {sparsity}"]
        found = min(case["base_seconds"]) / min(case["seconds"])
        assert float(rows["**linnet SparseLinear**"][i + 1]) == pytest.approx(found, rel=0.02, abs=0.006)
    assert rows["dense times mask"][1] != "–" and len(rows) == 6
    assert [row[0] for row in cells(page, "8 x 8, batch 1: forward")][-1] == "linnet SparseLinear, inside `frozen`"
    memory = cells(page, "Memory")[0]
    assert memory[0] == "64 x 64, 128 connections, batch 4" and int(memory[2].split()[0]) >= 1
    for wrong in ("--sizes 16", "--rounds 0"):
        with pytest.raises(SystemExit):
            sparse.main(wrong.split())
    for name in set(sys.modules) - before:
        if name in ("sparse", "sparse_page", "sparse_peers", "interleaved", "peers"):
            del sys.modules[name]


def test_the_benchmark_of_populations_runs_and_judges(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import wide

    monkeypatch.setattr(wide, "TARGETS", {("forward, batch", "vmap"): 0.0, ("forward, one sample", "vmap"): 1e9})
    out = tmp_path / "page.md"
    wide.main(f"--beings 3 --rounds 2 --no-peers --out {out}".split())
    assert capsys.readouterr().out == ""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.read_text().splitlines() if "|" in line][
        2:
    ]
    assert len(rows) == 9
    verdicts = {(row[0], row[1]): row[5] for row in rows}
    assert verdicts["forward, batch", "vmap"] == "0: met"
    assert verdicts["forward, one sample", "vmap"] == "1e+09: **missed**"
    assert "not yet looked into" in out.read_text()
    with pytest.raises(SystemExit):
        wide.main(["--rounds", "0"])
    for name in set(sys.modules) - before:
        if name in ("wide", "interleaved"):
            del sys.modules[name]


def test_the_page_of_widen_has_a_cell_for_every_size(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import widen

    models = ["policy, one sample", "forward by hand, batch 32", "embedding, batch 32"]
    monkeypatch.setattr(widen, "MODELS", {name: widen.MODELS[name] for name in models})
    out = tmp_path / "page.md"
    widen.main(["--beings", "2", "3", "--rounds", "1", "--budget", "0.01", "--out", str(out), "--models", *models])
    page = out.read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == models
    assert all(len(re.findall(r"[\d.]+ \((?:a loop|vmap|stacked)\)", row)) == 4 for row in rows)
    assert re.search(r"slower than the best in \d+ of 12 cells", page)
    for name in ("widen", "interleaved"):
        sys.modules.pop(name, None)


def test_the_page_of_decoupled_training(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decoupled

    out = tmp_path / "page.md"
    decoupled.main(["--widths", "10", "16", "--rounds", "1", "--budget", "0.01", "--out", str(out)])
    page = out.read_text()
    rows = {line.strip("| ").split(" | ")[0]: line for line in page.splitlines() if line.startswith("| ")}
    assert set(decoupled.DNIS) <= set(rows)
    for name in decoupled.DNIS:
        assert len(re.findall(r"[\d.]+ \([\d.]+\)", rows[name])) == (2 if "a cut for 3" in name else 4)
    assert "pytorch-dni" in page and re.search(r"\| 6 \| 16 \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", page)
    for name in ("decoupled", "interleaved"):
        sys.modules.pop(name, None)


def test_the_page_of_low_rank_populations(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import lowrank

    for name, value in (("BEINGS", 4), ("WIDTHS", (8, 16)), ("BATCH", 2), ("MANY", 8), ("CHUNK", 4)):
        monkeypatch.setattr(lowrank, name, value)
    monkeypatch.setattr(lowrank, "MANY_SIZES", (5, 4, 3))
    lowrank.main(["--many"])
    printed = capsys.readouterr().out
    assert float(printed.split()[0]) == 5 * 4 + 4 + 4 * 3 + 3
    monkeypatch.setattr(lowrank.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": "1e6 2 3 0.5"}))
    out = tmp_path / "page.md"
    lowrank.main(["--rounds", "1", "--budget", "0.01", "--out", str(out)])
    page = out.read_text()
    assert len(re.findall(r"\| width (?:8|16), rank [14] \| \d+% \| \d+% \|", page)) == 4
    assert "8 beings of a network of 1,000,000 parameters" in page and "0.50 GB" in page
    for name in ("lowrank", "interleaved"):
        sys.modules.pop(name, None)

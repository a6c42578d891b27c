"""report.html: what a browser would find in it, read by the standard library's parser."""

import base64
import dataclasses
import io
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from rich.console import Console

import linnet
from linnet.cli import main
from linnet.cli import report as html
from linnet.cli.evolve import run as evolve_run
from linnet.cli.evolve.settings import EvolveSettings
from linnet.cli.run_folder import resume_settings
from linnet.cli.task import run as task_run
from linnet.cli.task.settings import TaskSettings
from linnet.cli.tour.demos import memory
from linnet.cli.tour.tour import run_tour
from linnet.cli.train import run as train_run
from linnet.cli.train.settings import Settings

HOSTILE = "<img src=x onerror=alert(1)> & \"'"
ALONE = {"meta", "br", "img"}


class Page(HTMLParser):
    """The text, tables and pictures of a page; wrong nesting and anything from elsewhere is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.cells: list[str] = []
        self.pictures: list[np.ndarray] = []
        source = path.read_text(encoding="utf-8")
        assert source.startswith("<!DOCTYPE html>")
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
        self.tags.append(tag)
        for name, value in attributes:
            assert name in {"lang", "charset", "name", "content", "http-equiv", "class", "alt", "src"}, name
            if name == "src":
                kind, _, content = value.partition(",")
                assert (tag, kind) == ("img", "data:image/png;base64")
                self.pictures.append(matplotlib.image.imread(io.BytesIO(base64.b64decode(content, validate=True))))
        if tag not in ALONE:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert not re.search(r"url\(|@import|http|//", data)
            assert "prefers-color-scheme: dark" in data
            return
        self.text += data
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def numbers_of(value):
    """All numbers in JSON."""
    if isinstance(value, dict | list):
        return [n for item in (value.values() if isinstance(value, dict) else value) for n in numbers_of(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


pytestmark = pytest.mark.usefixtures("few_rounds")


def command_in(page: Page) -> list[str]:
    (line,) = (line for line in page.text.splitlines() if line.startswith("linnet ") and "--out" in line)
    return shlex.split(line)


def test_a_run_of_train_on_hostile_names(tmp_path, capsys):
    rng = np.random.default_rng(0)
    data = tmp_path / f"{HOSTILE}.npz"
    np.savez(data, X=rng.normal(0, 1, (60, 3)), y=np.array(["<b>", "</pre>&amp;"])[np.arange(60) % 2])
    out = tmp_path / f"out {HOSTILE}"
    arguments = ["--data", str(data), "--layer", "linear", "--layer", "wide:beings=2", "--hidden", "8", "--depth", "3"]
    assert main(["train", *arguments, "--epochs", "2", "--seeds", "2", "--out", str(out)]) == 0
    assert "report.html" in capsys.readouterr().out
    page = Page(out / "report.html")
    results = json.loads((out / "results.json").read_text())
    assert len(page.pictures) == 3 and all(np.ptp(picture) > 0 for picture in page.pictures)
    assert all(repr(number) in page.text for number in numbers_of(results))
    for layer in results["layers"]:
        accuracy = layer["test_accuracy"]
        assert layer["layer"] in page.cells and f"{layer['parameters']:,}" in page.cells
        assert f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f}" in page.cells
        for seed in layer["seeds"]:
            assert f"{100 * seed['test_accuracy']:.1f}" in page.cells
    assert f"linnet train: {HOSTILE}.npz" in page.text and "</pre>&amp;" in page.text and "<b>" in page.text
    assert "b" not in page.tags and page.tags.count("img") == 3
    assert f"linnet {linnet.__version__}, torch {torch.__version__}, numpy {np.__version__}" in page.text
    named = command_in(page)
    given = ["linnet", "train", *arguments, "--epochs", "2", "--seeds", "2", "--out", str(out)]
    assert sorted(named) == sorted(given)
    cells = dict(zip(page.cells, page.cells[1:], strict=False))
    assert cells["hidden"] == "8" and cells["layers"] == "linear\nwide:beings=2" and cells["target"] == "–"


def test_a_run_of_task_on_a_hostile_text(tmp_path, capsys):
    text = tmp_path / f"{HOSTILE}.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    options = ["--hidden", "8", "--batch-size", "4", "--steps", "3", "--seeds", "2"]
    assert main(["task", "text", "--text", str(text), *options, "--out", str(tmp_path / "run")]) == 0
    assert "report.html" in capsys.readouterr().out
    page = Page(tmp_path / "run" / "report.html")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(page.pictures) == 1 and str(text) in page.cells
    assert all(repr(number) in page.text for number in numbers_of(results))
    for seed in results["seeds"]:
        assert f"{seed['loss']:.4g}" in page.cells and f"{seed['seconds']:.1f}" in page.cells
    named = command_in(page)
    assert named[:3] == ["linnet", "task", "text"] and str(text) in named


def test_a_run_of_evolve(tmp_path, capsys):
    options = ["--beings", "8", "--block", "4", "--elites", "1", "--generations", "3", "--hidden", "4", "--normalize"]
    assert main(["evolve", *options, "--out", str(tmp_path / "run")]) == 0
    assert "report.html" in capsys.readouterr().out
    page = Page(tmp_path / "run" / "report.html")
    lines = [line.split(",") for line in (tmp_path / "run" / "curve.csv").read_text().splitlines()]
    assert len(page.pictures) == 1 and len(lines) == 4
    assert all(number in page.text for line in lines for number in line)
    assert [page.cells[7 * row] for row in range(3)] == ["0", "1", "2"]
    assert [page.cells[7 * row + 1] for row in range(3)] == [f"{float(line[1]):.4g}" for line in lines[1:]]
    assert re.search(r"the best being returns [\d.]+ ± [\d.]+ in 100 fresh episodes", page.text)
    named = command_in(page)
    assert main([*named[1:-1], str(tmp_path / "again")]) == 0
    assert resume_settings(EvolveSettings, tmp_path / "again") == resume_settings(EvolveSettings, tmp_path / "run")


def test_the_tour(tmp_path, monkeypatch):
    for name, value in {"WAIT": 3, "HIDDEN": 8, "EPOCHS": 1, "RATES": (1e-3,)}.items():
        monkeypatch.setattr(memory, name, value)
    demo = run_tour(tmp_path / HOSTILE, ["memory"], Console(file=io.StringIO()))["memory"]
    page = Page(tmp_path / HOSTILE / "report.html")
    assert len(page.pictures) == 1
    assert page.cells == [demo.claim, demo.plain, demo.linnet, "yes" if demo.holds else "NO"]
    assert demo.note in page.text and (tmp_path / HOSTILE / "tour.json").read_text() in page.text
    assert command_in(page) == ["linnet", "tour", "--demo", "memory", "--out", str(tmp_path / HOSTILE)]


def test_names_that_are_no_text(tmp_path):
    parts = [html.heading("\udcff<h1>"), html.paragraph("a\n<p>"), html.table(["<th>"], [["</td>"], [3]])]
    numbers = html.write_results(tmp_path / "<i>.json", "</details>")
    page = Page(html.write_report(tmp_path, "<title>\udcff", "linnet </pre>", parts, numbers))
    assert page.text.count("\\udcff") == 3 and page.cells == ["</td>", "3"]
    for text in ("<h1>", "<p>", "<th>", "linnet </pre>", "<i>", "</details>", "<title>"):
        assert text in page.text
    assert page.tags.count("h1") == page.tags.count("title") == page.tags.count("th") == 1 and "i" not in page.tags
    with pytest.raises(AssertionError):  # the parser of these tests sees what it should
        (tmp_path / "bad.html").write_text('<!DOCTYPE html><img src="https://example.org/a.png">')
        Page(tmp_path / "bad.html")


def test_columns_of_numbers_are_flush_right():
    text = html.table(["a", "b", "c"], [["x", "1,234", "×1.00"], ["2", "–", "5e-08 ok"]])
    assert text.count("<th>") == 1 and text.count('<th class="number">') == text.count("<td>") == 2
    assert text.count('<td class="number">') == 4


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("train", Settings()),
        ("train", Settings(data="a b.csv", target="it's", layers=("linear",), lr=0.5, seeds=1, decouple="cdni")),
        ("task", TaskSettings(task="recall", seconds=3.5, synthesizer=8)),
        ("evolve", EvolveSettings(target=-3.0, normalize=True, sigma=0.2)),
    ],
)
def test_a_command_gives_its_settings(monkeypatch, name, settings):
    """The real parser reads what was written, up to the point where the run would begin."""
    taken = []

    def open_run(given, *arguments, **options):
        taken.append(given)
        raise ValueError("enough")

    for module in (train_run, task_run, evolve_run):
        monkeypatch.setattr(module, "open_run", open_run)
    words = shlex.split(html.command_of(name, settings, Path("x")))
    assert main(words[1:]) == 2
    assert [dataclasses.asdict(each) for each in taken] == [dataclasses.asdict(settings)]

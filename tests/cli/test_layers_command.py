"""``linnet layers``: every layer, in the group of its family."""

import re

import linnet
from linnet.cli.train.layer_spec import parse_layer
from linnet.core.registry import REGISTRY
from support.commands import command as run
from support.commands import complains


def test_layers(capsys):
    code, out, err = run(capsys, "layers", "--size", 16)
    assert (code, err) == (0, "")
    table, _, _ = out.partition("y = x A + b")
    assert max(map(len, table.splitlines())) <= 80
    for name, kind in linnet.catalogue().items():
        row = next(line for line in table.splitlines() if line.split()[:1] == [name])
        assert kind.promise.split()[0] in row
        if kind.__module__.startswith("linnet."):
            count = sum(p.numel() for p in kind(16, 16).parameters())
            assert f"{count:,}" in row
    assert "reflectors=None" in table
    assert run(capsys, "layers", "--size", 100_000)[0] == 0  # counts without allocating


def test_layers_stand_under_their_families(capsys, monkeypatch):
    class Unsorted(linnet.Linear, catalogue=False):
        family = ""

    monkeypatch.setitem(REGISTRY, "unsorted", Unsorted)
    lines = run(capsys, "layers", "--size", 16)[1].partition("y = x A + b")[0].splitlines()[3:]
    heading, found = "", {}
    for line in lines:
        if re.match(r"[A-Z]", line):
            heading = line.strip()
        elif name := re.match(r" ([a-z0-9-]+)", line):
            found[name[1]] = heading
    families = {name: kind.family for name, kind in linnet.catalogue().items()}
    assert found == {name: family.replace("-", " ").capitalize() or "Your own" for name, family in families.items()}
    assert found["orthogonal"] == "Orthogonal" and found["butterfly"] == "Few parameters"
    assert found["unsorted"] == "Your own"
    headings = [line.strip() for line in lines if re.match(r"[A-Z]", line)]
    assert len(headings) == len(set(headings)) == len(set(families.values()))


def test_classes_have_their_public_names():
    for name, kind in linnet.catalogue().items():
        if kind.__module__.startswith("linnet."):
            assert parse_layer(name).class_name == f"linnet.{kind.__name__}"
            assert getattr(linnet, kind.__name__) is kind


def test_sizes_that_are_refused(capsys):
    complains(capsys, "--size must be a positive integer", "layers", "--size", "0")
    complains(capsys, "--size must be a positive integer up to", "layers", "--size", 10**20)
    complains(capsys, "'--size'.* integer", "layers", "--size", "x")

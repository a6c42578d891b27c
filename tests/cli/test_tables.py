"""The user's own data: what is read from .npz and .csv files is what is in them; what is wrong is told in one line."""

import csv
import io
import json
import pickle
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from torch import nn

import linnet
from linnet.cli.data.data_sets import load_data
from linnet.cli.data.tables import read_table
from support.commands import command

TINY = ["--layer", "linear", "--hidden", "16", "--depth", "2", "--seeds", "1"]


pytestmark = pytest.mark.usefixtures("few_rounds", "undrawn")


def write_iris(path, header=True, separator=",", first=False):
    """Measurements of 150 flowers and their names."""
    iris = load_iris()
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        rows = [["a", "b, in cm", "c", "d", "species"]] if header else []
        rows += [[*x, iris.target_names[y]] for x, y in zip(iris.data, iris.target, strict=True)]
        writer.writerows([row[-1:] + row[:-1] for row in rows] if first else rows)
    return iris


def whole(data):
    """All rows of the three splits, and their classes."""
    splits = (data.train, data.val, data.test)
    return torch.cat([s.inputs for s in splits]).double().numpy(), torch.cat([s.targets for s in splits]).numpy()


# ---------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    "options", [{}, {"header": False}, {"separator": ";"}, {"separator": "\t", "header": False}, {"first": True}]
)
def test_a_csv_file_is_read_split_and_standardised(tmp_path, options):
    path = tmp_path / "iris.CSV"
    iris = write_iris(path, **options)
    target = "species" if "first" in options else None
    table = read_table(path, target)
    assert np.array_equal(table.inputs, iris.data) and np.array_equal(table.targets, iris.target)
    assert table.labels == ("setosa", "versicolor", "virginica")
    data = load_data(str(path), target=target)
    assert (data.name, data.features, data.classes) == ("iris.CSV", 4, 3)
    assert [len(split.targets) for split in (data.train, data.val, data.test)] == [90, 30, 30]
    found, classes = whole(data)
    # undone with the statistics of the training rows alone, which are those of the same rows in the file
    kept = [tuple(row) for row in found]
    assert np.allclose(found[:90].mean(0), 0, atol=1e-6) and np.allclose(found[:90].std(0), 1, atol=1e-6)
    assert len(kept) == 150
    slopes = np.array([np.ptp(iris.data[:, i]) / np.ptp(found[:, i]) for i in range(4)])
    restored = np.round(found * slopes + iris.data.min(0) - (found * slopes).min(0), 4)
    rows = [(*x, y) for x, y in zip(restored.tolist(), classes.tolist(), strict=True)]
    assert sorted(rows) == sorted((*x, y) for x, y in zip(iris.data.tolist(), iris.target.tolist(), strict=True))


def test_images_in_an_npz_file_are_treated_as_the_digits_are(tmp_path):
    images, labels = load_digits(return_X_y=True)
    np.savez(tmp_path / "mine.npz", X=images.reshape(-1, 8, 8), y=labels)
    mine, digits = load_data(str(tmp_path / "mine.npz"), seed=3), load_data("digits", seed=3)
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(mine, split).inputs, getattr(digits, split).inputs)
        assert torch.equal(getattr(mine, split).targets, getattr(digits, split).targets)
    assert mine.classes == 10 and mine.labels == tuple(range(10))


@pytest.mark.parametrize(
    "names", [("X", "y"), ("x", "targets"), ("inputs", "labels"), ("data", "y"), ("x_train", "y_train")]
)
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.bool_, str])
def test_names_and_kinds_of_arrays(tmp_path, names, kind):
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (40, 3)), np.arange(40) % 2
    given = np.array(["no", "yes"])[y] if kind is str else y.astype(kind)
    np.savez_compressed(tmp_path / "a.npz", **{names[0]: x, names[1]: given[:, None], "feature_names": np.zeros(3)})
    table = read_table(tmp_path / "a.npz")
    assert np.array_equal(table.inputs, x) and table.targets.tolist() == y.tolist()
    assert table.labels == (("no", "yes") if kind is str else (0, 1)) and table.test_inputs is None


@pytest.mark.parametrize("letter", ["X", "x"])
def test_test_data_of_its_own(tmp_path, letter):
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 2, (60, 3)), np.arange(60) % 3 * 10 - 10  # classes -10, 0, 10
    np.savez(tmp_path / "a.npz", **{"X": x[:40], "y": y[:40], f"{letter}_test": x[40:], "y_test": y[40:]})
    data = load_data(str(tmp_path / "a.npz"))
    assert [len(split.targets) for split in (data.train, data.val, data.test)] == [36, 4, 20]
    assert data.labels == (-10, 0, 10)
    assert [data.labels[i] for i in data.test.targets] == y[40:].tolist()
    assert data.test.inputs.numpy() == pytest.approx(
        (x[40:] - x[40:].mean(0)) / x[40:].std(0) * (data.test.inputs.std(0, correction=0)).numpy()
        + data.test.inputs.mean(0).numpy(),
        abs=1e-5,
    )


def test_a_feature_that_does_not_vary_is_zero(tmp_path):
    x = np.random.default_rng(0).normal(0, 1, (50, 3)) * [1, 1e6, 0] + [0, 0, 0.1]
    np.savez(tmp_path / "a.npz", X=x, y=np.arange(50) % 2)
    inputs, _ = whole(load_data(str(tmp_path / "a.npz")))
    assert (inputs[:, 2] == 0).all() and np.allclose(inputs[:, :2].std(0), 1, atol=0.3)


def test_the_fingerprint_tells_numbers_classes_and_their_names(tmp_path):
    def fingerprint(change=None, **options):
        x, y = np.arange(80.0).reshape(40, 2), np.array(["a", "b"])[np.arange(40) % 2]
        if change:
            x, y = change(x, y)
        np.savez(tmp_path / "a.npz", X=x, y=y)
        return load_data(str(tmp_path / "a.npz"), **options).fingerprint

    same = fingerprint()
    others = [
        fingerprint(lambda x, y: (x + (x == 79), y)),
        fingerprint(lambda x, y: (x, np.where(y == "a", "A", y))),
        fingerprint(lambda x, y: (x, y[::-1])),
        fingerprint(seed=1),
    ]
    assert same == fingerprint() and len({same, *others}) == 5


def test_a_run_keeps_what_new_data_need(capsys, tmp_path):
    iris = write_iris(tmp_path / "iris.csv")
    code, _, err = command(capsys, "train", *TINY, "--data", str(tmp_path / "iris.csv"), "--out", str(tmp_path / "run"))
    assert code == 0, err
    about = linnet.load(tmp_path / "run" / "data.safetensors", into=nn.Identity()).extra
    assert about["labels"] == list(iris.target_names)
    there, _ = whole(load_data(str(tmp_path / "iris.csv")))
    again = (torch.from_numpy(iris.data) - about["mean"]) / about["std"]
    rows = {tuple(row) for row in np.round(there, 4)}
    assert {tuple(row) for row in np.round(again.numpy(), 4)} <= rows
    (net,) = (linnet.load(path).network for path in (tmp_path / "run" / "nets").iterdir())
    assert net(again.float()).shape == (150, 3)


# ---------------------------------------------------------------------- what is refused

X, Y = np.random.default_rng(1).normal(0, 1, (30, 2)), np.arange(30) % 3
BROKEN = X.copy()
BROKEN[7, 1] = np.nan


class Bomb:
    def __reduce__(self):
        return print, ("a pickle was executed",)


NPZ = {
    "no inputs": ("cannot read a.npz: it must hold inputs .* got y.npy", {"y": Y}),
    "no targets": ("cannot read a.npz: it must hold inputs .* got X.npy", {"X": X}),
    "nothing": ("must hold inputs .* got nothing", {}),
    "two of them": ("got X and data", {"X": X, "data": X, "y": Y}),
    "test inputs alone": ("must come together", {"X": X, "y": Y, "X_test": X}),
    "test of another width": ("of one size", {"X": X, "y": Y, "X_test": X[:, :1], "y_test": Y}),
    "test of another kind": (
        "of one kind, got strings and integers",
        {"X": X, "y": Y, "X_test": X, "y_test": Y.astype(str)},
    ),
    "empty test": ("must be features", {"X": X, "y": Y, "X_test": X[:0], "y_test": Y[:0]}),
    "lengths": (r"each of the 30 rows, got shape \(29,\)", {"X": X, "y": Y[:29]}),
    "NaN": ("features must be finite, got NaN or infinity", {"X": BROKEN, "y": Y}),
    "no features": (r"inputs of shape \(30, 0\)", {"X": X[:, :0], "y": Y}),
    "text": ("features must be numbers", {"X": X.astype(str), "y": Y}),
    "complex": ("features must be numbers", {"X": X.astype(complex), "y": Y}),
    "a number": ("y must have rows", {"X": X, "y": np.array(3)}),
    "regression": ("targets must be integers or strings", {"X": X, "y": X[:, 0]}),
    "missing targets": ("targets must be integers or strings", {"X": X, "y": np.where(Y == 1, np.nan, Y)}),
    "one-hot": (r"got shape \(30, 3\)", {"X": X, "y": np.eye(3)[Y]}),
    "numbered": ("classes must repeat, got 30 different targets", {"X": X, "y": np.arange(30)}),
    "one class": ("got only 7", {"X": X, "y": np.full(30, 7)}),
    "few": ("cannot read a.npz: there must be at least 10 rows to train with, got 9", {"X": X[:9], "y": Y[:9]}),
    "constant": ("positive, finite standard deviation, got 0.0", {"X": np.ones((30, 2)), "y": Y}),
    "objects": ("X must be an array of numbers or strings", {"X": np.array([Bomb()] * 30), "y": Y}),
    "object targets": ("y must be an array of numbers or strings", {"X": X, "y": np.array([Bomb()] * 30)}),
}


@pytest.mark.parametrize("name", NPZ)
def test_npz_files_that_are_refused(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    match, arrays = NPZ[name]
    np.savez("a.npz", **arrays)
    code, out, err = command(capsys, "train", *TINY, "--data", "a.npz")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert re.search(match, err) and "allow_pickle" not in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_files_that_are_no_archives(capsys, tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, X=X, y=Y)
    good = buffer.getvalue()
    one = io.BytesIO()
    np.save(one, X)
    cases = [
        b"",
        b"PK",
        good[: len(good) // 2],
        good[:60] + b"\0" * 9 + good[69:],
        one.getvalue(),
        b"some bytes before " + one.getvalue(),
        pickle.dumps(Bomb()),
    ]
    for content in cases:
        (tmp_path / "a.npz").write_bytes(content)
        code, out, err = command(capsys, "train", *TINY, "--data", tmp_path / "a.npz", "--out", tmp_path / "run")
        assert (code, out, err.count("\n")) == (2, "", 1) and str(tmp_path / "a.npz") in err, err
    (tmp_path / "a.npz").write_bytes(good)
    assert read_table(tmp_path / "a.npz").inputs.shape == (30, 2)


def table(row="1,2,yes", header="a,b,c", **changes):
    lines = [row, "3,4,no"] * 10
    for place, line in changes.items():
        lines[int(place[1:])] = line
    return "\n".join([*([header] if header else []), *lines]) + "\n"


CSV = {
    "empty": ("cannot read a.csv: it is empty", "", []),
    "header alone": ("at least 10 rows .* got 0", "a,b,c\n", []),
    "few": ("at least 10 rows .* got 2", "a,b,c\n1,2,yes\n3,4,no\n", []),
    "one column": ("got one column", "c\n" + "yes\nno\n" * 9, []),
    "no numbers": (
        "read a.csv: column a must hold finite numbers, got 'red' in line 2",
        table("red,green,yes"),
        [],
    ),
    "a word": ("column b must hold finite numbers, got 'many' in line 6", table(n4="1,many,yes"), []),
    "missing": ("column a must hold finite numbers, got '' in line 5", table(n3=",4,no"), []),
    "NaN": ("column a must hold finite numbers, got 'nan' in line 5", table(n3="nan,4,no"), []),
    "infinite": ("column a must hold finite numbers, got '-inf' in line 5", table(n3="-inf,4,no"), []),
    "no target": ("line 5 must have a target", table(n3="1,2,"), []),
    "lengths": ("line 5 must have 3 cells, got 2", table(n3="1,2"), []),
    "one class": ("got only yes", table(n1="3,4,yes").replace("no", "yes"), []),
    "regression": ("targets must be integers or strings", table().replace("yes", "0.5").replace("no", "7"), []),
    "NaN classes": ("targets must be integers or strings", table().replace("yes", "nan").replace("no", "7"), []),
    "index of pandas": ("every column must have a name, got none for column 1", table(header=",b,c"), []),
    "unknown target": ("one column must be the target 'd', got 0 of a, b, c", table(), ["--target", "d"]),
    "two targets": ("one column must be the target 'b', got 2 of a, b, b", table(header="a,b,b"), ["--target", "b"]),
    "quotes": ("must be a table in UTF-8", table(n3='1,"2,no'), []),
    "bytes": ("must be a table in UTF-8", b"a,b,c\n1,2,\xff\n", []),
}


@pytest.mark.parametrize("name", CSV)
def test_csv_files_that_are_refused(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    match, content, options = CSV[name]
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = command(capsys, "train", *TINY, "--data", "a.csv", *options)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert re.search(match, err), err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--data", "gone.csv"], r"linnet: cannot read gone.csv: No such file or directory\n"),
        (["--data", "gone.npz"], r"linnet: cannot read gone.npz: No such file or directory\n"),
        (["--data", "folder.csv"], "cannot read folder.csv: Is a directory"),
        (["--data", "gone.txt"], "--data must be one of .*, or a .npz or .csv file, got 'gone.txt'"),
        (
            ["--data", "gone.csv", "--data-dir", "x"],
            "--data-dir applies to .*mnist only, got --data gone.csv",
        ),
        (["--data", "gone.npz", "--target", "x"], "--target is a column of a .csv file, got --data gone.npz"),
        (["--target", "x"], "--target is a column of a .csv file, got --data digits"),
    ],
)
def test_arguments_that_are_refused(capsys, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    code, out, err = command(capsys, "train", *TINY, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and re.search(match, err), err


# ---------------------------------------------------------------------- the command


def test_training_on_a_file_and_going_on_with_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_iris(tmp_path / "iris.csv")
    train = ["train", *TINY, "--data", "iris.csv", "--epochs", 60, "--lr", 0.01]
    assert command(capsys, *train)[0] == 0
    (out,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"iris-\d{8}-\d{6}", out.name)
    results = json.loads((out / "results.json").read_text())
    assert results["layers"][0]["test_accuracy"]["mean"] > 0.7  # a third is chance
    assert results["data"]["labels"] == ["setosa", "versicolor", "virginica"]
    assert results["settings"]["data"] == "iris.csv"
    again = ["train", "--resume", "--out", out]
    assert command(capsys, *again)[0] == 0
    code, _, err = command(capsys, *again, "--target", "species")
    assert code == 2 and "--target was None, got species" in err
    text = (tmp_path / "iris.csv").read_text()
    (tmp_path / "iris.csv").write_text(text.replace("5.1,3.5", "5.2,3.5", 1))
    code, _, err = command(capsys, *again)
    assert code == 2 and "on other data: iris.csv has changed" in err
    (tmp_path / "iris.csv").write_text(text.replace("setosa", "Setosa"))
    assert command(capsys, *again)[0] == 2
    (tmp_path / "iris.csv").write_text(text)
    assert command(capsys, *again)[0] == 0

"""The user's own data: a .npz or .csv file, read strictly; nothing in it is ever executed."""

import csv
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from linnet.cli.errors import file_errors

SUFFIXES = (".npz", ".csv")
ROWS = 10
"""The fewest to train with."""
INPUTS = ("X", "x", "inputs", "data", "X_train", "x_train")
TARGETS = ("y", "targets", "labels", "y_train")
TEST_INPUTS = ("X_test", "x_test")
TEST_TARGETS = ("y_test",)


class Table(NamedTuple):
    """What a file holds."""

    inputs: Any  # (n, ...), numbers
    targets: Any  # (n,), integers from 0 on
    test_inputs: Any  # None if the file has no test data of its own
    test_targets: Any
    labels: tuple[int | str, ...]  # what a class is called in the file, by its number


def read_table(path: Path, target: str | None = None) -> Table:
    """Features and classes of a file.

    A .npz file holds arrays of inputs (``X``, ``x``, ``inputs`` or ``data``) and targets (``y``, ``targets`` or
    ``labels``), or both with ``_train``; ``X_test`` or ``x_test`` with ``y_test`` are kept for the test. In a .csv file
    (separated by commas, semicolons or tabs; with a header or without) every column but the target is a feature.

    Args:
        path: the file.
        target: the column of the classes in a .csv file; the last one by default.

    Raises:
        ValueError: the file cannot be read, or its content is not what it must be.
    """
    with file_errors("read", path):
        inputs, targets, *test = _read_npz(path) if path.suffix.lower() == ".npz" else _read_csv(path, target)
        if len(inputs) < ROWS:
            raise ValueError(f"there must be at least {ROWS} rows to train with, got {len(inputs)}")
        everything = targets if test[1] is None else np.concatenate([targets, test[1]])
        labels, numbers = np.unique(everything, return_inverse=True)
        if len(labels) < 2:
            raise ValueError(f"there must be at least two classes, got only {labels[0]!s}")
        if len(labels) == len(everything):
            raise ValueError(f"classes must repeat, got {len(labels)} different targets in as many rows")
    numbers = numbers.reshape(-1)  # numpy 2.0 had the shape of its argument
    return Table(
        inputs,
        numbers[: len(targets)],
        test[0],
        None if test[1] is None else numbers[len(targets) :],
        tuple(labels.tolist()),
    )


def _read_npz(path: Path) -> tuple[Any, Any, Any, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            inputs, targets = (_named(archive, names) for names in (INPUTS, TARGETS))
            test = [_named(archive, names) for names in (TEST_INPUTS, TEST_TARGETS)]
            if inputs is None or targets is None:
                there = ", ".join(archive.namelist()) or "nothing"
                raise ValueError(
                    f"it must hold inputs ({', '.join(INPUTS)}) and targets ({', '.join(TARGETS)}), got {there}"
                )
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted or packed oddly
        raise ValueError(f"the archive is damaged ({error})") from error
    if (test[0] is None) != (test[1] is None):
        raise ValueError("test inputs and test targets must come together, got only one of them")
    if test[0] is None:
        return *_checked(inputs, targets), None, None
    train, kept = _checked(inputs, targets), _checked(*test)
    if (train[1].dtype.kind == "U") != (kept[1].dtype.kind == "U"):
        raise ValueError("targets and test targets must be of one kind, got strings and integers")
    return *train, *kept


def _named(archive: zipfile.ZipFile, names: tuple[str, ...]) -> Any:
    """The array that has one of these names; None if there is none."""
    there = [name for name in names if f"{name}.npy" in archive.namelist()]
    if len(there) > 1:
        raise ValueError(f"one array must hold them, got {' and '.join(there)}")
    if not there:
        return None
    try:
        with archive.open(f"{there[0]}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:  # numpy's own message recommends to allow pickle
        raise ValueError(f"{there[0]} must be an array of numbers or strings") from error
    if array.ndim == 0:
        raise ValueError(f"{there[0]} must have rows, got a single value")
    return array


def _checked(inputs: Any, targets: Any) -> tuple[Any, Any]:
    if inputs.size == 0:
        raise ValueError(f"there must be features, got inputs of shape {inputs.shape}")
    if len(inputs) != len(targets) or targets.size != len(targets):
        raise ValueError(f"there must be one target for each of the {len(inputs)} rows, got shape {targets.shape}")
    if inputs.dtype.kind not in "biuf":
        raise ValueError(f"features must be numbers, got {inputs.dtype}")
    if not np.isfinite(inputs).all():
        raise ValueError("features must be finite, got NaN or infinity")
    targets = targets.reshape(-1)
    if targets.dtype.kind == "f" and np.isfinite(targets).all() and (targets == np.floor(targets)).all():
        targets = targets.astype(np.int64)
    if targets.dtype.kind not in "biuU":
        raise ValueError(f"targets must be integers or strings, got {targets.dtype}")
    if targets.dtype.kind != "U":
        targets = targets.astype(np.int64)
    return inputs.astype(np.uint8) if inputs.dtype.kind == "b" else inputs, targets


def _read_csv(path: Path, target: str | None) -> tuple[Any, Any, None, None]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
            reader = csv.reader(file, delimiter=separator, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"it must be a table in UTF-8 ({error})") from error
    if not lines:
        raise ValueError("it is empty")
    names = lines[0][1]
    if target is None and all(cell == "" or _is_number(cell) for cell in names[:-1]):
        names = [str(i + 1) for i in range(len(names))]  # there is no header
    else:
        lines = lines[1:]
    if target is not None and names.count(target) != 1:
        raise ValueError(f"one column must be the target {target!r}, got {names.count(target)} of {', '.join(names)}")
    if len(names) < 2:
        raise ValueError("there must be features beside the target, got one column")
    if "" in names:  # the row numbers that pandas writes would tell the class of a sorted table
        raise ValueError(f"every column must have a name, got none for column {names.index('') + 1}")
    place = len(names) - 1 if target is None else names.index(target)
    features = names[:place] + names[place + 1 :]
    rows, targets = [], []
    for number, cells in lines:
        if len(cells) != len(names):
            raise ValueError(f"line {number} must have {len(names)} cells, got {len(cells)}")
        if not cells[place]:
            raise ValueError(f"line {number} must have a target, got an empty cell")
        targets.append(cells.pop(place))
        for name, cell in zip(features, cells, strict=True):
            if not (_is_number(cell) and math.isfinite(float(cell))):
                raise ValueError(f"column {name} must hold finite numbers, got {cell!r} in line {number}")
        rows.append([float(cell) for cell in cells])
    classes: Any = np.array(targets)
    if targets and all(_is_number(text) for text in targets):
        classes = np.array([float(text) for text in targets])
        if not (np.isfinite(classes).all() and (classes == np.floor(classes)).all() and abs(classes).max() < 2**53):
            raise ValueError("targets must be integers or strings, got other numbers")
        classes = classes.astype(np.int64)
    return np.array(rows), classes, None, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

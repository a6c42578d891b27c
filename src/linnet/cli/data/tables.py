"""The user's own data: a .npz or .csv file, read strictly; nothing in it is ever executed."""

import csv
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["SUFFIXES", "Table", "read_table"]

SUFFIXES = (".npz", ".csv")
ROWS = 10
"""The fewest to train with."""
INPUTS = ("X", "x", "inputs", "data", "X_train", "x_train")
TARGETS = ("y", "targets", "labels", "y_train")
TEST_INPUTS = ("X_test", "x_test")
TEST_TARGETS = ("y_test",)


class Table(NamedTuple):
    """What a file holds.

    Attributes:
        inputs: (n, ...), numbers.
        targets: (n,), integers from 0 on.
        test_inputs, test_targets: as these; None if the file has no test data of its own.
        labels: what a class is called in the file, by its number.
    """

    inputs: Any
    targets: Any
    test_inputs: Any
    test_targets: Any
    labels: tuple[int | str, ...]


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
    try:
        found = _read_npz(path) if path.suffix.lower() == ".npz" else _read_csv(path, target)
    except OSError as error:
        raise ValueError(f"The data file must be readable, got {path} ({error.strerror or error})") from error
    inputs, targets, *test = found
    if len(inputs) < ROWS:
        raise ValueError(f"There must be at least {ROWS} rows to train with, got {path} has {len(inputs)}")
    everything = targets if test[1] is None else np.concatenate([targets, test[1]])
    labels, numbers = np.unique(everything, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(f"There must be at least two classes, got {path} has {labels[0]!s} alone")
    if len(labels) == len(everything):
        raise ValueError(f"Targets must be classes that come again, got all {len(labels)} of {path} differ")
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
            inputs, targets = (_named(path, archive, names) for names in (INPUTS, TARGETS))
            if inputs is None or targets is None:
                raise ValueError(
                    f"A .npz file must hold inputs ({', '.join(INPUTS)}) and targets ({', '.join(TARGETS)}), got "
                    f"{path} holds {', '.join(archive.namelist()) or 'nothing'}"
                )
            test = [_named(path, archive, names) for names in (TEST_INPUTS, TEST_TARGETS)]
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted or packed oddly
        raise ValueError(f"A .npz file must be a whole archive, got {path} is not ({error})") from error
    if (test[0] is None) != (test[1] is None):
        raise ValueError(f"Test inputs and targets must come together, got {path} has one of them")
    if test[0] is None:
        return *_checked(path, inputs, targets), None, None
    train, kept = _checked(path, inputs, targets), _checked(path, *test)
    if (train[1].dtype.kind == "U") != (kept[1].dtype.kind == "U"):
        raise ValueError(f"Targets and test targets must be of one kind, got strings and integers in {path}")
    return *train, *kept


def _named(path: Path, archive: zipfile.ZipFile, names: tuple[str, ...]) -> Any:
    """The array that has one of these names; None if there is none."""
    there = [name for name in names if f"{name}.npy" in archive.namelist()]
    if len(there) > 1:
        raise ValueError(f"There must be one array of them, got {path} has {' and '.join(there)}")
    if not there:
        return None
    try:
        with archive.open(f"{there[0]}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:  # numpy's own message recommends to allow pickle
        raise ValueError(f"Arrays must hold numbers or strings, got {there[0]} in {path} does not") from error
    if array.ndim == 0:
        raise ValueError(f"An array must have rows, got {there[0]} in {path} has none")
    return array


def _checked(path: Path, inputs: Any, targets: Any) -> tuple[Any, Any]:
    if len(inputs) != len(targets):
        raise ValueError(f"There must be one target for each row, got {len(targets)} for {len(inputs)} rows in {path}")
    if inputs.size == 0:
        raise ValueError(f"There must be features, got inputs of shape {inputs.shape} in {path}")
    if inputs.dtype.kind not in "biuf":
        raise ValueError(f"Features must be numbers, got {path} has inputs of type {inputs.dtype}")
    if not np.isfinite(inputs).all():
        raise ValueError(f"Features must be finite, got {path} has NaN or infinity")
    if targets.size != len(targets):
        raise ValueError(f"There must be one target for each row, got targets of shape {targets.shape} in {path}")
    targets = targets.reshape(-1)
    if targets.dtype.kind == "f" and np.isfinite(targets).all() and (targets == np.floor(targets)).all():
        targets = targets.astype(np.int64)
    if targets.dtype.kind not in "biuU":
        raise ValueError(f"Targets must be integers or strings, got {path} has others ({targets.dtype})")
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
        raise ValueError(f"A .csv file must be a table in UTF-8, got {path} is not ({error})") from error
    if not lines:
        raise ValueError(f"There must be rows, got {path} is empty")
    header = lines[0][1]
    if target is None and all(cell == "" or _is_number(cell) for cell in header[:-1]):
        names = [str(i + 1) for i in range(len(header))]  # there is no header
    else:
        names = header
        lines = lines[1:]
    if target is not None and names.count(target) != 1:
        raise ValueError(
            f"The target must be one column, got {target!r} is {names.count(target)} of {path}: {', '.join(names)}"
        )
    if len(names) < 2:
        raise ValueError(f"There must be features beside the target, got {path} has one column")
    if "" in names:  # the row numbers that pandas writes would tell the class of a sorted table
        raise ValueError(f"Every column must have a name, got column {names.index('') + 1} of {path} has none")
    place = len(names) - 1 if target is None else names.index(target)
    features = names[:place] + names[place + 1 :]
    rows, targets = [], []
    for number, cells in lines:
        if len(cells) != len(names):
            raise ValueError(f"Rows must be of one length, got {len(cells)}, not {len(names)}, {path}:{number}")
        if not cells[place]:
            raise ValueError(f"Every row must have a target, got it is missing in {path}:{number}")
        targets.append(cells.pop(place))
        for name, cell in zip(features, cells, strict=True):
            if not (_is_number(cell) and math.isfinite(float(cell))):
                raise ValueError(f"Features must be finite numbers, got {cell!r} in column {name} of {path}:{number}")
        rows.append([float(cell) for cell in cells])
    classes: Any = np.array(targets)
    if targets and all(_is_number(text) for text in targets):
        classes = np.array([float(text) for text in targets])
        if not (np.isfinite(classes).all() and (classes == np.floor(classes)).all() and abs(classes).max() < 2**53):
            raise ValueError(f"Targets must be integers or strings, got {path} has other numbers")
        classes = classes.astype(np.int64)
    return np.array(rows), classes, None, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

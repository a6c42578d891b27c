"""Data of the command line: digits, Fashion-MNIST, MNIST, files; checked strictly, split once and for all; sunspots."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from linnet.cli.data.idx import read_idx
from linnet.cli.data.tables import SUFFIXES, read_table

DATA_SETS = ("digits", "fashion-mnist", "mnist")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Split(NamedTuple):
    """Inputs, (n, features) float32, and their classes, (n,) int64."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Split":
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Data:
    """A classification task: standardised with the statistics of its training split."""

    name: str
    train: Split
    val: Split  # taken out of the training data
    test: Split
    classes: int
    fingerprint: str  # SHA-256 of what the splits were made from: tells whether two runs saw the same data
    labels: tuple[int | str, ...]  # what each class is called in the user's own file
    mean: Tensor  # what was subtracted from the inputs, (features,) or one number for all, float64
    std: Tensor  # what the inputs were then divided by

    @property
    def features(self) -> int:
        return self.train.inputs.shape[1]


def check_data(name: str, data_dir: str | Path | None = None, target: str | None = None) -> None:
    """Check the arguments of :func:`load_data` as far as nothing must be read.

    Raises:
        ValueError: they do not fit together.

    Example:
        >>> check_data("digits")
    """
    suffix = Path(name).suffix.lower()
    if name not in DATA_SETS and suffix not in SUFFIXES:
        raise ValueError(f"data must be one of {', '.join(DATA_SETS)}, or a .npz or .csv file, got {name!r}")
    if data_dir is not None and name not in ("fashion-mnist", "mnist"):
        raise ValueError(f"`data_dir` applies to fashion-mnist and mnist only, got `data` {name}")
    if target is not None and suffix != ".csv":
        raise ValueError(f"`target` is a column of a .csv file, got `data` {name}")


def load_data(name: str, data_dir: str | Path | None = None, seed: int = 0, target: str | None = None) -> Data:
    """A data set by name, or the user's own, split and standardised.

    ``digits`` (1 797 images of 8 x 8) lies inside scikit-learn and is split 60 : 20 : 20 at random; ``fashion-mnist``
    and ``mnist`` (28 x 28) come with their own test images, and a tenth of their training images is for validation.
    A file is split as the digits, or as MNIST if it holds test data (see :func:`linnet.cli.data.tables.read_table`).

    Args:
        name: ``digits``, ``fashion-mnist``, ``mnist``, or the path of a .npz or .csv file.
        data_dir: folder with the four IDX files, plain or ``.gz``. Without them there, fashion-mnist is looked for
            where Debian's package dataset-fashion-mnist puts it.
        seed: of the split; it has nothing to do with the seed of a model.
        target: the column of the classes in a .csv file; the last one by default.

    Raises:
        ValueError: the name is unknown, the files are missing (the message says how to get them), or their content is
            not what it must be.

    Example:
        >>> data = load_data("digits")
        >>> data.features, data.classes, [len(split.targets) for split in (data.train, data.val, data.test)]
        (64, 10, [1077, 360, 360])
    """
    check_data(name, data_dir, target)
    if name not in DATA_SETS:
        return _own_data(Path(name), seed, target)
    if name == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        rest, test = _rest_and_test(len(images), seed)
        arrays = [images[rest], labels[rest], images[test], labels[test]]
        return make_data(name, arrays, classes=10, val=len(test), seed=seed)
    paths = _find_idx_files(name, data_dir)
    arrays = [read_idx(path) for path in paths]
    for array, axes, path in zip(arrays, (3, 1, 3, 1), paths, strict=True):
        if array.ndim != axes:
            raise ValueError(f"{path} must have {axes} axes, got {array.ndim}")
    return make_data(name, arrays, classes=10, val=len(arrays[0]) // 10, seed=seed, sources=list(map(str, paths)))


def _rest_and_test(count: int, seed: int) -> tuple[Any, Any]:
    """Random rows for training and validation, and the fifth that a data set without test data keeps for the test."""
    order = np.random.default_rng([seed, 1]).permutation(count)
    return order[: -count // 5], order[-count // 5 :]


def _own_data(path: Path, seed: int, target: str | None) -> Data:
    *arrays, labels = read_table(path, target)
    inputs, targets, test_inputs, _ = arrays
    val = len(inputs) // 10
    if test_inputs is None:
        rest, test = _rest_and_test(len(inputs), seed)
        arrays, val = [inputs[rest], targets[rest], inputs[test], targets[test]], len(test)
    by_feature, sources = inputs.ndim < 3, [str(path)] * 4
    return make_data(path.name, arrays, len(labels), val, seed, sources=sources, labels=labels, by_feature=by_feature)


def load_sunspots() -> tuple[Tensor, Tensor]:
    """The years 1700 to 2008, (309,) int64, and the mean number of sunspots in each, (309,) float32.

    Example:
        >>> years, numbers = load_sunspots()
        >>> int(years[257]), round(float(numbers[257]), 1)
        (1957, 190.2)
    """
    with Path(__file__).with_name("sunspots.csv").open(encoding="utf-8") as file:
        table = np.loadtxt((line for line in file if line[0].isdigit()), delimiter=",")  # the rest is the source
    return torch.from_numpy(table[:, 0].astype(np.int64)), torch.from_numpy(table[:, 1].astype(np.float32))


def make_data(
    name: str,
    arrays: Sequence[Any],
    classes: int,
    val: int,
    seed: int = 0,
    *,
    sources: list[str] | None = None,
    labels: tuple[int | str, ...] = (),
    by_feature: bool = False,
) -> Data:
    """Check arrays, take ``val`` random samples of the training data out for validation, and standardise.

    One mean and one standard deviation, those of all the numbers of the training split, serve the three splits, or,
    ``by_feature``, those of each feature.

    Args:
        name: of the data set.
        arrays: training inputs, (n, ...), and classes, (n,) from 0 to ``classes`` - 1, then those for the test.
        classes: how many classes there are.
        val: size of the validation split.
        seed: of the split.
        sources: where the four arrays come from, for the messages.
        labels: what the classes are called.
        by_feature: whether each feature has a mean and a standard deviation of its own; one that does not vary is 0.

    Raises:
        ValueError: an array is empty, has NaN, has another number of samples than its labels, or a label is out of
            range; the message names the source.
    """
    names = sources or [f"{name}: {what}" for what in ("train inputs", "train labels", "test inputs", "test labels")]
    train, test = (_check_split(arrays[i : i + 2], classes, names[i : i + 2]) for i in (0, 2))
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"training and test inputs must be of one size, got {train[0].shape[1]} and {test[0].shape[1]} "
            f"({names[0]}, {names[2]})"
        )
    if not 0 < val < len(train[0]):
        raise ValueError(f"the training data must leave samples for validation, got {len(train[0])} ({names[0]})")
    order = np.random.default_rng([seed, 2]).permutation(len(train[0]))
    chosen, kept = np.sort(order[:val]), np.sort(order[val:])
    axis = 0 if by_feature else None
    lowest, highest = train[0][kept].min(axis), train[0][kept].max(axis)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = train[0][kept].mean(axis, dtype=np.float64)
        std = train[0][kept].std(axis, dtype=np.float64)
    mean, std = np.where(lowest == highest, (lowest, np.zeros_like(std)), (mean, std))  # rounding is no variation
    if not (np.isfinite(std).all() and (std > 0).any()):
        worst = float(std[np.argmin(np.isfinite(std))] if by_feature else std)
        raise ValueError(f"inputs must have a positive, finite standard deviation, got {worst} ({names[0]})")
    std = np.where(std > 0, std, 1.0)

    def split(inputs: Any, targets: Any) -> Split:
        wide = inputs.astype(np.result_type(inputs.dtype, np.float32))
        scaled = ((wide - mean.astype(wide.dtype)) / std.astype(wide.dtype)).astype(np.float32, copy=False)
        return Split(torch.from_numpy(scaled), torch.from_numpy(targets.astype(np.int64)))

    return Data(
        name,
        split(train[0][kept], train[1][kept]),
        split(train[0][chosen], train[1][chosen]),
        split(*test),
        classes,
        _fingerprint(*train, *test, chosen, *([np.array(labels)] if labels else [])),
        labels,
        torch.from_numpy(np.asarray(mean, np.float64)),
        torch.from_numpy(np.asarray(std, np.float64)),
    )


def _find_idx_files(name: str, data_dir: str | Path | None) -> list[Path]:
    folders = [] if data_dir is None else [Path(data_dir)]
    if name == "fashion-mnist":
        folders.append(DEBIAN_FASHION_MNIST)
    for folder in folders:
        found = [next((p for p in (folder / f"{f}.gz", folder / f) if p.is_file()), None) for f in IDX_FILES]
        paths = [path for path in found if path is not None]
        if len(paths) == len(IDX_FILES):
            return paths
        if paths:  # a folder with some of them is a mistake, not a reason to look elsewhere
            missing = [f for f, path in zip(IDX_FILES, found, strict=True) if path is None]
            raise ValueError(f"{name} needs four files; {', '.join(missing)} [.gz] missing in {folder}")
    package = "install Debian's package dataset-fashion-mnist, or " if name == "fashion-mnist" else ""
    where = f" in {', '.join(map(str, folders))}" if folders else ""
    raise ValueError(
        f"cannot find {name}{where}; {package}give --data-dir FOLDER with {', '.join(IDX_FILES)}, plain or .gz"
    )


def _check_split(arrays: Sequence[Any], classes: int, names: Sequence[str]) -> tuple[Any, Any]:
    """Inputs as (n, features), and labels, once they are what they must be."""
    x, y = map(np.asarray, arrays)
    inputs_name, targets_name = names
    if x.size == 0 or y.size == 0:
        raise ValueError(f"{inputs_name if x.size == 0 else targets_name} must not be empty")
    if y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"there must be one label for each sample, got {len(x)} samples in {inputs_name} and "
            f"labels of shape {y.shape} in {targets_name}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"inputs must be finite, got NaN or infinity in {inputs_name}")
    if not np.issubdtype(y.dtype, np.integer) and not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        raise ValueError(f"labels must be integers, got others in {targets_name}")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {y.min()} to {y.max()} in {targets_name}")
    return x.reshape(len(x), -1), y


def _fingerprint(*arrays: Any) -> str:
    digest = sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

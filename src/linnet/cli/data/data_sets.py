"""Data of the command line: digits, Fashion-MNIST, MNIST, files; checked strictly, split once and for all; sunspots."""

import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from linnet.cli.data.tables import SUFFIXES, read_table

__all__ = ["DATA_SETS", "Data", "Split", "check_data", "load_data", "load_sunspots", "make_data", "read_idx"]

DATA_SETS = ("digits", "fashion-mnist", "mnist")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20


class Split(NamedTuple):
    """Inputs, (n, features) float32, and their classes, (n,) int64."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Data:
    """A classification task: standardised with the statistics of its training split.

    Attributes:
        name: of the data set.
        train, val, test: the splits; ``val`` is taken out of the training data.
        classes: how many classes there are.
        fingerprint: SHA-256 of what the splits were made from: tells whether two runs saw the same data.
        labels: what each class is called in the user's own file.
        mean, std: what the inputs were standardised with, (features,) or one number for all, float64.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    fingerprint: str
    labels: tuple[int | str, ...]
    mean: Tensor
    std: Tensor

    @property
    def features(self) -> int:
        return self.train.inputs.shape[1]


def check_data(name: str, data_dir: str | Path | None = None, target: str | None = None) -> None:
    """What can be told of the arguments of :func:`load_data` before anything is read.

    Raises:
        ValueError: they do not fit together.

    Example:
        >>> check_data("digits")
    """
    suffix = Path(name).suffix.lower()
    if name not in DATA_SETS and suffix not in SUFFIXES:
        raise ValueError(
            f"The data set must be one of {', '.join(DATA_SETS)}, or a file {' or '.join(SUFFIXES)}, got {name!r}"
        )
    if data_dir is not None and name == "digits":
        raise ValueError("digits lie inside scikit-learn and take no data folder, got " + repr(str(data_dir)))
    if data_dir is not None and name not in DATA_SETS:
        raise ValueError(f"A file is given with its folder and takes no data folder, got {str(data_dir)!r}")
    if target is not None and suffix != ".csv":
        raise ValueError(f"A target is a column of a .csv file, got the data set is {name}")


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
        return make_data(
            name, images[rest], labels[rest], images[test], labels[test], classes=10, val=len(test), seed=seed
        )
    paths = _find_idx_files(name, data_dir)
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    _check_pair(train_images, train_labels, paths[0], paths[1])
    _check_pair(test_images, test_labels, paths[2], paths[3])
    return make_data(
        name,
        train_images,
        train_labels,
        test_images,
        test_labels,
        classes=10,
        val=len(train_images) // 10,
        seed=seed,
        sources=[str(path) for path in paths],
    )


def _rest_and_test(count: int, seed: int) -> tuple[Any, Any]:
    """Random rows for training and validation, and the fifth that a data set without test data keeps for the test."""
    order = np.random.default_rng([seed, 1]).permutation(count)
    return order[: -count // 5], order[-count // 5 :]


def _own_data(path: Path, seed: int, target: str | None) -> Data:
    inputs, targets, test_inputs, test_targets, labels = read_table(path, target)
    val = len(inputs) // 10
    if test_inputs is None:
        rest, test = _rest_and_test(len(inputs), seed)
        inputs, targets, test_inputs, test_targets = inputs[rest], targets[rest], inputs[test], targets[test]
        val = len(test)
    return make_data(
        path.name,
        inputs,
        targets,
        test_inputs,
        test_targets,
        classes=len(labels),
        val=val,
        seed=seed,
        sources=[str(path)] * 4,
        labels=labels,
        by_feature=inputs.ndim < 3,
    )


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
    train_inputs: Any,
    train_targets: Any,
    test_inputs: Any,
    test_targets: Any,
    *,
    classes: int,
    val: int,
    seed: int = 0,
    sources: list[str] | None = None,
    labels: tuple[int | str, ...] = (),
    by_feature: bool = False,
) -> Data:
    """Check arrays, take ``val`` random samples of the training data out for validation, and standardise.

    One mean and one standard deviation, those of all the numbers of the training split, serve the three splits, or,
    ``by_feature``, those of each feature.

    Args:
        name: of the data set.
        train_inputs, test_inputs: arrays, (n, ...).
        train_targets, test_targets: arrays, (n,), of classes 0 to ``classes`` - 1.
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
    train = _check_split(train_inputs, train_targets, classes, names[0], names[1])
    test = _check_split(test_inputs, test_targets, classes, names[2], names[3])
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"Training and test inputs must be of one size, got {train[0].shape[1]} and {test[0].shape[1]} "
            f"({names[0]}, {names[2]})"
        )
    if not 0 < val < len(train[0]):
        raise ValueError(f"The training data must leave samples for validation, got {len(train[0])} ({names[0]})")
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
        raise ValueError(f"Inputs must vary, and not too wildly, got their standard deviation is {worst} ({names[0]})")
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


def read_idx(path: str | Path) -> Any:
    """An IDX file, plain or ``.gz``, as an array.

    The format: two zero bytes, one for the type, one for the number of axes, the size of each axis as a big-endian
    32-bit integer, then the numbers, big-endian.

    Raises:
        ValueError: the file is not IDX, is truncated or has bytes left over.
    """
    path = Path(path)
    opener: Callable[[Path, str], Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or magic[3] == 0:
                raise ValueError(f"An IDX file must begin with 00 00, a type and the number of axes, got {path}")
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise ValueError(f"An IDX file must hold the sizes of its axes, got {path} is truncated")
            shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
            dtype = np.dtype(_IDX_TYPES[magic[2]])
            expected = math.prod(shape) * dtype.itemsize
            content = _read_up_to(file, expected + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"A .gz file must be whole, got {path} is not ({error})") from error
    except OSError as error:
        raise ValueError(f"The data file must be readable, got {path} ({error.strerror})") from error
    if len(content) != expected:
        found = f"{len(content)} of them" if len(content) < expected else "more"
        raise ValueError(f"The IDX file must hold {expected} bytes of numbers, {shape=}, got {path} has {found}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_up_to(file: BinaryIO, limit: int) -> bytearray:
    content = bytearray()  # grows with what is there, not with what the header claims
    while len(content) < limit and (chunk := file.read(min(_CHUNK, limit - len(content)))):
        content += chunk
    return content


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
            raise ValueError(f"{name} needs four files, got {', '.join(missing)} [.gz] missing in {folder}")
    package = "install Debian's package dataset-fashion-mnist, or " if name == "fashion-mnist" else ""
    looked = ", ".join(map(str, folders)) or "no --data-dir given"
    raise ValueError(
        f"{name} must be on this machine, got not found ({looked}); {package}pass --data-dir with the files "
        f"{', '.join(IDX_FILES)}, plain or .gz"
    )


def _check_pair(images: Any, labels: Any, image_path: Path, label_path: Path) -> None:
    for array, axes, path in ((images, 3, image_path), (labels, 1, label_path)):
        if array.ndim != axes:
            raise ValueError(f"The IDX file must have {axes} axes, got {path} has {array.ndim}")


def _check_split(inputs: Any, targets: Any, classes: int, inputs_name: str, targets_name: str) -> tuple[Any, Any]:
    """Inputs as (n, features), and labels, once they are what they must be."""
    x, y = np.asarray(inputs), np.asarray(targets)
    if x.size == 0 or y.size == 0:
        raise ValueError(f"Data must not be empty, got {inputs_name if x.size == 0 else targets_name}")
    if y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"There must be one label for each sample, got {len(x)} samples in {inputs_name}, "
            f"labels of shape {y.shape} in {targets_name}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"Data must be finite, got {inputs_name} has NaN or infinity")
    if not np.issubdtype(y.dtype, np.integer) and not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        raise ValueError(f"Labels must be integers, got {targets_name} has others")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"Labels must lie in 0..{classes - 1}, got {targets_name} has {y.min()} to {y.max()}")
    return x.reshape(len(x), -1), y


def _fingerprint(*arrays: Any) -> str:
    digest = sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

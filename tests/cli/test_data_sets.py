"""The data of the command line: strict readers, honest splits."""

import gzip
import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from linnet.cli.data import data_sets as module
from linnet.cli.data.data_sets import IDX_FILES, load_data, make_data
from linnet.cli.data.idx import read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array, code=None):
    """The IDX format, written from its description."""
    array = np.asarray(array)
    kind = array.dtype.str[1:]
    head = struct.pack(">BBBB", 0, 0, CODES[kind] if code is None else code, array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(f">{kind}").tobytes()


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 5), dtype=np.uint8)


def labels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 10, n, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A data set of the MNIST family, two files packed and two plain."""
    contents = (images(30), labels(30), images(20, 1), labels(20, 1))
    for i, (name, content) in enumerate(zip(IDX_FILES, contents, strict=True)):
        if i % 2:
            (tmp_path / name).write_bytes(idx(content))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(content)))
    return tmp_path


@pytest.mark.parametrize("kind", CODES)
def test_read_idx(tmp_path, kind):
    array = (np.random.default_rng(0).normal(0, 50, (3, 2, 4))).astype(kind)
    for name, data in (("a", idx(array)), ("a.gz", gzip.compress(idx(array)))):
        (tmp_path / name).write_bytes(data)
        found = read_idx(tmp_path / name)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files(tmp_path, packed):
    whole = idx(images(3))
    cases = {
        "empty": (b"", "must begin with"),
        "short": (whole[:3], "must begin with"),
        "magic": (b"\1" + whole[1:], "must begin with"),
        "type": (whole[:2] + b"\x0a" + whole[3:], "must begin with"),
        "no axes": (whole[:3] + b"\0" + whole[4:], "must begin with"),
        "axes cut": (whole[:9], "truncated"),
        "more axes than there are": (whole[:3] + b"\xff" + whole[4:], "must hold"),
        "truncated": (whole[:-1], "must hold 60 bytes .* got 59"),
        "no numbers": (whole[:16], "must hold 60 bytes .* got 0"),
        "trailing": (whole + b"\0", "must hold 60 bytes .* got more"),
        "huge claim": (whole[:4] + b"\xff" * 12 + whole[16:], "must hold .* bytes .* got 60"),
        "one more": (whole[:4] + struct.pack(">I", 4) + whole[8:], "must hold 80 bytes .* got 60"),
    }
    for name, (content, match) in cases.items():
        path = tmp_path / f"{name}{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
        with pytest.raises(ValueError, match=match) as error:
            read_idx(path)
        assert str(path) in str(error.value), name
        assert "\n" not in str(error.value)


def test_damaged_gz_files(tmp_path):
    path, packed = tmp_path / "a.gz", gzip.compress(idx(images(40)))
    for broken in (
        packed[:-1],
        packed[: len(packed) // 2],
        packed[:12],
        b"not gzip at all",
        packed[:40] + bytes([packed[40] ^ 255]) + packed[41:],
        packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:],  # the check sum
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.gz"):
            read_idx(path)
    with pytest.raises(ValueError, match=r"cannot read .*nothing: No such file or directory"):
        read_idx(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        read_idx(tmp_path)


def test_an_idx_folder(folder):
    data = load_data("mnist", folder)
    assert (data.features, data.classes, data.name) == (20, 10, "mnist")
    assert [len(split.targets) for split in (data.train, data.val, data.test)] == [27, 3, 20]
    assert labels(20, 1).tolist() == data.test.targets.tolist()
    train = data.train.inputs.double().numpy()
    assert abs(train.mean()) < 1e-6
    assert abs(train.std() - 1) < 1e-6
    chosen = []  # every training image is found in exactly one of the two splits, with its own label
    raw = images(30).reshape(30, 20)
    for split in (data.train, data.val):
        for x, y in zip(split.inputs.double().numpy(), split.targets.tolist(), strict=True):
            correlations = [np.corrcoef(x, row)[0, 1] for row in raw]
            i = int(np.argmax(correlations))
            assert correlations[i] > 1 - 1e-9
            assert labels(30)[i] == y
            chosen.append(i)
    assert sorted(chosen) == list(range(30))


def test_standardised_with_the_training_split_alone(folder):
    data = load_data("mnist", folder)
    raw = images(20, 1).reshape(20, 20).astype(np.float64)
    a, b = np.polyfit(raw.ravel(), data.test.inputs.double().numpy().ravel(), 1)  # the test split: x -> a x + b
    train = (data.train.inputs.double().numpy() - b) / a
    assert abs(-b / a - train.mean()) < 1e-4
    assert abs(1 / a - train.std()) < 1e-4
    assert abs(1 / a - np.concatenate([train.ravel(), raw.ravel()]).std()) > 1e-3


def test_the_split_depends_on_its_seed_alone(folder):
    torch.manual_seed(1)
    np.random.seed(1)
    first = load_data("mnist", folder)
    torch.manual_seed(2)
    np.random.seed(2)
    second, third = load_data("mnist", folder), load_data("mnist", folder, seed=1)
    assert torch.equal(first.val.inputs, second.val.inputs)
    assert first.fingerprint == second.fingerprint
    assert not torch.equal(first.val.targets, third.val.targets) or not torch.equal(first.val.inputs, third.val.inputs)
    assert first.fingerprint != third.fingerprint
    assert torch.equal(first.test.targets, third.test.targets)
    path = folder / IDX_FILES[1]
    path.write_bytes(path.read_bytes()[:-1] + bytes([9 - path.read_bytes()[-1]]))
    assert load_data("mnist", folder).fingerprint != first.fingerprint


def test_digits():
    data = load_data("digits")
    x, y = load_digits(return_X_y=True)
    splits = (data.train, data.val, data.test)
    assert sum(len(split.targets) for split in splits) == len(y)
    assert [split.inputs.dtype for split in splits] == [torch.float32] * 3
    counts = sum(np.bincount(split.targets.numpy(), minlength=10) for split in splits)
    assert counts.tolist() == np.bincount(y).tolist()
    joined = torch.cat([split.inputs for split in splits]).double().numpy()
    a = x.std() / joined.std()
    restored = np.rint((joined - joined.min()) * a)
    assert sorted(map(tuple, restored)) == sorted(map(tuple, x))  # every image is in exactly one split
    with pytest.raises(ValueError, match=r"applies to fashion-mnist and mnist only, got .* digits"):
        load_data("digits", "somewhere")


@pytest.mark.skipif(not module.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    data = load_data("fashion-mnist")
    assert [len(split.targets) for split in (data.train, data.val, data.test)] == [54000, 6000, 10000]
    assert data.test.targets.bincount().tolist() == [1000] * 10
    assert data.test.targets[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]  # published order of the test labels


def test_where_the_files_are_looked_for(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", folder)
    empty = tmp_path_factory.mktemp("empty")
    found = load_data("fashion-mnist")
    assert found.fingerprint == load_data("fashion-mnist", empty).fingerprint == load_data("mnist", folder).fingerprint
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", empty)
    with pytest.raises(ValueError, match="Debian's package dataset-fashion-mnist") as error:
        load_data("fashion-mnist")
    assert all(name in str(error.value) for name in IDX_FILES)
    with pytest.raises(ValueError, match="--data-dir") as error:
        load_data("mnist")
    assert all(name in str(error.value) for name in IDX_FILES)
    (folder / IDX_FILES[3]).unlink()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte .*missing"):
        load_data("fashion-mnist", folder)
    with pytest.raises(
        ValueError, match=r"data must be one of digits, fashion-mnist, mnist, or a \.npz or \.csv file, got 'cifar'"
    ):
        load_data("cifar")


def test_wrong_contents_name_the_file(folder):
    def write(which, array):
        for path in (folder / IDX_FILES[which], folder / f"{IDX_FILES[which]}.gz"):
            path.unlink(missing_ok=True)
        (folder / IDX_FILES[which]).write_bytes(idx(array))

    nan = images(30).astype(np.float32)
    nan[7, 1, 1] = np.nan
    cases = [
        (0, nan, "finite"),
        (0, images(29), "one label for each sample, got 29 samples"),
        (0, images(30).reshape(30, 20), "3 axes"),
        (0, np.zeros((0, 4, 5), np.uint8), "empty"),
        (0, np.zeros((30, 4, 5), np.uint8), "positive, finite standard deviation"),
        (0, images(30).reshape(30, 10, 2)[:, :9], "of one size"),
        (1, labels(31), "one label for each sample"),
        (1, np.full(30, 10, np.uint8), "0..9, got .*10 to 10"),
        (1, np.full(30, -1, np.int8), "0..9"),
        (1, np.full(30, 0.5, np.float32), "integers"),
        (1, np.full(30, np.nan, np.float32), "integers"),
        (1, labels(30).reshape(30, 1), "1 axes"),
        (1, np.zeros(0, np.uint8), "empty"),
        (3, labels(3), "one label for each sample"),
    ]
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for which, array, match in cases:
        write(which, array)
        with pytest.raises(ValueError, match=match) as error:
            load_data("mnist", folder)
        assert IDX_FILES[which] in str(error.value)
        assert "\n" not in str(error.value)
        (folder / IDX_FILES[which]).unlink()
        for path, content in whole.items():
            path.write_bytes(content)
    load_data("mnist", folder)


def test_make_data_checks_arrays_from_python():
    x, y = images(10), labels(10)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9, got 10 to 12 in mine: test labels"):
        make_data("mine", (x, y, x[:3], [10, 11, 12]), classes=10, val=2)
    with pytest.raises(ValueError, match="leave samples for validation"):
        make_data("mine", (x, y, x, y), classes=10, val=10)
    with pytest.raises(ValueError, match="NaN"):
        make_data("mine", (np.full(x.shape, np.inf), y, x, y), classes=10, val=2)
    large = make_data("mine", (x.astype(float) * 1e100, y, x.astype(float) * 1e100, y), classes=10, val=2)
    assert torch.allclose(large.test.inputs, make_data("mine", (x, y, x, y), classes=10, val=2).test.inputs, atol=1e-5)
    with pytest.raises(ValueError, match="positive, finite standard deviation"):
        make_data("mine", (x.astype(float) * 1e300, y, x, y), classes=10, val=2)

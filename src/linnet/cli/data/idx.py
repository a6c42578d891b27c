"""IDX files, the format of MNIST: read strictly."""

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from linnet.cli.errors import file_errors

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CHUNK = 1 << 20


def read_idx(path: str | Path) -> Any:
    """An IDX file, plain or ``.gz``, as an array.

    The format: two zero bytes, one for the type, one for the number of axes, the size of each axis as a big-endian
    32-bit integer, then the numbers, big-endian.

    Raises:
        ValueError: the file is not IDX, is truncated or has bytes left over.
    """
    opener: Callable[[str | Path, str], Any] = gzip.open if Path(path).suffix == ".gz" else open
    with file_errors("read", path):
        try:
            with opener(path, "rb") as file:
                return _array(file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"the .gz file is damaged ({error})") from error


def _array(file: BinaryIO) -> Any:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or magic[3] == 0:
        raise ValueError("an IDX file must begin with 00 00, a type and the number of axes")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError("it must hold the size of each axis, but it is truncated")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    dtype = np.dtype(TYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    content = bytearray()  # grows with what is there, not with what the header claims
    while len(content) <= expected and (chunk := file.read(min(CHUNK, expected + 1 - len(content)))):
        content += chunk
    if len(content) != expected:
        there = len(content) if len(content) < expected else "more"
        raise ValueError(f"it must hold {expected} bytes of numbers, {shape=}, got {there}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))

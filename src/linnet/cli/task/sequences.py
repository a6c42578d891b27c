"""Tasks for recurrent networks, drawn anew for every batch: what was seen must be kept until it is asked for."""

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from linnet.cli.errors import file_errors
from linnet.core.checks import check_positive

AHEAD = 3
"""How many of the next answers a context holds."""
TESTS = 1000
"""Sequences that a trained network is tested on."""


@dataclass(frozen=True)
class Batch:
    """Sequences of one length, and what is asked."""

    input: Tensor  # (length, batch, inputs)
    asked: list[int]  # the steps at which an answer is due, in their order
    target: Tensor  # the answers, (asked, batch, outputs) for bits and numbers, (asked, batch) for classes
    hints: Tensor  # the answers as features for a synthesizer, (asked, batch, features): bits as ±1, classes one-hot

    def context(self, t: int) -> Tensor:
        """The next answers after t steps, 0 where there are none, and how far off the first is: (batch, features)."""
        first = sum(step < t for step in self.asked)
        rows = self.hints[first : first + AHEAD]
        rows = F.pad(rows, (0, 0, 0, 0, 0, AHEAD - len(rows)))  # (ahead, batch, features)
        far = (self.asked[first] - t) / 10 if first < len(self.asked) else 0.0
        return F.pad(rows.transpose(0, 1).flatten(1), (0, 1), value=far)


class SequenceTask(ABC):
    """Batches of sequences and their loss: the base class of all tasks."""

    inputs: int  # features of a step
    outputs: int  # numbers that the network gives at each step
    hint_size: int  # features of an answer in the context
    unit: ClassVar[str] = "bits"  # of the loss
    threshold: float | None = None  # the loss below which a curriculum goes to the next level; None: there is one level
    level: int = 1  # the first level
    fingerprint: str | None = None  # SHA-256 of the data; None where all is drawn

    @property
    def context(self) -> int:
        """Features of the context."""
        return AHEAD * self.hint_size + 1

    @abstractmethod
    def draw(self, batch_size: int, level: int, generator: Generator) -> Batch:
        """Fresh sequences of one length, as hard as the level says where there is a curriculum."""

    def test(self, level: int, generator: Generator) -> Batch:
        """Sequences to test a trained network on."""
        return self.draw(TESTS, level, generator)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The mean over all answers, here the binary cross-entropy of each bit, in bits.

        Args:
            output: what the network gives at all steps, (length, batch, outputs).
            batch: the sequences.
        """
        return F.binary_cross_entropy_with_logits(output[batch.asked], batch.target) / math.log(2)


class _Bits(SequenceTask):
    """Rows of random bits, with two more features for marks.

    Args:
        bits: in a row.
    """

    def __init__(self, bits: int = 8) -> None:
        (self.bits,) = check_positive(bits=bits)
        self.inputs, self.outputs, self.hint_size = bits + 2, bits, bits

    def _rows(self, count: int, batch_size: int, generator: Generator) -> Tensor:
        return torch.randint(2, (count, batch_size, self.bits), generator=generator).float()


class RepeatCopy(_Bits):
    """Rows of random bits and a number R; then the rows, R times, and a mark at the end.

    A mark, N rows, a row with R/10, then R·N rows and the end mark to write: (R+1)N + 3 steps. Levels are (N, R) =
    (1, 1), (2, 1), (2, 2), (3, 1), ...: R is raised until it is N, then N.

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    threshold = 0.15

    def __init__(self, bits: int = 8) -> None:
        super().__init__(bits)
        self.outputs = self.hint_size = bits + 1  # the last one is the mark at the end

    @staticmethod
    def rows_and_repeats(level: int) -> tuple[int, int]:
        """(N, R) of a level.

        Example:
            >>> [RepeatCopy.rows_and_repeats(level) for level in range(1, 7)]
            [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
        """
        rows = (math.isqrt(8 * level - 7) + 1) // 2
        return rows, level - rows * (rows - 1) // 2

    def draw(self, batch_size: int, level: int, generator: Generator) -> Batch:
        rows, repeats = self.rows_and_repeats(level)
        bits = self._rows(rows, batch_size, generator)
        input = torch.zeros((repeats + 1) * rows + 3, batch_size, self.inputs)
        input[0, :, self.bits] = 1
        input[1 : rows + 1, :, : self.bits] = bits
        input[rows + 1, :, self.bits + 1] = repeats / 10
        target = F.pad(bits.repeat(repeats, 1, 1), (0, 1, 0, 0, 0, 1))  # (R·N + 1, batch, bits + 1)
        target[-1, :, self.bits] = 1
        return Batch(input, list(range(rows + 2, len(input))), target, 2 * target - 1)


class Copy(_Bits):
    """A mark, N rows of random bits, another mark, and N steps in which to write them: 2N + 2 steps. N is the level.

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    threshold = 0.15

    def draw(self, batch_size: int, level: int, generator: Generator) -> Batch:
        bits = self._rows(level, batch_size, generator)
        input = torch.zeros(2 * level + 2, batch_size, self.inputs)
        input[0, :, self.bits] = 1
        input[1 : level + 1, :, : self.bits] = bits
        input[level + 1, :, self.bits + 1] = 1
        return Batch(input, list(range(level + 2, 2 * level + 2)), bits, 2 * bits - 1)


class Recall(_Bits):
    """Random bits at every step; at step ``delay``, the last, those that a mark stood beside at the first."""

    def __init__(self, bits: int = 2, delay: int = 12) -> None:
        super().__init__(bits)
        (self.delay,) = check_positive(delay=delay)

    def draw(self, batch_size: int, level: int, generator: Generator) -> Batch:
        bits = self._rows(self.delay + 1, batch_size, generator)
        input = F.pad(bits, (0, 2))
        input[0, :, self.bits] = 1
        input[-1, :, : self.bits] = 0
        input[-1, :, self.bits + 1] = 1
        return Batch(input, [self.delay], bits[:1], 2 * bits[:1] - 1)


class _Digits(SequenceTask):
    """L one-hot digits and an end mark, at which the answer is due; L of each batch is drawn from 2 to ``length``.

    Args:
        digits: from 0 to digits - 1.
        length: of the longest sequence.
    """

    def __init__(self, digits: int = 5, length: int = 10) -> None:
        self.digits, self.length = check_positive(digits=digits, length=length)
        if self.length < 2:
            raise ValueError(f"length must be at least 2, got {length}")
        self.inputs = digits + 1

    def draw(self, batch_size: int, level: int, generator: Generator) -> Batch:
        length = int(torch.randint(2, self.length + 1, (), generator=generator))
        values = torch.randint(self.digits, (length, batch_size), generator=generator)
        input = F.one_hot(torch.cat([values, torch.full((1, batch_size), self.digits)]), self.inputs).float()
        target, hints = self._answer(values)
        return Batch(input, [length], target.unsqueeze(0), hints.unsqueeze(0))

    @abstractmethod
    def _answer(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(length, batch) -> the answers and the hints."""


class Adding(_Digits):
    """The sum of a sequence of digits, at its end; the loss is the mean squared error."""

    unit = "squared error"

    def __init__(self, digits: int = 5, length: int = 10) -> None:
        super().__init__(digits, length)
        self.outputs = self.hint_size = 1

    def _answer(self, values: Tensor) -> tuple[Tensor, Tensor]:
        total = values.sum(0).float().unsqueeze(1)  # (batch, 1)
        return total, total / (self.length * (self.digits - 1) or 1)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output[batch.asked], batch.target)


class ArgMax(_Digits):
    """The place of the largest of a sequence of digits, of the first of them, at its end."""

    def __init__(self, digits: int = 5, length: int = 10) -> None:
        super().__init__(digits, length)
        self.outputs = self.hint_size = length

    def _answer(self, values: Tensor) -> tuple[Tensor, Tensor]:
        is_largest = values == values.max(0).values
        place = is_largest.int().argmax(0)  # the first of equal ones
        return place, F.one_hot(place, self.length).float()

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return _class_bits(output[batch.asked], batch.target)


class Text(SequenceTask):
    """The next character of a text; 90 % of it to train, 5 % each to validate and to test, in this order.

    Args:
        text: the whole text.
        length: of the extracts to train with.
    """

    def __init__(self, text: str, length: int = 64) -> None:
        (self.length,) = check_positive(length=length)
        self.characters = "".join(sorted(set(text)))
        ends = [0, len(text) * 90 // 100, len(text) * 95 // 100, len(text)]
        number = {character: i for i, character in enumerate(self.characters)}
        codes = torch.tensor([number[character] for character in text], dtype=torch.int64)
        self.train_codes, self.val_codes, self.test_codes = (codes[a:b] for a, b in itertools.pairwise(ends))
        if len(self.train_codes) <= length or len(self.val_codes) < 2 or len(self.test_codes) < 2:
            raise ValueError(f"a text must have more than {length} characters to train, got {len(text)} in all")
        self.inputs = self.outputs = self.hint_size = len(self.characters)
        self.fingerprint = sha256(text.encode(errors="surrogatepass")).hexdigest()

    @classmethod
    def of(cls, path: Path | None, length: int = 64) -> "Text":
        """That of a file in UTF-8; None: the descriptions of data sets that scikit-learn ships with."""
        if path is None:
            return cls(shipped_text(), length)
        with file_errors("read", path):
            return cls(path.read_text(encoding="utf-8"), length)

    def draw(self, batch_size: int, level: int, generator: Generator) -> Batch:
        starts = torch.randint(len(self.train_codes) - self.length, (batch_size,), generator=generator)
        return self.batch(self.train_codes[torch.arange(self.length + 1).unsqueeze(1) + starts])

    def test(self, level: int, generator: Generator) -> Batch:
        return self.batch(self.test_codes.unsqueeze(1))  # in one piece

    def batch(self, codes: Tensor) -> Batch:
        """Characters (length + 1, batch) -> each but the last, and the one after it to predict."""
        rows = F.one_hot(codes, self.inputs).float()
        return Batch(rows[:-1], list(range(len(codes) - 1)), codes[1:], rows[1:])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return _class_bits(output[batch.asked], batch.target)


def shipped_text() -> str:
    """English prose that is installed with scikit-learn: the descriptions of its data sets, in sorted order."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "descr"
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst")))


def _class_bits(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten()) / math.log(2)

"""``linnet task``: a recurrent network learns a task through short windows, with synthetic gradients or without."""

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from linnet import checkpoint
from linnet.cli.run_folder import check_new, clear_left_overs, read_record, writable, write_record
from linnet.cli.task.sequences import Adding, ArgMax, Batch, Copy, Recall, RepeatCopy, SequenceTask, Text
from linnet.cli.train.settings import differences, seeds_of
from linnet.core.checks import check_positive
from linnet.decoupled import LinearSynthesizer, MLPSynthesizer, Synthetic, TruncatedBPTT

__all__ = ["Learner", "Point", "Run", "TaskSettings", "Watch", "found", "resumed"]

TASKS: dict[str, Callable[[], SequenceTask]] = {
    "copy": Copy,
    "repeat-copy": RepeatCopy,
    "adding": Adding,
    "argmax": ArgMax,
    "recall": Recall,
}
CELLS: dict[str, Callable[[int, int], nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
GRADIENTS = ("none", "dni", "cdni")
STEPS = 5000
EVERY = 50
"""Steps between two points of the curves."""
SAVED_AFTER = 5.0
"""Seconds between two checkpoints; they are written at points of the curves."""


@dataclass(frozen=True)
class TaskSettings:
    """Everything that decides the numbers of a run. The defaults are those of the command line.

    Raises:
        ValueError: a setting is not what it must be.
    """

    task: str = "copy"
    window: int = 3
    decouple: str = "dni"
    cell: str = "lstm"
    hidden: int = 64
    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 64
    lr: float = 1e-3
    synthesizer: int = 0
    synthesizer_lr: float = 3e-3
    factor: float = 0.3
    auxiliary: float = 0.0
    text: str | None = None
    seed: int = 0
    seeds: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        sizes = ("window", "hidden", "batch_size", "seeds", "threads")
        check_positive(**{name: getattr(self, name) for name in sizes})
        if self.synthesizer:
            check_positive(synthesizer=self.synthesizer)
        for name, known in (("task", (*TASKS, "text")), ("decouple", GRADIENTS), ("cell", tuple(CELLS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("lr", "synthesizer_lr", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("factor", "auxiliary"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.steps is not None:
            check_positive(steps=self.steps)
        if self.steps is not None and self.seconds is not None:
            raise ValueError("A run ends after steps or after seconds, got both are given")
        if self.auxiliary and self.decouple == "none":
            raise ValueError("The auxiliary task foretells synthetic gradients, got decouple is none")
        if self.text is not None and self.task != "text":
            raise ValueError(f"A text is for the task text, got the task is {self.task}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must lie in 0..2**31 - 1, got {self.seed}")

    def make(self) -> SequenceTask:
        """The task."""
        return Text.of(None if self.text is None else Path(self.text)) if self.task == "text" else TASKS[self.task]()

    def goal(self) -> float:
        """What a run has when it is over: steps, or seconds of the CPU."""
        return self.seconds if self.seconds is not None else self.steps or STEPS


@dataclass(frozen=True)
class Point:
    """What happened in some steps up to this one.

    Attributes:
        step: steps so far.
        seconds: of the CPU so far.
        loss: the mean over these steps.
        level: of the curriculum.
        cosine: of the last synthetic gradients and their targets; None if there are none.
    """

    step: int
    seconds: float
    loss: float
    level: int
    cosine: float | None


Watch = Callable[["Learner"], None]
"""Called after each point of the curves."""


@dataclass
class Learner:
    """One network of a run, and how far it is.

    Args:
        settings: what to do.
        task: what to learn.
        seed: of the network and of the data.
        path: of the checkpoint; None for none.
    """

    settings: TaskSettings
    task: SequenceTask
    seed: int
    path: Path | None = None
    curve: list[Point] = field(default_factory=list)
    step: int = 0
    seconds: float = 0.0
    loss: float | None = None
    """In the exam, once the run is over."""

    def __post_init__(self) -> None:
        settings, task = self.settings, self.task
        torch.manual_seed(self.seed)
        core = CELLS[settings.cell](task.inputs, settings.hidden)
        self.head = nn.Linear(settings.hidden, task.outputs)
        source = None
        if settings.decouple != "none":
            adam = functools.partial(torch.optim.Adam, lr=settings.synthesizer_lr)
            context = task.context if settings.decouple == "cdni" else None
            kind = MLPSynthesizer if settings.synthesizer else LinearSynthesizer
            source = Synthetic(kind, settings.synthesizer or None, adam, context=context)
        self.net = TruncatedBPTT(core, settings.window, source, factor=settings.factor, auxiliary=settings.auxiliary)
        self.whole = nn.ModuleDict({"net": self.net, "head": self.head})
        self.optimizer = torch.optim.Adam([*core.parameters(), *self.head.parameters()], lr=settings.lr)
        self.level = task.level
        self.generator = Generator().manual_seed(self.seed)

    @property
    def done(self) -> float:
        """The share of the run that is behind it."""
        reached = self.step if self.settings.seconds is None else self.seconds
        return min(reached / self.settings.goal(), 1.0)

    def run(self, watch: Watch | None = None) -> None:
        """Train from where it is to the end, and take the exam."""
        losses: list[Tensor] = []
        before, saved = time.process_time() - self.seconds, time.monotonic()
        while self.done < 1:
            losses.append(self.train_step())
            self.step += 1
            self.seconds = time.process_time() - before
            if self.step % EVERY == 0 or self.done == 1:
                cosine = self.net.diagnostics().get("cosine/state")
                mean = float(torch.stack(losses).mean())
                found = None if cosine is None else float(cosine)
                self.curve.append(Point(self.step, self.seconds, mean, self.level, found))
                losses.clear()
                if time.monotonic() - saved >= SAVED_AFTER:
                    self.save()
                    saved = time.monotonic()
                if watch is not None:
                    watch(self)
        self.loss = self.exam(self.level)
        self.save()

    def train_step(self) -> Tensor:
        """One batch; returns its loss, and goes to the next level if it is low enough."""
        batch = self.task.draw(self.settings.batch_size, self.level, self.generator)
        self.optimizer.zero_grad()
        loss = self.task.loss(self._output(batch), batch)
        loss.backward()
        self.optimizer.step()
        loss = loss.detach()
        if self.task.threshold is not None and float(loss) < self.task.threshold:
            self.level += 1
        return loss

    def _output(self, batch: Batch) -> Tensor:
        if self.settings.decouple != "cdni":
            return self.head(self.net(batch.input)[0])
        with self.net.context(batch.context):
            return self.head(self.net(batch.input)[0])

    @torch.no_grad()
    def exam(self, level: int) -> float:
        """The loss on fresh sequences of a level, the same for all networks."""
        batch = self.task.exam(level, Generator().manual_seed(2**31 + level))
        self.net.eval()
        loss = float(self.task.loss(self.head(self.net(batch.input)[0]), batch))
        self.net.train()
        return loss

    # ------------------------------------------------------------------ on the disk

    def save(self) -> None:
        """Write all that is needed to go on: the whole file or nothing."""
        if self.path is None:
            return
        extra = {
            "generator": self.generator.get_state(),
            "curve": [asdict(point) for point in self.curve],
            **{name: getattr(self, name) for name in ("level", "seconds", "loss")},
        }
        checkpoint.save(self.whole, self.path, optimizer=self.optimizer, step=self.step, rng=False, extra=extra)

    def restore(self) -> None:
        """Go on from what :meth:`save` has written, if it has."""
        if self.path is None or not self.path.exists():
            return
        found = checkpoint.load(self.path, into=self.whole, optimizer=self.optimizer)
        extra = found.extra
        self.generator.set_state(extra["generator"])
        self.curve = [Point(**point) for point in extra["curve"]]
        self.level, self.step, self.seconds = extra["level"], found.step or 0, extra["seconds"]
        self.loss = extra["loss"] if self.done == 1 else None


@dataclass(frozen=True)
class Run:
    """A run that may start: all that it was given has been checked, and its folder is ready."""

    settings: TaskSettings
    task: SequenceTask
    out: Path

    def learner(self, seed: int) -> Learner:
        """The network of a seed, as far as it is."""
        learner = Learner(self.settings, self.task, seed, self.path(seed))
        learner.restore()
        return learner

    def path(self, seed: int) -> Path:
        """The checkpoint of a seed."""
        return self.out / f"seed{seed}.safetensors"


def found(settings: TaskSettings, out: str | os.PathLike[str], *, resume: bool = False) -> Run:
    """A new run in a new or empty folder, or the one in it, to go on with.

    Args:
        settings: what to do; a run that is resumed may be asked for more steps, seconds or seeds, nothing else.
        out: folder of the run.
        resume: go on with the run in ``out``.

    Raises:
        ValueError: the folder, the text or the settings are not what they must be.
    """
    torch.set_num_threads(settings.threads)
    folder, task = Path(out), settings.make()
    run = Run(settings, task, folder)
    if resume:
        before = resumed(folder)
        different = differences(settings, before)
        if any(text.split()[0] not in ("steps", "seconds", "seeds") for text in different):
            raise ValueError(f"A run is resumed with its own settings, got {'; '.join(different)} as in {out}")
        if (settings.seconds is None) != (before.seconds is None) or settings.goal() < before.goal():
            raise ValueError(
                f"A run that is resumed cannot become shorter, got it had {_length(before)}, not {_length(settings)}"
            )
        if read_record(folder)["data_sha256"] != task.fingerprint:
            raise ValueError(f"A run is resumed on its own text, got {settings.text} differs from that of {out}")
        clear_left_overs(folder)
        for path in map(run.path, seeds_of(settings)):
            if path.exists():
                checkpoint.info(path)
    else:
        check_new(folder)
    with writable(out):
        write_record(folder, settings, task.fingerprint)
    return run


def resumed(out: str | os.PathLike[str]) -> TaskSettings:
    """The settings of the run in a folder.

    Raises:
        ValueError: there is none, or its record is damaged.
    """
    try:
        return TaskSettings(**read_record(Path(out))["settings"])
    except TypeError as error:
        raise ValueError(f"The record of a run must be whole, got {out}/run.json is not ({error})") from error


def _length(settings: TaskSettings) -> str:
    return f"{settings.goal():g} {'steps' if settings.seconds is None else 'seconds'}"

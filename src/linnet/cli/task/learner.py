"""One network of ``linnet task``: it learns a task through short windows, with synthetic gradients or without."""

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from linnet import checkpoint
from linnet.cli.task.sequences import Batch, SequenceTask
from linnet.cli.task.settings import CELLS, TaskSettings
from linnet.decoupled import LinearSynthesizer, MLPSynthesizer, Synthetic, TruncatedBPTT

EVERY = 50
"""Steps between two points of the curves."""
SAVED_AFTER = 5.0
"""Seconds between two checkpoints; they are written at points of the curves."""


@dataclass(frozen=True)
class Point:
    """What happened in some steps up to this one."""

    step: int  # steps so far
    seconds: float  # of the CPU so far
    loss: float  # the mean over these steps
    level: int  # of the curriculum
    cosine: float | None  # of the last synthetic gradients and their targets, if there are any


Watch = Callable[["Learner"], None]
"""Called after each point of the curves."""


@dataclass
class Learner:
    """One network of a run, and how far it is."""

    settings: TaskSettings
    task: SequenceTask
    seed: int  # of the network and of the data
    path: Path | None = None  # of the checkpoint; None for none
    curve: list[Point] = field(default_factory=list)
    step: int = 0
    seconds: float = 0.0
    loss: float | None = None  # on test sequences, once the run is over

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
        """Train from where it is to the end, and test the network."""
        losses: list[Tensor] = []
        before, saved = time.process_time() - self.seconds, time.monotonic()
        while self.done < 1:
            losses.append(self.train_step())
            self.step += 1
            self.seconds = time.process_time() - before
            if self.step % EVERY == 0 or self.done == 1:
                cosine = self.net.diagnostics().get("cosine/state")
                mean = float(torch.stack(losses).mean())
                shown = None if cosine is None else float(cosine)
                self.curve.append(Point(self.step, self.seconds, mean, self.level, shown))
                losses.clear()
                if time.monotonic() - saved >= SAVED_AFTER:
                    self.save()
                    saved = time.monotonic()
                if watch is not None:
                    watch(self)
        self.loss = self.test(self.level)
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
    def test(self, level: int) -> float:
        """The loss on fresh sequences of a level, the same for all networks."""
        batch = self.task.test(level, Generator().manual_seed(2**31 + level))
        self.net.eval()
        loss = float(self.task.loss(self.head(self.net(batch.input)[0]), batch))
        self.net.train()
        return loss

    # ------------------------------------------------------------------ on the disk

    def save(self) -> None:
        """Write all that is needed to resume: the whole file or nothing."""
        if self.path is None:
            return
        extra = {
            "generator": self.generator.get_state(),
            "curve": [asdict(point) for point in self.curve],
            **{name: getattr(self, name) for name in ("level", "seconds", "loss")},
        }
        checkpoint.save(self.whole, self.path, optimizer=self.optimizer, step=self.step, rng=False, extra=extra)

    def restore(self) -> None:
        """Resume from what :meth:`save` has written, if it has."""
        if self.path is None or not self.path.exists():
            return
        saved = checkpoint.load(self.path, into=self.whole, optimizer=self.optimizer)
        extra = saved.extra
        self.generator.set_state(extra["generator"])
        self.curve = [Point(**point) for point in extra["curve"]]
        self.level, self.step, self.seconds = extra["level"], saved.step or 0, extra["seconds"]
        self.loss = extra["loss"] if self.done == 1 else None

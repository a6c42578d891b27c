"""A run of ``linnet task``: its folder is opened, and its networks are trained with live progress."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from linnet.cli.progress import Progress
from linnet.cli.run_folder import open_folder, resume_settings, seeds_of, write_record
from linnet.cli.task.learner import Learner
from linnet.cli.task.sequences import SequenceTask
from linnet.cli.task.settings import TaskSettings


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


def open_run(settings: TaskSettings, out: str | os.PathLike[str], *, resume: bool = False) -> Run:
    """A new run in a new or empty folder, or the one in it, which may be resumed with more steps, seconds or seeds.

    Raises:
        ValueError: the folder, the text or the settings are not what they must be.
    """
    torch.set_num_threads(settings.threads)
    run = Run(settings, settings.make(), Path(out))
    open_folder(
        settings,
        out,
        resume=resume,
        changeable=("steps", "seconds", "seeds"),
        source=str(settings.text),
        data_sha256=run.task.fingerprint,
        checkpoints=map(run.path, seeds_of(settings)),
    )
    if resume:
        before = resume_settings(TaskSettings, out)
        if (settings.seconds is None) != (before.seconds is None) or settings.goal() < before.goal():
            raise ValueError(f"a resumed run cannot become shorter: it had {_length(before)}, got {_length(settings)}")
    write_record(run.out, settings, run.task.fingerprint)
    return run


def learn(run: Run) -> list[Learner]:
    """Train the network of every seed to its end, with live progress on stderr."""
    learners = []
    goal = run.settings.goal()
    with Progress({f"seed {seed}": goal for seed in seeds_of(run.settings)}) as progress:

        def watch(learner: Learner) -> None:
            now, name = learner.curve[-1], f"seed {learner.seed}"
            state = f"step {now.step}  {now.loss:.3f} {learner.task.unit}"
            state += f"  level {now.level}" if learner.task.threshold is not None else ""
            state += "" if now.cosine is None else f"  cosine {now.cosine:.2f}"
            progress.show(name, learner.done * goal, state, line=f"{name}  {state}" if learner.done == 1 else "")

        for seed in seeds_of(run.settings):
            learners.append(run.learner(seed))
            learners[-1].run(watch)
    return learners


def _length(settings: TaskSettings) -> str:
    return f"{settings.goal():g} {'steps' if settings.seconds is None else 'seconds'}"

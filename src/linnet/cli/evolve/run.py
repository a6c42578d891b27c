"""A run of ``linnet evolve``: its folder is opened, and its generations are shown as they come."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from linnet.cli.evolve.evolution import Evolution, Generation
from linnet.cli.evolve.settings import EvolveSettings
from linnet.cli.progress import Progress, say
from linnet.cli.run_folder import open_folder, resume_settings
from linnet.cli.torchrun import Workers
from linnet.evolve import Shards


def open_run(
    settings: EvolveSettings, out: str | os.PathLike[str], *, resume: bool = False, shards: Shards | None = None
) -> Evolution:
    """A new run in a new or empty folder, or the one in it, which may be resumed with more generations.

    The validation at the former end, and a champion that it found, stay. The state is saved at once, so that a run that
    is killed in its first generation is resumed with its settings.

    Raises:
        ValueError: the folder, the environment or the settings are not what they must be.
    """
    torch.set_num_threads(settings.threads)
    evolution = Evolution(settings, Path(out), shards)
    if evolution.leads:
        open_folder(settings, out, resume=resume, changeable=("generations",))
    if resume:
        evolution.restore()
        done = len(evolution.curve)
        if settings.generations < done:
            raise ValueError(f"`generations` must be at least {done}, those that are done, got {settings.generations}")
    # A sharded run that is resumed is not saved: another process may just be reading the file.
    if not (resume and shards):
        evolution.save()
    return evolution


def run_generations(evolution: Evolution) -> None:
    """Run an evolution to its end, with live progress on stderr."""
    settings, arena = evolution.settings, evolution.arena
    with Progress({"generation": settings.generations}, quiet=not evolution.leads) as progress:
        if not arena.vectorized:
            copies = settings.episodes * min(settings.block, settings.beings)
            note = f"{arena.name} has no vectorized entry point: its {copies} copies run one after another"
            say(note, progress.console)
        progress.show("generation", len(evolution.curve))

        def watch(generation: Generation, speed: float) -> None:
            state = f"best {generation.best:8.1f}  mean {generation.mean:8.1f}  {_rate(speed)}"
            if generation.validation is not None:
                state += f"  validation {generation.validation:.1f}"
            line = f"generation {generation.number:4d}  {state}"
            progress.show("generation", generation.number + 1, state, line=line)

        evolution.run(watch)


def _rate(speed: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if speed >= size:
            return f"{speed / size:.2f} {unit} steps/s"
    return f"{speed:.0f} steps/s"


def shards_of_torchrun(settings: EvolveSettings) -> Shards | None:
    """This process's part of the population, if torchrun has started several; None if there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Shards(settings.beings, settings.block)


def work(out: str, workers: Workers) -> None:
    """What each worker of ``linnet evolve --nproc`` does."""
    settings = resume_settings(EvolveSettings, out)
    run_generations(open_run(settings, out, resume=True, shards=shards_of_torchrun(settings)))

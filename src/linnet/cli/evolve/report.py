"""What ``linnet evolve`` shows: live progress, and at the end what was found."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from linnet.cli.evolve.evolution import EPISODES, Evolution, EvolveSettings, Generation, Watch
from linnet.evolve import Shards

__all__ = ["processes", "report", "watching"]


def processes(settings: EvolveSettings) -> Shards | None:
    """This process's part of the population, if torchrun has started several; None if there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Shards(settings.beings, settings.block)


@contextmanager
def watching(evolution: Evolution) -> Iterator[Watch]:
    """Live progress on stderr: a bar; where stderr is not a terminal, a line for each generation."""
    console = Console(stderr=True, quiet=not evolution.leads)
    settings, arena = evolution.settings, evolution.arena
    done = len(evolution.curve)
    if not arena.vectorized:
        copies = settings.episodes * min(settings.block, settings.beings)
        console.print(
            f"{arena.name} has no vectorized entry point: its {copies} copies run one after another",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    bar = Progress(
        TextColumn("generation"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=settings.generations, completed=done, state="")

    def watch(generation: Generation, speed: float) -> None:
        state = f"best {generation.best:8.1f}  mean {generation.mean:8.1f}  {_rate(speed)}"
        if generation.validation is not None:
            state += f"  validation {generation.validation:.1f}"
        bar.update(task, completed=generation.number + 1, state=state)
        if not console.is_terminal:
            console.print(f"generation {generation.number:4d}  {state}", highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield watch


def _rate(speed: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if speed >= size:
            return f"{speed / size:.2f} {unit} steps/s"
    return f"{speed:.0f} steps/s"


def report(evolution: Evolution) -> None:
    """The test of the champion, the pictures, report.html, and what is in the folder."""
    from linnet.cli import report as html
    from linnet.cli.evolve.pictures import draw

    if not evolution.leads:
        return
    returns = evolution.test()
    picture = draw(evolution)
    console = Console()
    target = evolution.target
    done, wanted = evolution.curve[-1], "" if target is None else f", target {target:g}"
    lines = [
        f"{evolution.arena.name}: {done.number + 1} generations, {done.steps:,} steps",
        f"the best being returns {returns.mean():.1f} ± {returns.std():.1f} in {EPISODES} fresh episodes "
        f"(worst {returns.min():.1f}{wanted})",
    ]
    if target is not None and returns.mean() < target:
        lines.append("The target is not reached; --resume --generations N goes on.")
    columns = [field.name for field in dataclasses.fields(Generation)]
    rows = [[_shown(getattr(generation, name)) for name in columns] for generation in evolution.curve]
    parts = [
        html.paragraph("\n".join(lines)),
        html.picture(picture),
        html.heading("Every generation"),
        html.table(columns, rows),
        html.heading("How to do it again"),
        html.settings_of(evolution.settings),
        html.folded("Every number: curve.csv", (evolution.out / "curve.csv").read_text()),
    ]
    command = html.command_of("evolve", evolution.settings, evolution.out)
    page = html.write_page(evolution.out, f"linnet evolve: {evolution.arena.name}", command, parts)
    lines.append(f"\n{evolution.out}: best.safetensors, curve.csv, {picture.name}, {page.name}, state.safetensors")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"

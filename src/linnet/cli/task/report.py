"""What ``linnet task`` shows: live progress, and at the end a table, results.json and the curves."""

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from linnet._version import __version__
from linnet.checkpoint import replacing
from linnet.cli import report as html
from linnet.cli.task.learner import Learner, Point, Run, TaskSettings, Watch
from linnet.cli.task.sequences import EXAM
from linnet.cli.train.pictures import STYLE
from linnet.cli.train.settings import seeds_of
from linnet.core.palette import COLOURS

__all__ = ["report", "watching"]


@contextmanager
def watching(settings: TaskSettings) -> Iterator[Watch]:
    """Live progress on stderr: a bar for each seed; where stderr is not a terminal, a line for each."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks = {seed: bar.add_task(f"seed {seed}", total=1.0, start=False, state="") for seed in seeds_of(settings)}

    def watch(learner: Learner) -> None:
        now = learner.curve[-1]
        state = f"step {now.step}  {now.loss:.3f} {learner.task.unit}"
        state += f"  level {now.level}" if learner.task.threshold is not None else ""
        state += "" if now.cosine is None else f"  cosine {now.cosine:.2f}"
        bar.start_task(tasks[learner.seed])
        bar.update(tasks[learner.seed], completed=learner.done, state=state)
        if not console.is_terminal and learner.done == 1:
            console.print(f"seed {learner.seed}  {state}", highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield watch


def report(run: Run, learners: list[Learner]) -> None:
    """Write results.json, curves.png and report.html, and print what is in them."""
    results = results_of(run, learners)
    with replacing(run.out / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    picture = draw(run, learners)
    console = Console()
    console.print(_table(results))
    mean, std, count = results["loss"]["mean"], results["loss"]["std"], len(learners)
    spread = f"; {mean:.4g} ± {std:.2g} over {count} seeds" if count > 1 else ""
    note = f"loss: of the exam, {_answers(run)}{spread}"
    parts = [
        html.table(_columns(results), _rows(results)),
        html.paragraph(note),
        html.picture(picture),
        html.heading("How to do it again"),
        html.settings_of(run.settings),
        html.folded("Every number: results.json", (run.out / "results.json").read_text()),
    ]
    command = html.command_of("task", run.settings, run.out, argument="task")
    page = html.write_page(run.out, f"linnet task: {run.settings.task}", command, parts)
    console.print(
        f"\n{note}\n\n{run.out}: results.json, {picture.name}, {page.name}, seed*.safetensors",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _answers(run: Run) -> str:
    if run.settings.task == "text":
        return "the last 5 % of the text in one piece, bits per character"
    return f"{EXAM} fresh sequences" + ("" if run.task.threshold is None else " of the level that was reached")


def results_of(run: Run, learners: list[Learner]) -> dict[str, Any]:
    """Everything that a run found, ready for JSON."""
    losses = [loss for learner in learners if (loss := learner.loss) is not None]
    seeds = []
    for learner in learners:
        row = {name: getattr(learner, name) for name in ("seed", "step", "seconds", "level", "loss")}
        row["length"] = length_of(learner)
        seeds.append(row | {"curve": [asdict(point) for point in learner.curve]})
    return {
        "settings": asdict(run.settings),
        "unit": run.task.unit,
        "loss": {"mean": statistics.fmean(losses), "std": statistics.stdev(losses) if len(losses) > 1 else 0.0},
        "seeds": seeds,
        "linnet": __version__,
        "torch": torch.__version__,
    }


def length_of(learner: Learner) -> int | None:
    """The steps of the longest sequences that were learned, those of the level before; None without a curriculum."""
    task = learner.task
    if task.threshold is None or learner.level == task.level:
        return None
    return len(task.draw(1, learner.level - 1, torch.Generator()).input)


def _table(results: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in _columns(results):
        table.add_column(name, justify="right")
    for row in _rows(results):
        table.add_row(*row)
    return table


def _columns(results: dict[str, Any]) -> tuple[str, ...]:
    return "seed", "steps", "CPU seconds", "level", "longest learned", f"loss ({results['unit']})"


def _rows(results: dict[str, Any]) -> list[list[str]]:
    rows = []
    for row in results["seeds"]:
        length = "–" if row["length"] is None else f"{row['length']} steps"
        numbers = [str(row["seed"]), str(row["step"]), f"{row['seconds']:.1f}", str(row["level"])]
        rows.append([*numbers, length, f"{row['loss']:.4g}"])
    return rows


def draw(run: Run, learners: list[Learner]) -> Path:
    """curves.png in the run's folder."""
    path = run.out / "curves.png"
    with matplotlib.rc_context(STYLE):
        picture(run, learners).savefig(path, dpi=130)
    return path


def picture(run: Run, learners: list[Learner]) -> Figure:
    """Over steps: the loss; the level, if there is a curriculum; the cosine, if there are synthetic gradients."""
    settings = run.settings
    rows = [("loss", run.task.unit)]
    rows += [] if run.task.threshold is None else [("level", "level")]
    rows += [] if settings.decouple == "none" else [("cosine", "cosine of\nprediction and target")]
    figure = Figure(figsize=(8, 2.2 + 1.9 * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=[2, *[1] * (len(rows) - 1)])[
        :, 0
    ]
    for (name, label), axes in zip(rows, all_axes, strict=True):
        for i, learner in enumerate(learners):
            _plot(axes, name, learner.curve, f"seed {learner.seed}", COLOURS[i % len(COLOURS)])
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if name == "level":
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        elif name == "loss":
            axes.set_ylim(bottom=0)
        else:
            axes.axhline(0, color="0.6", linewidth=1)
    if run.task.threshold is not None:
        note = f"below {run.task.threshold}: next level"
        all_axes[0].axhline(run.task.threshold, color="black", linewidth=1, linestyle=":", label=note)
    all_axes[-1].set_xlabel("step")
    how = {"none": "truncated backpropagation", "dni": "DNI", "cdni": "cDNI"}[settings.decouple]
    all_axes[0].set_title(
        f"{settings.task}: {settings.cell.upper()} of {settings.hidden}, windows of {settings.window}, {how}"
    )
    if len(all_axes[0].lines) > 1:
        all_axes[0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _plot(axes: Axes, name: str, curve: list[Point], label: str, colour: str) -> None:
    shown = [(point.step, value) for point in curve if (value := getattr(point, name)) is not None]
    if not shown:
        return
    style: dict[str, Any] = {"marker": "o", "markersize": 4} if len(shown) < 20 else {}
    style |= {"drawstyle": "steps-post"} if name == "level" else {}
    axes.plot(*zip(*shown, strict=True), label=label, color=colour, linewidth=1.4, **style)

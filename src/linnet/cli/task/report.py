"""What ``linnet task`` found: the table, results.json, the curves and report.html."""

import statistics
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from linnet._version import __version__
from linnet.cli import report as html
from linnet.cli.progress import say, table
from linnet.cli.task.learner import Learner
from linnet.cli.task.pictures import draw
from linnet.cli.task.run import Run
from linnet.cli.task.sequences import TESTS


def report(run: Run, learners: list[Learner]) -> None:
    """Write results.json, curves.png and report.html, and print what was found."""
    results = results_of(run, learners)
    numbers = html.write_results(run.out / "results.json", results)
    (picture,) = draw(run, learners)
    columns = ("seed", "steps", "CPU seconds", "level", "longest learned", f"loss ({results['unit']})")
    rows = [_row(seed) for seed in results["seeds"]]
    mean, std, count = results["loss"]["mean"], results["loss"]["std"], len(learners)
    spread = f"; {mean:.4g} ± {std:.2g} over {count} seeds" if count > 1 else ""
    note = f"loss: on {_test_data(run)}{spread}"
    parts = [html.table(columns, rows), html.paragraph(note), html.picture(picture)]
    command = html.command_of("task", run.settings, run.out)
    page = html.write_report(run.out, f"linnet task: {run.settings.task}", command, parts, numbers, run.settings)
    Console().print(table(columns, rows))
    say(f"\n{note}\n\n{run.out}: {numbers.name}, {picture.name}, {page.name}, seed*.safetensors")


def _test_data(run: Run) -> str:
    if run.settings.task == "text":
        return "the last 5 % of the text in one piece, bits per character"
    return f"{TESTS} fresh sequences" + ("" if run.task.threshold is None else " of the level that was reached")


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


def _row(seed: dict[str, Any]) -> list[str]:
    length = "–" if seed["length"] is None else f"{seed['length']} steps"
    numbers = [str(seed["seed"]), str(seed["step"]), f"{seed['seconds']:.1f}", str(seed["level"])]
    return [*numbers, length, f"{seed['loss']:.4g}"]

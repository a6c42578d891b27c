"""The curves of ``linnet task``: loss, level and cosine over the steps."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linnet.cli.pictures import save_picture
from linnet.cli.task.learner import Learner, Point
from linnet.cli.task.run import Run
from linnet.core.palette import COLOURS


def draw(run: Run, learners: list[Learner]) -> list[Path]:
    """curves.png in the run's folder."""
    return save_picture(run.out / "curves.png", picture, run, learners)


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

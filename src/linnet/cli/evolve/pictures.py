"""The picture of an evolution: fitness and diversity over generations."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linnet.cli.evolve.evolution import Evolution
from linnet.cli.pictures import save_picture
from linnet.core.palette import COLOURS


def draw(evolution: Evolution) -> list[Path]:
    """evolution.png in the run's folder."""
    return save_picture(evolution.out / "evolution.png", picture, evolution)


def picture(evolution: Evolution) -> Figure:
    """Above, the best and the mean being of each generation; below, how far the beings are from each other."""
    curve, settings = evolution.curve, evolution.settings
    numbers = np.array([generation.number for generation in curve])
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    mark = "o" if len(numbers) < 20 else ""
    for name, label, colour in (("best", "best being", COLOURS[0]), ("mean", "mean of the population", COLOURS[1])):
        values = np.array([getattr(generation, name) for generation in curve])
        above.plot(numbers, values, label=label, color=colour, marker=mark, markersize=4, linewidth=1.8)
    judged = [(g.number, g.validation) for g in curve if g.validation is not None]
    if judged:
        above.plot(
            *zip(*judged, strict=True), "s", label="best candidate, fresh episodes", color=COLOURS[2], markersize=6
        )
    if evolution.target is not None:
        above.axhline(
            evolution.target, color="black", linewidth=1, linestyle=":", label=f"target, {evolution.target:g}"
        )
    above.set_ylabel("return of an episode")
    above.set_title(f"{evolution.arena.name}: {settings.beings} beings, strategy {settings.strategy}")
    above.grid(alpha=0.3)
    above.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    spread = [generation.diversity for generation in curve]
    below.plot(numbers, spread, color=COLOURS[3], marker=mark, markersize=4, linewidth=1.8)
    below.set_ylim(0, 1.15 * max([*spread, 1e-12]))
    below.set_ylabel("diversity, RMS")
    below.set_xlabel("generation")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.grid(alpha=0.3)
    return figure

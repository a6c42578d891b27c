"""What ``linnet evolve`` found: the test of the champion, the picture, report.html."""

import dataclasses

from linnet.cli import report as html
from linnet.cli.evolve.evolution import EPISODES, Evolution, Generation
from linnet.cli.evolve.pictures import draw
from linnet.cli.progress import say


def report(evolution: Evolution) -> None:
    """Test the champion, write evolution.png and report.html, and print what was found."""
    if not evolution.leads:
        return
    returns = evolution.test()
    (picture,) = draw(evolution)
    target, name = evolution.target, evolution.arena.name
    done, wanted = evolution.curve[-1], "" if target is None else f", target {target:g}"
    lines = [
        f"{name}: {done.number + 1} generations, {done.steps:,} steps",
        f"the best being returns {returns.mean():.1f} ± {returns.std():.1f} in {EPISODES} fresh episodes "
        f"(worst {returns.min():.1f}{wanted})",
    ]
    if target is not None and returns.mean() < target:
        lines.append("The target is not reached; --resume --generations N continues.")
    columns = [field.name for field in dataclasses.fields(Generation)]
    rows = [[_shown(getattr(generation, name)) for name in columns] for generation in evolution.curve]
    parts = [
        html.paragraph("\n".join(lines)),
        html.picture(picture),
        html.heading("Every generation"),
        html.table(columns, rows),
    ]
    command = html.command_of("evolve", evolution.settings, evolution.out)
    numbers = evolution.out / "curve.csv"
    page = html.write_report(evolution.out, f"linnet evolve: {name}", command, parts, numbers, evolution.settings)
    files = f"best.safetensors, curve.csv, {picture.name}, {page.name}, state.safetensors"
    say("\n".join([*lines, f"\n{evolution.out}: {files}"]))


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"

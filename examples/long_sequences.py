"""How far back a recurrent network learns to remember when gradients go back only a few steps.

    python examples/long_sequences.py run        # about an hour of one core; goes on where it was stopped
    python examples/long_sequences.py page       # long_sequences.md from what was found

Truncated backpropagation through time beside the same with a synthetic gradient at the end of each window (DNI), and
with one conditioned on the answers (cDNI). Learning rates, synthesizer and factor were chosen on seed 100.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from linnet.cli.task.learner import Learner
from linnet.cli.task.sequences import Copy
from linnet.cli.task.settings import TaskSettings

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "long_sequences.jsonl", HERE / "long_sequences.md"
SEEDS = range(5)
CHOSEN = {  # with the same number of runs for each method
    "copy": {
        "none": {"lr": 1e-4},
        "dni": {"lr": 1e-3, "synthesizer": 0, "synthesizer_lr": 3e-3, "factor": 0.3},
    },
    "recall": {
        "none": {"lr": 1e-2},
        "dni": {"lr": 1e-2, "synthesizer": 0, "synthesizer_lr": 1e-2, "factor": 1.0},
        "cdni": {"lr": 1e-2, "synthesizer": 0, "synthesizer_lr": 1e-2, "factor": 1.0},
    },
}
NAMES = {"none": "truncated BPTT", "dni": "DNI", "cdni": "cDNI"}
MARK = "<!-- from here on written by long_sequences.py -->"
PAPER = {  # window -> (truncated BPTT, DNI), the longest sequence of Copy
    2: (7, 16),
    3: (8, 14),
    4: (10, 18),
    5: (8, 18),
}


@dataclass(frozen=True)
class Job:
    """One network to train."""

    method: str
    seed: int
    options: dict[str, Any] = field(hash=False)

    @property
    def settings(self) -> TaskSettings:
        chosen = CHOSEN[self.options["task"]][self.method]
        return TaskSettings(decouple=self.method, **self.options, **chosen)

    @property
    def key(self) -> dict[str, Any]:
        return {"method": self.method, "seed": self.seed, **self.options}


def copy_jobs(windows: tuple[int, ...] = (3,), seeds: range = SEEDS, seconds: float = 60.0) -> Iterator[Job]:
    for window in windows:
        for seed in seeds:
            for method in ("none", "dni"):
                yield Job(method, seed, {"task": "copy", "window": window, "seconds": seconds})


def recall_jobs(steps: int = 2000) -> Iterator[Job]:
    for seed in SEEDS:
        for hidden in (16, 32, 64):
            for method in ("none", "dni", "cdni"):
                shape = {"window": 4, "hidden": hidden, "batch_size": 128}
                yield Job(method, seed, {"task": "recall", **shape, "steps": steps})


def run(jobs: Iterator[Job], results: Path = RESULTS, say: Callable[[str], None] = print) -> None:
    """Do what has not been done yet; a line for each network."""
    torch.set_num_threads(1)
    done = [row["job"] for row in read(results)]
    for job in jobs:
        if job.key in done:
            continue
        learner = Learner(job.settings, job.settings.make(), job.seed)
        learner.run()
        found: dict[str, Any] = {
            "job": job.key,
            "loss": learner.loss,
            "level": learner.level,
            "steps": learner.step,
            "seconds": round(learner.seconds, 1),
            "cosine": learner.curve[-1].cosine,
        }
        if isinstance(learner.task, Copy):
            found["loss of 3 rows"] = learner.test(3)
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        say(json.dumps(found))


def read(results: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def spread(values: list[float]) -> str:
    """mean ± standard deviation"""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def page(rows: list[dict[str, Any]]) -> str:
    """The tables, every run in them."""

    def of(method: str, **options: Any) -> list[dict[str, Any]]:
        wanted = {"method": method, **options}
        return [row for row in rows if wanted.items() <= row["job"].items()]

    def numbers(found: list[dict[str, Any]], name: str) -> str:
        return ", ".join(f"{row[name]:.3f}" for row in found)

    lines = ["", "## Copy, windows of 3, 60 CPU seconds each", ""]
    lines += ["| | bits at N = 3 | each seed | rows learned, each seed | steps |", "|---|---|---|---|---|"]
    for method, name in NAMES.items():
        if found := of(method, task="copy", window=3):
            bits, levels = [row["loss of 3 rows"] for row in found], [str(row["level"] - 1) for row in found]
            steps = statistics.fmean(row["steps"] for row in found)
            lines.append(
                f"| {name} | {spread(bits)} | {numbers(found, 'loss of 3 rows')} | {', '.join(levels)} | {steps:.0f} |"
            )
    lines += ["", "## Copy: the longest sequence learned in 60 CPU seconds, in steps (2N + 2)", ""]
    lines += ["| window | truncated | DNI | paper: truncated | paper: DNI |", "|---|---|---|---|---|"]
    for window, paper in PAPER.items():
        longest = []
        for method in ("none", "dni"):
            lengths = [2 * (row["level"] - 1) + 2 for row in of(method, task="copy", window=window)]
            longest.append(", ".join(str(length) for length in lengths))
        lines.append(f"| {window} | {longest[0]} | {longest[1]} | {paper[0]} | {paper[1]} |")
    lines += ["", "## Delayed recall: bits after 2000 steps, windows of 4, 12 steps to remember", ""]
    lines += ["| hidden | | bits | each seed |", "|---|---|---|---|"]
    for hidden in (16, 32, 64):
        for method, name in NAMES.items():
            if found := of(method, task="recall", hidden=hidden):
                lines.append(
                    f"| {hidden} | {name} | {spread([row['loss'] for row in found])} | {numbers(found, 'loss')} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["run"]:
        run(copy_jobs())
        run(recall_jobs())
        run(copy_jobs((2, 4, 5)))
    elif sys.argv[1:] == ["page"]:
        above = PAGE.read_text().partition(MARK)[0] if PAGE.exists() else ""
        PAGE.write_text(above + MARK + "\n" + page(read()))
    else:
        sys.exit(__doc__)

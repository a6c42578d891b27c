"""Low-rank evolution strategies beside EvoTorch's PGPE on a task of MuJoCo, at equal numbers of episodes.

python benchmarks/control.py --out benchmarks/control.md

Both search the same policies in the same environments. Each may choose among the same settings, judged on seeds that
the comparison does not use; what is compared is the center after the last generation, in fresh episodes.
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import linnet
from interleaved import deliver
from linnet.cli.evolve.environments import Arena, arena_of, word
from linnet.cli.evolve.evolution import policy_of
from linnet.cli.evolve.settings import EvolveSettings
from linnet.evolve import FlatVector, LowRank, OpenAIES

BEINGS, HIDDEN, EPISODES = 100, 32, 50
TUNING, SEEDS = (100, 101), (0, 1, 2, 3, 4)
GRID = [(sigma, rate) for sigma in (0.05, 0.15) for rate in (0.02, 0.06)]
"""Of both: the size of the noise, and the learning rate of the center."""


class Task:
    """One environment, and how many generations there are."""

    def __init__(self, name: str, generations: int) -> None:
        self.arena: Arena = arena_of(name)
        self.generations = generations

    def policy(self, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return policy_of(EvolveSettings(hidden=HIDDEN), self.arena)

    def fitness(self, population: Callable, beings: int, *key: int) -> torch.Tensor:
        """One episode of each being."""
        with torch.no_grad():
            return torch.from_numpy(self.arena.play(population, beings, 1, word(*key)).returns[:, 0]).float()

    def judge(self, policy: nn.Module, seed: int) -> float:
        """The mean return of one policy in fresh episodes."""
        with torch.no_grad():
            return float(self.arena.play(linnet.stack([policy]), 1, EPISODES, word(seed, 10**6)).returns.mean())


def low_rank(task: Task, sigma: float, rate: float, seed: int) -> Iterator[nn.Module]:
    """The center after each generation."""
    adam = partial(torch.optim.Adam, lr=rate)
    search = OpenAIES(LowRank(task.policy(seed), BEINGS), sigma=sigma, optimizer=adam, seed=seed)
    for generation in range(task.generations):
        search.tell(task.fitness(search.ask(), BEINGS, seed, generation))
        yield search.best()


def pgpe(task: Task, sigma: float, rate: float, seed: int) -> Iterator[nn.Module]:
    """The same of EvoTorch's PGPE: antithetic, ranked, with Adam, its standard deviations learned at its own rate."""
    from evotorch.algorithms import PGPE

    flat, generation = FlatVector(linnet.widen(task.policy(seed), BEINGS)), 0
    start = flat.read()[0].clone()
    problem = flat.problem(lambda nets: task.fitness(nets, BEINGS, seed, generation), seed=seed)
    search = PGPE(
        problem,
        popsize=BEINGS,
        center_learning_rate=rate,
        stdev_learning_rate=0.1,
        stdev_init=sigma,
        center_init=start,
        optimizer="adam",
        ranking_method="centered",
    )
    for generation in range(task.generations):  # noqa: B007  (the problem reads it)
        search.step()
        center = task.policy(seed)
        torch.nn.utils.vector_to_parameters(torch.as_tensor(search.status["center"]), center.parameters())
        yield center


METHODS = {"low-rank ES (linnet)": low_rank, "PGPE (EvoTorch)": pgpe}


def last(centers: Iterator[nn.Module]) -> nn.Module:
    *_, center = centers
    return center


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Reacher-v5")
    parser.add_argument("--generations", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write the page there instead of to stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    task = Task(options.env, options.generations)
    lines = [
        "# A task of MuJoCo\n",
        f"{options.env}: {BEINGS} beings, one episode each, {options.generations} generations "
        f"({BEINGS * options.generations:,} episodes), policies {task.arena.observations}-{HIDDEN}-"
        f"{task.arena.outputs}.",
        f"Each method chooses among the same {len(GRID)} settings on {len(TUNING)} seeds of its own; then seeds "
        f"{', '.join(map(str, SEEDS))}. The return of the center in {EPISODES} fresh episodes. Made by `control.py`.\n",
        "| method | σ, rate chosen | return: mean ± standard deviation | each seed |",
        "|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        start = time.perf_counter()
        scores = {}
        for setting in GRID:
            scores[setting] = np.mean([task.judge(last(method(task, *setting, seed)), seed) for seed in TUNING])
            print(f"{name} {setting}: {scores[setting]:.1f}", file=sys.stderr, flush=True)
        chosen = max(GRID, key=scores.__getitem__)
        found = np.array([task.judge(last(method(task, *chosen, seed)), seed) for seed in SEEDS])
        print(f"{name} {chosen}: {found}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        each = ", ".join(f"{value:.1f}" for value in found)
        lines.append(
            f"| {name} | {chosen[0]:g}, {chosen[1]:g} | {found.mean():.1f} ± {found.std(ddof=1):.1f} | {each} |"
        )
    text = "\n".join(lines) + "\n"
    deliver(text, options.out)


if __name__ == "__main__":
    main()

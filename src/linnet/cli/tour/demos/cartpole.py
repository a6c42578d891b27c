"""Demo: a thousand policies play CartPole and evolve, beside a loop over a thousand modules."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from linnet.cli.data.data_sets import Data
from linnet.cli.evolve.evolution import EPISODES, Evolution, EvolveSettings
from linnet.cli.tour.demos.demo import Demo, Progress
from linnet.core.palette import BLUE, GREY, ORANGE
from linnet.wide.population import unstack

BEINGS, GENERATIONS, SEEDS, STEPS = 1000, 20, (0, 1, 2), 20


class Loop:
    """The same policies as ordinary modules, called one after another."""

    def __init__(self, population: nn.Module) -> None:
        self.modules = unstack(population)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([module(x[:, i]) for i, module in enumerate(self.modules)], 1)


def speeds(evolution: Evolution) -> tuple[float, float, float]:
    """Policies evaluated in a second, by the loop and by the population, taken in turn; and how far they differ."""
    population = evolution.strategy.ask()
    players: list[Callable[[Tensor], Tensor]] = [Loop(population), population]
    x = torch.randn(1, BEINGS, evolution.arena.observations)
    best = [float("inf"), float("inf")]
    with torch.no_grad():
        difference = float((players[0](x) - players[1](x)).abs().max())
        for _ in range(STEPS):
            for i, play in enumerate(players):
                start = time.perf_counter()
                play(x)
                best[i] = min(best[i], time.perf_counter() - start)
    return BEINGS / best[0], BEINGS / best[1], difference


def run(data: Data, progress: Progress) -> Demo:
    """Holds if for every seed the champion's mean over fresh episodes is the environment's target, 475, or more.

    And if the population gives what the loop gives, at ten times its speed or more.
    """
    curves, returns, seconds = [], [], []
    with TemporaryDirectory() as folder:
        for done, seed in enumerate(SEEDS):
            start = time.perf_counter()
            evolution = Evolution(EvolveSettings(beings=BEINGS, generations=GENERATIONS, seed=seed), Path(folder))
            if done == 0:
                loop, population, difference = speeds(evolution)
                start = time.perf_counter()
            evolution.run()
            returns.append(float(evolution.test().mean()))
            seconds.append(time.perf_counter() - start)
            curves.append([(g.best, g.mean) for g in evolution.curve])
            progress((done + 1) / len(SEEDS))
    target = evolution.target or 0.0

    def draw(axes: Any) -> None:
        for i, curve in enumerate(curves):
            best, mean = zip(*curve, strict=True)
            axes.plot(best, color=BLUE, marker="o", markersize=3, label="best of 1000" if i == 0 else None)
            axes.plot(mean, color=ORANGE, marker="o", markersize=3, label="mean of 1000" if i == 0 else None)
        axes.axhline(target, color=GREY, linestyle=":", label="solved")
        axes.set(title="A thousand policies evolve on CartPole", xlabel="generation", ylabel="return")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8, loc="center right")

    return Demo(
        claim="A thousand policies play CartPole at once, and evolve",
        plain=f"a loop over nn.Sequential: {loop:,.0f} policies a second",
        linnet=f"{population:,.0f} policies a second; solved in at most {max(map(len, curves))} generations",
        holds=min(returns) >= target and population > 10 * loop and difference < 1e-5,
        note=(
            f"the best return {', '.join(f'{value:.0f}' for value in returns)} in {EPISODES} fresh episodes, seeds "
            f"{SEEDS[0]} to {SEEDS[-1]}, after {min(seconds):.1f} to {max(seconds):.1f} s of evolution"
        ),
        draw=draw,
        numbers={
            "policies_per_second": {"loop": loop, "population": population},
            "largest_difference": difference,
            "test_returns": returns,
            "seconds": seconds,
            "curves": curves,
        },
    )

"""What a run of ``linnet evolve`` is asked to do."""

import math
from dataclasses import dataclass

from linnet.cli.setting import check_settings, option


@dataclass(frozen=True)
class EvolveSettings:
    """Everything that decides the numbers of a run, bit for bit. The defaults are those of the command line.

    Raises:
        ValueError: a setting is not what it must be.
    """

    env: str = option("CartPole-v1", "Gymnasium environment.", metavar="ID")
    beings: int = option(1000, "Population size; a being is one member of the population, here one policy.", high=2**24)
    generations: int = option(100, "Number of generations.")
    strategy: str = option(
        "ga",
        "Genetic algorithm (ga), OpenAI evolution strategy (es), or the same with low-rank noise (lowrank).",
        choices=("ga", "es", "lowrank"),
    )
    episodes: int = option(2, "Number of episodes that each being plays in a generation.")
    hidden: int = option(16, "Width of the hidden layers.", high=2**20)
    depth: int = option(2, "Number of linear layers.", high=2**20)
    sigma: float | None = option(
        None, "Standard deviation of mutations (GA) or noise (ES).", shown="0.3 for ga, else 0.1"
    )
    lr: float = option(0.05, "ES: learning rate of Adam.")
    share: float = option(0.1, "GA: fraction selected as parents.", high=1)
    elites: int | None = option(
        None, "GA: number of elites copied unchanged.", low=0, shown="a tenth of the beings, at most 10"
    )
    rank: int = option(1, "Low-rank ES: rank of the noise.")
    normalize: bool = option(False, "Normalize observations by their running mean and standard deviation.")
    target: float | None = option(
        None,
        "Return of an episode at which to stop.",
        low=-math.inf,
        shown="the reward threshold of the environment",
    )
    block: int = option(500, "Number of beings whose environments share a random seed.")
    seed: int = option(0, "Random seed.", low=0)
    threads: int = option(1, "Number of CPU threads.", high=1024)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.elite_count >= self.beings:
            raise ValueError(f"`elites` must be smaller than `beings`, {self.beings}, got {self.elites}")
        if self.strategy != "ga" and (self.beings % 2 or self.block % 2):
            raise ValueError(
                f"`beings` and `block` must be even for an evolution strategy, got {self.beings} and {self.block}"
            )

    @property
    def elite_count(self) -> int:
        """``elites``, by default as many as suit the population."""
        return min(10, self.beings // 10) if self.elites is None else self.elites

    @property
    def noise(self) -> float:
        """σ, by default one that suits the strategy."""
        return {"ga": 0.3, "es": 0.1, "lowrank": 0.1}[self.strategy] if self.sigma is None else self.sigma

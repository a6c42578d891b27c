"""What a run of ``linnet evolve`` is asked to do."""

from dataclasses import dataclass

from linnet.cli.options import (
    COUNT,
    FINITE,
    FRACTION,
    POSITIVE,
    SEED,
    SIZE,
    THREADS,
    check_settings,
    one_of,
    option,
    whole,
)

__all__ = ["EvolveSettings"]


@dataclass(frozen=True)
class EvolveSettings:
    """Everything that decides the numbers of a run, bit for bit. The defaults are those of the command line.

    Raises:
        ValueError: a setting is not what it must be.
    """

    env: str = option("CartPole-v1", "Gymnasium environment.", metavar="ID")
    beings: int = option(1000, "Population size; a being is one member of the population, here one policy.", COUNT)
    generations: int = option(100, "Number of generations.", COUNT)
    strategy: str = option(
        "ga",
        "Genetic algorithm (ga), OpenAI evolution strategy (es), or the same with low-rank noise (lowrank).",
        one_of("ga", "es", "lowrank"),
    )
    episodes: int = option(2, "Number of episodes that each being plays in a generation.", COUNT)
    hidden: int = option(16, "Width of the hidden layers.", SIZE)
    depth: int = option(2, "Number of linear layers.", SIZE)
    sigma: float | None = option(
        None, "Standard deviation of mutations (GA) or noise (ES).", POSITIVE, shown="0.3 for ga, else 0.1"
    )
    lr: float = option(0.05, "ES: learning rate of Adam.", POSITIVE)
    share: float = option(0.1, "GA: fraction selected as parents.", FRACTION)
    elites: int = option(10, "GA: number of elites copied unchanged.", whole("an integer, at least 0", 0, 2**31 - 1))
    rank: int = option(1, "Low-rank ES: rank of the noise.", COUNT)
    normalize: bool = option(False, "Normalize observations by their running mean and standard deviation.")
    target: float | None = option(
        None,
        "Return of an episode at which to stop.",
        FINITE,
        shown="the reward threshold of the environment",
    )
    block: int = option(500, "Number of beings whose environments share a random seed.", COUNT)
    seed: int = option(0, "Random seed.", SEED)
    threads: int = option(1, "Number of CPU threads.", THREADS)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.elites >= self.beings:
            raise ValueError(f"`elites` must be smaller than `beings`, {self.beings}, got {self.elites}")
        if self.strategy != "ga" and (self.beings % 2 or self.block % 2):
            raise ValueError(
                f"`beings` and `block` must be even for an evolution strategy, got {self.beings} and {self.block}"
            )

    @property
    def noise(self) -> float:
        """σ, by default one that suits the strategy."""
        return {"ga": 0.3, "es": 0.1, "lowrank": 0.1}[self.strategy] if self.sigma is None else self.sigma

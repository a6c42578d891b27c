"""``linnet evolve``: a population plays a Gymnasium environment, generation after generation."""

import csv
import dataclasses
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from linnet import checkpoint
from linnet.cli.evolve.environments import Arena, Normalizer, Policy, arena_of, word
from linnet.cli.evolve.settings import EvolveSettings
from linnet.evolve import FullRank, Gaussian, GeneticAlgorithm, LowRank, OpenAIES, Shards, Strategy, Truncation
from linnet.modules.blocks import MLP
from linnet.wide.population import genes_of
from linnet.wide.widen import stack, widen

CANDIDATES = 8
EPISODES = 100
"""Of each candidate in validation, and of the best being in the test."""
PLAY, VALIDATE, TEST, DRAW = range(4)
"""What a seed is for: no episode of one is an episode of another."""


@dataclass(frozen=True)
class Generation:
    """What one generation has done: a row of curve.csv."""

    number: int  # from 0
    best: float  # fitness, which is the mean return of a being's episodes
    mean: float
    worst: float
    diversity: float  # root mean square distance of the beings' parameters from their mean
    validation: float | None  # mean return of the best candidate over fresh episodes, if it was measured
    steps: int  # environment steps so far


Watch = Callable[[Generation, float], None]
"""Called after each generation, with the environment steps per second of this one."""


def policy_of(settings: EvolveSettings, arena: Arena) -> nn.Sequential:
    """A fresh policy: linear layers with tanh between them."""
    sizes = arena.observations, settings.hidden, arena.outputs
    return nn.Sequential(*MLP(*sizes, depth=settings.depth, layer=nn.Linear, activation=nn.Tanh))


@dataclass
class Evolution:
    """One run: what is to do, and how far it is."""

    settings: EvolveSettings
    out: Path  # folder of the run
    shards: Shards | None = None  # where the population is sharded across processes
    curve: list[Generation] = field(default_factory=list)
    champion: nn.Module | None = None
    score: float = -math.inf  # of the champion, in validation
    solved: bool = False

    def __post_init__(self) -> None:
        settings, shards = self.settings, self.shards
        self.arena = arena_of(settings.env)
        # the return at which to stop
        self.target = self.arena.target if settings.target is None else settings.target
        # the beings of this process, and whether it writes and shows what all have found
        self.start, self.stop = (0, settings.beings) if shards is None else (shards.start, shards.stop)
        self.leads = shards is None or shards.rank == 0
        self.normalizer = Normalizer.fresh(self.arena.observations)
        self.strategy = self._strategy()

    def _strategy(self) -> Strategy:
        settings = self.settings
        build = partial(policy_of, settings, self.arena)
        if settings.strategy == "ga":
            seeds = [word(settings.seed, DRAW, i) for i in range(self.start, self.stop)]
            return GeneticAlgorithm(
                widen(build, len(seeds), seeds=seeds),
                selection=Truncation(settings.share, elites=settings.elite_count),
                mutation=Gaussian(settings.noise),
                seed=settings.seed,
                shards=self.shards,
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(word(settings.seed, DRAW, 0))
            center = build()
        local = self.stop - self.start
        if settings.strategy == "es":
            population: FullRank | LowRank = FullRank(center, local, first=self.start)
        else:
            population = LowRank(center, local, first=self.start, rank=settings.rank)
        adam = partial(torch.optim.Adam, lr=settings.lr)
        return OpenAIES(population, sigma=settings.noise, optimizer=adam, seed=settings.seed)

    # ------------------------------------------------------------------ one generation

    @torch.no_grad()
    def step(self) -> float:
        """Play, judge, reproduce; the environment steps per second of this generation."""
        begun, settings = time.perf_counter(), self.settings
        generation, population = self.strategy.generation, self.strategy.ask()
        normalizer = self.normalizer if settings.normalize else None
        rows, sums = [], []
        for first in range(self.start, self.stop, settings.block):
            stop = min(first + settings.block, self.stop)
            part: Policy = population.part(first - self.start, stop - self.start)  # type: ignore[operator]
            seed = word(settings.seed, PLAY, generation, first)
            outcome = self.arena.play(part, stop - first, settings.episodes, seed, normalizer)
            rows.append(torch.from_numpy(outcome.returns.mean(1)))
            seen = torch.from_numpy(np.concatenate([[outcome.seen[0]], *outcome.seen[1:]]))
            sums.append(torch.cat([seen, self._spread_of(population, first - self.start, stop - self.start)]))
        fitness, blocks = torch.cat(rows), torch.stack(sums)
        if self.shards is not None:
            fitness, blocks = self.shards.whole(fitness), self.shards.whole(blocks)
        validation = self._validate(fitness, generation)
        size = self.arena.observations
        for block in blocks.numpy():  # in their order: the same sums in one process and in many
            self.normalizer.add(block[0], block[1 : 1 + size], block[1 + size : 1 + 2 * size])
        diversity = self._diversity(blocks[:, 1 + 2 * size :])
        self.strategy.tell(fitness)
        steps = int(blocks[:, 0].sum())
        before = self.curve[-1].steps if self.curve else 0
        best, mean, worst = float(fitness.max()), float(fitness.mean()), float(fitness.min())
        self.curve.append(Generation(generation, best, mean, worst, diversity, validation, before + steps))
        return steps / (time.perf_counter() - begun)

    def _spread_of(self, population: nn.Module, start: int, stop: int) -> Tensor:
        """Σ and Σ of squares of every parameter over some beings, side by side; nothing of a strategy's noise."""
        if isinstance(self.strategy, OpenAIES):
            return torch.zeros(0, dtype=torch.float64)
        rows = torch.cat([p[start:stop].flatten(1).double() for p in genes_of(population)], 1)
        return torch.cat([rows.sum(0), rows.square().sum(0)])

    def _diversity(self, sums: Tensor) -> float:
        if isinstance(self.strategy, OpenAIES):
            return self.strategy.sigma  # E ‖ε‖² is the number of parameters, whatever the rank
        total, squares = sums.cumsum(0)[-1].chunk(2)
        beings = self.settings.beings
        return float((squares / beings - (total / beings).square()).clamp_min(0).mean().sqrt())

    def _validate(self, fitness: Tensor, generation: int) -> float | None:
        """The best candidate in fresh episodes, if the population looks as if it had solved the task, or at the end."""
        last = generation + 1 == self.settings.generations
        if not last and (self.target is None or float(fitness.max()) < self.target):
            return None
        candidates = self.strategy.candidates(fitness, CANDIDATES)
        returns = self._judge(candidates, word(self.settings.seed, VALIDATE, generation))
        scores, errors = returns.mean(1), returns.std(1, ddof=1) / math.sqrt(EPISODES)
        best = int(scores.argmax())
        if scores[best] > self.score:
            champion = candidates[best]
            self.champion = self.normalizer.fold(champion) if self.settings.normalize else champion
            self.score = float(scores[best])
            # a champion that passed by luck would fail the test: two standard errors of room
            self.solved = self.target is not None and self.score - 2 * float(errors[best]) >= self.target
        return float(scores[best])

    def _judge(self, policies: list[nn.Module], seed: int) -> np.ndarray:
        """Returns of policies in fresh episodes, (policies, episodes)."""
        normalizer = self.normalizer if self.settings.normalize else None
        return self.arena.play(stack(policies), len(policies), EPISODES, seed, normalizer).returns

    @torch.no_grad()
    def test(self) -> np.ndarray:
        """Returns of the champion in episodes that nothing was chosen by, (episodes,): read once, at the end."""
        champion = self.champion
        if champion is None:
            raise ValueError("there is no champion before a validation; run the evolution to its end")
        seed = word(self.settings.seed, TEST)
        return self.arena.play(stack([champion]), 1, EPISODES, seed).returns[0]

    # ------------------------------------------------------------------ the whole run

    def run(self, watch: Watch | None = None) -> None:
        """Generations until the task is solved or there are none left; each is on the disk before the next begins."""
        while not self.solved and self.strategy.generation < self.settings.generations:
            speed = self.step()
            self.save()
            if watch is not None:
                watch(self.curve[-1], speed)

    def save(self) -> None:
        """Write the state, the curve and the champion: each file whole or not at all."""
        state = self.strategy.state_dict()  # in every process: it is put together
        if not self.leads:
            return
        extra = {
            "settings": asdict(self.settings),
            "strategy": state,
            "normalizer": {name: torch.as_tensor(value) for name, value in asdict(self.normalizer).items()},
            "curve": [asdict(generation) for generation in self.curve],
            "champion": None if self.champion is None else self.champion.state_dict(),
            "score": self.score,
            "solved": self.solved,
        }
        path = self.out / "state.safetensors"
        checkpoint.save(nn.Identity(), path, step=self.strategy.generation, rng=False, extra=extra)
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in dataclasses.fields(Generation)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(generation) for generation in self.curve)
        with checkpoint.replacing(self.out / "curve.csv") as temporary:
            temporary.write_text(text.getvalue())
        if self.champion is not None:
            about = {"env": self.arena.name, "hidden": self.settings.hidden, "depth": self.settings.depth}
            checkpoint.save(self.champion, self.out / "best.safetensors", rng=False, extra=about)

    def restore(self) -> None:
        """Resume from what :meth:`save` has written."""
        extra = checkpoint.load(self.out / "state.safetensors", into=nn.Identity()).extra
        self.strategy.load_state_dict(extra["strategy"])
        kept = {name: value.numpy() for name, value in extra["normalizer"].items()}
        self.normalizer = Normalizer(float(kept["count"]), kept["mean"], kept["square"])
        self.curve = [Generation(**row) for row in extra["curve"]]
        self.score, self.solved = extra["score"], extra["solved"]
        if extra["champion"] is not None:
            self.champion = policy_of(self.settings, self.arena)
            self.champion.load_state_dict(extra["champion"])

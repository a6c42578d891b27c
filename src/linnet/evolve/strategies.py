"""Evolution strategies and genetic algorithms with ask and tell: ask for a population, tell its fitness.

::

    strategy = linnet.evolve.OpenAIES(linnet.evolve.LowRank(net, beings=1000), sigma=0.05)
    for generation in range(100):
        population = strategy.ask()
        strategy.tell(fitness_of(population))
    strategy.best()  # an ordinary module
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from linnet.evolve.operators import Crossover, Gaussian, Mutation, Selection, Truncation, ranking
from linnet.evolve.perturbed import Perturbed
from linnet.evolve.reproduce import mutate, reproduce
from linnet.evolve.shards import Shards
from linnet.wide.population import beings_of, single
from linnet.wide.random import bits, streams


def centered_ranks(fitness: Tensor) -> Tensor:
    """Fitness -> rank, from −1/2 (worst) to 1/2 (best), (n,) -> (n,); ties share their mean rank, NaN is worst.

    Example:
        >>> centered_ranks(torch.tensor([10.0, -3.0, 10.0, float("nan"), 99.0]))
        tensor([ 0.1250, -0.2500,  0.1250, -0.5000,  0.5000])

    Reference:
        T. Salimans et al., Evolution strategies as a scalable alternative to reinforcement learning, 2017,
        arXiv:1703.03864.
    """
    fitness = _floating(fitness)
    known = torch.where(fitness.isnan(), -torch.inf, fitness)
    ordered = known.sort().values
    first, behind = (torch.searchsorted(ordered, known, right=right) for right in (False, True))
    middle = (first + behind - 1).to(torch.float64) / 2  # the mean of the ranks first, ..., behind − 1 of equal values
    return (middle / max(1, len(fitness) - 1) - 0.5).to(fitness.dtype)


def standardized(fitness: Tensor) -> Tensor:
    """Fitness -> (f − mean) / standard deviation, (n,) -> (n,); 0 if all are equal.

    NaN and −∞ count as the worst finite fitness, ∞ as the best.

    Example:
        >>> standardized(torch.tensor([1.0, 2.0, 3.0]))
        tensor([-1.2247,  0.0000,  1.2247])
    """
    fitness = _floating(fitness)
    known = fitness[fitness.isfinite()]
    known = known if len(known) else fitness.new_zeros(1)
    wide = torch.where(fitness.isnan(), -torch.inf, fitness).clamp(known.min(), known.max()).double()
    spread = wide.std(correction=0)
    return ((wide - wide.mean()) / spread.clamp_min(1e-300)).to(fitness.dtype)


def _floating(fitness: Tensor) -> Tensor:
    if not isinstance(fitness, Tensor):
        raise TypeError(f"fitness must be a tensor, got {type(fitness).__name__}")
    return fitness if fitness.is_floating_point() else fitness.to(torch.get_default_dtype())


def generator_of(seed: int, generation: int) -> torch.Generator:
    """A generator on the CPU whose draws are a function of seed and generation alone."""
    word = int(bits(streams(torch.tensor([0]), seed, generation), 1))
    return torch.Generator().manual_seed(word & (2**63 - 1))


class Strategy(ABC):
    """Base class of the strategies; :meth:`state_dict` holds the whole state.

    Args:
        seed: seed of all draws, which are functions of seed and generation.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.generation = seed, 0

    @abstractmethod
    def ask(self) -> nn.Module:
        """The population of the current generation, to be evaluated."""

    @abstractmethod
    def tell(self, fitness: Tensor) -> None:
        """Take the fitness of every being, (beings,), higher is better, and make the next generation."""

    @abstractmethod
    def best(self) -> nn.Module:
        """The best network so far, as an independent ordinary module."""

    @abstractmethod
    def candidates(self, fitness: Tensor, count: int) -> list[nn.Module]:
        """At most ``count`` promising networks, given the fitness of the current population."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state from which the search can be resumed."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""


class GeneticAlgorithm(Strategy):
    """A genetic algorithm: selected parents have children, which are mutated copies or mixtures of them.

    Args:
        population: any module whose parts have beings; it is changed in place.
        selection: the selection of parents; None is ``Truncation(0.2, elites=1)``.
        mutation: the noise of the children; None is ``Gaussian()``.
        crossover: the mixture of two parents; None gives each child one parent.
        seed: seed of all draws.
        shards: for a population sharded across processes: ``population`` is the part of this process. :meth:`tell` then
            takes the fitness of all beings; ``tell``, ``best`` and ``state_dict`` must be called in every process.

    Example:
        >>> import linnet
        >>> nets = linnet.WideDeep(50, 4, 8, 2, 2)
        >>> search = GeneticAlgorithm(nets, mutation=Gaussian(0.1))
        >>> for generation in range(3):
        ...     search.tell(search.ask()(torch.ones(4)).sum(1).detach())
        >>> search.best()(torch.ones(4)).shape
        torch.Size([2])

    Reference:
        F. P. Such et al., Deep neuroevolution, 2017, arXiv:1712.06567.
    """

    def __init__(
        self,
        population: nn.Module,
        *,
        selection: Selection | None = None,
        mutation: Mutation | None = None,
        crossover: Crossover | None = None,
        seed: int = 0,
        shards: Shards | None = None,
    ) -> None:
        super().__init__(seed)
        self.population, self.shards = population, shards
        self.beings = beings_of(population) if shards is None else shards.beings
        self._first, self._stop = (0, self.beings) if shards is None else (shards.start, shards.stop)
        self.selection = Truncation(0.2, elites=1) if selection is None else selection
        self.mutation = Gaussian() if mutation is None else mutation
        self.crossover = crossover
        self._best: nn.Module | None = None

    def ask(self) -> nn.Module:
        return self.population

    def tell(self, fitness: Tensor) -> None:
        if fitness.shape != (self.beings,):
            raise ValueError(f"fitness must have shape ({self.beings},), got {tuple(fitness.shape)}")
        self._best = None
        fitness = fitness.detach().cpu()
        elites = self.selection.elites
        if not elites:
            self._best = self.being(int(ranking(fitness)[0]))
        generator = generator_of(self.seed, self.generation)
        parents = self.selection(fitness, generator)
        mates: dict[str, Any] = {}
        if self.crossover is not None:
            mates = {"mates": torch.cat([parents[:elites], self.selection(fitness, generator)[elites:]])}
            mates |= {"crossover": self.crossover, "generator": generator}
        reproduce(self.population, parents, **mates, shards=self.shards)
        self.generation += 1
        keep = min(elites, self._stop)  # elites from _stop on are beings of later processes
        place = {"seed": self.seed, "generation": self.generation, "keep": keep, "first": self._first}
        mutate(self.population, self.mutation, **place)

    def best(self) -> nn.Module:
        """The fittest being of the last evaluated generation; being 0 before the first."""
        return self.being(0) if self._best is None else self._best

    def candidates(self, fitness: Tensor, count: int) -> list[nn.Module]:
        """The ``count`` fittest beings."""
        return [self.being(int(i)) for i in ranking(fitness)[:count]]

    def being(self, index: int) -> nn.Module:
        """One being of the population as an independent ordinary module, in every process."""
        if self.shards is None:
            return single(self.population, index)
        holds = self.shards.start <= index < self.shards.stop
        alone = single(self.population, index - self.shards.start if holds else 0)
        with torch.no_grad():
            for tensor in (*alone.parameters(), *alone.buffers()):
                self.shards.spread(tensor, index)
        return alone

    def state_dict(self) -> dict[str, Any]:
        state = self.population.state_dict()
        if self.shards is not None:
            state = {name: self.shards.whole(rows) for name, rows in state.items()}
        return {"generation": self.generation, "population": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows = state["population"]
        if self.shards is not None:
            rows = {name: self.shards.own(tensor) for name, tensor in rows.items()}
        self.population.load_state_dict(rows)
        self.generation, self._best = state["generation"], None


ADAM = partial(torch.optim.Adam, lr=0.02)
"""The default optimizer of an evolution strategy."""


class OpenAIES(Strategy):
    """θ ← optimizer(θ, −g) with g = 1/(nσ) Σ_t shaping(f)_t ε_t, an estimated gradient of the expected fitness.

    Args:
        population: the beings around θ: ``FullRank(net, beings)`` or ``LowRank(net, beings)``.
        sigma: σ, the standard deviation of the noise.
        optimizer: called with the parameters of the network; returns the optimizer that makes the steps.
        shaping: fitness (n,) -> (n,); makes the fitness of different generations comparable.
        seed: seed of all draws.

    Raises:
        ValueError: sigma is not positive.

    Example:
        >>> from linnet.evolve import FullRank
        >>> net = nn.Linear(4, 2)
        >>> search = OpenAIES(FullRank(net, beings=50), sigma=0.1)
        >>> for generation in range(3):
        ...     search.tell(search.ask()(torch.ones(1, 1, 4)).sum((0, 2)))
        >>> search.best()(torch.ones(4)).shape
        torch.Size([2])

    Reference:
        T. Salimans et al., Evolution strategies as a scalable alternative to reinforcement learning, 2017,
        arXiv:1703.03864.
    """

    def __init__(
        self,
        population: Perturbed,
        *,
        sigma: float = 0.05,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = ADAM,
        shaping: Callable[[Tensor], Tensor] = centered_ranks,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if not isinstance(population, Perturbed):
            raise TypeError(f"population must be FullRank or LowRank, got {type(population).__name__}")
        if not 0 < sigma < torch.inf:
            raise ValueError(f"sigma must be a finite positive number, got {sigma}")
        self.population, self.sigma, self.shaping = population, sigma, shaping
        self.optimizer = optimizer(population.center.parameters())
        self._perturbed: int | None = None

    def ask(self) -> nn.Module:
        if self._perturbed != self.generation:
            self.population.perturb(self.seed, self.generation, self.sigma)
            self._perturbed = self.generation
        return self.population

    def tell(self, fitness: Tensor) -> None:
        """Take the fitness of all beings, including those that other processes evaluated, and make one step."""
        self.ask()
        shaped = self.shaping(_floating(fitness).detach())
        self.population.estimate(shaped)
        self.optimizer.step()
        self.generation += 1

    def best(self) -> nn.Module:
        """A copy of the network at the center."""
        alone = copy.deepcopy(self.population.center)
        alone.zero_grad()
        return alone

    def candidates(self, fitness: Tensor, count: int) -> list[nn.Module]:
        """The network at the center alone: the fitness is that of its perturbations."""
        return [self.best()]

    def state_dict(self) -> dict[str, Any]:
        center = self.population.center.state_dict()
        return {"generation": self.generation, "center": center, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.population.center.load_state_dict(state["center"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generation, self._perturbed = state["generation"], None

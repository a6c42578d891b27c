"""Evolution of populations: selection, crossover, mutation, strategies with ask and tell, population-based training.

A being is a member of a population. One generation is three lines::

    parents = linnet.evolve.Truncation(0.2, elites=1)(fitness, generator)
    linnet.evolve.reproduce(population, parents, optimizer)
    linnet.evolve.mutate(population, linnet.evolve.Gaussian(0.05), seed=seed, generation=generation, keep=1)

``population`` is any module whose parts have ``beings``: a LinearMap, a WideDeep, a result of :func:`linnet.widen`, or
an nn.Sequential of them.
"""

from linnet.evolve.flat import FlatVector as FlatVector
from linnet.evolve.operators import Blend as Blend
from linnet.evolve.operators import ByLayer as ByLayer
from linnet.evolve.operators import Crossover as Crossover
from linnet.evolve.operators import Gaussian as Gaussian
from linnet.evolve.operators import Mutation as Mutation
from linnet.evolve.operators import Selection as Selection
from linnet.evolve.operators import SparseGaussian as SparseGaussian
from linnet.evolve.operators import Tournament as Tournament
from linnet.evolve.operators import Truncation as Truncation
from linnet.evolve.operators import UniformCrossover as UniformCrossover
from linnet.evolve.operators import UniformMutation as UniformMutation
from linnet.evolve.operators import ranking as ranking
from linnet.evolve.pbt import PopulationBasedTraining as PopulationBasedTraining
from linnet.evolve.perturbed import FullRank as FullRank
from linnet.evolve.perturbed import LowRank as LowRank
from linnet.evolve.perturbed import Perturbed as Perturbed
from linnet.evolve.reproduce import mutate as mutate
from linnet.evolve.reproduce import reproduce as reproduce
from linnet.evolve.shards import Shards as Shards
from linnet.evolve.strategies import GeneticAlgorithm as GeneticAlgorithm
from linnet.evolve.strategies import OpenAIES as OpenAIES
from linnet.evolve.strategies import Strategy as Strategy
from linnet.evolve.strategies import centered_ranks as centered_ranks
from linnet.evolve.strategies import standardized as standardized
from linnet.wide.population import beings_of as beings_of

__all__ = [
    "Blend",
    "ByLayer",
    "Crossover",
    "FlatVector",
    "FullRank",
    "Gaussian",
    "GeneticAlgorithm",
    "LowRank",
    "Mutation",
    "OpenAIES",
    "Perturbed",
    "PopulationBasedTraining",
    "Selection",
    "Shards",
    "SparseGaussian",
    "Strategy",
    "Tournament",
    "Truncation",
    "UniformCrossover",
    "UniformMutation",
    "beings_of",
    "centered_ranks",
    "mutate",
    "ranking",
    "reproduce",
    "standardized",
]

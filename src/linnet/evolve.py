"""Evolution on the beings axis: who has children, how genes mix, how they mutate.

A generation is three lines::

    parents = linnet.evolve.Truncation(0.2, elites=1)(fitness, generator)
    linnet.evolve.reproduce(population, parents, optimizer)
    linnet.evolve.mutate(population, linnet.evolve.Gaussian(0.05), seed=seed, generation=generation, keep=1)

``population`` is any module whose parts have ``beings``: one LinearMap, a WideDeep, what :func:`linnet.widen` makes, an
nn.Sequential of them.
"""

from linnet.wide.flat import FlatVector as FlatVector
from linnet.wide.operators import Blend as Blend
from linnet.wide.operators import ByLayer as ByLayer
from linnet.wide.operators import Crossover as Crossover
from linnet.wide.operators import Gaussian as Gaussian
from linnet.wide.operators import Mutation as Mutation
from linnet.wide.operators import Selection as Selection
from linnet.wide.operators import SparseGaussian as SparseGaussian
from linnet.wide.operators import Tournament as Tournament
from linnet.wide.operators import Truncation as Truncation
from linnet.wide.operators import UniformCrossover as UniformCrossover
from linnet.wide.operators import UniformMutation as UniformMutation
from linnet.wide.operators import ranking as ranking
from linnet.wide.pbt import PopulationBasedTraining as PopulationBasedTraining
from linnet.wide.perturbed import FullRank as FullRank
from linnet.wide.perturbed import LowRank as LowRank
from linnet.wide.perturbed import Perturbed as Perturbed
from linnet.wide.population import beings_of as beings_of
from linnet.wide.population import mutate as mutate
from linnet.wide.population import reproduce as reproduce
from linnet.wide.sharding import Shards as Shards
from linnet.wide.strategies import GeneticAlgorithm as GeneticAlgorithm
from linnet.wide.strategies import OpenAIES as OpenAIES
from linnet.wide.strategies import Strategy as Strategy
from linnet.wide.strategies import centered_ranks as centered_ranks
from linnet.wide.strategies import standardized as standardized

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

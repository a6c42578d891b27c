"""Many networks at once, along the beings axis."""

from linnet.wide.evolve import Blend as Blend
from linnet.wide.evolve import ByLayer as ByLayer
from linnet.wide.evolve import Crossover as Crossover
from linnet.wide.evolve import Gaussian as Gaussian
from linnet.wide.evolve import Mutation as Mutation
from linnet.wide.evolve import Selection as Selection
from linnet.wide.evolve import SparseGaussian as SparseGaussian
from linnet.wide.evolve import Tournament as Tournament
from linnet.wide.evolve import Truncation as Truncation
from linnet.wide.evolve import UniformCrossover as UniformCrossover
from linnet.wide.evolve import UniformMutation as UniformMutation
from linnet.wide.evolve import beings_of as beings_of
from linnet.wide.evolve import mutate as mutate
from linnet.wide.evolve import ranking as ranking
from linnet.wide.evolve import reproduce as reproduce
from linnet.wide.layer import WideDeep as WideDeep
from linnet.wide.layer import WideLinear as WideLinear
from linnet.wide.losses import per_being as per_being
from linnet.wide.optim import WideAdam as WideAdam
from linnet.wide.optim import WideAdamW as WideAdamW
from linnet.wide.optim import WideOptimizer as WideOptimizer
from linnet.wide.optim import WideSGD as WideSGD
from linnet.wide.optim import clip_beings_ as clip_beings_

__all__ = [
    "Blend",
    "ByLayer",
    "Crossover",
    "Gaussian",
    "Mutation",
    "Selection",
    "SparseGaussian",
    "Tournament",
    "Truncation",
    "UniformCrossover",
    "UniformMutation",
    "WideAdam",
    "WideAdamW",
    "WideDeep",
    "WideLinear",
    "WideOptimizer",
    "WideSGD",
    "beings_of",
    "clip_beings_",
    "mutate",
    "per_being",
    "ranking",
    "reproduce",
]

"""Populations: many networks evaluated and trained at once; a member of a population is called a being."""

from linnet.wide.losses import per_being as per_being
from linnet.wide.optim import WideAdam as WideAdam
from linnet.wide.optim import WideAdamW as WideAdamW
from linnet.wide.optim import WideOptimizer as WideOptimizer
from linnet.wide.optim import WideSGD as WideSGD
from linnet.wide.optim import clip_beings_ as clip_beings_
from linnet.wide.population import single as single
from linnet.wide.population import unstack as unstack
from linnet.wide.wide_deep import WideDeep as WideDeep
from linnet.wide.wide_linear import WideLinear as WideLinear
from linnet.wide.widen import Wide as Wide
from linnet.wide.widen import stack as stack
from linnet.wide.widen import widen as widen

__all__ = [
    "Wide",
    "WideAdam",
    "WideAdamW",
    "WideDeep",
    "WideLinear",
    "WideOptimizer",
    "WideSGD",
    "clip_beings_",
    "per_being",
    "single",
    "stack",
    "unstack",
    "widen",
]

"""Many networks at once, along the beings axis."""

from linnet.wide import evolve as evolve
from linnet.wide.layer import WideDeep as WideDeep
from linnet.wide.layer import WideLinear as WideLinear
from linnet.wide.losses import per_being as per_being
from linnet.wide.optim import WideAdam as WideAdam
from linnet.wide.optim import WideAdamW as WideAdamW
from linnet.wide.optim import WideOptimizer as WideOptimizer
from linnet.wide.optim import WideSGD as WideSGD
from linnet.wide.optim import clip_beings_ as clip_beings_

__all__ = [
    "WideAdam",
    "WideAdamW",
    "WideDeep",
    "WideLinear",
    "WideOptimizer",
    "WideSGD",
    "clip_beings_",
    "evolve",
    "per_being",
]

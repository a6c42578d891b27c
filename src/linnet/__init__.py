"""linnet: the linear layer in all its forms. This file is the table of contents.

The names of ``maps``, ``sparse``, ``wide`` and ``decoupled`` are listed in those packages.
"""

from linnet import _version, decoupled, maps, sparse, wide
from linnet import evolve as evolve
from linnet.checkpoint import info as info
from linnet.checkpoint import load as load
from linnet.checkpoint import save as save
from linnet.checkpoint.sharded import load_sharded as load_sharded
from linnet.checkpoint.sharded import save_sharded as save_sharded
from linnet.convert.bake import bake as bake
from linnet.convert.constrain import Constrained as Constrained
from linnet.convert.constrain import constrain as constrain
from linnet.convert.onnx import to_onnx as to_onnx
from linnet.convert.replace import replace as replace
from linnet.convert.sparsify import sparsify as sparsify
from linnet.core.being import Being as Being
from linnet.core.being import Spread as Spread
from linnet.core.catalogue import catalogue as catalogue
from linnet.core.catalogue import find_layer as find_layer
from linnet.core.frozen import Materialized as Materialized
from linnet.core.frozen import cached as cached
from linnet.core.frozen import frozen as frozen
from linnet.core.linear import Linear as Linear
from linnet.core.linear_map import LinearMap as LinearMap
from linnet.core.measures import penalty as penalty
from linnet.core.measures import tolerance as tolerance
from linnet.core.measures import violation as violation
from linnet.decoupled import *
from linnet.inspection.describe import describe as describe
from linnet.inspection.diagram import diagram as diagram
from linnet.inspection.log import log as log
from linnet.maps import *
from linnet.modules.blocks import MLP as MLP
from linnet.modules.blocks import FixedRandom as FixedRandom
from linnet.modules.blocks import Parallel as Parallel
from linnet.modules.blocks import Repeat as Repeat
from linnet.modules.blocks import Residual as Residual
from linnet.modules.pointwise import Pointwise as Pointwise
from linnet.modules.recurrent import RNN as RNN
from linnet.modules.recurrent import RNNCell as RNNCell
from linnet.modules.weight_decay import matrix_decay as matrix_decay
from linnet.modules.weight_decay import param_groups as param_groups
from linnet.sparse import *
from linnet.wide import *

__version__ = _version.__version__

__all__ = [
    "MLP",
    "RNN",
    "Being",
    "Constrained",
    "FixedRandom",
    "Linear",
    "LinearMap",
    "Materialized",
    "Parallel",
    "Pointwise",
    "RNNCell",
    "Repeat",
    "Residual",
    "Spread",
    "bake",
    "cached",
    "catalogue",
    "constrain",
    "describe",
    "diagram",
    "evolve",
    "find_layer",
    "frozen",
    "info",
    "load",
    "load_sharded",
    "log",
    "matrix_decay",
    "param_groups",
    "penalty",
    "replace",
    "save",
    "save_sharded",
    "sparsify",
    "to_onnx",
    "tolerance",
    "violation",
]
__all__ += decoupled.__all__
__all__ += maps.__all__
__all__ += sparse.__all__
__all__ += wide.__all__

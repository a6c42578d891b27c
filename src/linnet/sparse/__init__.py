"""Sparse layers: connectivity, dynamic sparse training, and products whose cost is that of the connections.

What ``__all__`` lists is in linnet too; the rest is in this name space alone: ``linnet.sparse.small_world``.
"""

from linnet.sparse.activations import ActivationSparsity as ActivationSparsity
from linnet.sparse.activations import KWinners as KWinners
from linnet.sparse.data_parallel import share_wiring as share_wiring
from linnet.sparse.dynamic.rewiring import Rewiring as Rewiring
from linnet.sparse.dynamic.rewiring import Update as Update
from linnet.sparse.dynamic.rules import GSE as GSE
from linnet.sparse.dynamic.rules import SET as SET
from linnet.sparse.dynamic.rules import GradualMagnitude as GradualMagnitude
from linnet.sparse.dynamic.rules import RigL as RigL
from linnet.sparse.dynamic.rules import Rule as Rule
from linnet.sparse.dynamic.update import Move as Move
from linnet.sparse.linear import SparseLinear as SparseLinear
from linnet.sparse.metrics import SmallWorldness as SmallWorldness
from linnet.sparse.metrics import degrees as degrees
from linnet.sparse.metrics import small_world as small_world
from linnet.sparse.plots import Snapshots as Snapshots
from linnet.sparse.plots import plot_connectivity as plot_connectivity
from linnet.sparse.plots import plot_degrees as plot_degrees
from linnet.sparse.plots import plot_growth as plot_growth
from linnet.sparse.wiring.blocks import Blocks as Blocks
from linnet.sparse.wiring.constant_fan_in import ConstantFanIn as ConstantFanIn
from linnet.sparse.wiring.erdos_renyi import ErdosRenyi as ErdosRenyi
from linnet.sparse.wiring.nm import NM as NM
from linnet.sparse.wiring.small_world import SmallWorld as SmallWorld
from linnet.sparse.wiring.uniform import Uniform as Uniform
from linnet.sparse.wiring.wiring import Wiring as Wiring

__all__ = [
    "GSE",
    "NM",
    "SET",
    "ActivationSparsity",
    "Blocks",
    "ConstantFanIn",
    "ErdosRenyi",
    "GradualMagnitude",
    "KWinners",
    "Move",
    "Rewiring",
    "RigL",
    "Rule",
    "SmallWorld",
    "SparseLinear",
    "Uniform",
    "Update",
    "Wiring",
]

"""Maps with few connections: where these start and how they move, and products whose cost is theirs alone."""

from linnet.sparse.layer import SparseLinear as SparseLinear
from linnet.sparse.moving import Move as Move
from linnet.sparse.parallel import share_wiring as share_wiring
from linnet.sparse.rewiring import Rewiring as Rewiring
from linnet.sparse.rewiring import Update as Update
from linnet.sparse.rules import GSE as GSE
from linnet.sparse.rules import SET as SET
from linnet.sparse.rules import GradualMagnitude as GradualMagnitude
from linnet.sparse.rules import RigL as RigL
from linnet.sparse.rules import Rule as Rule
from linnet.sparse.wiring import Uniform as Uniform
from linnet.sparse.wiring import Wiring as Wiring

__all__ = [
    "GSE",
    "SET",
    "GradualMagnitude",
    "Move",
    "Rewiring",
    "RigL",
    "Rule",
    "SparseLinear",
    "Uniform",
    "Update",
    "Wiring",
    "share_wiring",
]

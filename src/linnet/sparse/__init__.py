"""Maps with few connections: where these start, and products whose cost is theirs alone."""

from linnet.sparse.layer import SparseLinear as SparseLinear
from linnet.sparse.wiring import Uniform as Uniform
from linnet.sparse.wiring import Wiring as Wiring

__all__ = ["SparseLinear", "Uniform", "Wiring"]

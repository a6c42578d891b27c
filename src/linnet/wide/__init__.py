"""Many networks at once, along the beings axis."""

from linnet.wide.layer import WideDeep as WideDeep
from linnet.wide.layer import WideLinear as WideLinear
from linnet.wide.losses import per_being as per_being

__all__ = ["WideDeep", "WideLinear", "per_being"]

"""linnet: the linear layer in all its forms. This file is the table of contents."""

from linnet.beings import Being as Being
from linnet.beings import Spread as Spread
from linnet.linear import Linear as Linear
from linnet.linear import LinearMap as LinearMap
from linnet.linear import catalogue as catalogue
from linnet.linear import penalty as penalty
from linnet.linear import tolerance as tolerance
from linnet.linear import violation as violation

__version__ = "0.1.0"

"""linnet: the linear layer in all its forms. This file is the table of contents."""

from linnet.beings import Being as Being
from linnet.beings import Spread as Spread
from linnet.catalogue import catalogue as catalogue
from linnet.catalogue import find_layer as find_layer
from linnet.linear import Linear as Linear
from linnet.linear import LinearMap as LinearMap
from linnet.linear import penalty as penalty
from linnet.linear import tolerance as tolerance
from linnet.linear import violation as violation
from linnet.maps import IdentityLinear as IdentityLinear
from linnet.maps import OrthogonalLinear as OrthogonalLinear
from linnet.maps import RightStochasticLinear as RightStochasticLinear
from linnet.maps import SymmetricLinear as SymmetricLinear
from linnet.maps import householder_product as householder_product

__version__ = "0.1.0"

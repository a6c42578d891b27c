"""Maps with a guaranteed structure: one file per family of matrices, maths on top, classes below."""

from linnet.maps.fast import IdentityLinear as IdentityLinear
from linnet.maps.orthogonal import OrthogonalLinear as OrthogonalLinear
from linnet.maps.orthogonal import householder_product as householder_product
from linnet.maps.positive import RightStochasticLinear as RightStochasticLinear
from linnet.maps.symmetric import SymmetricLinear as SymmetricLinear

__all__ = [
    "IdentityLinear",
    "OrthogonalLinear",
    "RightStochasticLinear",
    "SymmetricLinear",
    "householder_product",
]

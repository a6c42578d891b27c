"""Maps with a guaranteed structure: one file per family of matrices, maths on top, classes below."""

from linnet.maps.butterfly import ButterflyLinear as ButterflyLinear
from linnet.maps.circulant import CirculantLinear as CirculantLinear
from linnet.maps.fast import IdentityLinear as IdentityLinear
from linnet.maps.free import IdentityInitLinear as IdentityInitLinear
from linnet.maps.gershgorin import GershgorinLinear as GershgorinLinear
from linnet.maps.hurwitz import HurwitzLinear as HurwitzLinear
from linnet.maps.monarch import MonarchLinear as MonarchLinear
from linnet.maps.nonnegative import DiagonallyDominantLinear as DiagonallyDominantLinear
from linnet.maps.nonnegative import NonNegativeLinear as NonNegativeLinear
from linnet.maps.nonnegative import SplitLinear as SplitLinear
from linnet.maps.nonnegative import relu_straight_through as relu_straight_through
from linnet.maps.norms import BoundedNormLinear as BoundedNormLinear
from linnet.maps.norms import ContractiveLinear as ContractiveLinear
from linnet.maps.orthogonal import OrthogonalLinear as OrthogonalLinear
from linnet.maps.positive import RightStochasticLinear as RightStochasticLinear
from linnet.maps.power import SoftPowerBoundLinear as SoftPowerBoundLinear
from linnet.maps.psd import PSDLinear as PSDLinear
from linnet.maps.rank import LowRankLinear as LowRankLinear
from linnet.maps.rank import TrivialNullSpaceLinear as TrivialNullSpaceLinear
from linnet.maps.reflections import householder_product as householder_product
from linnet.maps.schur import SchurDecompositionLinear as SchurDecompositionLinear
from linnet.maps.shrinking import L0Linear as L0Linear
from linnet.maps.shrinking import LassoLinear as LassoLinear
from linnet.maps.shrinking import LassoLinearRELU as LassoLinearRELU
from linnet.maps.skew import DampedSkewSymmetricLinear as DampedSkewSymmetricLinear
from linnet.maps.skew import SkewSymmetricLinear as SkewSymmetricLinear
from linnet.maps.spectral import SpectralLinear as SpectralLinear
from linnet.maps.spectral import SymmetricSpectralLinear as SymmetricSpectralLinear
from linnet.maps.spectral import SymmetricSVDLinear as SymmetricSVDLinear
from linnet.maps.split import StableSplitLinear as StableSplitLinear
from linnet.maps.stable import PowerBoundLinear as PowerBoundLinear
from linnet.maps.stable import SchurStableLinear as SchurStableLinear
from linnet.maps.stiefel import StiefelLinear as StiefelLinear
from linnet.maps.stochastic import DoublyStochasticLinear as DoublyStochasticLinear
from linnet.maps.stochastic import LeftStochasticLinear as LeftStochasticLinear
from linnet.maps.stochastic import PerronFrobeniusLinear as PerronFrobeniusLinear
from linnet.maps.structured import BlockDiagonalLinear as BlockDiagonalLinear
from linnet.maps.structured import KroneckerLinear as KroneckerLinear
from linnet.maps.svd import SVDLinear as SVDLinear
from linnet.maps.svd import SVDLinearLearnBounds as SVDLinearLearnBounds
from linnet.maps.symmetric import SymmetricLinear as SymmetricLinear
from linnet.maps.symplectic import HamiltonianLinear as HamiltonianLinear
from linnet.maps.symplectic import SymplecticLinear as SymplecticLinear

__all__ = [
    "BlockDiagonalLinear",
    "BoundedNormLinear",
    "ButterflyLinear",
    "CirculantLinear",
    "ContractiveLinear",
    "DampedSkewSymmetricLinear",
    "DiagonallyDominantLinear",
    "DoublyStochasticLinear",
    "GershgorinLinear",
    "HamiltonianLinear",
    "HurwitzLinear",
    "IdentityInitLinear",
    "IdentityLinear",
    "KroneckerLinear",
    "L0Linear",
    "LassoLinear",
    "LassoLinearRELU",
    "LeftStochasticLinear",
    "LowRankLinear",
    "MonarchLinear",
    "NonNegativeLinear",
    "OrthogonalLinear",
    "PSDLinear",
    "PerronFrobeniusLinear",
    "PowerBoundLinear",
    "RightStochasticLinear",
    "SVDLinear",
    "SVDLinearLearnBounds",
    "SchurDecompositionLinear",
    "SchurStableLinear",
    "SkewSymmetricLinear",
    "SoftPowerBoundLinear",
    "SpectralLinear",
    "SplitLinear",
    "StableSplitLinear",
    "StiefelLinear",
    "SymmetricLinear",
    "SymmetricSVDLinear",
    "SymmetricSpectralLinear",
    "SymplecticLinear",
    "TrivialNullSpaceLinear",
    "householder_product",
    "relu_straight_through",
]

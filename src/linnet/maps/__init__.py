"""Maps with a stated structure: one file a class, named as the catalogue names it; shared mathematics in math/."""

from linnet.maps.block_diagonal import BlockDiagonalLinear as BlockDiagonalLinear
from linnet.maps.bounded_norm import BoundedNormLinear as BoundedNormLinear
from linnet.maps.butterfly import ButterflyLinear as ButterflyLinear
from linnet.maps.circulant import CirculantLinear as CirculantLinear
from linnet.maps.contractive import ContractiveLinear as ContractiveLinear
from linnet.maps.damped_skew_symmetric import DampedSkewSymmetricLinear as DampedSkewSymmetricLinear
from linnet.maps.diagonally_dominant import DiagonallyDominantLinear as DiagonallyDominantLinear
from linnet.maps.doubly_stochastic import DoublyStochasticLinear as DoublyStochasticLinear
from linnet.maps.gershgorin import GershgorinLinear as GershgorinLinear
from linnet.maps.hamiltonian import HamiltonianLinear as HamiltonianLinear
from linnet.maps.hurwitz import HurwitzLinear as HurwitzLinear
from linnet.maps.identity import IdentityLinear as IdentityLinear
from linnet.maps.identity_init import IdentityInitLinear as IdentityInitLinear
from linnet.maps.kronecker import KroneckerLinear as KroneckerLinear
from linnet.maps.l0 import L0Linear as L0Linear
from linnet.maps.lasso import LassoLinear as LassoLinear
from linnet.maps.lasso import LassoLinearRELU as LassoLinearRELU
from linnet.maps.left_stochastic import LeftStochasticLinear as LeftStochasticLinear
from linnet.maps.low_rank import LowRankLinear as LowRankLinear
from linnet.maps.math.householder import householder_product as householder_product
from linnet.maps.math.relu_straight_through import relu_straight_through as relu_straight_through
from linnet.maps.monarch import MonarchLinear as MonarchLinear
from linnet.maps.non_negative import NonNegativeLinear as NonNegativeLinear
from linnet.maps.orthogonal import OrthogonalLinear as OrthogonalLinear
from linnet.maps.perron_frobenius import PerronFrobeniusLinear as PerronFrobeniusLinear
from linnet.maps.power_bound import PowerBoundLinear as PowerBoundLinear
from linnet.maps.psd import PSDLinear as PSDLinear
from linnet.maps.right_stochastic import RightStochasticLinear as RightStochasticLinear
from linnet.maps.schur_decomposition import SchurDecompositionLinear as SchurDecompositionLinear
from linnet.maps.schur_stable import SchurStableLinear as SchurStableLinear
from linnet.maps.skew_symmetric import SkewSymmetricLinear as SkewSymmetricLinear
from linnet.maps.soft_power_bound import SoftPowerBoundLinear as SoftPowerBoundLinear
from linnet.maps.spectral import SpectralLinear as SpectralLinear
from linnet.maps.split import SplitLinear as SplitLinear
from linnet.maps.stable_split import StableSplitLinear as StableSplitLinear
from linnet.maps.stiefel import StiefelLinear as StiefelLinear
from linnet.maps.svd import SVDLinear as SVDLinear
from linnet.maps.svd_learn_bounds import SVDLinearLearnBounds as SVDLinearLearnBounds
from linnet.maps.symmetric import SymmetricLinear as SymmetricLinear
from linnet.maps.symmetric_spectral import SymmetricSpectralLinear as SymmetricSpectralLinear
from linnet.maps.symmetric_svd import SymmetricSVDLinear as SymmetricSVDLinear
from linnet.maps.symplectic import SymplecticLinear as SymplecticLinear
from linnet.maps.trivial_null_space import TrivialNullSpaceLinear as TrivialNullSpaceLinear

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

"""neuromancer.slim, name for name: ``import linnet.compat.slim as slim``."""

import linnet.compat.slim as slim  # for "from neuromancer.slim import slim" in neuromancer's examples
from linnet.compat.slim import butterfly as butterfly
from linnet.compat.slim import linear as linear
from linnet.compat.slim import rnn as rnn
from linnet.compat.slim.linear import BoundedNormLinear as BoundedNormLinear
from linnet.compat.slim.linear import Butterfly as Butterfly
from linnet.compat.slim.linear import ButterflyLinear as ButterflyLinear
from linnet.compat.slim.linear import DampedSkewSymmetricLinear as DampedSkewSymmetricLinear
from linnet.compat.slim.linear import GershgorinLinear as GershgorinLinear
from linnet.compat.slim.linear import Hprod as Hprod
from linnet.compat.slim.linear import IdentityGradReLU as IdentityGradReLU
from linnet.compat.slim.linear import IdentityInitLinear as IdentityInitLinear
from linnet.compat.slim.linear import IdentityLinear as IdentityLinear
from linnet.compat.slim.linear import L0Linear as L0Linear
from linnet.compat.slim.linear import LassoLinear as LassoLinear
from linnet.compat.slim.linear import LassoLinearRELU as LassoLinearRELU
from linnet.compat.slim.linear import LeftStochasticLinear as LeftStochasticLinear
from linnet.compat.slim.linear import Linear as Linear
from linnet.compat.slim.linear import LinearBase as LinearBase
from linnet.compat.slim.linear import NonNegativeLinear as NonNegativeLinear
from linnet.compat.slim.linear import OrthogonalLinear as OrthogonalLinear
from linnet.compat.slim.linear import PerronFrobeniusLinear as PerronFrobeniusLinear
from linnet.compat.slim.linear import PowerBoundLinear as PowerBoundLinear
from linnet.compat.slim.linear import PSDLinear as PSDLinear
from linnet.compat.slim.linear import RightStochasticLinear as RightStochasticLinear
from linnet.compat.slim.linear import SchurDecompositionLinear as SchurDecompositionLinear
from linnet.compat.slim.linear import SkewSymmetricLinear as SkewSymmetricLinear
from linnet.compat.slim.linear import SpectralLinear as SpectralLinear
from linnet.compat.slim.linear import SplitLinear as SplitLinear
from linnet.compat.slim.linear import SquareLinear as SquareLinear
from linnet.compat.slim.linear import StableSplitLinear as StableSplitLinear
from linnet.compat.slim.linear import SVDLinear as SVDLinear
from linnet.compat.slim.linear import SVDLinearLearnBounds as SVDLinearLearnBounds
from linnet.compat.slim.linear import SymmetricLinear as SymmetricLinear
from linnet.compat.slim.linear import SymmetricSpectralLinear as SymmetricSpectralLinear
from linnet.compat.slim.linear import SymmetricSVDLinear as SymmetricSVDLinear
from linnet.compat.slim.linear import SymplecticLinear as SymplecticLinear
from linnet.compat.slim.linear import TrivialNullSpaceLinear as TrivialNullSpaceLinear
from linnet.compat.slim.linear import maps as maps
from linnet.compat.slim.linear import square_maps as square_maps
from linnet.compat.slim.linear import tall_maps as tall_maps
from linnet.compat.slim.rnn import RNN as RNN
from linnet.compat.slim.rnn import RNNCell as RNNCell

__all__ = [
    "RNN",
    "BoundedNormLinear",
    "Butterfly",
    "ButterflyLinear",
    "DampedSkewSymmetricLinear",
    "GershgorinLinear",
    "Hprod",
    "IdentityGradReLU",
    "IdentityInitLinear",
    "IdentityLinear",
    "L0Linear",
    "LassoLinear",
    "LassoLinearRELU",
    "LeftStochasticLinear",
    "Linear",
    "LinearBase",
    "NonNegativeLinear",
    "OrthogonalLinear",
    "PSDLinear",
    "PerronFrobeniusLinear",
    "PowerBoundLinear",
    "RNNCell",
    "RightStochasticLinear",
    "SVDLinear",
    "SVDLinearLearnBounds",
    "SchurDecompositionLinear",
    "SkewSymmetricLinear",
    "SpectralLinear",
    "SplitLinear",
    "SquareLinear",
    "StableSplitLinear",
    "SymmetricLinear",
    "SymmetricSVDLinear",
    "SymmetricSpectralLinear",
    "SymplecticLinear",
    "TrivialNullSpaceLinear",
    "butterfly",
    "linear",
    "maps",
    "rnn",
    "slim",
    "square_maps",
    "tall_maps",
]

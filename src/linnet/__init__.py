"""linnet: the linear layer in all its forms. This file is the table of contents."""

from linnet.beings import Being as Being
from linnet.beings import Spread as Spread
from linnet.blocks import MLP as MLP
from linnet.catalogue import catalogue as catalogue
from linnet.catalogue import find_layer as find_layer
from linnet.checkpoint import info as info
from linnet.checkpoint import load as load
from linnet.checkpoint import save as save
from linnet.convert import bake as bake
from linnet.convert import replace as replace
from linnet.convert import to_onnx as to_onnx
from linnet.decoupled import DNI as DNI
from linnet.decoupled import LinearSynthesizer as LinearSynthesizer
from linnet.decoupled import Synthesizer as Synthesizer
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
from linnet.sparse import SparseLinear as SparseLinear
from linnet.sparse import Uniform as Uniform
from linnet.wide import WideDeep as WideDeep
from linnet.wide import WideLinear as WideLinear
from linnet.wide import per_being as per_being

__version__ = "0.1.0"

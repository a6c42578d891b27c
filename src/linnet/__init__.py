"""linnet: the linear layer in all its forms. This file is the table of contents."""

from linnet import _version
from linnet import evolve as evolve
from linnet.checkpoint import info as info
from linnet.checkpoint import load as load
from linnet.checkpoint import save as save
from linnet.checkpoint.sharded import load_sharded as load_sharded
from linnet.checkpoint.sharded import save_sharded as save_sharded
from linnet.convert.bake import bake as bake
from linnet.convert.constrain import Constrained as Constrained
from linnet.convert.constrain import constrain as constrain
from linnet.convert.onnx import to_onnx as to_onnx
from linnet.convert.replace import replace as replace
from linnet.convert.sparsify import sparsify as sparsify
from linnet.core.being import Being as Being
from linnet.core.being import Spread as Spread
from linnet.core.catalogue import catalogue as catalogue
from linnet.core.catalogue import find_layer as find_layer
from linnet.core.frozen import Materialized as Materialized
from linnet.core.frozen import cached as cached
from linnet.core.frozen import frozen as frozen
from linnet.core.linear import Linear as Linear
from linnet.core.linear_map import LinearMap as LinearMap
from linnet.core.measures import penalty as penalty
from linnet.core.measures import tolerance as tolerance
from linnet.core.measures import violation as violation
from linnet.decoupled import DNI as DNI
from linnet.decoupled import Backprop as Backprop
from linnet.decoupled import BatchNormSynthesizer as BatchNormSynthesizer
from linnet.decoupled import ConvSynthesizer as ConvSynthesizer
from linnet.decoupled import Delayed as Delayed
from linnet.decoupled import DirectFeedback as DirectFeedback
from linnet.decoupled import LeastSquaresSynthesizer as LeastSquaresSynthesizer
from linnet.decoupled import LinearSynthesizer as LinearSynthesizer
from linnet.decoupled import LocalLoss as LocalLoss
from linnet.decoupled import LowRankSynthesizer as LowRankSynthesizer
from linnet.decoupled import MLPSynthesizer as MLPSynthesizer
from linnet.decoupled import Pipeline as Pipeline
from linnet.decoupled import RecurrentSynthesizer as RecurrentSynthesizer
from linnet.decoupled import SigmoidSynthesizer as SigmoidSynthesizer
from linnet.decoupled import Source as Source
from linnet.decoupled import Synthesizer as Synthesizer
from linnet.decoupled import Synthetic as Synthetic
from linnet.decoupled import TruncatedBPTT as TruncatedBPTT
from linnet.decoupled import Unlocked as Unlocked
from linnet.decoupled import activation_memory as activation_memory
from linnet.decoupled import plot_diagnostics as plot_diagnostics
from linnet.decoupled import share_sources as share_sources
from linnet.inspection.describe import describe as describe
from linnet.inspection.diagram import diagram as diagram
from linnet.inspection.log import log as log
from linnet.maps import BlockDiagonalLinear as BlockDiagonalLinear
from linnet.maps import BoundedNormLinear as BoundedNormLinear
from linnet.maps import ButterflyLinear as ButterflyLinear
from linnet.maps import CirculantLinear as CirculantLinear
from linnet.maps import ContractiveLinear as ContractiveLinear
from linnet.maps import DampedSkewSymmetricLinear as DampedSkewSymmetricLinear
from linnet.maps import DiagonallyDominantLinear as DiagonallyDominantLinear
from linnet.maps import DoublyStochasticLinear as DoublyStochasticLinear
from linnet.maps import GershgorinLinear as GershgorinLinear
from linnet.maps import HamiltonianLinear as HamiltonianLinear
from linnet.maps import HurwitzLinear as HurwitzLinear
from linnet.maps import IdentityInitLinear as IdentityInitLinear
from linnet.maps import IdentityLinear as IdentityLinear
from linnet.maps import KroneckerLinear as KroneckerLinear
from linnet.maps import L0Linear as L0Linear
from linnet.maps import LassoLinear as LassoLinear
from linnet.maps import LassoLinearRELU as LassoLinearRELU
from linnet.maps import LeftStochasticLinear as LeftStochasticLinear
from linnet.maps import LowRankLinear as LowRankLinear
from linnet.maps import MonarchLinear as MonarchLinear
from linnet.maps import NonNegativeLinear as NonNegativeLinear
from linnet.maps import OrthogonalLinear as OrthogonalLinear
from linnet.maps import PerronFrobeniusLinear as PerronFrobeniusLinear
from linnet.maps import PowerBoundLinear as PowerBoundLinear
from linnet.maps import PSDLinear as PSDLinear
from linnet.maps import RightStochasticLinear as RightStochasticLinear
from linnet.maps import SchurDecompositionLinear as SchurDecompositionLinear
from linnet.maps import SchurStableLinear as SchurStableLinear
from linnet.maps import SkewSymmetricLinear as SkewSymmetricLinear
from linnet.maps import SoftPowerBoundLinear as SoftPowerBoundLinear
from linnet.maps import SpectralLinear as SpectralLinear
from linnet.maps import SplitLinear as SplitLinear
from linnet.maps import StableSplitLinear as StableSplitLinear
from linnet.maps import StiefelLinear as StiefelLinear
from linnet.maps import SVDLinear as SVDLinear
from linnet.maps import SVDLinearLearnBounds as SVDLinearLearnBounds
from linnet.maps import SymmetricLinear as SymmetricLinear
from linnet.maps import SymmetricSpectralLinear as SymmetricSpectralLinear
from linnet.maps import SymmetricSVDLinear as SymmetricSVDLinear
from linnet.maps import SymplecticLinear as SymplecticLinear
from linnet.maps import TrivialNullSpaceLinear as TrivialNullSpaceLinear
from linnet.maps import householder_product as householder_product
from linnet.maps import relu_straight_through as relu_straight_through
from linnet.modules.blocks import MLP as MLP
from linnet.modules.blocks import FixedRandom as FixedRandom
from linnet.modules.blocks import Parallel as Parallel
from linnet.modules.blocks import Repeat as Repeat
from linnet.modules.blocks import Residual as Residual
from linnet.modules.pointwise import Pointwise as Pointwise
from linnet.modules.recurrent import RNN as RNN
from linnet.modules.recurrent import RNNCell as RNNCell
from linnet.modules.weight_decay import matrix_decay as matrix_decay
from linnet.modules.weight_decay import param_groups as param_groups
from linnet.sparse import GSE as GSE
from linnet.sparse import NM as NM
from linnet.sparse import SET as SET
from linnet.sparse import ActivationSparsity as ActivationSparsity
from linnet.sparse import Blocks as Blocks
from linnet.sparse import ConstantFanIn as ConstantFanIn
from linnet.sparse import ErdosRenyi as ErdosRenyi
from linnet.sparse import GradualMagnitude as GradualMagnitude
from linnet.sparse import KWinners as KWinners
from linnet.sparse import Move as Move
from linnet.sparse import Rewiring as Rewiring
from linnet.sparse import RigL as RigL
from linnet.sparse import Rule as Rule
from linnet.sparse import SmallWorld as SmallWorld
from linnet.sparse import SparseLinear as SparseLinear
from linnet.sparse import Uniform as Uniform
from linnet.sparse import Update as Update
from linnet.sparse import Wiring as Wiring
from linnet.wide import Wide as Wide
from linnet.wide import WideAdam as WideAdam
from linnet.wide import WideAdamW as WideAdamW
from linnet.wide import WideDeep as WideDeep
from linnet.wide import WideLinear as WideLinear
from linnet.wide import WideOptimizer as WideOptimizer
from linnet.wide import WideSGD as WideSGD
from linnet.wide import clip_beings_ as clip_beings_
from linnet.wide import per_being as per_being
from linnet.wide import single as single
from linnet.wide import stack as stack
from linnet.wide import unstack as unstack
from linnet.wide import widen as widen

__version__ = _version.__version__

__all__ = [
    "DNI",
    "GSE",
    "MLP",
    "NM",
    "RNN",
    "SET",
    "ActivationSparsity",
    "Backprop",
    "BatchNormSynthesizer",
    "Being",
    "BlockDiagonalLinear",
    "Blocks",
    "BoundedNormLinear",
    "ButterflyLinear",
    "CirculantLinear",
    "ConstantFanIn",
    "Constrained",
    "ContractiveLinear",
    "ConvSynthesizer",
    "DampedSkewSymmetricLinear",
    "Delayed",
    "DiagonallyDominantLinear",
    "DirectFeedback",
    "DoublyStochasticLinear",
    "ErdosRenyi",
    "FixedRandom",
    "GershgorinLinear",
    "GradualMagnitude",
    "HamiltonianLinear",
    "HurwitzLinear",
    "IdentityInitLinear",
    "IdentityLinear",
    "KWinners",
    "KroneckerLinear",
    "L0Linear",
    "LassoLinear",
    "LassoLinearRELU",
    "LeastSquaresSynthesizer",
    "LeftStochasticLinear",
    "Linear",
    "LinearMap",
    "LinearSynthesizer",
    "LocalLoss",
    "LowRankLinear",
    "LowRankSynthesizer",
    "MLPSynthesizer",
    "Materialized",
    "MonarchLinear",
    "Move",
    "NonNegativeLinear",
    "OrthogonalLinear",
    "PSDLinear",
    "Parallel",
    "PerronFrobeniusLinear",
    "Pipeline",
    "Pointwise",
    "PowerBoundLinear",
    "RNNCell",
    "RecurrentSynthesizer",
    "Repeat",
    "Residual",
    "Rewiring",
    "RigL",
    "RightStochasticLinear",
    "Rule",
    "SVDLinear",
    "SVDLinearLearnBounds",
    "SchurDecompositionLinear",
    "SchurStableLinear",
    "SigmoidSynthesizer",
    "SkewSymmetricLinear",
    "SmallWorld",
    "SoftPowerBoundLinear",
    "Source",
    "SparseLinear",
    "SpectralLinear",
    "SplitLinear",
    "Spread",
    "StableSplitLinear",
    "StiefelLinear",
    "SymmetricLinear",
    "SymmetricSVDLinear",
    "SymmetricSpectralLinear",
    "SymplecticLinear",
    "Synthesizer",
    "Synthetic",
    "TrivialNullSpaceLinear",
    "TruncatedBPTT",
    "Uniform",
    "Unlocked",
    "Update",
    "Wide",
    "WideAdam",
    "WideAdamW",
    "WideDeep",
    "WideLinear",
    "WideOptimizer",
    "WideSGD",
    "Wiring",
    "activation_memory",
    "bake",
    "cached",
    "catalogue",
    "clip_beings_",
    "constrain",
    "describe",
    "diagram",
    "evolve",
    "find_layer",
    "frozen",
    "householder_product",
    "info",
    "load",
    "load_sharded",
    "log",
    "matrix_decay",
    "param_groups",
    "penalty",
    "per_being",
    "plot_diagnostics",
    "relu_straight_through",
    "replace",
    "save",
    "save_sharded",
    "share_sources",
    "single",
    "sparsify",
    "stack",
    "to_onnx",
    "tolerance",
    "unstack",
    "violation",
    "widen",
]

"""Decoupled training: stages of a network that learn from predicted gradients, without waiting for backpropagation."""

from linnet.decoupled.bptt.truncated import TruncatedBPTT as TruncatedBPTT
from linnet.decoupled.diagnostics import activation_memory as activation_memory
from linnet.decoupled.diagnostics import plot_diagnostics as plot_diagnostics
from linnet.decoupled.dni import DNI as DNI
from linnet.decoupled.engine.data_parallel import share_sources as share_sources
from linnet.decoupled.pipeline.pipeline import Pipeline as Pipeline
from linnet.decoupled.sources.backprop import Backprop as Backprop
from linnet.decoupled.sources.delayed import Delayed as Delayed
from linnet.decoupled.sources.direct_feedback import DirectFeedback as DirectFeedback
from linnet.decoupled.sources.local_loss import LocalLoss as LocalLoss
from linnet.decoupled.sources.source import Source as Source
from linnet.decoupled.sources.synthetic import Synthetic as Synthetic
from linnet.decoupled.synthesizers.batch_norm import BatchNormSynthesizer as BatchNormSynthesizer
from linnet.decoupled.synthesizers.conv import ConvSynthesizer as ConvSynthesizer
from linnet.decoupled.synthesizers.least_squares import LeastSquaresSynthesizer as LeastSquaresSynthesizer
from linnet.decoupled.synthesizers.linear import LinearSynthesizer as LinearSynthesizer
from linnet.decoupled.synthesizers.low_rank import LowRankSynthesizer as LowRankSynthesizer
from linnet.decoupled.synthesizers.mlp import MLPSynthesizer as MLPSynthesizer
from linnet.decoupled.synthesizers.recurrent import RecurrentSynthesizer as RecurrentSynthesizer
from linnet.decoupled.synthesizers.sigmoid import SigmoidSynthesizer as SigmoidSynthesizer
from linnet.decoupled.synthesizers.synthesizer import Synthesizer as Synthesizer
from linnet.decoupled.unlocked import Unlocked as Unlocked

__all__ = [
    "DNI",
    "Backprop",
    "BatchNormSynthesizer",
    "ConvSynthesizer",
    "Delayed",
    "DirectFeedback",
    "LeastSquaresSynthesizer",
    "LinearSynthesizer",
    "LocalLoss",
    "LowRankSynthesizer",
    "MLPSynthesizer",
    "Pipeline",
    "RecurrentSynthesizer",
    "SigmoidSynthesizer",
    "Source",
    "Synthesizer",
    "Synthetic",
    "TruncatedBPTT",
    "Unlocked",
    "activation_memory",
    "plot_diagnostics",
    "share_sources",
]

"""No waiting for backpropagation: stages of a network that learn from predicted gradients."""

from linnet.decoupled.delayed import Delayed as Delayed
from linnet.decoupled.diagnostics import activation_memory as activation_memory
from linnet.decoupled.diagnostics import plot_diagnostics as plot_diagnostics
from linnet.decoupled.dni import DNI as DNI
from linnet.decoupled.feedback import DirectFeedback as DirectFeedback
from linnet.decoupled.hidden_synthesizers import BatchNormSynthesizer as BatchNormSynthesizer
from linnet.decoupled.hidden_synthesizers import ConvSynthesizer as ConvSynthesizer
from linnet.decoupled.hidden_synthesizers import MLPSynthesizer as MLPSynthesizer
from linnet.decoupled.hidden_synthesizers import RecurrentSynthesizer as RecurrentSynthesizer
from linnet.decoupled.least_squares import LeastSquaresSynthesizer as LeastSquaresSynthesizer
from linnet.decoupled.local import LocalLoss as LocalLoss
from linnet.decoupled.parallel import share_sources as share_sources
from linnet.decoupled.pipeline import Pipeline as Pipeline
from linnet.decoupled.recurrent import TruncatedBPTT as TruncatedBPTT
from linnet.decoupled.sources import Backprop as Backprop
from linnet.decoupled.sources import Source as Source
from linnet.decoupled.synthesizers import LinearSynthesizer as LinearSynthesizer
from linnet.decoupled.synthesizers import LowRankSynthesizer as LowRankSynthesizer
from linnet.decoupled.synthesizers import SigmoidSynthesizer as SigmoidSynthesizer
from linnet.decoupled.synthesizers import Synthesizer as Synthesizer
from linnet.decoupled.synthetic import Synthetic as Synthetic
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

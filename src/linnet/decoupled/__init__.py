"""No waiting for backpropagation: stages of a network that learn from predicted gradients."""

from linnet.decoupled.delayed import Delayed as Delayed
from linnet.decoupled.dni import DNI as DNI
from linnet.decoupled.feedback import DirectFeedback as DirectFeedback
from linnet.decoupled.local import LocalLoss as LocalLoss
from linnet.decoupled.sources import Backprop as Backprop
from linnet.decoupled.sources import Source as Source
from linnet.decoupled.synthesizers import LinearSynthesizer as LinearSynthesizer
from linnet.decoupled.synthesizers import Synthesizer as Synthesizer
from linnet.decoupled.synthetic import Synthetic as Synthetic

__all__ = [
    "DNI",
    "Backprop",
    "Delayed",
    "DirectFeedback",
    "LinearSynthesizer",
    "LocalLoss",
    "Source",
    "Synthesizer",
    "Synthetic",
]

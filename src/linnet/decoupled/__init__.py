"""No waiting for backpropagation: stages of a network that learn from predicted gradients."""

from linnet.decoupled.dni import DNI as DNI
from linnet.decoupled.synthesizers import LinearSynthesizer as LinearSynthesizer
from linnet.decoupled.synthesizers import Synthesizer as Synthesizer

__all__ = ["DNI", "LinearSynthesizer", "Synthesizer"]

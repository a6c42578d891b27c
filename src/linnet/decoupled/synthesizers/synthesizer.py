"""Synthesizers: small networks that predict the gradient of a loss from the activations alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from linnet.core.checks import check_positive

__all__ = ["FittedSynthesizer", "Synthesizer", "zeroed"]


class Synthesizer(nn.Module, ABC):
    """activations -> predicted gradient of the loss in them: the base class of every synthesizer.

    What it returns is read in units of the running size of the true gradients of one sample (see
    :class:`linnet.DNI`), so an output of 1 is a gradient of the usual size whatever the loss. Let its last layer
    start at zero: then training starts without made-up gradients.

    A synthesizer of one's own calls ``super().__init__(input_size, hidden_size, output_size)`` and writes
    :meth:`forward`.

    Args:
        input_size: number of activations, the last axis of the input.
        hidden_size: width of the layers between, None if there are none or if the class chooses.
        output_size: number of gradient entries, the last axis of the output; a cut asks for input_size.
        kwargs: passed on to the next class in line (nn.Module refuses any).

    Shape:
        - input: (batch, *, input_size)
        - gradient: (batch, *, output_size)

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> import torch
        >>> class Tanh(Synthesizer):
        ...     def __init__(self, input_size, hidden_size, output_size):
        ...         super().__init__(input_size, hidden_size, output_size)
        ...         self.net = nn.Sequential(nn.Linear(input_size, hidden_size), nn.Tanh(),
        ...                                  nn.Linear(hidden_size, output_size))
        ...         nn.init.zeros_(self.net[2].weight)
        ...         nn.init.zeros_(self.net[2].bias)
        ...     def forward(self, input, hidden):
        ...         return self.net(input), None
        >>> gradient, hidden = Tanh(8, 16, 8)(torch.randn(4, 8), None)
        >>> gradient.shape, bool((gradient == 0).all()), hidden
        (torch.Size([4, 8]), True, None)

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    axis: ClassVar[int] = -1
    """Where the features are: -1, or 1 for images (batch, channels, height, width)."""

    def __init__(self, input_size: int, hidden_size: int | None, output_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_size, self.output_size = check_positive(input_size=input_size, output_size=output_size)
        self.hidden_size = None if hidden_size is None else check_positive(hidden_size=hidden_size)[0]

    @abstractmethod
    def forward(self, input: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        """(activations, hidden state or None) -> (predicted gradient, new hidden state or None)."""


class FittedSynthesizer(Synthesizer):
    """A synthesizer that learns by itself from sums over a batch, without gradient and optimizer."""

    @abstractmethod
    def moments(self, input: Tensor, target: Tensor) -> Sequence[Tensor]:
        """What :meth:`fit` needs of a batch, as means or sums over samples."""

    @abstractmethod
    def fit(self, moments: Sequence[Tensor]) -> None:
        """Learn from a batch; under DDP the moments are the mean over the processes."""


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer, all its parameters zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

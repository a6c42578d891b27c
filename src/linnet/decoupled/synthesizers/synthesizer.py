"""Synthesizer: the base class of small networks that predict the gradient of a loss from the activations."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from linnet.core.checks import check_positive


class Synthesizer(nn.Module, ABC):
    """activations h -> predicted gradient ∂L/∂h: the base class of synthesizers.

    The output is in units of the running size of the true gradients of one sample (see :class:`linnet.DNI`): an output
    of 1 is a gradient of the usual size, independent of the loss. Initialize the last layer to zero, so that training
    starts with zero gradients, not with random ones.

    A subclass calls ``super().__init__(input_size, hidden_size, output_size)`` and defines :meth:`forward`.

    Args:
        input_size: number of activations, the last axis of the input.
        hidden_size: width of the hidden layers; None if the class has none or chooses the width.
        output_size: number of gradient entries, the last axis of the output; a cut needs input_size.
        kwargs: passed to the next class in the method resolution order (nn.Module takes none).

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
    """The axis of features: -1, or 1 for images (batch, channels, height, width)."""

    def __init__(self, input_size: int, hidden_size: int | None, output_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_size, self.output_size = check_positive(input_size=input_size, output_size=output_size)
        self.hidden_size = None if hidden_size is None else check_positive(hidden_size=hidden_size)[0]

    @abstractmethod
    def forward(self, input: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        """(activations, hidden state or None) -> (predicted gradient, new hidden state or None)."""


class FittedSynthesizer(Synthesizer):
    """A synthesizer that is fitted from sums over a batch, without gradients and without an optimizer."""

    @abstractmethod
    def moments(self, input: Tensor, target: Tensor) -> Sequence[Tensor]:
        """The statistics of a batch for :meth:`fit`, means or sums over samples."""

    @abstractmethod
    def fit(self, moments: Sequence[Tensor]) -> None:
        """Fit to one more batch; under DDP the moments are means over the processes."""


def zeroed(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to zero and return the layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

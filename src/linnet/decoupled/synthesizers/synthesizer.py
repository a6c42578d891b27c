"""Synthesizers: small networks that predict the gradient of a loss from the activations alone."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.being import affine, check_input, check_positive

__all__ = ["FittedSynthesizer", "LinearSynthesizer", "LowRankSynthesizer", "SigmoidSynthesizer", "Synthesizer"]


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


class LinearSynthesizer(Synthesizer):
    """g = h A + b, zero at the start: exact if the loss is quadratic in the activations.

    It has no hidden layer and keeps no hidden state.

    Args:
        input_size: number of activations.
        hidden_size: must be None.
        output_size: number of gradient entries.
        beings: of the population in which the cut lies, each with an A and b of its own; None: one for all.

    Shape:
        - input: (*, [beings,] input_size)
        - gradient: (*, [beings,] output_size)
        - weight: ([beings,] output_size, input_size), bias: ([beings,] output_size)

    Raises:
        ValueError: hidden_size is given; the input is not that of the population.

    Example:
        >>> gradient, hidden = LinearSynthesizer(8, None, 8)(torch.randn(4, 8))
        >>> bool((gradient == 0).all()), hidden
        (True, None)
        >>> import functools
        >>> from linnet import Synthetic
        >>> source = Synthetic(functools.partial(LinearSynthesizer, beings=3))  # for a cut inside a population of 3

    Reference:
        W. M. Czarnecki et al., Understanding synthetic gradients and decoupled neural interfaces, 2017,
        arXiv 1703.00522.
    """

    def __init__(
        self, input_size: int, hidden_size: int | None, output_size: int, *, beings: int | None = None
    ) -> None:
        super().__init__(input_size, hidden_size, output_size)
        if hidden_size is not None:
            raise ValueError(f"hidden_size of a LinearSynthesizer must be None, however: {hidden_size!r}")
        self.beings = None if beings is None else check_positive(beings=beings)[0]
        population = () if beings is None else (beings,)
        self.weight = nn.Parameter(torch.empty(*population, output_size, input_size))
        self.bias = nn.Parameter(torch.empty(*population, output_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to zero, where the predicted gradient is 0."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        if self.beings is None:
            return F.linear(input, self.weight, self.bias), None
        check_input(input, self.input_size, self.beings)
        return affine(input, self.weight, self.bias), None

    def extra_repr(self) -> str:
        population = "" if self.beings is None else f", beings={self.beings}"
        return f"{self.input_size}, {self.output_size}{population}"


class LowRankSynthesizer(Synthesizer):
    """g = (h A) B + b with few columns in A, B zero at the start: the linear synthesizer at a fraction of the cost.

    Args:
        input_size: number of activations.
        hidden_size: the rank; None for an eighth of the outputs, at least 1.
        output_size: number of gradient entries.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> gradient, hidden = LowRankSynthesizer(64, 8, 64)(torch.randn(4, 64))
        >>> gradient.shape, bool((gradient == 0).all())
        (torch.Size([4, 64]), True)

    Reference:
        W. M. Czarnecki et al., Understanding synthetic gradients and decoupled neural interfaces, 2017,
        arXiv 1703.00522.
    """

    def __init__(self, input_size: int, hidden_size: int | None, output_size: int) -> None:
        rank = max(output_size // 8, 1) if hidden_size is None else hidden_size
        super().__init__(input_size, rank, output_size)
        self.reduce = nn.Linear(input_size, rank, bias=False)
        self.expand = zeroed(nn.Linear(rank, output_size))

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        return self.expand(self.reduce(input)), None


class SigmoidSynthesizer(Synthesizer):
    """g = s σ(h A + b) + c, element by element, with s = c = 0 at the start: for losses of sigmoids and softmaxes.

    The gradient of a log loss saturates as the sigmoid does, which a linear synthesizer cannot follow; s may have both
    signs.

    Args:
        input_size: number of activations.
        hidden_size: width of a linear layer between the activations and the last one; None for no such layer.
        output_size: number of gradient entries.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> gradient, hidden = SigmoidSynthesizer(8, None, 8)(torch.randn(4, 8))
        >>> bool((gradient == 0).all()), hidden
        (True, None)

    Reference:
        W. M. Czarnecki et al., Understanding synthetic gradients and decoupled neural interfaces, 2017,
        arXiv 1703.00522.
    """

    def __init__(self, input_size: int, hidden_size: int | None, output_size: int) -> None:
        super().__init__(input_size, hidden_size, output_size)
        sizes = [input_size, *([] if hidden_size is None else [hidden_size]), output_size]
        self.linear = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
        self.scale = nn.Parameter(torch.zeros(output_size))
        self.shift = nn.Parameter(torch.zeros(output_size))

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        return torch.addcmul(self.shift, self.scale, torch.sigmoid(self.linear(input))), None


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer, all its parameters zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

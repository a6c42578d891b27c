"""LinearSynthesizer: one linear map, the default synthesizer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.affine import affine
from linnet.core.checks import check_input, check_positive
from linnet.decoupled.synthesizers.synthesizer import Synthesizer


class LinearSynthesizer(Synthesizer):
    """g = h A + b, with A = b = 0 at the start: exact if the loss is quadratic in the activations.

    The synthesizer has no hidden layer and no hidden state.

    Args:
        input_size: number of activations.
        hidden_size: must be None.
        output_size: number of gradient entries.
        beings: number of beings (members) of the population that is cut, each with its own A and b; None is one A and b
            for all.

    Shape:
        - input: (*, [beings,] input_size)
        - gradient: (*, [beings,] output_size)
        - weight: ([beings,] output_size, input_size), bias: ([beings,] output_size)

    Raises:
        ValueError: hidden_size is not None; the input does not have the shape of the population.

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
            raise ValueError(f"hidden_size of a LinearSynthesizer must be None, got {hidden_size!r}")
        self.beings = None if beings is None else check_positive(beings=beings)[0]
        population = () if beings is None else (beings,)
        self.weight = nn.Parameter(torch.empty(*population, output_size, input_size))
        self.bias = nn.Parameter(torch.empty(*population, output_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set A and b to zero, so that the predicted gradient is 0."""
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

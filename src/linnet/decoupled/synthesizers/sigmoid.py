"""SigmoidSynthesizer: a linear map followed by a scaled sigmoid."""

import itertools

import torch
from torch import Tensor, nn

from linnet.decoupled.synthesizers.synthesizer import Synthesizer


class SigmoidSynthesizer(Synthesizer):
    """g = s σ(h A + b) + c, element by element, with s = c = 0 at the start: for losses of sigmoids and softmaxes.

    The gradient of a log loss in its logit z is σ(z) − y, which is bounded and saturates; a linear synthesizer cannot
    fit it. The scale s may have both signs.

    Args:
        input_size: number of activations.
        hidden_size: width of a linear layer before the last linear layer; None is no such layer.
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
        # s = 0 makes g = 0 while ∂s = σ(h A + b) δ is not 0, so that A and b learn from the second step on
        self.scale = nn.Parameter(torch.zeros(output_size))
        self.shift = nn.Parameter(torch.zeros(output_size))

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        return torch.addcmul(self.shift, self.scale, torch.sigmoid(self.linear(input))), None

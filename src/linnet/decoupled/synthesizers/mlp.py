"""MLPSynthesizer: a synthesizer with dense hidden layers, which predicts 0 at the start."""

from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.decoupled.synthesizers.synthesizer import Synthesizer, zeroed


class MLPSynthesizer(Synthesizer):
    """g = A_n ReLU(⋯ ReLU(A_0 h + b_0)) + b_n, with A_n = b_n = 0 at the start.

    Args:
        input_size: number of activations.
        hidden_size: width of the hidden layers; None for input_size.
        output_size: number of gradient entries.
        layers: number of hidden layers.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> import functools, torch
        >>> from linnet import Synthetic
        >>> deep = functools.partial(MLPSynthesizer, layers=2)
        >>> source = Synthetic(deep, 1024, functools.partial(torch.optim.Adam, lr=1e-3))
        >>> gradient, hidden = deep(8, 1024, 8)(torch.randn(4, 8))
        >>> bool((gradient == 0).all()), hidden
        (True, None)

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    def __init__(self, input_size: int, hidden_size: int | None, output_size: int, *, layers: int = 1) -> None:
        width = input_size if hidden_size is None else hidden_size
        super().__init__(input_size, width, output_size)
        self.net = nn.Sequential()
        features = input_size
        for _ in range(check_positive(layers=layers)[0]):
            self.net.extend([nn.Linear(features, width), nn.ReLU()])
            features = width
        self.net.append(zeroed(nn.Linear(features, output_size)))

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        return self.net(input), None

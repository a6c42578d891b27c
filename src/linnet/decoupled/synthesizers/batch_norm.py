"""BatchNormSynthesizer: a synthesizer with a hidden layer and batch norm, which predicts 0 at the start."""

from torch import Tensor, nn

from linnet.decoupled.synthesizers.synthesizer import Synthesizer, zeroed


class BatchNormSynthesizer(Synthesizer):
    """g = A_1 ReLU(batch norm(A_0 h)) + b_1, with A_1 = b_1 = 0 at the start.

    Args:
        input_size: number of activations.
        hidden_size: width of the hidden layer; None for input_size.
        output_size: number of gradient entries.

    Shape:
        - input: (*, input_size), at least two samples in training mode
        - gradient: (*, output_size)

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> import torch
        >>> gradient, hidden = BatchNormSynthesizer(8, 16, 8)(torch.randn(4, 8))
        >>> bool((gradient == 0).all()), hidden
        (True, None)

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    def __init__(self, input_size: int, hidden_size: int | None, output_size: int) -> None:
        width = input_size if hidden_size is None else hidden_size
        super().__init__(input_size, width, output_size)
        self.net = nn.Sequential(
            nn.Linear(input_size, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            zeroed(nn.Linear(width, output_size)),
        )

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        rows = input.reshape(-1, self.input_size)
        return self.net(rows).view(*input.shape[:-1], self.output_size), None

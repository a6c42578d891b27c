"""ConvSynthesizer: a convolutional synthesizer, which predicts 0 at the start."""

from typing import ClassVar

from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.decoupled.synthesizers.synthesizer import Synthesizer, zeroed


class ConvSynthesizer(Synthesizer):
    """g = K_n * ReLU(batch norm(K * ⋯)): 2-d convolutions with one kernel size; the last layer is 0 at the start.

    Args:
        input_size: number of channels of the activations.
        hidden_size: number of hidden channels; None for output_size.
        output_size: number of channels of the gradient.
        kernel_size: size of all kernels, odd, so that images keep their size.
        layers: number of hidden layers; 0 for one linear convolution.

    Shape:
        - input: (batch, input_size, height, width)
        - gradient: (batch, output_size, height, width)

    Raises:
        ValueError: a size is not a positive integer, or kernel_size is even.

    Example:
        >>> import torch
        >>> gradient, hidden = ConvSynthesizer(3, 16, 3)(torch.randn(4, 3, 8, 8))
        >>> gradient.shape, hidden
        (torch.Size([4, 3, 8, 8]), None)

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    axis: ClassVar[int] = 1

    def __init__(
        self, input_size: int, hidden_size: int | None, output_size: int, *, kernel_size: int = 5, layers: int = 2
    ) -> None:
        width = output_size if hidden_size is None else hidden_size
        super().__init__(input_size, width, output_size)
        (kernel,) = check_positive(kernel_size=kernel_size)
        if kernel % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel}")
        if layers != 0:
            check_positive(layers=layers)
        self.net = nn.Sequential()
        channels = input_size
        for _ in range(layers):
            self.net.extend(
                [nn.Conv2d(channels, width, kernel, padding="same", bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            )
            channels = width
        self.net.append(zeroed(nn.Conv2d(channels, output_size, kernel, padding="same")))

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        return self.net(input), None

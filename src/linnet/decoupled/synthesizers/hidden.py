"""Synthesizers with hidden layers: dense, with batch norm, recurrent, convolutional; all start at zero gradients."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from linnet.core.being import check_positive
from linnet.decoupled.synthesizers.synthesizer import Synthesizer, zeroed

__all__ = ["BatchNormSynthesizer", "ConvSynthesizer", "MLPSynthesizer", "RecurrentSynthesizer"]

RECURRENT: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class MLPSynthesizer(Synthesizer):
    """g = A_n ReLU(⋯ ReLU(A_0 h + b_0)) + b_n, the last layer zero at the start.

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


class BatchNormSynthesizer(Synthesizer):
    """g = A_1 ReLU(batch norm(A_0 h)) + b_1, the last layer zero at the start.

    Args:
        input_size: number of activations.
        hidden_size: width of the hidden layer; None for input_size.
        output_size: number of gradient entries.

    Shape:
        - input: (*, input_size), at least two samples in all while training
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


class RecurrentSynthesizer(Synthesizer):
    """g_t = A (LSTM, GRU or RNN over h_1 ... h_t) + b, A and b zero at the start.

    Args:
        input_size: number of activations.
        hidden_size: size of the recurrent state; None for input_size.
        output_size: number of gradient entries.
        kind: ``"lstm"``, ``"gru"`` or ``"rnn"``.
        layers: number of recurrent layers.

    Shape:
        - input: (batch, length, input_size), or (batch, input_size), one step that goes on from ``hidden``
        - gradient: as the input, with output_size
        - hidden: as that of :class:`torch.nn.LSTM`, :class:`torch.nn.GRU` or :class:`torch.nn.RNN`; None means zeros

    Raises:
        ValueError: a size is not a positive integer; the kind is unknown; the input has other axes.

    Example:
        >>> import torch
        >>> synthesizer = RecurrentSynthesizer(8, 16, 8, kind="gru")
        >>> gradient, hidden = synthesizer(torch.randn(4, 5, 8))
        >>> gradient.shape, hidden.shape
        (torch.Size([4, 5, 8]), torch.Size([1, 4, 16]))

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    def __init__(
        self, input_size: int, hidden_size: int | None, output_size: int, *, kind: str = "lstm", layers: int = 1
    ) -> None:
        width = input_size if hidden_size is None else hidden_size
        super().__init__(input_size, width, output_size)
        if kind not in RECURRENT:
            raise ValueError(f"kind must be one of {', '.join(RECURRENT)}, however: {kind!r}")
        self.rnn = RECURRENT[kind](input_size, width, check_positive(layers=layers)[0], batch_first=True)
        self.out = zeroed(nn.Linear(width, output_size))

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        if input.dim() not in (2, 3):
            raise ValueError(
                f"A recurrent synthesizer needs (batch, length, {self.input_size}) or (batch, {self.input_size}), "
                f"however: {tuple(input.shape)}"
            )
        steps = input.unsqueeze(1) if input.dim() == 2 else input  # (batch, length, input_size)
        states, hidden = self.rnn(steps, hidden)
        return self.out(states).reshape(*input.shape[:-1], self.output_size), hidden


class ConvSynthesizer(Synthesizer):
    """g = K_n * ReLU(batch norm(K * ⋯)): 2-d convolutions of one size, the last one zero at the start.

    Args:
        input_size: number of channels of the activations.
        hidden_size: number of hidden channels; None for output_size.
        output_size: number of channels of the gradient.
        kernel_size: of all kernels, odd, so that images keep their size.
        layers: number of hidden layers; 0 for one linear convolution.

    Shape:
        - input: (batch, input_size, height, width)
        - gradient: (batch, output_size, height, width)

    Raises:
        ValueError: a size is not what it must be.

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
            raise ValueError(f"kernel_size must be odd, however: {kernel}")
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

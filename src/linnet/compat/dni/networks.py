"""The gradient networks of pytorch-dni, which predict gradients from activations."""

from typing import Any

from torch import Tensor, nn

import linnet.decoupled
from linnet.core.checks import check_positive
from linnet.decoupled.synthesizers.recurrent import RECURRENT
from linnet.decoupled.synthesizers.synthesizer import zeroed


class DNI_Network(linnet.decoupled.Synthesizer):
    """activations h -> predicted gradient ∂L/∂h: the base class of pytorch-dni's gradient networks.

    Args:
        input_size: number of activations.
        hidden_size: hidden size.
        output_size: number of gradient entries.

    Shape:
        - ``forward(input, hidden)`` returns (gradient, hidden); hidden may be None

    Example:
        >>> from linnet.compat.dni import DNI
        >>> class MyDNI(DNI_Network):
        ...     def __init__(self, input_size, hidden_size, output_size, **kwargs):
        ...         super(MyDNI, self).__init__(input_size, hidden_size, output_size)
        ...         self.net = nn.Linear(input_size, output_size)
        ...     def forward(self, input, hidden):
        ...         return self.net(input), None
        >>> net = DNI(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), dni_network=MyDNI)
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__(input_size, hidden_size, output_size)


class RNN_DNI(DNI_Network):
    """g_t = A · RNN(h_1, ..., h_t) + b, the RNN stacked LSTMs, GRUs or plain RNNs, with A = b = 0 at the start.

    Args:
        input_size: number of activations.
        hidden_size: size of the recurrent states.
        output_size: number of gradient entries.
        num_layers: number of recurrent layers.
        batch_first: whether the input is (batch, length, ...), not (length, batch, ...).
        dropout: probability of dropout between the layers.
        bias: whether the recurrent layers have biases.
        kind: ``'lstm'``, ``'gru'`` or ``'rnn'``.

    Shape:
        - input: (batch, length, input_size), or (batch, input_size) for one step
        - gradient: the shape of the input, with output_size

    Raises:
        ValueError: the kind is unknown.

    Example:
        >>> import torch
        >>> gradient, hidden = RNN_DNI(8, 16, 8, kind="gru")(torch.randn(4, 5, 8))
        >>> gradient.shape
        torch.Size([4, 5, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        batch_first: bool = True,
        dropout: float = 0,
        bias: bool = True,
        kind: str = "lstm",
    ) -> None:
        super().__init__(input_size, hidden_size, output_size)
        if kind not in RECURRENT:
            raise ValueError(f"kind must be one of {', '.join(RECURRENT)}, got {kind!r}")
        self.batch_first = batch_first
        self.rnn = RECURRENT[kind](
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout
        )
        self.output_weights = zeroed(nn.Linear(hidden_size, output_size))

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        time = 1 if self.batch_first else 0
        steps = input.unsqueeze(time) if input.dim() == 2 else input
        output, hidden = self.rnn(steps, hidden)
        output = self.output_weights(output)
        return output.squeeze(time) if input.dim() == 2 else output, hidden


class Linear_DNI(DNI_Network):
    """g = (h A_1 + b_1) A_2 + b_2: two linear layers, with A_2 = b_2 = 0 at the start.

    Args:
        input_size: number of activations.
        hidden_size: width between the two layers.
        output_size: number of gradient entries.
        bias: whether the layers have biases.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Example:
        >>> import torch
        >>> Linear_DNI(8, 10, 8)(torch.randn(4, 8), None)[0].shape
        torch.Size([4, 8])
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, output_size)
        self.net = nn.Sequential(
            nn.Linear(input_size, hidden_size, bias), zeroed(nn.Linear(hidden_size, output_size, bias))
        )

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, None]:
        return self.net(input), None


class Linear_Sigmoid_DNI(DNI_Network):
    """g = σ((h A_1 + b_1) A_2 + b_2): two linear layers and a sigmoid, as pytorch-dni documents it.

    Its gradients are therefore all positive; those of :class:`linnet.SigmoidSynthesizer` have both signs.

    Args:
        input_size: number of activations.
        hidden_size: width between the two layers.
        output_size: number of gradient entries.
        bias: whether the layers have biases.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Example:
        >>> import torch
        >>> gradient, _ = Linear_Sigmoid_DNI(8, 10, 8)(torch.randn(4, 8), None)
        >>> bool((gradient > 0).all())
        True
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, output_size)
        self.net = nn.Sequential(
            nn.Linear(input_size, hidden_size, bias), nn.Linear(hidden_size, output_size, bias), nn.Sigmoid()
        )

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, None]:
        return self.net(input), None


DNINetwork = DNI_Network
RNNDNI = RNN_DNI


class LinearDNI(DNI_Network):
    """g = A ReLU(⋯ ReLU(A_0 h + b_0)) + b, with hidden layers of width 4 · ``hidden_size`` and A = b = 0 at the start.

    Args:
        input_size: number of activations.
        hidden_size: a quarter of the width of the hidden layers.
        output_size: number of gradient entries.
        num_layers: number of hidden layers.
        bias: whether the layers have biases.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Example:
        >>> import torch
        >>> LinearDNI(8, 10, 8)(torch.randn(4, 8), None)[0].shape
        torch.Size([4, 8])
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, num_layers: int = 2, bias: bool = True
    ) -> None:
        super().__init__(input_size, hidden_size, output_size)
        self.net = _hidden_layers(input_size, 4 * hidden_size, output_size, num_layers, bias, norm=False)

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, None]:
        return self.net(input), None


class LinearBatchNormDNI(DNI_Network):
    """g = A ReLU(batch norm(⋯ A_0 h + b_0)) + b, hidden layers of width 4 · ``hidden_size``, A = b = 0 at the start.

    Args:
        input_size: number of activations.
        hidden_size: a quarter of the width of the hidden layers.
        output_size: number of gradient entries.
        num_layers: number of hidden layers.
        bias: whether the layers have biases.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Example:
        >>> import torch
        >>> LinearBatchNormDNI(8, 10, 8)(torch.randn(4, 8), None)[0].shape
        torch.Size([4, 8])
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, num_layers: int = 2, bias: bool = True
    ) -> None:
        super().__init__(input_size, hidden_size, output_size)
        self.net = _hidden_layers(input_size, 4 * hidden_size, output_size, num_layers, bias, norm=True)

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, None]:
        return self.net(input.flatten(0, -2)).view(*input.shape[:-1], -1), None


class LinearSigmoidDNI(DNI_Network):
    """g = σ(A_n ⋯ (A_0 h + b_0) + b_n): linear layers and a sigmoid; all gradients are positive.

    Args:
        input_size: number of activations.
        hidden_size: width between the layers.
        output_size: number of gradient entries.
        num_layers: number of linear layers, at least 2.
        bias: whether the layers have biases.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Example:
        >>> import torch
        >>> LinearSigmoidDNI(8, 10, 8)(torch.randn(4, 8), None)[0].shape
        torch.Size([4, 8])
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, num_layers: int = 3, bias: bool = True
    ) -> None:
        super().__init__(input_size, hidden_size, output_size)
        if num_layers < 2:
            raise ValueError(f"num_layers must be at least 2, got {num_layers}")
        between = [nn.Linear(hidden_size, hidden_size, bias) for _ in range(num_layers - 2)]
        self.net = nn.Sequential(
            nn.Linear(input_size, hidden_size, bias), *between, nn.Linear(hidden_size, output_size, bias), nn.Sigmoid()
        )

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, None]:
        return self.net(input), None


class Conv2dDNI(DNI_Network):
    """g = K * ReLU(batch norm(K_0 * h)) ⋯: convolutions that keep the size of the image; K is 0 at the start.

    Args:
        input_size: number of channels of the activations.
        hidden_size: not used, as in pytorch-dni.
        output_size: number of channels of the gradient.
        convolutions: number of hidden channels.
        kernel_size: size of all kernels.
        stride: must be 1, since the gradient has the size of the image.
        padding: 0 or ``'SAME'``; both pad the image so that it keeps its size.
        dilation: dilation of all kernels.
        num_layers: number of hidden layers.
        bias: whether the convolutions have biases.

    Shape:
        - input: (batch, input_size, height, width)
        - gradient: (batch, output_size, height, width)

    Raises:
        ValueError: stride or padding would change the size.

    Example:
        >>> import torch
        >>> Conv2dDNI(3, 0, 3)(torch.randn(4, 3, 8, 8), None)[0].shape
        torch.Size([4, 3, 8, 8])
    """

    axis = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        convolutions: int = 16,
        kernel_size: int = 2,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        num_layers: int = 2,
        bias: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size or output_size, output_size)
        if stride != 1 or padding not in (0, "SAME"):
            raise ValueError(
                "stride must be 1 and padding 0 or 'SAME', since the gradient has the size of the image, "
                f"got {stride=} and {padding=}"
            )
        self.net = nn.Sequential()
        channels = input_size
        for _ in range(check_positive(num_layers=num_layers)[0]):
            conv = nn.Conv2d(channels, convolutions, kernel_size, dilation=dilation, bias=bias)
            self.net.extend([_same_padding(kernel_size, dilation), conv, nn.BatchNorm2d(convolutions), nn.ReLU()])
            channels = convolutions
        last = zeroed(nn.Conv2d(channels, output_size, kernel_size, dilation=dilation, bias=bias))
        self.net.extend([_same_padding(kernel_size, dilation), last])

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, None]:
        return self.net(input), None


def _same_padding(kernel_size: int, dilation: int) -> nn.Module:
    """Zero padding with which a convolution keeps the size of the image, for even kernels too."""
    margin = dilation * (kernel_size - 1)
    before, after = margin // 2, margin - margin // 2
    return nn.ZeroPad2d((before, after, before, after))


def _hidden_layers(inputs: int, width: int, outputs: int, layers: int, bias: bool, norm: bool) -> nn.Sequential:
    net = nn.Sequential()
    for _ in range(check_positive(num_layers=layers)[0]):
        net.append(nn.Linear(inputs, width, bias))
        if norm:
            net.append(nn.BatchNorm1d(width))
        net.append(nn.ReLU())
        inputs = width
    net.append(zeroed(nn.Linear(inputs, outputs, bias)))
    return net

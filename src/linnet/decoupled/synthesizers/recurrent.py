"""RecurrentSynthesizer: an LSTM, GRU or RNN over the activations, which predicts 0 at the start."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from linnet.core.checks import check_positive
from linnet.decoupled.synthesizers.synthesizer import Synthesizer, zeroed

RECURRENT: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RecurrentSynthesizer(Synthesizer):
    """g_t = A · RNN(h_1, ..., h_t) + b, the RNN an LSTM, GRU or plain RNN, with A = b = 0 at the start.

    Args:
        input_size: number of activations.
        hidden_size: size of the recurrent state; None for input_size.
        output_size: number of gradient entries.
        kind: ``"lstm"``, ``"gru"`` or ``"rnn"``.
        layers: number of recurrent layers.

    Shape:
        - input: (batch, length, input_size), or (batch, input_size) for one step that continues from ``hidden``
        - gradient: the shape of the input, with output_size
        - hidden: the state of :class:`torch.nn.LSTM`, :class:`torch.nn.GRU` or :class:`torch.nn.RNN`; None is zeros

    Raises:
        ValueError: a size is not a positive integer; the kind is unknown; the input does not have 2 or 3 axes.

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
            raise ValueError(f"kind must be one of {', '.join(RECURRENT)}, got {kind!r}")
        self.rnn = RECURRENT[kind](input_size, width, check_positive(layers=layers)[0], batch_first=True)
        self.out = zeroed(nn.Linear(width, output_size))

    def forward(self, input: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        if input.dim() not in (2, 3):
            raise ValueError(
                f"The input of a RecurrentSynthesizer must have shape (batch, length, {self.input_size}) or "
                f"(batch, {self.input_size}), got {tuple(input.shape)}"
            )
        steps = input.unsqueeze(1) if input.dim() == 2 else input  # (batch, length, input_size)
        states, hidden = self.rnn(steps, hidden)
        return self.out(states).reshape(*input.shape[:-1], self.output_size), hidden

"""LowRankSynthesizer: a linear synthesizer of low rank."""

from torch import Tensor, nn

from linnet.decoupled.synthesizers.synthesizer import Synthesizer, zeroed


class LowRankSynthesizer(Synthesizer):
    """g = (h A) B + b of rank r, with B = b = 0 at the start: (inputs + outputs) · r products, not inputs · outputs.

    Args:
        input_size: number of activations.
        hidden_size: the rank r; None is an eighth of the outputs, at least 1.
        output_size: number of gradient entries.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> import torch
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
        # B = 0 alone makes g = 0. With A = 0 too both gradients would vanish for ever: ∂A = hᵀ(δ Bᵀ), ∂B = (h A)ᵀ δ.
        self.reduce = nn.Linear(input_size, rank, bias=False)
        self.expand = zeroed(nn.Linear(rank, output_size))

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        return self.expand(self.reduce(input)), None

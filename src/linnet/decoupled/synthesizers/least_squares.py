"""LeastSquaresSynthesizer: the linear synthesizer that fits recent batches best, by least squares."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.decoupled.synthesizers.synthesizer import FittedSynthesizer


class LeastSquaresSynthesizer(FittedSynthesizer):
    """g = h A + b with (A, b) = argmin mean_t ‖h_t A + b − δ_t‖² + ridge ‖A, b‖², weighted by decay^t, t batches ago.

    At the start A = b = 0.

    A network that trains on synthetic gradients changes in every step, and its synthesizers must follow. Gradient steps
    follow slowly where activations are correlated. This synthesizer solves the linear regression on recent batches,
    from running sums of hᵀh and hᵀδ. It has no parameters, hence no optimizer.

    It costs one product more than the weight gradient of :class:`LinearSynthesizer`, and a Cholesky solution of
    input_size equations every ``every`` steps.

    Args:
        input_size: number of activations.
        hidden_size: must be None.
        output_size: number of gradient entries.
        decay: factor of a batch's weight for each later batch; about 1 / (1 − decay) batches count.
        ridge: added to the diagonal of the mean of hᵀh, in units of the mean square of activations.
        every: steps between two solutions.

    Shape:
        - input: (*, input_size)
        - gradient: (*, output_size)

    Raises:
        ValueError: hidden_size is given; decay is not in (0, 1); ridge or every is not positive.

    Example:
        >>> import torch
        >>> from linnet import Synthetic
        >>> source = Synthetic(LeastSquaresSynthesizer)
        >>> h = torch.randn(64, 8)
        >>> for _ in range(3):
        ...     _, memory = source.predict(h, None)
        ...     source.learn(memory, -h / 64)
        >>> bool(source.measured()["cosine"] > 0.99)
        True

    Reference:
        M. H. Hayes, Statistical digital signal processing and modeling, 1996, section 9.4 (recursive least squares);
        W. M. Czarnecki et al., Understanding synthetic gradients and decoupled neural interfaces, 2017,
        arXiv 1703.00522.
    """

    weight: Tensor
    bias: Tensor
    gram: Tensor
    cross: Tensor
    samples: Tensor
    steps: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int | None,
        output_size: int,
        *,
        decay: float = 0.97,
        ridge: float = 1e-2,
        every: int = 2,
    ) -> None:
        super().__init__(input_size, hidden_size, output_size)
        if hidden_size is not None:
            raise ValueError(f"hidden_size of a LeastSquaresSynthesizer must be None, got {hidden_size!r}")
        if not 0 < decay < 1 or not ridge > 0:
            raise ValueError(f"decay must lie in (0, 1) and ridge be positive, got {decay!r} and {ridge!r}")
        self.decay, self.ridge = float(decay), float(ridge)
        (self.every,) = check_positive(every=every)
        self.register_buffer("weight", torch.zeros(output_size, input_size))
        self.register_buffer("bias", torch.zeros(output_size))
        self.register_buffer("gram", torch.zeros(input_size + 1, input_size + 1))  # Σ (h, 1)ᵀ (h, 1)
        self.register_buffer("cross", torch.zeros(input_size + 1, output_size))  # Σ (h, 1)ᵀ δ
        self.register_buffer("samples", torch.zeros(()))  # the sum of the weights of all samples
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor, hidden: None = None) -> tuple[Tensor, None]:
        return F.linear(input, self.weight, self.bias), None

    def moments(self, input: Tensor, target: Tensor) -> Sequence[Tensor]:
        h = F.pad(input.detach().reshape(-1, self.input_size), (0, 1), value=1.0)  # (samples, input_size + 1)
        return h.mT @ h, h.mT @ target.reshape(-1, self.output_size), h.new_tensor(float(len(h)))

    def fit(self, moments: Sequence[Tensor]) -> None:
        for running, new in zip((self.gram, self.cross, self.samples), moments, strict=True):
            running.mul_(self.decay).add_(new)
        self.steps += 1
        if int(self.steps) % self.every == 0:
            # With rows H = (h, 1) and weights decay^t of the samples the minimum solves the normal equations
            # (Σ HᵀH / n + ridge I) [A; b] = Σ Hᵀδ / n, n = Σ weights. Dividing by n makes ridge relative to the mean
            # square of the activations, which Synthetic scales to 1. ridge > 0 keeps the matrix positive definite where
            # activations are linearly dependent or samples are fewer than input_size.
            gram = self.gram / self.samples
            gram.diagonal().add_(self.ridge)
            factor, failed = torch.linalg.cholesky_ex(gram)
            if not failed:  # otherwise keep the last solution
                solution = torch.cholesky_solve(self.cross / self.samples, factor)  # (input_size + 1, output_size)
                self.weight.copy_(solution[:-1].mT)
                self.bias.copy_(solution[-1])

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.output_size}, decay={self.decay}, ridge={self.ridge}, every={self.every}"

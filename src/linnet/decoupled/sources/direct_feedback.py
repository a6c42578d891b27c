"""DirectFeedback: direct feedback alignment, the error of the output times a fixed random matrix."""

import math
from typing import Any

import torch
from torch import Tensor

from linnet.decoupled.sources.source import Source


class DirectFeedback(Source):
    """g = e B with e = ∂L/∂output: a fixed random matrix B replaces the backward of all stages above the cut.

    The gradient waits for the loss, but not for the stages above. The entries of B are N(0, 1/outputs), drawn from a
    seed in the state_dict. If output and activations have the same leading axes, B acts on the last axis, so that in a
    population each being gets its own error; otherwise B acts on all axes but the first.

    Shape:
        - activations: (batch, *); the network must have one output, (batch, *)
        - feedback: (outputs, features)

    Raises:
        ValueError: the network does not have exactly one output with a gradient; output and activations differ in batch
            size.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from linnet import DNI
        >>> net = DNI(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), gradient=DirectFeedback())
        >>> net(torch.randn(2, 4)).square().mean().backward()
        >>> net.cuts["1"].feedback.shape
        torch.Size([3, 8])

    Reference:
        A. Nøkland, Direct feedback alignment provides learning in deep neural networks, 2016, arXiv 1609.01596.
    """

    late = True
    needs_error = True
    seed: Tensor
    feedback: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))  # 0: not drawn yet
        self.register_buffer("feedback", None, persistent=False)  # a function of the seed

    @property
    def sized(self) -> bool:
        return int(self.seed) != 0

    def size(self, h: Tensor) -> None:
        self.seed.fill_(torch.randint(1, 2**62, (), device="cpu"))

    def predict(self, h: Tensor, context: Tensor | None) -> tuple[None, torch.Size]:
        if not self.sized:
            self.size(h)
        return None, h.shape

    def respond(self, memory: torch.Size, target: Tensor | None, error: Tensor | None) -> Tensor | None:
        if error is None:
            return None
        e, shape = error.detach(), memory
        if e.shape[:1] != shape[:1]:
            raise ValueError(
                "DirectFeedback needs an output and activations of the same batch size, "
                f"got shapes {tuple(e.shape)} and {tuple(shape)}"
            )
        if e.shape[:-1] != shape[:-1]:
            e, shape = e.flatten(1), torch.Size([shape[0], shape[1:].numel()])
        feedback = self._matrix(e.shape[-1], shape[-1], e)
        return (e.to(feedback.dtype) @ feedback).to(error.dtype).reshape(memory)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.feedback = None  # it belongs to the old seed
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _matrix(self, outputs: int, features: int, like: Tensor) -> Tensor:
        """B, (outputs, features)."""
        if self.feedback is None or self.feedback.shape != (outputs, features):
            generator = torch.Generator().manual_seed(int(self.seed))
            # variance 1/outputs: an entry of e B then has the root mean square of e, whatever the number of outputs
            drawn = torch.randn(outputs, features, generator=generator) / math.sqrt(outputs)
            self.feedback = drawn.to(like.device, torch.promote_types(like.dtype, torch.float32))
        return self.feedback

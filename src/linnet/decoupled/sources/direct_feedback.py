"""Direct feedback alignment: the error of the output, sent back through a fixed random matrix."""

import math
from typing import Any

import torch
from torch import Tensor

from linnet.decoupled.sources.source import Source

__all__ = ["DirectFeedback"]


class DirectFeedback(Source):
    """g = e B with e = ∂L/∂output: a fixed random matrix B in place of all that lies above the cut.

    It waits for the loss, but not for the stages above. The entries of B are N(0, 1/outputs), drawn from a seed that is
    in the state_dict. Where output and activations have the same leading axes, B acts on the last one, so in a
    population no being hears of another's error; otherwise on all axes but the first.

    Shape:
        - activations: (batch, *); the network must have one output, (batch, *)
        - feedback: (outputs, features)

    Raises:
        ValueError: the network has not exactly one output with a gradient; a batch of another shape follows.

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
        self.register_buffer("feedback", None, persistent=False)  # follows from the seed

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
                f"Feedback needs output and activations of one batch, got {tuple(e.shape)} and {tuple(shape)}"
            )
        if e.shape[:-1] != shape[:-1]:
            e, shape = e.flatten(1), torch.Size([shape[0], shape[1:].numel()])
        feedback = self._matrix(e.shape[-1], shape[-1], e)
        return (e.to(feedback.dtype) @ feedback).to(error.dtype).reshape(memory)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.feedback = None  # that of another seed
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _matrix(self, outputs: int, features: int, like: Tensor) -> Tensor:
        """B, (outputs, features)."""
        if self.feedback is None or self.feedback.shape != (outputs, features):
            generator = torch.Generator().manual_seed(int(self.seed))
            drawn = torch.randn(outputs, features, generator=generator) / math.sqrt(outputs)
            self.feedback = drawn.to(like.device, torch.promote_types(like.dtype, torch.float32))
        return self.feedback

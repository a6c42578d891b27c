"""Source: the base class of gradient sources, which give the gradient of the loss at a cut."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


def batch_size(h: Tensor) -> int:
    """The number of samples: the length of the first axis; a vector is one sample."""
    return max(h.shape[0], 1) if h.dim() > 1 else 1


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """A context in which autocast is off; no context at all where it is off already, since entering one is slow."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


class Source(nn.Module, ABC):
    """activations h at a cut -> gradient ∂L/∂h of the loss: the base class of gradient sources.

    An *early* source knows the gradient in forward, before the loss: :meth:`predict` returns it. For a *late* source
    :meth:`predict` returns None; the cut keeps the graph of the stage below and calls :meth:`respond` in backward. For
    both, :meth:`learn` is called once when backward reaches the cut. All gradients are those of the unscaled loss.

    :class:`linnet.DNI` takes a source as a prototype: each cut gets a deep copy.
    """

    late: bool = False
    """Whether the gradient is known in backward only."""
    true_targets: bool = False
    """Whether the arriving gradient passes through the stage to the cut below, as the target of its source."""
    conditioned: bool = False
    """Whether :meth:`predict` needs a context."""
    needs_target: ClassVar[bool] = True
    """Whether :meth:`learn` needs the gradient from above."""
    needs_error: ClassVar[bool] = False
    """Whether :meth:`respond` needs the gradient of the loss in the output of the network."""

    axis: int = -1
    """The axis of features of the activations: -1, or 1 after a convolution. The network of the cut sets it."""

    @property
    def known_in_forward(self) -> bool:
        """Whether the stage below can finish in forward, without its graph being kept for backward."""
        return not (self.late or self.true_targets)

    @property
    def sized(self) -> bool:
        """Whether everything that depends on the shape of the activations is built."""
        return True

    def size(self, h: Tensor) -> None:
        """Build what depends on the shape of the activations."""

    @abstractmethod
    def predict(self, h: Tensor, context: Tensor | None) -> tuple[Tensor | None, Any]:
        """In forward: activations -> their gradient, None if late, and a memory for the other methods."""

    def respond(self, memory: Any, target: Tensor | None, error: Tensor | None) -> Tensor | None:
        """In backward, for late sources: the gradient for the stage below.

        Args:
            memory: the memory that :meth:`predict` returned.
            target: the gradient of the loss in h, from above.
            error: the gradient of the loss in the output of the network.
        """
        return target

    def learn(self, memory: Any, target: Tensor | None) -> None:
        """In backward: make one learning step of the source from the gradient that came from above."""

    def delay(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """In backward, for late sources: replace the gradients of the parameters below."""
        return gradients

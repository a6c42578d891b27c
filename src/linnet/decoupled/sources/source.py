"""The one interface of all gradient sources: where the gradient at a cut comes from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Source", "batch_size", "without_autocast"]


def batch_size(h: Tensor) -> int:
    """How many samples: the length of the first axis; a vector is one sample."""
    return max(h.shape[0], 1) if h.dim() > 1 else 1


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """A context in which autocast is off; to enter one takes longer than to see that there is none."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


class Source(nn.Module, ABC):
    """activations h at a cut -> the gradient of the loss in them: the base class of every gradient source.

    An *early* source knows the gradient in forward, before the loss: :meth:`predict` gives it. A *late* one gives
    None there; the boundary keeps the graph of the stage below and asks :meth:`respond` in backward. Either way
    :meth:`learn` is called once when backward has reached the cut, and gradients are those of the unscaled loss.

    A source is given to :class:`linnet.DNI` as a prototype: each cut gets a deep copy of its own.
    """

    late: bool = False
    """Whether the gradient is known in backward only."""
    true_targets: bool = False
    """Whether the gradient that arrives passes through the stage to the cut below, as its target."""
    conditioned: bool = False
    """Whether :meth:`predict` needs a context."""
    needs_target: ClassVar[bool] = True
    """Whether :meth:`learn` needs the gradient from above."""
    needs_error: ClassVar[bool] = False
    """Whether :meth:`respond` needs the gradient of the loss in the output of the network."""

    axis: int = -1
    """Where the features of the activations are: -1, or 1 after a convolution. Set by the network of the cut."""

    @property
    def sized(self) -> bool:
        """Whether all is built that depends on the shape of the activations."""
        return True

    def size(self, h: Tensor) -> None:
        """Build what depends on the shape of the activations."""

    @abstractmethod
    def predict(self, h: Tensor, context: Tensor | None) -> tuple[Tensor | None, Any]:
        """In forward: activations -> their gradient, None if late, and what the other methods need to remember."""

    def respond(self, memory: Any, target: Tensor | None, error: Tensor | None) -> Tensor | None:
        """In backward, late sources: the gradient for the stage below.

        Args:
            memory: what :meth:`predict` returned.
            target: the gradient of the loss in h as it comes from above.
            error: the gradient of the loss in the output of the network.
        """
        return target

    def learn(self, memory: Any, target: Tensor | None) -> None:
        """In backward: one step of whatever the source learns, from the gradient that came from above."""

    def delay(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """In backward, late sources: what the parameters below get, given what they would get."""
        return gradients

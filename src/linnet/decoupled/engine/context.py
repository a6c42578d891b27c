"""The context of a gradient source beside the activations: labels, as one-hot features, or any features of a sample."""

import torch
import torch.nn.functional as F
from torch import Tensor


def check_context(source: str, context: Tensor | None) -> Tensor:
    """Return the context of a source, or raise a ValueError if it is missing."""
    if context is None:
        raise ValueError(
            f"{source} needs the context of the batch; call the network inside `with net.context(labels):`"
        )
    return context


def attach(state: Tensor, context: Tensor | None, size: int, axis: int) -> Tensor:
    """(activations, context) -> activations with ``size`` more features along ``axis``.

    Args:
        state: the activations, features along ``axis``.
        context: integers in 0..size-1 of shape (batch) or of the leading axes of the activations, which become
            one-hot; or floats with one more axis of length ``size``. It is expanded along its missing axes.
        size: number of context features.
        axis: -1, or 1 for images.

    Raises:
        ValueError: the context is missing, has a wrong shape or integers out of range.

    Example:
        >>> attach(torch.zeros(2, 1), torch.tensor([2, 0]), 3, -1)
        tensor([[0., 0., 0., 1.],
                [0., 1., 0., 0.]])
    """
    context = check_context("A conditioned source", context).detach()
    if context.is_floating_point():
        if context.dim() == 0 or context.shape[-1] != size:
            raise ValueError(f"A context of floats must have shape (batch, *, {size}), got {tuple(context.shape)}")
        features = context.to(state.dtype)
    else:
        if context.numel() and not (0 <= int(context.min()) and int(context.max()) < size):
            raise ValueError(
                f"A context of labels must lie in 0..{size - 1}, got {int(context.min())}..{int(context.max())}"
            )
        features = F.one_hot(context.long(), size).to(state.dtype)
    places = state.movedim(axis, -1).shape[:-1]
    known = features.shape[:-1]
    if places[: len(known)] != known:
        raise ValueError(
            f"A context must have the leading axes of the activations {tuple(state.shape)}, got {tuple(context.shape)}"
        )
    features = features.reshape(*known, *[1] * (len(places) - len(known)), size).expand(*places, size)
    return torch.cat([state, features.movedim(-1, axis)], axis)

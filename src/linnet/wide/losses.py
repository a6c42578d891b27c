"""Losses of a population: a mean inside each being, never across beings."""

from collections.abc import Callable

import torch
from torch import Tensor


def per_being(loss: Callable[[Tensor, Tensor], Tensor], *, shared_target: bool = True) -> Callable[..., Tensor]:
    """loss(output, target) of one net -> losses(outputs, target) of a population, one number for each being.

    Call ``.sum()`` on the result before ``backward()``: each being then gets the gradient of its own loss.
    (``.mean()`` would divide every gradient by the number of beings.)

    Args:
        loss: a criterion of one net that returns a scalar, such as ``F.cross_entropy``.
        shared_target: whether all beings learn the same target, (batch, ...); otherwise the target is
            (batch, beings, ...).

    Shape:
        - outputs: (batch, beings, *)
        - target: (batch, *), or (batch, beings, *) if ``shared_target`` is False
        - result: (beings,)

    Example:
        >>> outputs, target = torch.randn(32, 4, 10), torch.randint(10, (32,))
        >>> per_being(torch.nn.functional.cross_entropy)(outputs, target).shape
        torch.Size([4])
    """

    def losses(outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.dim() < 2:
            raise ValueError(f"outputs must have shape (batch, beings, *), got {tuple(outputs.shape)}")
        if not shared_target and target.shape[:2] != outputs.shape[:2]:
            raise ValueError(
                f"A target that is not shared must have (batch, beings) = {tuple(outputs.shape[:2])} in front, "
                f"got {tuple(target.shape)}"
            )
        return torch.vmap(loss, in_dims=(1, None if shared_target else 1))(outputs, target)

    return losses

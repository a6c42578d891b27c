"""ReLU with a straight-through gradient."""

import torch
from torch import Tensor


def relu_straight_through(x: Tensor) -> Tensor:
    """max(x, 0), with the gradient of the identity: negative entries have a gradient too.

    Shape:
        - x: any
        - returns: as x

    Example:
        >>> x = torch.tensor([-2.0, 3.0], requires_grad=True)
        >>> y = relu_straight_through(x)
        >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
        ([0.0, 3.0], [1.0, 1.0])

    Reference:
        Y. Bengio, N. Léonard, A. Courville, Estimating or propagating gradients through stochastic neurons for
        conditional computation, 2013, arXiv 1308.3432.
    """
    return torch.where(x > 0, x, x - x.detach())

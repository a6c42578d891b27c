"""Backprop: backpropagation as a gradient source, for comparison."""

from torch import Tensor

from linnet.decoupled.sources.source import Source


class Backprop(Source):
    """g = ∂L/∂h: the stage below gets the true gradient, as in backpropagation; a control for experiments.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from linnet import DNI
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> x = torch.randn(5, 2)
        >>> expected = torch.autograd.grad(net(x).sum(), net[0].weight)[0]
        >>> DNI(net, gradient=Backprop())(x).sum().backward()
        >>> bool(torch.allclose(net[0].weight.grad, expected))
        True

    Reference:
        D. E. Rumelhart, G. E. Hinton, R. J. Williams, Learning representations by back-propagating errors, 1986.
    """

    late = True

    def predict(self, h: Tensor, context: Tensor | None) -> tuple[None, None]:
        return None, None

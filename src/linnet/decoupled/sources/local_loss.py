"""LocalLoss: the gradient of the loss of an auxiliary head at the cut."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.decoupled.engine.context import check_context
from linnet.decoupled.engine.data_parallel import averaged
from linnet.decoupled.engine.owned_optimizer import OptimizerFactory, OwnedOptimizer, Owner, with_frozen
from linnet.decoupled.sources.source import Source, without_autocast

ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


class LocalLoss(Owner, Source):
    """g = ∂ criterion(head(h), context) / ∂h: the gradient of the loss of an auxiliary head, known in forward.

    The context, usually the labels, comes from ``with net.context(labels):``. An optimizer of the head trains it by the
    same loss, inside backward. The gradient from above is not used.

    Args:
        criterion: called as ``criterion(head(h), context)``; returns a scalar, the mean over the batch.
        outputs: number of outputs of the head.
        head: class or factory of the head, called as ``head(features, outputs)``. None is one nn.Linear, which reads
            the mean over the pixels if the activations are images.
        optim: class or factory of the head's optimizer, called with a list of parameters; its state must be tensors.

    Shape:
        - activations: (batch, *, features), or (batch, features, *) after a convolution

    Raises:
        ValueError: the context is missing; the criterion does not return a scalar.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from linnet import DNI
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = DNI(net, gradient=LocalLoss(nn.functional.cross_entropy, outputs=3))
        >>> y = torch.tensor([0, 2])
        >>> with net.context(y):
        ...     loss = nn.functional.cross_entropy(net(torch.randn(2, 4)), y)
        >>> loss.backward()
        >>> bool(net.network[0].weight.grad.abs().sum() > 0)
        True

    Reference:
        E. Belilovsky, M. Eickenberg, E. Oyallon, Decoupled greedy learning of CNNs, 2020, arXiv 1901.08164.
        A. Nøkland, L. H. Eidnes, Training neural networks with local error signals, 2019, arXiv 1901.06656.
    """

    inner = "head"
    conditioned = True
    needs_target = False
    features: Tensor
    head: nn.Module | None

    def __init__(
        self,
        criterion: Callable[[Any, Tensor], Tensor],
        outputs: int,
        head: Callable[[int, int], nn.Module] | None = None,
        optim: OptimizerFactory = ADAM,
    ) -> None:
        super().__init__()
        self.criterion, self.outputs = criterion, outputs
        self._make = head or nn.Linear
        self._pooled = head is None
        self.register_module("head", None)
        self.register_buffer("features", torch.zeros((), dtype=torch.int64))  # 0: not sized yet
        self.owned = OwnedOptimizer(optim, "the head's optim")

    def size(self, h: Tensor) -> None:
        self._build(h.shape[self.axis], h.device, h.dtype)

    def _build(self, features: int, device: torch.device, dtype: torch.dtype) -> None:
        with torch.device("cpu"):
            head = self._make(features, self.outputs)
        self.features.fill_(features)
        self._install(head, device, dtype)

    def predict(self, h: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        context = check_context("A local loss", context)
        if not self.sized:
            self.size(h)
        head = self._built()
        parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        dtype = torch.promote_types(h.dtype, torch.float32)
        with torch.enable_grad(), without_autocast(h.device.type):
            state = h.detach().to(dtype).requires_grad_()
            inputs = state.flatten(2).mean(2) if self._pooled and self.axis == 1 else state
            loss = self.criterion(head(inputs), context)
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"The criterion of a local loss must return a scalar, got {found}")
            gradient, *of_head = torch.autograd.grad(loss, [state, *parameters], allow_unused=True)
        return gradient.to(h.dtype), with_frozen(head.parameters(), of_head)

    def learn(self, memory: list[Tensor | None], target: Tensor | None) -> None:
        self.owned.step(self._named(), averaged(self, memory))

    def _build_from(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        if features := int(state_dict.get(prefix + "features", 0)):
            self._build(features, self.features.device, _dtype_of(state_dict, prefix + "head."))


def _dtype_of(state_dict: Mapping[str, Any], prefix: str) -> torch.dtype:
    found = [value.dtype for name, value in state_dict.items() if name.startswith(prefix) and value.is_floating_point()]
    return found[0] if found else torch.float32

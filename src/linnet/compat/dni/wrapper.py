"""DNI, the wrapper of pytorch-dni, and the functions that its tasks use."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

import linnet.decoupled
from linnet.compat.dni.networks import DNI_Network, Linear_DNI
from linnet.decoupled.engine.forward_pass import replaced, tensors
from linnet.decoupled.engine.owned_optimizer import temporary_grads
from linnet.decoupled.sources.synthetic import Prediction, Synthetic

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": functools.partial(torch.optim.Adam, eps=1e-9, betas=(0.9, 0.98)),
    "adamax": functools.partial(torch.optim.Adamax, eps=1e-9, betas=(0.9, 0.98)),
    "rmsprop": functools.partial(torch.optim.RMSprop, momentum=0.9, eps=1e-10),
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}
"""The optimizers of ``grad_optim`` by name."""


class DNI(linnet.decoupled.DNI):
    """Train a network with decoupled neural interfaces: the wrapper of pytorch-dni, on :class:`linnet.DNI`.

    With ``optim`` the training loop steps it. Without, the wrapper builds an optimizer, ``.optim``, and steps it when
    ``loss.backward()`` has reached the network; the gradients stay in ``.grad``.

    Attributes of the network, methods and layers, are available on the wrapper: ``net.init_hidden(batch)``.

    Args:
        network: any nn.Module.
        dni_network: class of the gradient networks; None is :class:`Linear_DNI`.
        optim: the optimizer of the network, which the training loop steps. None builds one of the class grad_optim with
            the rate grad_lr, which the wrapper steps.
        grad_optim: the optimizer of the gradient networks: ``'adam'``, ``'adamax'``, ``'rmsprop'``, ``'sgd'``,
            ``'adagrad'`` or ``'adadelta'``.
        grad_lr: learning rate of grad_optim.
        hidden_size: hidden size of dni_network; None is 10.
        gpu_id: the CUDA device of the network; -1 leaves it on its device.
        dni_params: further arguments of dni_network.
        λ: the share of the true gradient in the gradient of a layer: 0 uses synthetic gradients alone, 1 is
            backpropagation, -1 adds both. None is 0 with ``optim``, as in pytorch-dni 0.0.1, which has no λ; without
            ``optim`` it is 0.5, the default of the later code of pytorch-dni.
        recursive: True cuts the network in front of every layer but the first. False takes the network as one layer of
            a larger network, and cuts after it.
        skip_last_layer: must be True: the last layer gets its true gradient, without waiting.
        format_fn: not used, since every tensor that the network returns is cut.

    Raises:
        ValueError: grad_optim is unknown, λ is out of range, skip_last_layer is False, or :class:`linnet.DNI` raises
            it.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> opt = torch.optim.Adam(net.parameters(), lr=0.001)
        >>> net = DNI(net, optim=opt)
        >>> opt.zero_grad()
        >>> output = net(torch.randn(3, 4))
        >>> output.square().mean().backward()
        >>> opt.step()

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    def __init__(
        self,
        network: nn.Module,
        dni_network: Callable[..., DNI_Network] | None = None,
        optim: Optimizer | None = None,
        grad_optim: str = "adam",
        grad_lr: float = 0.001,
        hidden_size: int | None = None,
        gpu_id: int = -1,
        *,
        dni_params: Mapping[str, Any] = MappingProxyType({}),
        λ: float | None = None,
        recursive: bool = True,
        skip_last_layer: bool = True,
        format_fn: Callable[[Any], Any] | None = None,
    ) -> None:
        if grad_optim not in OPTIMIZERS:
            raise ValueError(f"grad_optim must be one of {', '.join(OPTIMIZERS)}, got {grad_optim!r}")
        if λ is None:
            λ = 0.5 if optim is None else 0.0
        if not (λ == -1 or 0 <= λ <= 1):
            raise ValueError(f"λ must lie in [0, 1] or be -1, got {λ!r}")
        if not skip_last_layer:
            raise ValueError("skip_last_layer must be True, since the last layer gets its true gradient, got False")
        make = functools.partial(OPTIMIZERS[grad_optim], lr=grad_lr)
        synthesizer = functools.partial(dni_network or Linear_DNI, **dni_params)
        width = 10 if hidden_size is None else hidden_size
        gradient = Sum(synthesizer, width, make) if λ == -1 else Synthetic(synthesizer, width, make, mix=λ)
        if gpu_id >= 0:
            network = network.cuda(gpu_id)
        whole = network if recursive else Layer(network)
        super().__init__(whole, optim, at=None if recursive else ["place"], gradient=gradient)
        self._owns_optim = optim is None
        self.optim = make(list(network.parameters())) if optim is None else optim
        self._update_hook: RemovableHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return _of_network(self, name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_update_hook": None}

    def step_optimizers(self) -> None:
        """Step the given ``optim``; without one the wrapper has stepped its own optimizer in ``backward``."""
        if not self._owns_optim:
            self.optim.step()

    def _training_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = super()._training_forward(args, kwargs)
        if self._owns_optim:
            for tensor in tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(self._schedule_update)
        return output

    def _schedule_update(self, gradient: Tensor) -> None:
        """When backward reaches the output, register the update for the moment when all gradients have arrived."""
        if self._update_hook is not None:
            self._update_hook.remove()
        learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._update_hook = register_multi_grad_hook(learning, functools.partial(self._update, learning))

    def _update(self, learning: list[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        if self._update_hook is not None:
            self._update_hook.remove()
            self._update_hook = None
        with torch.no_grad(), temporary_grads(learning, gradients):
            self.optim.step()


class Sum(Synthetic):
    """g + the true gradient: pytorch-dni with λ = -1."""

    late = True

    def respond(self, memory: Prediction, target: Tensor | None, error: Tensor | None) -> Tensor:
        return memory.gradient if target is None else memory.gradient + target


class Layer(nn.Module):
    """A network followed by an nn.Identity, after which DNI cuts.

    Args:
        network: the network.

    Example:
        >>> Layer(nn.LSTM(2, 3))(torch.randn(4, 5, 2))[0].shape
        torch.Size([4, 5, 3])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.place = network, nn.Identity()

    def __getattr__(self, name: str) -> Any:
        return _of_network(self, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.place(self.network(*args, **kwargs))


def _of_network(module: nn.Module, name: str) -> Any:
    """An attribute of the module, or of the network inside."""
    try:
        return nn.Module.__getattr__(module, name)
    except AttributeError:
        if name.startswith("_") or name == "network":
            raise
        return getattr(module.network, name)


def detach_all(o: Any) -> Any:
    """Detach every tensor in nested tuples, lists and dicts.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> [x.requires_grad for x in detach_all((w, 2 * w))]
        [False, False]
    """
    return replaced(o, (tensor.detach() for tensor in tensors(o)))


def get_padding(input_dim: int, kernel_size: int, dilation: int, stride: int) -> int:
    """The padding with which a convolution doubles the size of an image, so that pooling by 2 restores it.

    Args:
        input_dim: height or width of the image.
        kernel_size: kernel size of the convolution.
        dilation: dilation of the convolution.
        stride: stride of the convolution; the size doubles for stride 1 only.

    Example:
        >>> image = torch.zeros(1, 1, 28, 28)
        >>> conv = nn.Conv2d(1, 1, 5, padding=get_padding(28, 5, 1, 1))
        >>> nn.functional.max_pool2d(conv(image), 2).shape
        torch.Size([1, 1, 28, 28])
    """
    return (input_dim * stride + (kernel_size - 1) * dilation + 1) // 2

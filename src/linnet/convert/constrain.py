"""A structured matrix in place of any tensor of any module: torch.nn.utils.parametrize with the maps of linnet."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap

__all__ = ["Constrained", "constrain", "release"]


class Constrained(nn.Module):
    """tensor = the weight of a map, reshaped: what :func:`constrain` registers as a parametrization.

    Args:
        layer: the map; its parameters take the place of the tensor.
        shape: the shape of the tensor.

    Shape:
        - output: ``shape``
    """

    def __init__(self, layer: LinearMap, shape: torch.Size) -> None:
        super().__init__()
        self.map = layer
        self.shape = shape

    def forward(self) -> Tensor:
        noisy = self.map.noisy and self.map.training
        weight = self.map.materialize().weight if noisy else self.map.weight  # a sample of its own for every reading
        return weight.reshape(self.shape)

    def right_inverse(self, tensor: Tensor) -> tuple[()]:
        if not tensor.is_meta:
            self.map.assign(tensor.reshape(self.map.weight.shape))
        return ()


def constrain(
    module: nn.Module, tensor_name: str, cls: type[LinearMap], *, blocks: int = 1, **options: Any
) -> nn.Module:
    """Make ``module.tensor_name`` the weight W of a map, from now on computed from the parameters of that map.

    The tensor's value is assigned to the map (taken exactly if it has the structure, else replaced by the nearest or as
    the class documents), and so is whatever is assigned to ``module.tensor_name`` later. The map is a module inside
    ``module``: :func:`linnet.penalty`, :func:`linnet.violation`, :func:`linnet.frozen` and
    :func:`linnet.param_groups` see it, :func:`linnet.bake` makes a plain tensor again. As with everything that is
    parametrized, ``module.parameters()`` changes (make the optimizer afterwards), and pickling is refused: keep the
    ``state_dict()``, and load it into a module that was constrained in the same way. A tensor that was shared with
    another module is shared no longer. Of a map with noise (:class:`linnet.L0Linear`) every reading of the tensor in
    training mode is a sample of its own.

    Args:
        module: the owner of the tensor.
        tensor_name: its name, such as ``"weight"`` or ``"weight_hh_l0"``.
        cls: the class of the map.
        blocks: how many matrices stand in the tensor one below the other: 4 makes of an LSTM's ``weight_hh_l0``, of
            shape (4n, n), four n × n maps; 3 is for a GRU.
        **options: options of the map.

    Shape:
        - tensor: (blocks · out, *in), a convolution kernel counting as (out, product of the rest)

    Returns:
        ``module`` itself.

    Raises:
        ValueError: there is no such tensor, it has fewer than two axes or is constrained already, ``blocks`` does not
            divide its first axis, or the map cannot have its shape.

    Example:
        >>> from linnet import OrthogonalLinear
        >>> lstm = constrain(nn.LSTM(3, 8), "weight_hh_l0", OrthogonalLinear, blocks=4)
        >>> w = lstm.weight_hh_l0[:8]
        >>> torch.allclose(w @ w.mT, torch.eye(8), atol=1e-5)
        True
    """
    if not (isinstance(cls, type) and issubclass(cls, LinearMap)):
        raise TypeError(f"cls must be a LinearMap class, got {cls!r}")
    tensor = module._parameters.get(tensor_name, module._buffers.get(tensor_name))
    if parametrize.is_parametrized(module, tensor_name):
        raise ValueError(f"A tensor can be constrained once, got {tensor_name} is parametrized already")
    if tensor is None:
        known = ", ".join(dict(module.named_parameters(recurse=False))) or "none"
        raise ValueError(f"tensor_name must be one of the module's own tensors ({known}), got {tensor_name!r}")
    (count,) = check_positive(blocks=blocks)
    if taken := {"bias", "beings", "device", "dtype"} & set(options):
        raise TypeError(f"The tensor decides on beings (blocks=), device and dtype, got {', '.join(sorted(taken))}")
    if tensor.dim() < 2 or tensor.numel() == 0 or tensor.shape[0] % count:
        raise ValueError(
            f"The tensor must have at least 2 axes, the first divisible by blocks={count}, "
            f"got {tensor_name} has shape {tuple(tensor.shape)}"
        )
    matrices = tensor.detach().reshape(count, tensor.shape[0] // count, -1)  # (blocks, out, in)
    _, out_features, in_features = matrices.shape
    beings: dict[str, Any] = {} if count == 1 else {"beings": count}
    with torch.random.fork_rng(devices=[tensor.device] if tensor.is_cuda else []):
        layer = cls._empty(
            in_features, out_features, False, device=tensor.device, dtype=tensor.dtype, **beings, **options
        )
    layer.requires_grad_(tensor.requires_grad).train(module.training)
    if layer.noisy and not layer._pays_dense():
        raise ValueError(f"A tensor holds one matrix, got {layer} draws one for every sample")
    if layer.weight.layout != torch.strided:
        raise ValueError(f"A tensor of another module must be dense, got {cls.__name__} has a sparse weight")
    return parametrize.register_parametrization(module, tensor_name, Constrained(layer, tensor.shape))


def release(module: nn.Module) -> None:
    """Undo :func:`constrain` on a copy of a module: its constrained tensors become Parameters of their value.

    torch's ``remove_parametrizations`` would take the property from the class, which the copy shares with the original.
    """
    steps: Any = module.parametrizations
    ours = [name for name, chain in steps.items() if any(isinstance(step, Constrained) for step in chain)]
    values = {name: getattr(module, name) for name in ours}
    cls = type(module)
    for name in ours:
        del steps[name]
    if len(steps):  # parametrizations of others remain
        kept = {key: value for key, value in vars(cls).items() if key not in (*ours, "__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, cls.__bases__, kept)
    else:
        del module.parametrizations
        module.__class__ = cls.__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone(), value.requires_grad))

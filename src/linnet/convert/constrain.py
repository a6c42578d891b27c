"""constrain: a structured matrix in place of any tensor of any module, by torch.nn.utils.parametrize."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap


class Constrained(nn.Module):
    """tensor = the reshaped weight of a map: the parametrization that :func:`constrain` registers.

    Args:
        layer: the map; its parameters replace the tensor.
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
        weight = self.map.materialize().weight if noisy else self.map.weight  # each access draws a sample
        return weight.reshape(self.shape)

    def right_inverse(self, tensor: Tensor) -> tuple[()]:
        if not tensor.is_meta:
            self.map.assign(tensor.reshape(self.map.weight.shape))
        return ()


def constrain(
    module: nn.Module, tensor_name: str, cls: type[LinearMap], *, blocks: int = 1, **options: Any
) -> nn.Module:
    """Make ``module.tensor_name`` the weight W of a map, computed from the parameters of that map.

    The value of the tensor is assigned to the map: exactly if it has the structure, else the nearest matrix with the
    structure, or as the class documents. So are later assignments to ``module.tensor_name``. The map is a module inside
    ``module``: :func:`linnet.penalty`, :func:`linnet.violation`, :func:`linnet.frozen` and
    :func:`linnet.param_groups` find it, and :func:`linnet.bake` makes a plain tensor again. As with every
    parametrization of torch, ``module.parameters()`` changes (build the optimizer afterwards), and pickling is refused:
    save the ``state_dict()``, and load it into a module that is constrained in the same way. A tensor shared with
    another module is no longer shared. For a map with noise (:class:`linnet.L0Linear`) each access of the tensor in
    training mode draws a sample.

    Args:
        module: the module that owns the tensor.
        tensor_name: name of the tensor, such as ``"weight"`` or ``"weight_hh_l0"``.
        cls: class of the map.
        blocks: number of matrices stacked along the first axis: 4 turns an LSTM's ``weight_hh_l0``, of shape (4n, n),
            into four n × n maps; a GRU has 3.
        **options: options of the map.

    Shape:
        - tensor: (blocks · out, *in); a convolution kernel counts as (out, product of the rest)

    Returns:
        ``module`` itself.

    Raises:
        ValueError: the module has no such tensor, the tensor has fewer than two axes or is constrained already,
            ``blocks`` does not divide its first axis, or the map cannot have its shape.

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
        raise ValueError(f"{tensor_name} is parametrized already; a tensor can be constrained only once")
    if tensor is None:
        known = ", ".join(dict(module.named_parameters(recurse=False))) or "none"
        raise ValueError(f"tensor_name must be one of the module's own tensors ({known}), got {tensor_name!r}")
    (count,) = check_positive(blocks=blocks)
    if taken := {"bias", "beings", "device", "dtype"} & set(options):
        raise TypeError(
            "The tensor determines bias, beings (by blocks=), device and dtype; "
            f"remove the option {', '.join(sorted(taken))}"
        )
    if tensor.dim() < 2 or tensor.numel() == 0 or tensor.shape[0] % count:
        raise ValueError(
            f"{tensor_name} must have at least 2 axes, the first divisible by blocks={count}, "
            f"got shape {tuple(tensor.shape)}"
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
        raise ValueError(f"A tensor holds one matrix; {layer} draws one for every sample")
    if layer.weight.layout != torch.strided:
        raise ValueError(f"A constrained tensor must be dense, got {cls.__name__}, whose weight is sparse")
    return parametrize.register_parametrization(module, tensor_name, Constrained(layer, tensor.shape))


def remove_constraints(module: nn.Module) -> None:
    """Undo :func:`constrain` on a copy of a module: its constrained tensors become Parameters of the same value.

    torch's ``remove_parametrizations`` would delete the property of the class, which the original still uses.
    """
    steps: Any = module.parametrizations
    ours = [name for name, chain in steps.items() if any(isinstance(step, Constrained) for step in chain)]
    values = {name: getattr(module, name) for name in ours}
    cls = type(module)
    for name in ours:
        del steps[name]
    if len(steps):  # other parametrizations remain
        kept = {key: value for key, value in vars(cls).items() if key not in (*ours, "__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, cls.__bases__, kept)
    else:
        del module.parametrizations
        module.__class__ = cls.__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone(), value.requires_grad))

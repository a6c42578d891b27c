"""param_groups and matrix_decay: weight decay that shrinks the matrices of maps, not their raw parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_number
from linnet.core.linear_map import LinearMap
from linnet.wide.widen import Wide


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of ``model`` in two groups for an optimizer: those that may decay, and the rest, which must not.

    Weight decay on raw parameters pulls a map towards the map with raw parameters 0, for example nonnegative entries
    towards log 2 times their scale. Therefore ``LinearMap.decays`` names the parameters of a map with which the matrix
    itself shrinks; its other parameters and its bias do not decay. In other modules tensors with two or more axes
    decay, the others (biases, norms) do not. To shrink the matrices of the maps without decaying parameters, add
    :func:`matrix_decay` to the loss.

    Args:
        model: the model.
        weight_decay: weight decay of the first group, >= 0; the second group has 0.

    Raises:
        ValueError: weight_decay is negative or not finite.

    Example:
        >>> from linnet import Linear, NonNegativeLinear
        >>> model = nn.Sequential(Linear(4, 8), nn.LayerNorm(8), NonNegativeLinear(8, 2))
        >>> optimizer = torch.optim.AdamW(param_groups(model, 0.1), lr=1e-3)
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [1, 5]
    """
    check_number(0, weight_decay=weight_decay)
    shrinking: dict[Tensor, None] = {}
    rest: dict[Tensor, None] = {}
    inside = {part for wide in model.modules() if isinstance(wide, Wide) for part in wide.modules()}
    for module in model.modules():
        axes = 3 if module in inside else 2  # a widened module has one more axis, that of the beings
        for name, parameter in module.named_parameters(recurse=False):
            may = name in module.decays if isinstance(module, LinearMap) else parameter.dim() >= axes
            (shrinking if may else rest)[parameter] = None
    rest = {parameter: None for parameter in rest if parameter not in shrinking}
    return [
        {"params": list(shrinking), "weight_decay": weight_decay},
        {"params": list(rest), "weight_decay": 0.0},
    ]


def matrix_decay(model: nn.Module) -> Tensor:
    """½ Σ ‖W‖²_F over all maps without decaying parameters in :func:`param_groups`: add weight_decay · it to the loss.

    Its gradient is that of weight decay on W, propagated to the raw parameters; hard promises still hold.

    Args:
        model: the model.

    Example:
        >>> from linnet import Linear, OrthogonalLinear
        >>> model = nn.Sequential(Linear(4, 4), OrthogonalLinear(4, 4))
        >>> round(float(matrix_decay(model).detach()), 3)  # half of the trace of I; Linear decays in the optimizer
        2.0
    """
    terms = [
        module.weight.square().sum() / 2
        for module in model.modules()
        if isinstance(module, LinearMap) and not module.decays
    ]
    return torch.stack([term.to(terms[0]) for term in terms]).sum() if terms else torch.zeros(())

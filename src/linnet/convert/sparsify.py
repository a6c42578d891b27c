"""Any model's nn.Linear layers -> sparse layers, with one budget of connections for all of them."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from linnet.convert.replace import Replacements, linear_layers, swap, ties
from linnet.sparse.budget import erk, uniform
from linnet.sparse.dynamic.rules import Rule
from linnet.sparse.linear import SparseLinear
from linnet.sparse.wiring.wiring import Wiring, count

__all__ = ["sparsify"]

DISTRIBUTIONS: dict[str, Callable[[Mapping[str, tuple[int, int]], float], dict[str, int]]] = {
    "erk": erk,
    "uniform": uniform,
}


def sparsify(
    model: nn.Module,
    sparsity: float,
    distribution: Literal["erk", "uniform"] | Mapping[str, float] = "erk",
    *,
    wiring: Wiring | None = None,
    rewiring: bool | Rule = False,
    exclude: str | Iterable[str] = (),
) -> Replacements:
    """Swap the nn.Linear layers of ``model``, in place, for sparse ones that together have the given sparsity.

    Without a ``wiring`` each layer keeps its largest weights: pruning of a trained model, or a start of RigL. With one,
    connections are where the wiring puts them and weights are drawn anew: training from the beginning. A layer that the
    budget gives all its connections stays nn.Linear.

    Args:
        model: the model to change.
        sparsity: of all the swapped layers together; with a mapping, of the layers that no pattern names.
        distribution: how the connections are shared out. ``"erk"``: by Erdős-Rényi-Kernel, layer l gets a density
            proportional to (in + out) / (in · out); ``"uniform"``: the same sparsity everywhere; or a mapping of
            patterns for the qualified name (``"encoder.*"``) to sparsities, the first that fits counts.
        wiring: where connections are, such as ``SmallWorld()``; None: at the largest weights.
        rewiring: how they move: a rule, or True for the schedule of ``SparseLinear(dynamic=True)``.
        exclude: patterns for the qualified names of layers to leave as they are.

    Returns:
        What was swapped, in the order of ``model.named_modules()``. If anything fails, the model is as it was.

    Raises:
        ValueError: no layer is left to be swapped, one shares a tensor with another module, a pattern fits none, or a
            sparsity is not in [0, 1).

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        >>> [(swap.name, swap.layer.nnz) for swap in sparsify(model, 0.9, exclude="2")]
        [('0', 819)]

    Reference:
        U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, Rigging the lottery: making all tickets winners, 2020,
        arXiv 1911.11134 (Erdős-Rényi-Kernel).
    """
    left_out = [exclude] if isinstance(exclude, str) else list(exclude)
    everything = linear_layers(model, "*")
    _refuse_idle(left_out, everything.values(), "exclude")
    matches = {old: name for old, name in everything.items() if not any(fnmatchcase(name, p) for p in left_out)}
    if not matches:
        raise ValueError("sparsify needs a model with an nn.Linear that is not excluded, got there is none")
    shapes = {name: _shape(name, old) for old, name in matches.items()}
    budget = _budget(shapes, sparsity, distribution)
    shrinking = {old: name for old, name in matches.items() if budget[name] < shapes[name][0] * shapes[name][1]}

    def sparse(name: str, old: nn.Module) -> tuple[type[SparseLinear], dict[str, Any], bool]:
        out_features, in_features = shapes[name]
        options = {"sparsity": 1 - budget[name] / (out_features * in_features), "dynamic": rewiring}
        return SparseLinear, options if wiring is None else {**options, "connectivity": wiring}, wiring is None

    if shared := ties(model, shrinking):
        names = " and ".join(f"{shrinking[old]}.{tensor}" for old, tensor in shared)
        raise ValueError(
            "A layer of the budget must own its tensors alone, got "
            f"{names} stand in others too (exclude these layers and replace them by SparseLinear)"
        )
    return swap(model, shrinking, sparse)


def _shape(name: str, layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(f"The size of each layer must be known, got {name} is lazy and has not seen an input yet")
    return layer.out_features, layer.in_features


def _budget(
    shapes: Mapping[str, tuple[int, int]], sparsity: float, distribution: str | Mapping[str, float]
) -> dict[str, int]:
    """Names and (out, in) -> numbers of connections."""
    if isinstance(distribution, str):
        if distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"distribution must be one of {', '.join(DISTRIBUTIONS)}, or a mapping, got {distribution!r}"
            )
        return DISTRIBUTIONS[distribution](shapes, sparsity)
    if not isinstance(distribution, Mapping):
        raise TypeError(f"distribution must be a name or a mapping of patterns, got {distribution!r}")
    _refuse_idle(distribution, shapes, "distribution")
    own = {name: next((s for p, s in distribution.items() if fnmatchcase(name, p)), sparsity) for name in shapes}
    return {name: count(own[name], *shape) for name, shape in shapes.items()}


def _refuse_idle(patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(f"Each pattern of {what} must fit a layer, got {pattern!r} fits none of {known}")

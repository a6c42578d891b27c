"""sparsify: replace the nn.Linear layers of a model by sparse layers with one budget of connections."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from linnet.convert.replace import Replacements, linear_layers, swap, ties
from linnet.sparse.budget import erk, uniform
from linnet.sparse.dynamic.rules import Rule
from linnet.sparse.linear import SparseLinear
from linnet.sparse.wiring.wiring import Wiring, count

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
    """Replace the nn.Linear layers of ``model`` in place by sparse layers that together have the given sparsity.

    Without ``wiring`` each layer keeps its largest weights: pruning of a trained model, or the start of RigL. With
    ``wiring`` the connections are drawn by the wiring and their weights anew: training from scratch. A layer that the
    budget gives all its connections stays nn.Linear.

    Args:
        model: the model to change.
        sparsity: sparsity of all replaced layers together; with a mapping, of the layers that no pattern matches.
        distribution: distribution of the connections over the layers. ``"erk"`` (Erdős-Rényi-Kernel) gives each layer a
            density proportional to (in + out) / (in · out); ``"uniform"`` gives all layers the same sparsity; a mapping
            from patterns for the qualified name (``"encoder.*"``) to sparsities uses the first pattern that matches.
        wiring: the initial connectivity, such as ``SmallWorld()``; None keeps the largest weights.
        rewiring: rule of dynamic sparse training, or True for the schedule of ``SparseLinear(dynamic=True)``.
        exclude: patterns for the qualified names of layers that stay unchanged.

    Returns:
        The replaced layers, in the order of ``model.named_modules()``. If anything fails, the model stays unchanged.

    Raises:
        ValueError: no layer is left to replace, a layer shares a tensor with another module, a pattern matches no
            layer, or a sparsity is not in [0, 1).

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
    _check_patterns(left_out, everything.values(), "exclude")
    matches = {old: name for old, name in everything.items() if not any(fnmatchcase(name, p) for p in left_out)}
    if not matches:
        raise ValueError(f"sparsify needs an nn.Linear that is not excluded, got {type(model).__name__} without one")
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
            f"sparsify cannot share a tensor between layers, got {names}; exclude these layers and convert them with "
            "replace(model, 'sparse', ...)"
        )
    return swap(model, shrinking, sparse)


def _shape(name: str, layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(f"{name} is lazy and its size is not known yet; run one batch first")
    return layer.out_features, layer.in_features


def _budget(
    shapes: Mapping[str, tuple[int, int]], sparsity: float, distribution: str | Mapping[str, float]
) -> dict[str, int]:
    """From names and (out, in) to numbers of connections."""
    if isinstance(distribution, str):
        if distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"distribution must be one of {', '.join(DISTRIBUTIONS)}, or a mapping, got {distribution!r}"
            )
        return DISTRIBUTIONS[distribution](shapes, sparsity)
    if not isinstance(distribution, Mapping):
        raise TypeError(f"distribution must be a name or a mapping of patterns, got {distribution!r}")
    _check_patterns(distribution, shapes, "distribution")
    own = {name: next((s for p, s in distribution.items() if fnmatchcase(name, p)), sparsity) for name in shapes}
    return {name: count(own[name], *shape) for name, shape in shapes.items()}


def _check_patterns(patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(f"Each pattern of {what} must match a layer, got {pattern!r}; the layers are {known}")

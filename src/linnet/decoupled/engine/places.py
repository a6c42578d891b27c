"""The places of cuts in a network: by index, name or pattern, or by default in front of every layer."""

import difflib
import operator
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn

FOLLOWERS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
"""Modules with parameters that belong to the layer before them."""

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that are never called."""


def is_sequential(module: nn.Module) -> bool:
    """Whether the module only calls its children in order."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_layer(module: nn.Module) -> bool:
    """Whether the module has parameters and does not belong to the layer before it, as a norm does."""
    return next(module.parameters(), None) is not None and not isinstance(module, FOLLOWERS)


def chain(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module of nested nn.Sequentials with its name, in the order in which the modules finish.

    A module that occurs in several places is given for each of them.
    """
    if is_sequential(network):
        for name, child in network._modules.items():
            if child is not None:
                yield from chain(child, f"{prefix}{name}.")
                yield prefix + name, child


def chain_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of the chain that are not nn.Sequential containers."""
    return [(name, module) for name, module in chain(network) if not is_sequential(module)]


def cuts_by_default(network: nn.Module) -> list[str]:
    """The modules directly before each layer but the first.

    Example:
        >>> cuts_by_default(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4)))
        ['2']
    """
    modules = chain_modules(network)
    layers = [i for i, (_, module) in enumerate(modules) if is_layer(module)]
    if len(layers) < 2:
        raise ValueError(f"network must have at least two layers with parameters to cut between, got {len(layers)}")
    return [modules[i - 1][0] for i in layers[1:]]


def cuts_by_name(network: nn.Module, at: str | Iterable[int | str]) -> list[str]:
    """Indices, names and patterns -> the names of the modules after which to cut, each once."""
    modules = {name: module for name, module in network.named_modules() if name} | dict(chain(network))
    names: list[str] = []
    for place in [at] if isinstance(at, str) else at:
        if isinstance(place, str):
            found = [name for name in modules if matches(name, place)]
        else:
            found = [child_name(network, place)]
        if not found:
            near = difflib.get_close_matches(place, modules, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(list(modules)[:20])}"
            raise ValueError(f"at must name modules of the network, got {place!r}; {hint}")
        names += [name for name in found if name not in names]
    if not names:
        raise ValueError("at must name at least one module, got an empty list")
    for name in names:
        if isinstance(modules[name], CONTAINERS):
            raise ValueError(f"A cut must follow a module that is called; {name!r} is only a container")
        if name in last_names(network):
            raise ValueError(f"A cut must leave a module above it; {name!r} is the last module")
    return names


def child_name(network: nn.Module, index: int) -> str:
    """The name of a module of an nn.Sequential by its index, which may be negative."""
    if not is_sequential(network):
        raise ValueError(
            f"An index in at needs an nn.Sequential, got {type(network).__name__}; name the modules instead"
        )
    children = list(network._modules)
    try:
        place = operator.index(index)
    except TypeError:
        raise TypeError(f"at must hold int indices and names of modules, got {index!r}") from None
    if not 0 <= place < len(children):
        raise ValueError(f"An index in at must lie in 0..{len(children) - 2}, got {place}")
    return children[place]


def last_names(network: nn.Module) -> list[str]:
    """The modules at which a chain ends: its last child, the last child of the last child, ..."""
    names: list[str] = []
    while is_sequential(network) and network._modules:
        name, network = list(network._modules.items())[-1]  # type: ignore[assignment]
        names.append(f"{names[-1]}.{name}" if names else name)
    return names


def matches(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern; ``*`` and ``?`` match within one level of the name.

    Example:
        >>> matches("encoder.0", "encoder.*"), matches("encoder.0.linear", "encoder.*")
        (True, False)
    """
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def cuts_by_call(network: nn.Module, names: Iterable[str]) -> dict[nn.Module, list[str | None]]:
    """For each module after which to cut: the names of the cuts at its first, second, ... call, None for no cut.

    A module that occurs twice in the chain, such as an activation, is called twice; a module outside the chain once.
    """
    wanted = set(names)
    calls: dict[nn.Module, list[str | None]] = {}
    for name, module in chain(network):
        calls.setdefault(module, []).append(name if name in wanted else None)
    inside = {name for found in calls.values() for name in found}
    for name in wanted - inside:
        calls[network.get_submodule(name)] = [name]
    return {module: found for module, found in calls.items() if any(found)}


def image_axes(network: nn.Module, name: str) -> int | None:
    """The number of axes of images after this module, if the last layer up to its end is a convolution; else None.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
        >>> image_axes(net, "1"), image_axes(net, "3")
        (4, None)
    """
    names = [other for other, _ in network.named_modules(remove_duplicate=False)]
    last = max(i for i, other in enumerate(names) if other == name or other.startswith(name + "."))
    layers = [network.get_submodule(other) for other in names[: last + 1]]
    layer = next((module for module in reversed(layers) if module._parameters and is_layer(module)), None)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return 2 + len(layer.kernel_size)
    return None

"""The table of layer classes by short name; defining a class enters it, so no class is imported here."""

import re

REGISTRY: dict[str, type] = {}


def layer_name(class_name: str) -> str:
    """Class name -> short name: drop ``Linear``, then kebab case.

    Example:
        >>> layer_name("OrthogonalLinear"), layer_name("SVDLinearLearnBounds"), layer_name("Linear")
        ('orthogonal', 'svd-learn-bounds', 'linear')
    """
    short = class_name.replace("Linear", "", 1) or class_name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", short).lower()


def register(cls: type) -> None:
    """Enter a class into the catalogue; defining the same class again (in a notebook, say) replaces it."""
    name = layer_name(cls.__name__)
    known = REGISTRY.get(name)
    if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(
            f"layer name {name!r} is taken by {known.__module__}.{known.__qualname__}; rename the new class or keep "
            f"it out of the catalogue: class {cls.__name__}(LinearMap, catalogue=False)"
        )
    REGISTRY[name] = cls

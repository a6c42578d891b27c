"""What acts on a whole population, whatever it is made of: its parts, its rows, one being taken out.

``population`` is any module whose parts have beings: one LinearMap, a WideDeep, what :func:`linnet.widen` makes, an
nn.Sequential of them.
"""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from linnet.core.being import Spread, indices

__all__ = ["beings_of", "genes_of", "parts_of", "rows_of", "single", "unstack"]


class Part(Protocol):
    """What a module with an axis of beings can do."""

    beings: int

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front."""

    def rows_moved(self) -> None:
        """Rebuild what follows from the rows, after they moved."""

    def single(self, index: int) -> nn.Module:
        """One being as an independent module."""


def parts_of(population: nn.Module) -> list[nn.Module]:
    """The outermost modules with an axis of beings.

    Raises:
        ValueError: there is none, or they have different numbers of beings.
    """
    found: dict[nn.Module, None] = {}

    def visit(module: nn.Module) -> None:
        if callable(getattr(module, "rows", None)) and getattr(module, "beings", None) is not None:
            found[module] = None
        else:
            for child in module.children():
                visit(child)

    visit(population)
    sizes = {_beings(part) for part in found}
    if len(sizes) != 1:
        raise ValueError(f"A population must have one number of beings, got {sorted(sizes) or 'no part has any'}")
    return list(found)


def _beings(part: nn.Module) -> int:
    return part.beings  # type: ignore[return-value]


def beings_of(population: nn.Module) -> int:
    """How many beings all parts of a population have.

    Raises:
        ValueError: it has none, or its parts differ.

    Example:
        >>> from linnet import Linear
        >>> beings_of(nn.Sequential(Linear(3, 4, beings=5), nn.ReLU(), Linear(4, 2, beings=5)))
        5
    """
    return _beings(parts_of(population)[0])


def single(population: nn.Module, index: int) -> nn.Module:
    """Being ``index`` as an independent ordinary module: a copy without the axis of beings.

    Args:
        population: any module whose parts have beings.
        index: which being.

    Example:
        >>> from linnet import OrthogonalLinear
        >>> nets = nn.Sequential(Spread(), OrthogonalLinear(3, 3, beings=5), nn.ReLU())
        >>> x = torch.randn(7, 3)
        >>> torch.allclose(single(nets, 4)(x), nets(x)[:, 4], atol=1e-6)
        True
    """
    if callable(getattr(population, "single", None)) and getattr(population, "beings", None) is not None:
        return population.single(index)  # type: ignore[operator]
    parts = parts_of(population)
    i = int(indices(index, _beings(parts[0])))
    memo: dict[int, nn.Module] = {id(part): part.single(i) for part in parts}  # type: ignore[operator]
    memo |= {id(module): nn.Identity() for module in population.modules() if isinstance(module, Spread)}
    alone = memo.get(id(population)) or copy.deepcopy(population, memo)
    for module in alone.modules():
        if vars(module).get("beings") is not None:
            module.beings = None  # type: ignore[assignment]
    return alone


def unstack(population: nn.Module) -> list[nn.Module]:
    """A population -> one independent ordinary module for each being: the inverse of :func:`linnet.stack`.

    Example:
        >>> from linnet import WideDeep
        >>> len(unstack(WideDeep(4, 5, 3, 2, 2)))
        4
    """
    return [single(population, i) for i in range(beings_of(population))]


def genes_of(population: nn.Module) -> dict[nn.Parameter, None]:
    """The parameters of all parts, each once, in order."""
    parts = parts_of(population)
    return dict.fromkeys(parameter for part in parts for parameter in part.parameters())


def rows_of(population: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[Tensor]:
    """Every tensor of a population with the axis of beings in front, and those of its optimizer.

    Of the optimizer they are states of the genes, and hyper-parameters of their groups.
    """
    parts = parts_of(population)
    rows: list[Tensor] = [row for part in parts for row in part.rows()]  # type: ignore[operator]
    if optimizer is None:
        return rows
    genes, beings = genes_of(population), _beings(parts[0])
    for parameter in genes:
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.dim() and len(value) == beings:
                rows.append(value)
    for group in optimizer.param_groups:
        if any(parameter in genes for parameter in group["params"]):
            rows += [v for v in group.values() if isinstance(v, Tensor) and v.shape == (beings,)]
    return rows

"""Functions on any population: its parts, its parameters, the rows of all tensors, and single beings.

A population is any module whose parts have beings: a LinearMap, a WideDeep, a result of :func:`linnet.widen`, or an
nn.Sequential of them.
"""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from linnet.core.being import Spread, indices


class Part(Protocol):
    """The interface of a module with an axis of beings."""

    beings: int

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front."""

    def rows_moved(self) -> None:
        """Rebuild what is derived from the rows, after the rows changed."""

    def single(self, index: int) -> nn.Module:
        """One being as an independent module."""


def parts_of(population: nn.Module) -> list[nn.Module]:
    """The outermost modules with an axis of beings.

    Raises:
        ValueError: the module has no such part, or the numbers of beings differ.
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
    if not sizes:
        raise ValueError(
            f"A population must have beings, got {type(population).__name__} without any; "
            "build its layers with beings=n, or call linnet.widen(module, n)"
        )
    if len(sizes) > 1:
        raise ValueError(f"All parts of a population must have the same number of beings, got {sorted(sizes)}")
    return list(found)


def _beings(part: nn.Module) -> int:
    return part.beings  # type: ignore[return-value]


def beings_of(population: nn.Module) -> int:
    """The number of beings of a population.

    Raises:
        ValueError: the population has no beings, or the numbers of its parts differ.

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
        index: the number of the being.

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
    """Every tensor of a population, and of its optimizer, with the axis of beings in front.

    The optimizer's tensors are the states of the population's parameters and the hyper-parameters of their groups.
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

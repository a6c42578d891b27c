"""Evolution on the beings axis: who has children, how genes mix, how they mutate.

A generation is three lines::

    parents = linnet.evolve.Truncation(0.2, elites=1)(fitness, generator)
    linnet.evolve.reproduce(population, parents, optimizer)
    linnet.evolve.mutate(population, linnet.evolve.Gaussian(0.05), seed=seed, generation=generation, keep=1)

``population`` is any module whose maps have ``beings``: one LinearMap, a WideDeep, an nn.Sequential of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from linnet.beings import indices
from linnet.wide.counter import normal, streams, uniform

__all__ = [
    "Blend",
    "ByLayer",
    "Crossover",
    "Gaussian",
    "Mutation",
    "Selection",
    "SparseGaussian",
    "Tournament",
    "Truncation",
    "UniformCrossover",
    "UniformMutation",
    "beings_of",
    "mutate",
    "ranking",
    "reproduce",
]

PIECE = 2**16
"""Random numbers drawn at a time: fewer cost calls, more leave the cache."""


# ---------------------------------------------------------------------- selection


def ranking(fitness: Tensor) -> Tensor:
    """Indices from the fittest to the least fit, (beings,) -> (beings,); ties by index, NaN last.

    Example:
        >>> ranking(torch.tensor([1.0, 3.0, float("nan"), 3.0])).tolist()
        [1, 3, 0, 2]
    """
    if fitness.dim() != 1 or not len(fitness):
        raise ValueError(f"fitness must have shape (beings,), however: {tuple(fitness.shape)}")
    known = ~fitness.isnan()
    order = torch.argsort(torch.where(known, fitness, -torch.inf), descending=True, stable=True)
    return order[torch.argsort((~known[order]).int(), stable=True)]


@dataclass(frozen=True)
class Selection(ABC):
    """Who has children: fitness (beings,) -> parents (beings,), the parent of each being of the next generation.

    Attributes:
        elites: the fittest so many come first and unchanged: being 0 of the next generation is the best of this one.
    """

    elites: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.elites < 0:
            raise ValueError(f"elites must not be negative, however: {self.elites}")

    def __call__(self, fitness: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The parents of the next generation.

        Args:
            fitness: (beings,); higher is better, NaN is worst.
            generator: draws on the device of ``fitness``; None is torch's default.
        """
        order = ranking(fitness)
        if self.elites > len(order):
            raise ValueError(f"elites must be at most the number of beings, {len(order)}, however: {self.elites}")
        places = self._places(len(order), fitness.device, generator)[: len(order) - self.elites]
        return torch.cat([order[: self.elites], order[places]])

    @abstractmethod
    def _places(self, beings: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Places in the ranking, 0 the fittest, of the parents of ``beings`` children."""


@dataclass(frozen=True)
class Truncation(Selection):
    """Parents are drawn evenly from the fittest share of the population.

    Attributes:
        share: in (0, 1].
        elites: how many of the fittest stay.

    Example:
        >>> parents = Truncation(share=0.5, elites=1)(torch.tensor([1.0, 4.0, 2.0, 3.0]))
        >>> int(parents[0]), set(parents.tolist()) <= {1, 3}
        (1, True)

    Reference:
        F. P. Such et al., Deep neuroevolution, 2017, arXiv:1712.06567.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], however: {self.share}")

    def _places(self, beings: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        best = max(1, round(self.share * beings))
        return torch.randint(best, (beings,), generator=generator, device=device)


@dataclass(frozen=True)
class Tournament(Selection):
    """Each parent is the fittest of ``size`` beings drawn with replacement.

    Attributes:
        size: at least 1; the larger, the harder.
        elites: how many of the fittest stay.

    Example:
        >>> Tournament(size=2)(torch.arange(10.0)).shape
        torch.Size([10])

    Reference:
        D. E. Goldberg, K. Deb, A comparative analysis of selection schemes, 1991.
    """

    size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size must be at least 1, however: {self.size}")

    def _places(self, beings: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        return torch.randint(beings, (beings, self.size), generator=generator, device=device).amin(1)


# ---------------------------------------------------------------------- crossover


class Crossover(ABC):
    """How a child comes from two parents, one parameter at a time."""

    @abstractmethod
    def __call__(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        """Genes of both parents, (beings, ...) each -> those of the child."""


@dataclass(frozen=True)
class UniformCrossover(Crossover):
    """Each number comes from the second parent with probability ``rate``.

    Attributes:
        rate: in [0, 1].

    Reference:
        G. Syswerda, Uniform crossover in genetic algorithms, 1989.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        _check_share("rate", self.rate)

    def __call__(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = torch.rand(first.shape, generator=generator, device=first.device)
        return torch.where(drawn < self.rate, second, first)


@dataclass(frozen=True)
class ByLayer(Crossover):
    """Each tensor as a whole comes from the second parent with probability ``rate``.

    Attributes:
        rate: in [0, 1].
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        _check_share("rate", self.rate)

    def __call__(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = torch.rand(len(first), generator=generator, device=first.device)
        return torch.where((drawn < self.rate).view(-1, *[1] * (first.dim() - 1)), second, first)


@dataclass(frozen=True)
class Blend(Crossover):
    """BLX-α: child = a + u (b − a) with u uniform in [−α, 1 + α), for each number by itself.

    Attributes:
        alpha: α, at least 0.

    Reference:
        L. J. Eshelman, J. D. Schaffer, Real-coded genetic algorithms and interval-schemata, 1993.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha must be at least 0, however: {self.alpha}")

    def __call__(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(first.shape, generator=generator, device=first.device, dtype=first.dtype)
        return torch.lerp(first, second, u.mul_(1 + 2 * self.alpha).sub_(self.alpha))


# ---------------------------------------------------------------------- mutation


class Mutation(ABC):
    """What is added to the genes of a child."""

    @abstractmethod
    def __call__(self, streams: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Noise for ``count`` numbers of each being, from a stream for each: (n,) -> (n, count)."""


@dataclass(frozen=True)
class Gaussian(Mutation):
    """θ ← θ + σ ε, ε ~ N(0, 1).

    Attributes:
        sigma: σ, at least 0.
    """

    sigma: float = 0.02

    def __post_init__(self) -> None:
        _check_size("sigma", self.sigma)

    def __call__(self, streams: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        return normal(streams, count, dtype).mul_(self.sigma)


@dataclass(frozen=True)
class UniformMutation(Mutation):
    """θ ← θ + u, u uniform in [−width, width).

    Attributes:
        width: at least 0.
    """

    width: float = 0.02

    def __post_init__(self) -> None:
        _check_size("width", self.width)

    def __call__(self, streams: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        return uniform(streams, count, dtype).mul_(2 * self.width).sub_(self.width)


@dataclass(frozen=True)
class SparseGaussian(Mutation):
    """θ ← θ + σ ε for each number with probability ``rate``; the others stay.

    Attributes:
        sigma: σ, at least 0.
        rate: in [0, 1].
    """

    sigma: float = 0.1
    rate: float = 0.1

    def __post_init__(self) -> None:
        _check_size("sigma", self.sigma)
        _check_share("rate", self.rate)

    def __call__(self, streams: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        chosen = uniform(streams ^ 1, count) < self.rate
        return torch.where(chosen, normal(streams, count, dtype) * self.sigma, 0.0)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], however: {value}")


def _check_size(name: str, value: float) -> None:
    if not 0 <= value < torch.inf:
        raise ValueError(f"{name} must be a finite number, at least 0, however: {value}")


# ---------------------------------------------------------------------- on a population


def beings_of(population: nn.Module) -> int:
    """How many beings all parts of a population have.

    Raises:
        ValueError: it has none, or its parts differ.
    """
    return _beings(_parts(population)[0])


def _beings(part: nn.Module) -> int:
    return part.beings  # type: ignore[return-value]


def _parts(population: nn.Module) -> list[nn.Module]:
    """The outermost modules with an axis of beings."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        if module in found:
            return
        if callable(getattr(module, "clone_being", None)) and getattr(module, "beings", None) is not None:
            found.append(module)
        else:
            for child in module.children():
                visit(child)

    visit(population)
    sizes = {_beings(part) for part in found}
    if len(sizes) != 1:
        raise ValueError(f"A population must have one number of beings, however: {sorted(sizes) or 'no part has any'}")
    return found


def _genes(parts: list[nn.Module]) -> dict[nn.Parameter, None]:
    """The parameters of the parts, each once, in order."""
    return dict.fromkeys(parameter for part in parts for parameter in part.parameters())


def reproduce(
    population: nn.Module,
    parents: Tensor | Sequence[int],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    mates: Tensor | Sequence[int] | None = None,
    crossover: Crossover | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Being i becomes a copy of being ``parents[i]`` of the old generation, all at once.

    Parameters, gradients, buffers, wirings, the optimizer's state and its hyper-parameters of each being move together.

    Args:
        population: any module whose maps have ``beings``.
        parents: (beings,) indices.
        optimizer: its state moves too, wherever it has the axis of beings; what all beings share stays.
        mates: (beings,) indices of second parents; with them ``crossover`` says how genes mix. Everything else (the
            optimizer's state, buffers) comes from the first parent.
        crossover: needed iff ``mates`` are given.
        generator: draws for the crossover.

    Raises:
        ValueError: not one parent for each being, an index out of range, or a crossover of beings whose connections
            differ. The population is then as it was.

    Example:
        >>> from linnet import WideDeep
        >>> nets = WideDeep(4, 5, 3, 2, 2)
        >>> before = nets(torch.ones(5))
        >>> reproduce(nets, [2, 2, 0, 1])
        >>> torch.equal(nets(torch.ones(5)), before[[2, 2, 0, 1]])
        True
    """
    parts = _parts(population)
    beings = _beings(parts[0])
    chosen = {"parents": indices(parents, beings)}
    if (mates is None) != (crossover is None):
        raise ValueError("mates and crossover must be given together, however: only one of them is")
    if mates is not None:
        chosen["mates"] = indices(mates, beings)
        for part in parts:
            for module in part.modules():
                if getattr(module, "apart", False):
                    raise ValueError(f"A crossover needs beings of one wiring, however: {module} has one for each")
    for name, index in chosen.items():
        if len(index) != beings:
            raise ValueError(f"{name} must hold one index for each being ({beings}), however: {len(index)}")
    genes = _genes(parts)
    with torch.no_grad():
        mixed: dict[nn.Parameter, Tensor] = {}
        if crossover is not None:
            for parameter in genes:
                first, second = (parameter.index_select(0, index.to(parameter.device)) for index in chosen.values())
                mixed[parameter] = crossover(first, second, generator)
        rows = [] if optimizer is None else _rows_of(optimizer, genes, beings)
        rows += [parameter.grad for parameter in genes if parameter.grad is not None]
        moved = [row.index_select(0, chosen["parents"].to(row.device)) for row in rows]
        for part in parts:
            part.clone_being(chosen["parents"], torch.arange(beings))  # type: ignore[operator]
        for row, new in zip(rows, moved, strict=True):
            row.copy_(new)
        for parameter, new in mixed.items():
            parameter.copy_(new)


def _rows_of(optimizer: torch.optim.Optimizer, genes: dict[nn.Parameter, None], beings: int) -> list[Tensor]:
    """The tensors of an optimizer with the axis of beings: states of the genes, hyper-parameters of their groups."""
    rows = []
    for parameter in genes:
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.dim() and len(value) == beings:
                rows.append(value)
    for group in optimizer.param_groups:
        if any(parameter in genes for parameter in group["params"]):
            rows += [v for v in group.values() if isinstance(v, Tensor) and v.shape == (beings,)]
    return rows


def mutate(
    population: nn.Module,
    mutation: Mutation,
    *,
    seed: int,
    generation: int,
    keep: int = 0,
) -> None:
    """Add noise to every learned number of every being but the first ``keep``.

    The noise of being i is a pure function of (seed, generation, i): it depends neither on the other beings nor on how
    often anything was drawn, so that a run resumes from its counters alone.

    Args:
        population: any module whose maps have ``beings``.
        mutation: what is added.
        seed: of the run.
        generation: its number.
        keep: how many beings from the front stay: the elites.

    Example:
        >>> from linnet import WideDeep
        >>> nets = WideDeep(4, 5, 3, 2, 2)
        >>> before = nets(torch.ones(5))
        >>> mutate(nets, Gaussian(0.1), seed=0, generation=1, keep=1)
        >>> (nets(torch.ones(5)) == before).all(1).tolist()
        [True, False, False, False]
    """
    parts = _parts(population)
    beings = _beings(parts[0])
    if not 0 <= keep <= beings:
        raise ValueError(f"keep must lie in 0..{beings}, however: {keep}")
    with torch.no_grad():
        for place, parameter in enumerate(_genes(parts)):
            if parameter.requires_grad:
                own = streams(torch.arange(keep, beings, device=parameter.device), seed, generation, place)
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                count = parameter[0].numel()
                at_once = max(1, PIECE // count)  # beings
                for some, rows in zip(own.split(at_once), parameter[keep:].split(at_once), strict=True):
                    rows.add_(mutation(some, count, dtype).view_as(rows).to(rows.dtype))

"""The operators of evolution: selection of parents, crossover of their parameters, mutation of the children."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from linnet.core.checks import check_number
from linnet.wide.random import normal, uniform

# ---------------------------------------------------------------------- selection


def ranking(fitness: Tensor) -> Tensor:
    """Indices from the fittest to the least fit, (beings,) -> (beings,); ties by index, NaN last.

    Example:
        >>> ranking(torch.tensor([1.0, 3.0, float("nan"), 3.0])).tolist()
        [1, 3, 0, 2]
    """
    if fitness.dim() != 1 or not len(fitness):
        raise ValueError(f"fitness must have shape (beings,), got {tuple(fitness.shape)}")
    known = ~fitness.isnan()
    order = torch.argsort(torch.where(known, fitness, -torch.inf), descending=True, stable=True)
    return order[torch.argsort((~known[order]).int(), stable=True)]


@dataclass(frozen=True)
class Selection(ABC):
    """Selection of parents: fitness (beings,) -> the parent of each being of the next generation, (beings,).

    Attributes:
        elites: number of the fittest beings that come first, unchanged: being 0 of the next generation is the best of
            this one.
    """

    elites: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.elites < 0:
            raise ValueError(f"elites must be at least 0, got {self.elites}")

    def __call__(self, fitness: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The parents of the next generation.

        Args:
            fitness: (beings,); higher is better, NaN is worst.
            generator: draws on the device of ``fitness``; None is torch's default.
        """
        order = ranking(fitness)
        if self.elites > len(order):
            raise ValueError(f"elites must be at most the number of beings, {len(order)}, got {self.elites}")
        places = self._places(len(order), fitness.device, generator)[: len(order) - self.elites]
        return torch.cat([order[: self.elites], order[places]])

    @abstractmethod
    def _places(self, beings: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Ranks of the parents of ``beings`` children; rank 0 is the fittest."""


@dataclass(frozen=True)
class Truncation(Selection):
    """Each parent is drawn uniformly from the fittest share of the population.

    Attributes:
        share: in (0, 1].
        elites: number of the fittest that stay unchanged.

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
            raise ValueError(f"share must lie in (0, 1], got {self.share}")

    def _places(self, beings: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        best = max(1, round(self.share * beings))
        return torch.randint(best, (beings,), generator=generator, device=device)


@dataclass(frozen=True)
class Tournament(Selection):
    """Each parent is the fittest of ``size`` beings drawn with replacement.

    Attributes:
        size: at least 1; a larger size selects more strongly.
        elites: number of the fittest that stay unchanged.

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
            raise ValueError(f"size must be at least 1, got {self.size}")

    def _places(self, beings: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        # the fittest of a tournament has the least rank
        return torch.randint(beings, (beings, self.size), generator=generator, device=device).amin(1)


# ---------------------------------------------------------------------- crossover


class Crossover(ABC):
    """Crossover of two parents, one parameter tensor at a time."""

    @abstractmethod
    def __call__(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        """The parameters of both parents, (beings, ...) each -> those of the children."""


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
    """BLX-α: child = a + u (b − a), with u uniform in [−α, 1 + α) drawn for each number.

    Attributes:
        alpha: α, at least 0.

    Reference:
        L. J. Eshelman, J. D. Schaffer, Real-coded genetic algorithms and interval-schemata, 1993.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha must be at least 0, got {self.alpha}")

    def __call__(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(first.shape, generator=generator, device=first.device, dtype=first.dtype)
        return torch.lerp(first, second, u.mul_(1 + 2 * self.alpha).sub_(self.alpha))


# ---------------------------------------------------------------------- mutation


class Mutation(ABC):
    """The noise that is added to the parameters of a child."""

    @abstractmethod
    def __call__(self, streams: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Noise for ``count`` numbers of each being, one stream for each being: (n,) -> (n, count)."""


@dataclass(frozen=True)
class Gaussian(Mutation):
    """θ ← θ + σ ε, ε ~ N(0, 1).

    Attributes:
        sigma: σ, at least 0.
    """

    sigma: float = 0.02

    def __post_init__(self) -> None:
        check_number(0, sigma=float(self.sigma))

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
        check_number(0, width=float(self.width))

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
        check_number(0, sigma=float(self.sigma))
        _check_share("rate", self.rate)

    def __call__(self, streams: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        # another stream than that of the noise: the choice of a number must not depend on its noise
        chosen = uniform(streams ^ 1, count) < self.rate
        return torch.where(chosen, normal(streams, count, dtype) * self.sigma, 0.0)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")

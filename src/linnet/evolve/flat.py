"""FlatVector: a population as a matrix with one row for each being, for searchers of flat vectors (EvoTorch)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from linnet.wide.population import beings_of, genes_of


class FlatVector:
    """The learned parameters of a population as a matrix (beings, size) and back, and as a problem for EvoTorch.

    Args:
        population: any module whose parts have beings.

    Example:
        >>> import linnet
        >>> flat = FlatVector(linnet.widen(lambda: nn.Linear(3, 2), 5))
        >>> vectors = flat.read()
        >>> vectors.shape
        torch.Size([5, 8])
        >>> flat.write(torch.zeros(5, 8))
        >>> flat.population(torch.randn(7, 1, 3)).abs().max().item()
        0.0
    """

    def __init__(self, population: nn.Module) -> None:
        self.population, self.beings = population, beings_of(population)
        self._genes = [parameter for parameter in genes_of(population) if parameter.requires_grad]
        if not self._genes:
            raise ValueError(f"FlatVector needs parameters with requires_grad, got {population}")
        self._sizes = [math.prod(parameter.shape[1:]) for parameter in self._genes]

    @property
    def size(self) -> int:
        """The number of learned parameters of a being."""
        return sum(self._sizes)

    def read(self) -> Tensor:
        """A copy of the parameters of all beings, (beings, size)."""
        with torch.no_grad():
            return torch.cat([parameter.reshape(self.beings, -1) for parameter in self._genes], 1)

    def write(self, vectors: Tensor) -> None:
        """Overwrite the first len(vectors) beings.

        Args:
            vectors: (n, size), n at most the number of beings.
        """
        if vectors.dim() != 2 or vectors.shape[1] != self.size or len(vectors) > self.beings:
            raise ValueError(
                f"vectors must have shape (at most {self.beings}, {self.size}), got {tuple(vectors.shape)}"
            )
        with torch.no_grad():
            for parameter, part in zip(self._genes, vectors.split(self._sizes, 1), strict=True):
                parameter[: len(vectors)] = part.reshape(-1, *parameter.shape[1:]).to(parameter)

    def evaluate(self, fitness: Callable[[nn.Module], Tensor], vectors: Tensor) -> Tensor:
        """The fitness of any number of vectors, (n, size) -> (n,), evaluated in batches of ``beings``.

        Args:
            fitness: population -> (beings,).
            vectors: (n, size).
        """
        found = []
        for some in vectors.split(self.beings):
            self.write(some)
            with torch.no_grad():
                found.append(fitness(self.population)[: len(some)])
        return torch.cat(found)

    def problem(self, fitness: Callable[[nn.Module], Tensor], *, seed: int | None = None, **options: Any) -> Any:
        """An ``evotorch.Problem`` that maximizes the fitness: for PGPE, SNES, XNES, CMA-ES, CEM and the others.

        Args:
            fitness: population -> (beings,), higher is better.
            seed: seed of the problem's generator.
            options: options of ``evotorch.Problem``, such as ``objective_sense`` or ``initial_bounds``; the default
                bounds are the least and the largest parameter of the population now.

        Raises:
            ModuleNotFoundError: evotorch is not installed.
        """
        from evotorch import Problem

        rows = self.read()
        bounds = float(rows.min()), float(rows.max())

        class PopulationProblem(Problem):
            def _evaluate_batch(problem, batch: Any) -> None:
                batch.set_evals(self.evaluate(fitness, batch.values))

        settings = {"objective_sense": "max", "initial_bounds": bounds, "dtype": rows.dtype} | options
        return PopulationProblem(solution_length=self.size, seed=seed, **settings)

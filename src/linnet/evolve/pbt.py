"""Population-based training: each being trains by gradient descent, and the hyper-parameters of the beings evolve."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from linnet.evolve.operators import ranking
from linnet.evolve.reproduce import reproduce
from linnet.evolve.strategies import generator_of
from linnet.wide.optim import WideOptimizer


class PopulationBasedTraining:
    """Exploit: the worst beings copy weights and optimizer state of the best. Explore: they perturb hyper-parameters.

    Between two calls of :meth:`step` the beings train by gradient, each with its own hyper-parameters.

    Args:
        population: any module whose parts have beings.
        optimizer: the optimizer of its parameters, a :class:`linnet.WideOptimizer`.
        hyper: names, in ``param_groups``, of the hyper-parameters that evolve.
        share: the share of the beings that are replaced, and of the best that they copy, in (0, 1/2].
        factors: each explored hyper-parameter is multiplied by one of these numbers.
        seed: seed of all draws.

    Raises:
        ValueError: share is out of its range, factors is empty, or the optimizer has no hyper-parameter of a name.

    Example:
        >>> import linnet
        >>> nets = linnet.WideDeep(10, 4, 8, 2, 2)
        >>> optimizer = linnet.WideAdam(nets.parameters(), beings=10, lr=torch.logspace(-4, -1, 10))
        >>> pbt = PopulationBasedTraining(nets, optimizer)
        >>> pbt.step(torch.arange(10.0)).tolist()[2:]  # the two worst copy one of the two best
        [2, 3, 4, 5, 6, 7, 8, 9]

    Reference:
        M. Jaderberg et al., Population based training of neural networks, 2017, arXiv:1711.09846.
    """

    def __init__(
        self,
        population: nn.Module,
        optimizer: WideOptimizer,
        *,
        hyper: Sequence[str] = ("lr",),
        share: float = 0.2,
        factors: Sequence[float] = (0.8, 1.2),
        seed: int = 0,
    ) -> None:
        if not isinstance(optimizer, WideOptimizer):
            raise TypeError(f"optimizer must be a WideOptimizer, such as WideAdam, got {type(optimizer).__name__}")
        if not 0 < share <= 0.5:
            raise ValueError(f"share must lie in (0, 1/2], got {share}")
        if not factors or not all(0 < factor < torch.inf for factor in factors):
            raise ValueError(f"factors must be finite positive numbers, got {tuple(factors)}")
        for name in hyper:
            if name not in optimizer.intervals:
                raise ValueError(f"hyper must be among {', '.join(optimizer.intervals)}, got {name!r}")
        self.population, self.optimizer = population, optimizer
        self.hyper, self.share, self.factors = tuple(hyper), share, tuple(factors)
        self.seed, self.steps = seed, 0

    @torch.no_grad()
    def step(self, fitness: Tensor) -> Tensor:
        """Exploit and explore.

        Args:
            fitness: (beings,); higher is better, NaN is worst.

        Returns:
            The parent of each being, (beings,); the being's own index where it is kept.
        """
        beings = self.optimizer.beings
        if fitness.shape != (beings,):
            raise ValueError(f"fitness must have shape ({beings},), got {tuple(fitness.shape)}")
        order, generator = ranking(fitness.detach().cpu()), generator_of(self.seed, self.steps)
        count = int(self.share * beings)
        parents = torch.arange(beings)
        worst = order[beings - count :]
        parents[worst] = order[torch.randint(max(count, 1), (count,), generator=generator)]
        reproduce(self.population, parents, self.optimizer)
        for group in self.optimizer.param_groups:
            for name in self.hyper:
                drawn = torch.randint(len(self.factors), (count,), generator=generator)
                low, high = self.optimizer.intervals[name]
                rows = group[name]
                explored = rows[worst] * torch.tensor(self.factors, dtype=rows.dtype)[drawn].to(rows.device)
                # the interval is [low, high): clamp to the largest number below high
                largest = torch.nextafter(torch.tensor(high, dtype=rows.dtype), torch.tensor(low, dtype=rows.dtype))
                rows[worst] = explored.clamp(low, float(largest))
        self.steps += 1
        return parents

    def state_dict(self) -> dict[str, int]:
        """The number of steps made; save the population and the optimizer with their own state_dict."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the number of steps."""
        self.steps = state["steps"]

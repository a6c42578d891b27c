"""The demos of ``linnet tour``: each shows one thing that nn.Linear cannot do, on real data, beside nn.Linear."""

from linnet.cli.tour.demos import cartpole, chimera, drift, forecast, memory, population, width
from linnet.cli.tour.demos.demo import Demo as Demo

__all__ = ["DEMOS", "Demo"]

DEMOS = {
    "memory": memory.run,
    "width": width.run,
    "drift": drift.run,
    "population": population.run,
    "cartpole": cartpole.run,
    "chimera": chimera.run,
    "forecast": forecast.run,
}

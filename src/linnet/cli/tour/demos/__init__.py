"""The acts of ``linnet tour``: each shows one thing that nn.Linear cannot do, on real data, beside nn.Linear."""

from linnet.cli.tour.demos import cartpole, chimera, drift, forecast, memory, population, width
from linnet.cli.tour.demos.demo import Act as Act

__all__ = ["ACTS", "Act"]

ACTS = {
    "memory": memory.perform,
    "width": width.perform,
    "drift": drift.perform,
    "population": population.perform,
    "cartpole": cartpole.perform,
    "chimera": chimera.perform,
    "forecast": forecast.perform,
}

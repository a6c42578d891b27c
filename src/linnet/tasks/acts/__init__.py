"""The acts of ``linnet tour``: each shows one thing that nn.Linear cannot do, on real data, beside nn.Linear."""

from linnet.tasks.acts import cartpole, chimera, drift, forecast, memory, population, width
from linnet.tasks.acts.act import Act as Act

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

"""The acts of ``linnet tour``: each shows one thing that nn.Linear cannot do, on real data, beside nn.Linear."""

from linnet.tasks.acts.act import Act as Act
from linnet.tasks.acts.memory import memory as memory
from linnet.tasks.acts.population import population as population
from linnet.tasks.acts.width import width as width

__all__ = ["ACTS", "Act", "memory", "population", "width"]

ACTS = {"memory": memory, "width": width, "population": population}

"""The next generation, and mutation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from linnet.core.being import indices
from linnet.evolve.operators import Crossover, Mutation
from linnet.wide.population import beings_of, genes_of, parts_of, rows_of
from linnet.wide.random import at_once, streams

if TYPE_CHECKING:
    from linnet.evolve.shards import Shards

__all__ = ["mutate", "reproduce"]


def reproduce(
    population: nn.Module,
    parents: Tensor | Sequence[int],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    mates: Tensor | Sequence[int] | None = None,
    crossover: Crossover | None = None,
    generator: torch.Generator | None = None,
    shards: "Shards | None" = None,
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
        shards: where processes hold a population together: ``population`` is this one's part, ``parents`` are those of
            all beings, and rows move between the processes.

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
    parts = parts_of(population)
    local = beings_of(population)
    beings = local if shards is None else shards.beings
    if shards is not None and (local != shards.local or crossover is not None):
        what = f"it has {local}" if local != shards.local else "a crossover is given"
        raise ValueError(f"A process must hold its {shards.local} beings, which have one parent each, got {what}")
    chosen = {"parents": indices(parents, beings)}
    if (mates is None) != (crossover is None):
        raise ValueError("mates and crossover must be given together, got only one of them is")
    if mates is not None:
        chosen["mates"] = indices(mates, beings)
        for part in parts:
            for module in part.modules():
                if getattr(module, "apart", False):
                    raise ValueError(f"A crossover needs beings of one wiring, got {module} has one for each")
    for name, index in chosen.items():
        if len(index) != beings:
            raise ValueError(f"{name} must hold one index for each being ({beings}), got {len(index)}")
    genes = genes_of(population)
    with torch.no_grad():
        mixed: dict[nn.Parameter, Tensor] = {}
        if crossover is not None:
            for parameter in genes:
                first, second = (parameter.index_select(0, index.to(parameter.device)) for index in chosen.values())
                mixed[parameter] = crossover(first, second, generator)
        rows = rows_of(population, optimizer)
        rows += [parameter.grad for parameter in genes if parameter.grad is not None]
        if shards is None:
            moved = [row.index_select(0, chosen["parents"].to(row.device)) for row in rows]
        else:
            moved = shards.moved(rows, chosen["parents"])
        for row, new in zip(rows, moved, strict=True):
            row.copy_(new)
        for part in parts:
            part.rows_moved()  # type: ignore[operator]
        for parameter, new in mixed.items():
            parameter.copy_(new)


def mutate(
    population: nn.Module,
    mutation: Mutation,
    *,
    seed: int,
    generation: int,
    keep: int = 0,
    first: int = 0,
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
        first: the number of the first of these beings, where they are a part of a larger population.

    Example:
        >>> from linnet import WideDeep, evolve
        >>> nets = WideDeep(4, 5, 3, 2, 2)
        >>> before = nets(torch.ones(5))
        >>> mutate(nets, evolve.Gaussian(0.1), seed=0, generation=1, keep=1)
        >>> (nets(torch.ones(5)) == before).all(1).tolist()
        [True, False, False, False]
    """
    beings = beings_of(population)
    if not 0 <= keep <= first + beings:
        raise ValueError(f"keep must lie in 0..{first + beings}, got {keep}")
    keep = min(max(0, keep - first), beings)
    with torch.no_grad():
        for place, parameter in enumerate(genes_of(population)):
            if parameter.requires_grad:
                own = streams(
                    torch.arange(first + keep, first + beings, device=parameter.device), seed, generation, place
                )
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                count = parameter[0].numel()
                for some, rows in zip(own.split(at_once(count)), parameter[keep:].split(at_once(count)), strict=True):
                    rows.add_(mutation(some, count, dtype).view_as(rows).to(rows.dtype))

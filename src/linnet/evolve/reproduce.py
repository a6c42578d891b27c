"""reproduce and mutate: copy parents into the next generation, add noise to the children."""

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
    """Being i becomes a copy of being ``parents[i]`` of the old generation, all simultaneously.

    Parameters, gradients, buffers, connectivity, and the optimizer's state and hyper-parameters of each being are
    copied together.

    Args:
        population: any module whose maps have ``beings``.
        parents: (beings,) indices.
        optimizer: its state is copied too where it has the axis of beings; state that all beings share stays.
        mates: (beings,) indices of second parents, whose parameters ``crossover`` mixes with those of the first.
            Everything else (the optimizer's state, buffers) comes from the first parent.
        crossover: needed iff ``mates`` are given.
        generator: draws for the crossover.
        shards: for a population sharded across processes: ``population`` is the part of this process, ``parents`` are
            those of all beings, and rows are sent between the processes.

    Raises:
        ValueError: the number of parents is not ``beings``, an index is out of range, or the beings of a crossover
            differ in connectivity. The population stays unchanged.

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
    if shards is not None and local != shards.local:
        raise ValueError(f"population must hold the {shards.local} beings of this process, got {local}")
    if shards is not None and crossover is not None:
        raise ValueError("A population sharded across processes has one parent for each being; leave crossover= out")
    chosen = {"parents": indices(parents, beings)}
    if (mates is None) != (crossover is None):
        raise ValueError(f"mates and crossover must be given together, got {'crossover' if mates is None else 'mates'}")
    if mates is not None:
        chosen["mates"] = indices(mates, beings)
        for part in parts:
            for module in part.modules():
                if getattr(module, "apart", False):
                    raise ValueError(f"A crossover needs one connectivity for all beings, got one for each in {module}")
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
    """Add noise to every learned parameter of every being but the first ``keep``.

    The noise of being i is a pure function of (seed, generation, i), independent of the other beings and of earlier
    draws. A run therefore resumes from its counters alone.

    Args:
        population: any module whose maps have ``beings``.
        mutation: the noise.
        seed: seed of the run.
        generation: number of the generation.
        keep: number of beings at the front that stay unchanged: the elites.
        first: number of the population's first being, if it is a part of a larger population.

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
                # in pieces that fit in the cache, see at_once
                for some, rows in zip(own.split(at_once(count)), parameter[keep:].split(at_once(count)), strict=True):
                    rows.add_(mutation(some, count, dtype).view_as(rows).to(rows.dtype))

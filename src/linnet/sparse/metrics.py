"""Graph metrics of connectivity: degrees, clustering, path length, and small-worldness σ."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.core.checks import check_positive
from linnet.sparse.csr import among


@dataclass(frozen=True)
class SmallWorldness:
    """The small-worldness of a wiring, compared with random graphs of the same degrees.

    Attributes:
        clustering: the share of paths of three connections whose ends are connected too.
        path_length: mean length of the shortest paths between units that are connected by any.
        random_clustering, random_path_length: the same for the random graphs, in the mean.
        sigma: (clustering / random_clustering) / (path_length / random_path_length); a small world has σ > 1.
        paths: the number of paths of three connections in the sample; 0: all.
        sources: the number of units from which shortest paths were followed; 0: all.
        graphs: the number of random graphs.
    """

    clustering: float
    path_length: float
    random_clustering: float
    random_path_length: float
    sigma: float
    paths: int
    sources: int
    graphs: int


def degrees(layer: Any) -> tuple[Tensor, Tensor]:
    """The number of connections of each output, ([beings,] out), and of each input, ([beings,] in).

    Args:
        layer: a sparse layer.

    Example:
        >>> from linnet import SparseLinear
        >>> [tuple(part.shape) for part in degrees(SparseLinear(20, 10, sparsity=0.5))]
        [(10,), (20,)]
    """
    return layer.crow.diff().long(), layer.ccol.diff().long()


def small_world(
    layer: Any,
    *,
    paths: int = 100_000,
    sources: int = 50,
    graphs: int = 3,
    generator: torch.Generator | None = None,
) -> SmallWorldness:
    """Clustering, path length and σ of the connections of a layer, seen as a bipartite graph of inputs and outputs.

    The clustering of a bipartite graph is that of Robins and Alexander, 4 C₄ / L₃: it counts cycles of four connections
    against paths of three. It is exact where there are at most ``paths`` of these, else the share among as many random
    ones. Shortest paths are followed from ``sources`` random units, or from all if there are not more.

    Args:
        layer: a sparse layer with one wiring.
        paths: the largest number of paths of three connections to look at.
        sources: the largest number of units to start from.
        graphs: the number of random graphs to compare with.
        generator: draws samples and random graphs.

    Raises:
        ValueError: the layer is a population with several wirings, or a number is no positive integer.

    Example:
        >>> from linnet import SparseLinear
        >>> generator = torch.Generator().manual_seed(0)
        >>> layer = SparseLinear(200, 200, sparsity=0.95, small_world=True, generator=generator)
        >>> found = small_world(layer, generator=generator)
        >>> found.sigma > 1.5
        True

    Reference:
        G. Robins, M. Alexander, Small worlds among interlocking directors: network structure and distance in bipartite
        graphs, 2004; M. D. Humphries, K. Gurney, Network 'small-world-ness', 2008.
    """
    if layer.indices.dim() == 3:
        raise ValueError(f"small_world takes one wiring, got {len(layer.indices)} of a population")
    check_positive(paths=paths, sources=sources, graphs=graphs)
    row, col = layer.indices.cpu()
    size = (layer.out_features, layer.in_features)

    def measured(row: Tensor, col: Tensor) -> tuple[float, float]:
        return _clustering(row, col, *size, paths, generator), _path_length(row, col, *size, sources, generator)

    clustering, path_length = measured(row, col)
    others = [measured(*_shuffled(row, col, layer.in_features, generator)) for _ in range(graphs)]
    random_clustering, random_path_length = (sum(values) / graphs for values in zip(*others, strict=True))
    comparable = random_clustering > 0 and path_length > 0
    return SmallWorldness(
        clustering=clustering,
        path_length=path_length,
        random_clustering=random_clustering,
        random_path_length=random_path_length,
        sigma=clustering / random_clustering / (path_length / random_path_length) if comparable else float("nan"),
        paths=0 if _threepaths(row, col, *size)[1] <= paths else paths,
        sources=0 if sum(size) <= sources else sources,
        graphs=graphs,
    )


def _threepaths(row: Tensor, col: Tensor, out_features: int, in_features: int) -> tuple[Tensor, int]:
    """How many paths of three have each connection as their middle, and how many there are in all: L₃."""
    # j' – i – j – i' around the connection (i, j): one of the kᵢ − 1 other inputs of i, and of the kⱼ − 1 other outputs
    # of j. So L₃ = Σ (kᵢ − 1)(kⱼ − 1) over the connections.
    ends = (torch.bincount(row, minlength=out_features)[row] - 1) * (
        torch.bincount(col, minlength=in_features)[col] - 1
    )
    return ends, int(ends.sum())


def _clustering(
    row: Tensor, col: Tensor, out_features: int, in_features: int, paths: int, generator: torch.Generator | None
) -> float:
    """The share of paths j' – i – j – i' whose ends j' and i' are connected."""
    # This is 4 C₄ / L₃: a cycle of four connections contains four paths of three, one without each of them.
    ends, total = _threepaths(row, col, out_features, in_features)
    if not total:
        return 0.0
    cells, order = (row * in_features + col).sort()
    row, col, ends = row[order], col[order], ends[order]
    by_col = (col * out_features + row).sort()
    crow = F.pad(torch.bincount(row, minlength=out_features).cumsum(0), (1, 0))
    ccol = F.pad(torch.bincount(col, minlength=in_features).cumsum(0), (1, 0))
    stop = ends.cumsum(0)
    # The paths are numbered 0..L₃ − 1: by their middle connection, then by which of the other inputs of i, then by
    # which of the other outputs of j they have. A uniform number is then a uniform path, without a list of all paths.
    if total <= paths:
        number = torch.arange(total)
    else:
        number = (torch.rand(paths, generator=generator, dtype=torch.float64) * total).long()
    middle = torch.searchsorted(stop, number, right=True)
    rest = number - (stop[middle] - ends[middle])
    i, j = row[middle], col[middle]
    fan_out = ccol[j + 1] - ccol[j] - 1
    first, second = rest // fan_out, rest % fan_out
    at = crow[i] + first
    at = at + (at >= middle).long()  # skip the middle connection among those of i
    back = torch.empty_like(order)
    back[by_col.indices] = torch.arange(order.shape[0])  # where a connection is among those of its input
    at_col = ccol[j] + second
    at_col = at_col + (at_col >= back[middle]).long()
    other_input, other_output = col[at], row[by_col.indices[at_col]]
    closed, _ = among(other_output * in_features + other_input, cells)
    return float(closed.double().mean())


def _path_length(
    row: Tensor, col: Tensor, out_features: int, in_features: int, sources: int, generator: torch.Generator | None
) -> float:
    """Mean distance from some units to all that can be reached from them, by breadth-first search."""
    # Inputs and outputs are the units of one undirected graph, in CSR form; each round visits all neighbours of the
    # front at once.
    units = out_features + in_features
    a, b = torch.cat([row, col + out_features]), torch.cat([col + out_features, row])  # both directions
    a, order = a.sort(stable=True)
    b = b[order]
    start = F.pad(torch.bincount(a, minlength=units).cumsum(0), (1, 0))
    first = torch.arange(units) if units <= sources else torch.randperm(units, generator=generator)[:sources]
    steps = pairs = 0
    for source in first.tolist():
        seen = torch.zeros(units, dtype=torch.bool)
        front = torch.tensor([source])
        seen[source] = True
        distance = 0
        while front.numel():
            distance += 1
            length = start[front + 1] - start[front]
            which = torch.arange(front.shape[0]).repeat_interleave(length)
            inside = torch.arange(int(length.sum())) - (length.cumsum(0) - length)[which]
            reached = torch.zeros_like(seen)
            reached[b[start[front][which] + inside]] = True
            reached &= ~seen
            seen |= reached
            front = reached.nonzero().squeeze(1)
            steps, pairs = steps + distance * front.shape[0], pairs + front.shape[0]
    return steps / pairs if pairs else 0.0


def _shuffled(row: Tensor, col: Tensor, in_features: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A random graph with the same degrees (configuration model)."""
    # A permutation of the inputs over the connections keeps both degrees, and may connect a pair twice. Such a
    # connection swaps its input with that of a random other one, which keeps the degrees too (S. Maslov, K. Sneppen,
    # 2002). Where the graph is so dense that swaps do not end, the repetitions that are left are dropped.
    col = col[torch.randperm(col.shape[0], generator=generator)]
    for _ in range(200):
        cells = row * in_features + col
        order = cells.sort(stable=True).indices
        twice = order[1:][cells[order].diff() == 0]
        if not twice.numel():
            return row, col
        others = torch.randperm(col.shape[0], generator=generator)
        partner = others[~torch.isin(others, twice)][: twice.shape[0]]
        twice = twice[: partner.shape[0]]
        col[twice], col[partner] = col[partner], col[twice]
    cells = (row * in_features + col).unique()
    return cells // in_features, cells % in_features

"""Budgets: how many connections each layer of a model gets, given the sparsity of all layers together."""

import math
from collections.abc import Mapping

from linnet.sparse.wiring.wiring import count


def uniform(shapes: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, int]:
    """The same density everywhere: nnz_l ∝ in_l · out_l, together round((1 − sparsity) Σ in · out).

    Args:
        shapes: (out, in) of each layer by name.
        sparsity: of all layers together.

    Raises:
        ValueError: sparsity is not in [0, 1), or leaves fewer connections than there are layers.

    Example:
        >>> uniform({"a": (10, 30), "b": (10, 10)}, 0.9)
        {'a': 30, 'b': 10}
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = _total(sizes, sparsity)
    return _whole({name: total * size / sum(sizes.values()) for name, size in sizes.items()}, sizes, total)


def erk(shapes: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, int]:
    """Erdős-Rényi-Kernel: density_l = ε (in_l + out_l) / (in_l · out_l), with ε for the total; at most 1.

    Layers whose density would exceed 1 are dense, and ε is solved again for the others.

    Args:
        shapes: (out, in) of each layer by name.
        sparsity: of all layers together.

    Raises:
        ValueError: sparsity is not in [0, 1), or leaves fewer connections than there are layers.

    Example:
        >>> erk({"wide": (100, 100), "narrow": (100, 5)}, 0.9)
        {'wide': 689, 'narrow': 361}

    Reference:
        U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, Rigging the lottery: making all tickets winners, 2020,
        arXiv 1911.11134.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = _total(sizes, sparsity)
    dense: set[str] = set()
    while True:  # at most once for each layer: every round makes one more of them dense, or ends
        sparse = [name for name in shapes if name not in dense]
        left = total - sum(sizes[name] for name in dense)
        units = sum(sum(shapes[name]) for name in sparse)
        share = {name: left * sum(shapes[name]) / units for name in sparse}
        full = {name for name in sparse if share[name] > sizes[name]}
        if not full:
            return _whole(share | {name: float(sizes[name]) for name in dense}, sizes, total, shapes)
        dense |= full


def _total(sizes: Mapping[str, int], sparsity: float) -> int:
    total = count(sparsity, sum(sizes.values()), 1)
    if total < len(sizes):
        raise ValueError(
            f"Each layer must have a connection, got sparsity={sparsity}, which leaves {total} for {len(sizes)} layers"
        )
    return total


def _whole(
    share: Mapping[str, float], sizes: Mapping[str, int], total: int, order: Mapping[str, object] | None = None
) -> dict[str, int]:
    """Shares -> whole numbers with the same sum, each at least 1 (largest remainder method)."""
    # All are rounded down, and what is missing goes to those with the largest remainders. Where the least of 1 has made
    # the sum too large, it is taken from those with the smallest.
    whole = {name: max(1, min(sizes[name], math.floor(share[name]))) for name in order or share}
    ranked = sorted(whole, key=lambda name: math.floor(share[name]) - share[name])
    missing = total - sum(whole.values())
    while missing:
        for name in ranked if missing > 0 else reversed(ranked):
            if missing > 0 and whole[name] < sizes[name]:
                whole[name], missing = whole[name] + 1, missing - 1
            elif missing < 0 and whole[name] > 1:
                whole[name], missing = whole[name] - 1, missing + 1
    return whole

"""How many blocks, and how two sizes are divided among them."""

import math

import torch
from torch import Tensor

from linnet.core.checks import check_positive


def blocks_near_root(n: int, sizes: tuple[int, int]) -> int:
    """A number of blocks about √n: the nearest that divides both sizes, if it is at most twice off, else √n rounded."""
    root = math.sqrt(n)
    divisors = [d for d in range(1, math.gcd(*sizes) + 1) if math.gcd(*sizes) % d == 0]
    nearest = min(divisors, key=lambda d: abs(math.log(d / root)))
    return nearest if root / 2 <= nearest <= 2 * root else max(1, round(root))


def check_blocks(blocks: int, in_features: int, out_features: int) -> int:
    """``blocks`` as an int; it must not exceed either size."""
    count = check_positive(blocks=blocks)[0]
    if count > min(in_features, out_features):
        raise ValueError(
            f"blocks must be at most min(in_features, out_features) = {min(in_features, out_features)}, got {count}"
        )
    return count


def split_evenly(n: int, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of n places its block, ⌊i n/b⌋ being where block i starts, and its place inside it."""
    starts = [i * n // blocks for i in range(blocks + 1)]
    block = [i for i in range(blocks) for _ in range(starts[i], starts[i + 1])]
    inner = [j - starts[i] for i in range(blocks) for j in range(starts[i], starts[i + 1])]
    return torch.tensor(block, device=device), torch.tensor(inner, device=device)

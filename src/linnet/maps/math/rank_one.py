"""Matrices of rank one: the nearest, and how far one is from it."""

import torch
from torch import Tensor


def rank_one(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """u, (..., s), and v, (..., p), of equal norm with u vᵀ the nearest matrix of rank one to each, (..., s, p)."""
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    root = sigma[..., :1].sqrt()
    return u[..., 0] * root, vh[..., 0, :] * root


def rank_one_error(blocks: Tensor, axes: int) -> Tensor:
    """How far blocks, (..., m, n), are from rank one, relative to their largest entry: reduced over the last axes too.

    A matrix of rank one is column · row / corner for the row and the column of any nonzero entry; what remains after
    this product, for the largest entry, is taken out. A singular value decomposition would round more.
    """
    n = blocks.shape[-1]
    pivot = blocks.abs().flatten(-2).argmax(-1)[..., None, None]  # (..., 1, 1)
    row = blocks.gather(-2, (pivot // n).expand(*blocks.shape[:-2], 1, n))
    column = blocks.gather(-1, (pivot % n).expand(*blocks.shape[:-1], 1))
    corner = row.gather(-1, pivot % n)
    rest = blocks - column * (row / torch.where(corner == 0, 1.0, corner))
    reduced = tuple(range(-2 - axes, 0))
    largest = blocks.abs().amax(reduced).clamp_min(torch.finfo(blocks.dtype).tiny)
    return rest.abs().amax(reduced) / largest

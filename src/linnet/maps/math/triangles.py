"""Symmetric and skew-symmetric matrices as the entries of a triangle, and back."""

import torch
from torch import Tensor


def mirror(upper: Tensor, n: int) -> Tensor:
    """Upper triangle, row by row, (..., n(n+1)/2) -> symmetric matrix, (..., n, n)."""
    rows, columns = torch.triu_indices(n, n, device=upper.device)
    places = (rows * n + columns).expand(upper.shape)
    triangle = upper.new_zeros(*upper.shape[:-1], n * n).scatter(-1, places, upper).unflatten(-1, (n, n))
    return triangle + triangle.triu(1).mT


def upper_triangle(matrix: Tensor) -> Tensor:
    """(..., n, n) -> its upper triangle, row by row, (..., n(n+1)/2): the inverse of :func:`mirror`."""
    n = matrix.shape[-1]
    rows, columns = torch.triu_indices(n, n, device=matrix.device)
    return matrix[..., rows, columns]


def symmetric_part(matrix: Tensor) -> Tensor:
    """(M + Mᵀ)/2, the nearest symmetric matrix; exactly symmetric."""
    return (matrix + matrix.mT) / 2


def antimirror(upper: Tensor, n: int) -> Tensor:
    """Strict upper triangle, row by row, (..., n(n-1)/2) -> skew-symmetric matrix, (..., n, n)."""
    rows, columns = torch.triu_indices(n, n, 1, device=upper.device)
    places = (rows * n + columns).expand(upper.shape)
    triangle = upper.new_zeros(*upper.shape[:-1], n * n).scatter(-1, places, upper).unflatten(-1, (n, n))
    return triangle - triangle.mT


def strict_upper(matrix: Tensor) -> Tensor:
    """(..., n, n) -> its strict upper triangle, row by row, (..., n(n-1)/2): the inverse of :func:`antimirror`."""
    n = matrix.shape[-1]
    rows, columns = torch.triu_indices(n, n, 1, device=matrix.device)
    return matrix[..., rows, columns]


def skew_part(matrix: Tensor) -> Tensor:
    """(M − Mᵀ)/2, the nearest skew-symmetric matrix."""
    return (matrix - matrix.mT) / 2

"""Connections that are given, in any form, -> a CSR structure."""

from typing import Any

import torch
from torch import Tensor

from linnet.sparse.csr import compress
from linnet.sparse.wiring.wiring import given

__all__ = ["compressed"]


def compressed(
    connectivity: Any, out_features: int, in_features: int, beings: int | None = None
) -> tuple[Tensor, Tensor]:
    """Connections in any form that SparseLinear takes -> crow and col, with an axis of beings if each has its own.

    Raises:
        ValueError: the connections are wrong, or beings have different numbers of them.
    """
    each = isinstance(connectivity, Tensor) and connectivity.layout == torch.strided and connectivity.dim() == 3
    if not each:
        return compress(given(connectivity, out_features, in_features), out_features, in_features)
    if connectivity.shape[0] != beings:
        raise ValueError(
            f"connectivity with an axis of beings must have {beings} of them, however: {tuple(connectivity.shape)}"
        )
    found = [compress(given(one, out_features, in_features), out_features, in_features) for one in connectivity]
    sizes = {col.shape[0] for _, col in found}
    if len(sizes) > 1:
        raise ValueError(f"All beings must have as many connections, however: {sorted(sizes)}")
    crow, col = zip(*found, strict=True)
    return torch.stack(crow), torch.stack(col)

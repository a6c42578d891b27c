"""Connections that the user gives, in any form, -> a CSR structure."""

from typing import Any

import torch
from torch import Tensor

from linnet.sparse.csr import compress


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
            f"connectivity of three axes needs a population of as many beings, got {tuple(connectivity.shape)} for "
            f"beings={beings}"
        )
    found = [compress(given(one, out_features, in_features), out_features, in_features) for one in connectivity]
    sizes = {col.shape[0] for _, col in found}
    if len(sizes) > 1:
        raise ValueError(f"All beings must have equally many connections, got {sorted(sizes)}")
    crow, col = zip(*found, strict=True)
    return torch.stack(crow), torch.stack(col)


def given(connectivity: Any, out_features: int, in_features: int) -> Tensor:
    """Connections in any form that SparseLinear accepts -> indices, (2, nnz), int64, on the CPU.

    Raises:
        ValueError: wrong shape or dtype.
        TypeError: it is none of the accepted forms.
    """
    matrix = (out_features, in_features)
    if hasattr(connectivity, "tocoo"):  # a SciPy matrix
        coo = connectivity.tocoo()
        places = torch.stack([torch.tensor(axis, dtype=torch.int64, device="cpu") for axis in (coo.row, coo.col)])
        connectivity = torch.sparse_coo_tensor(places, torch.ones_like(places[0]), coo.shape, check_invariants=False)
    if not isinstance(connectivity, Tensor):
        raise TypeError(
            "connectivity must be None, a (2, nnz) LongTensor, a boolean mask, a sparse tensor, a SciPy matrix or a "
            f"wiring object such as Uniform(), got {connectivity!r:.60}"
        )
    shape = tuple(connectivity.shape)
    if connectivity.layout != torch.strided or connectivity.dtype == torch.bool:
        if shape != matrix:
            raise ValueError(
                f"connectivity given as a matrix must have shape (out_features, in_features) = {matrix}, got {shape}"
            )
        coo = connectivity.detach().to_sparse_coo()
        if coo.sparse_dim() != 2:
            raise ValueError(f"connectivity must be sparse in both axes, got {coo.sparse_dim()} sparse axes of 2")
        return coo.coalesce().indices().cpu()
    if len(shape) != 2 or shape[0] != 2 or connectivity.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            "connectivity must be a (2, nnz) LongTensor or a boolean (out_features, in_features) mask, "
            f"got {shape} {connectivity.dtype}"
        )
    return connectivity.detach().to("cpu", torch.int64)

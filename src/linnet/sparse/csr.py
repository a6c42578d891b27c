"""The structure of a sparse matrix: cells and CSR.

A cell is the number row · columns + column of a place. CSR (compressed sparse rows) holds the columns of all entries
row by row, col (nnz), and where each row starts among them, crow (rows + 1): those of row i are crow[i] to crow[i + 1].
Cells that rise and CSR are the same order of the entries.
"""

import math
import threading
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def compress(indices: Tensor, out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Indices in any order, (2, nnz) -> CSR structure: crow (out + 1), col (nnz), both int32 if the sizes allow.

    Raises:
        ValueError: there is no connection, an index is out of range, or a pair is there twice.
    """
    nnz = indices.shape[1]
    if not nnz:
        raise ValueError("A sparse layer must have a connection, got an empty connectivity")
    for name, axis, size in zip(("output", "input"), indices, (out_features, in_features), strict=True):
        low, high = int(axis.min()), int(axis.max())
        if low < 0 or high >= size:
            raise ValueError(f"{name} indices must lie in 0..{size - 1}, got {low if low < 0 else high}")
    cells = indices[0] * in_features + indices[1]
    if not bool((cells.diff() > 0).all()):
        cells = cells.sort().values
        twice = cells[1:][cells.diff() == 0]
        if twice.numel():
            row, col = divmod(int(twice[0]), in_features)
            raise ValueError(
                f"Each connection must be given once, got {twice.numel()} repetitions, the first of "
                f"(output {row}, input {col})"
            )
    ends = torch.bincount(cells // in_features, minlength=out_features).cumsum(0)
    dtype = index_dtype(out_features, in_features, nnz)
    return F.pad(ends, (1, 0)).to(dtype), (cells % in_features).to(dtype)


def index_dtype(*sizes: int) -> torch.dtype:
    """int32 where it can hold all the sizes, else int64."""
    return torch.int32 if max(sizes) < 2**31 else torch.int64


def transpose(crow: Tensor, col: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """CSR structure -> that of the transpose, ccol (columns + 1), row (nnz), and where its entries are, perm (nnz).

    Here and below several structures of as many entries may be given at once, along leading axes. A stable sort by
    column leaves the entries of each column in the order of their rows, which is the order of the transpose.
    """
    perm = col.sort(dim=-1, stable=True).indices
    row = rows_of(crow, col.shape[-1]).gather(-1, perm)
    return F.pad(counts(col, columns).cumsum(-1), (1, 0)).to(col.dtype), row.to(col.dtype), perm.to(col.dtype)


def counts(units: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs: (..., n) -> (..., size), int64."""
    if units.dim() == 1:
        return torch.bincount(units, minlength=size)
    found = torch.zeros(*units.shape[:-1], size, dtype=torch.int64, device=units.device)
    return found.scatter_add_(-1, units.long(), torch.ones_like(units, dtype=torch.int64))


def rows_of(crow: Tensor, nnz: int) -> Tensor:
    """The row of each entry of a CSR structure: (..., nnz), int64."""
    lead, rows = crow.shape[:-1], crow.shape[-1] - 1
    every = torch.arange(rows, device=crow.device).expand(*lead, rows).reshape(-1)
    return every.repeat_interleave(crow.diff().reshape(-1), output_size=math.prod(lead) * nnz).view(*lead, nnz)


def check_structure(crow: Tensor, col: Tensor, columns: int) -> None:
    """Refuse what is no CSR structure: the kernels check nothing, and would read outside of their tensors.

    Raises:
        ValueError: with the rule that is broken.
    """
    if crow.dtype != col.dtype or col.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"crow and col must be both int32 or both int64, got {crow.dtype} and {col.dtype}")
    crow, nnz = crow.long(), col.shape[-1]  # differences of int32 could overflow
    if bool((crow[..., 0] != 0).any() | (crow[..., -1] != nnz).any() | (crow.diff() < 0).any()):
        fall = ", and falls in between" if bool((crow.diff() < 0).any()) else ""
        raise ValueError(f"crow must rise from 0 to nnz={nnz}, got {crow.min()} to {crow.max()}{fall}")
    if bool(((col < 0) | (col >= columns)).any()):
        raise ValueError(f"col must lie in 0..{columns - 1}, got {int(col.min())}..{int(col.max())}")
    cells = rows_of(crow, nnz) * columns + col
    wrong = cells.diff() <= 0
    if bool(wrong.any()):
        first, second = int(cells[..., :-1][wrong][0]), int(cells[..., 1:][wrong][0])
        raise ValueError(
            f"col must rise within each row, got {first % columns}, {second % columns} in row {first // columns}"
        )


_lock = threading.Lock()
_warned = False


def csr_tensor(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> Tensor:
    """A CSR tensor of torch on the given storage; torch's warning that these are in beta is suppressed."""
    # torch warns once a process, and warning filters are the process's own: a filter is in place for one call alone, so
    # that threads do not restore each other's.
    global _warned
    if not _warned:
        with _lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
            empty = torch.zeros(1, dtype=torch.int64, device="cpu")
            torch.sparse_csr_tensor(empty, empty[:0], empty[:0], (0, 0), check_invariants=False)
            _warned = True
    size = (*crow.shape[:-1], crow.shape[-1] - 1, columns)
    return torch.sparse_csr_tensor(crow, col, values, size, check_invariants=False)


# ---------------------------------------------------------------------- entries of a given matrix


def nonzeros(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W, ([maps,] out, in), dense or sparse -> its non-zero cells, row · in + column, rising, (k,), and their entries.

    The entries are ([maps,] k); of several maps a cell is listed if any of them has a non-zero there.
    """
    leading, columns = weight.shape[:-2], weight.shape[-1]
    if weight.layout == torch.strided:
        flat = weight.flatten(-2)
        cells = (flat != 0).reshape(-1, flat.shape[-1]).any(0).nonzero().squeeze(1)
        return cells, flat[..., cells]
    coo = weight.to_sparse_coo().coalesce()
    if coo.sparse_dim() != coo.dim():
        raise ValueError(
            f"A sparse weight must be sparse in all axes, got {coo.sparse_dim()} sparse axes of {coo.dim()}"
        )
    *maps, row, col = coo.indices()
    cells, place = (row * columns + col).unique(return_inverse=True)
    entries = coo.values().new_zeros(*leading, cells.shape[0])
    entries[(*maps, place)] = coo.values()
    return cells, entries


def among(wanted: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the wanted cells are among ``cells``, which rise, and their places there (any for the others)."""
    # By binary search, O(wanted · log cells): no table of all places is made.
    if not cells.numel():
        return torch.zeros_like(wanted, dtype=torch.bool), torch.zeros_like(wanted)
    place = torch.searchsorted(cells, wanted).clamp_max(cells.shape[0] - 1)
    return cells[place] == wanted, place


def entries_at(wanted: Tensor, cells: Tensor, entries: Tensor) -> Tensor:
    """The entries at the wanted cells, 0 where they are not among ``cells``, which rise: ([maps,] wanted)."""
    found, place = among(wanted, cells)
    picked = entries.new_zeros(*entries.shape[:-1], wanted.shape[0])
    picked[..., found] = entries[..., place[found]]
    return picked


def largest(cells: Tensor, entries: Tensor, size: int, own: Tensor) -> Tensor:
    """The ``size`` cells with the largest entries, over all maps in the Euclidean norm; equal ones by rising index.

    To keep them is the nearest matrix with ``size`` entries: ‖W − W'‖_F² is the sum of the squares that are left out.
    Where fewer than ``size`` entries differ from zero, the rest is taken from the cells in ``own``, at equal distances.
    """
    norm = torch.linalg.vector_norm(entries, dim=0) if entries.dim() == 2 else entries.abs()
    missing = size - cells.shape[0]
    if missing <= 0:
        return cells[top(norm, size)]
    spare = own[~among(own, cells)[0]]
    evenly = torch.arange(missing, device=cells.device) * spare.shape[0] // missing
    return torch.cat([cells, spare[evenly]])


def top(score: Tensor, size: int) -> Tensor:
    """Which are the ``size`` largest of the scores, (n,) -> (n,) bool; of equal ones those of lower index."""
    # ``topk`` would do, but for ties: which of them it takes depends on the device and the size.
    if size >= score.shape[0]:
        return torch.ones_like(score, dtype=torch.bool)
    if size <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    least = score.kthvalue(score.shape[0] - size + 1).values
    chosen = score > least
    chosen[(score == least).nonzero().squeeze(1)[: size - int(chosen.sum())]] = True
    return chosen


def set_data(tensor: Tensor, content: Tensor) -> None:
    """Give a tensor other data, of another length; it stays the same object."""
    # Autograd keeps the node that accumulates a leaf's gradient, and the shape in it, as long as any graph lives that
    # has used the leaf: in the usual training loop that of the last loss. The next backward would then find a gradient
    # of the wrong shape. A change of dtype in between makes autograd drop the node.
    if tensor.is_floating_point():
        tensor.data = content.to(torch.float32 if tensor.dtype == torch.float64 else torch.float64)
    tensor.data = content

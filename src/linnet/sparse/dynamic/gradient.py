"""dL/dW at places where there is no connection: from the inputs and output gradients of the backward passes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from linnet.sparse.csr import compress, top, transpose
from linnet.sparse.kernels.ops import sparse_sampled_mm

PIECE = 2**22
"""Entries of dL/dW computed at a time, where the layer has not more connections."""


class Gradient:
    """dL/dW = Σ gᵀ x over the backward passes before one optimizer step, at any place of W.

    With y = x Wᵀ and g = dL/dy, dL/dw_ij = Σ_k g_ki x_kj whether i and j are connected or not. Each use of the layer is
    kept as its pair (g, x). Once the pairs are larger than W itself, and W has at most ``max_size`` entries, they are
    summed up into a dense matrix. In all processes of ``group`` the gradient is the sum over their batches, so that
    they take the same decisions.

    Args:
        out_features, in_features: of the layer.
        max_size: the largest number of entries of dL/dW that may exist at a time.
    """

    def __init__(self, out_features: int, in_features: int, max_size: int) -> None:
        self.out_features, self.in_features, self.max_size = out_features, in_features, max_size
        self.pairs: list[tuple[Tensor, Tensor]] = []  # (maps, batch, out) and (maps, batch, in)
        self.summed: Tensor | None = None  # (maps, out, in)
        self.task = -1  # which backward pass wrote last
        self.group: Any = None

    def __bool__(self) -> bool:
        return bool(self.pairs) or self.summed is not None

    def clear(self) -> None:
        self.pairs, self.summed = [], None

    def add(self, g: Tensor, x: Tensor) -> None:
        """One use of the layer in a backward pass: g (maps, batch, out), x (maps, batch, in)."""
        self.pairs.append((g.detach(), x.detach()))
        samples = sum(pair[0].shape[1] for pair in self.pairs)
        entries = self.out_features * self.in_features
        if samples * (self.out_features + self.in_features) > entries and g.shape[0] * entries <= self.max_size:
            for g, x in self.pairs:
                self.summed = g.mT @ x if self.summed is None else self.summed.add_(g.mT @ x)
            self.pairs = []

    def steepest(self, being: int, nnz: int, k: int, besides: Tensor) -> Tensor:
        """The k cells with the largest |dL/dW| that are not in ``besides``, rising; equal ones by rising index."""
        # Some rows of dL/dW at a time, O(nnz) entries: the k best of the rows so far are merged with those of the next
        # rows, of which only entries above the least of the k best can still be among them.
        piece = max(1, min(self.max_size, max(PIECE, nnz)) // self.in_features)  # rows at a time
        best: list[Tensor] = []  # cells and scores
        for start in range(0, self.out_features, piece):
            rows = slice(start, min(start + piece, self.out_features))
            score = self._reduced(self._rows(being, rows)).abs_().flatten().nan_to_num_(nan=0.0, posinf=torch.inf)
            first = start * self.in_features
            low, high = torch.searchsorted(
                besides, torch.tensor([first, first + score.shape[0]], device=besides.device)
            )
            score[besides[low:high] - first] = -1  # below every |dL/dW|
            floor = best[1].min() if best and best[1].shape[0] == k else -0.5
            cells = (score > floor).nonzero().squeeze(1)
            found = [cells + first, score[cells]]
            best = [torch.cat(pair) for pair in zip(best, found, strict=True)] if best else found
            chosen = top(best[1], k)
            best = [tensor[chosen] for tensor in best]
        return best[0]

    def slope(self, being: int, cells: Tensor) -> Tensor:
        """|dL/dW| at the cells, which rise: (k,). In O(batch · k), by the product that the backward pass uses."""
        if self.summed is not None:
            found = self.summed[being].flatten()[cells]
        else:
            found = torch.zeros(cells.shape[0], dtype=self.pairs[0][0].dtype, device=cells.device)
        if self.pairs:
            places = torch.stack([cells // self.in_features, cells % self.in_features])
            crow, col = compress(places, self.out_features, self.in_features)
            structure = (crow, col, *transpose(crow, col, self.in_features))
            for g, x in self.pairs:
                found = found + sparse_sampled_mm(g[[being]], x[[being]], *structure).squeeze(0)
        return self._reduced(found).abs().nan_to_num(nan=0.0, posinf=torch.inf)

    def _rows(self, being: int, rows: slice) -> Tensor:
        """Some rows of dL/dW: (rows, in)."""
        parts = [g[being, :, rows].mT @ x[being] for g, x in self.pairs]
        if self.summed is not None:
            parts.append(self.summed[being, rows].clone())
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _reduced(self, tensor: Tensor) -> Tensor:
        """The sum over the processes; DDP's mean would rank the places in the same order."""
        if self.group is not None:
            tensor = tensor.contiguous()
            dist.all_reduce(tensor, group=self.group)
        return tensor

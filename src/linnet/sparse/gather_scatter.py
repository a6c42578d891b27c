"""A sparse layer in operations that every exporter supports."""

import torch
from torch import Tensor, nn

from linnet.sparse.linear import SparseLinear


class GatherScatter(nn.Module):
    """The function of a sparse layer with constant connections and weights: y_i = b_i + Σ_k [row_k = i] v_k x_{col_k}.

    Inputs are gathered, multiplied, and the products scattered: O(batch · nnz) memory, which exporters accept.

    Args:
        layer: the layer; its tensors are copied.

    Shape:
        - input: as that of the layer
        - output: as that of the layer
    """

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        row, col = layer.indices.unbind(-2)  # ([beings,] nnz)
        self.out_features, self.beings = layer.out_features, layer.beings
        lead = layer.leading
        for name, tensor in (("row", row), ("col", col)):
            self.register_buffer(name, tensor.expand(*lead, -1).clone())
        self.register_buffer("values", layer.values.detach().clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        row, col, values = self.get_buffer("row"), self.get_buffer("col"), self.get_buffer("values")
        if self.beings is None:
            products = input[..., col] * values  # (*, nnz)
        else:
            x = input.expand(*input.shape[:-2], self.beings, input.shape[-1]) if input.dim() > 1 else input
            places = col.expand(*x.shape[:-2], *col.shape) if input.dim() > 1 else col
            products = x.expand(*places.shape[:-1], -1).gather(-1, places) * values  # (*, beings, nnz)
        y = torch.zeros(*products.shape[:-1], self.out_features, dtype=products.dtype, device=products.device)
        y = y.scatter_add(-1, row.expand(products.shape), products)
        return y if self._buffers["bias"] is None else y + self._buffers["bias"]

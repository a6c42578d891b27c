"""What the tests of sparse layers share: given connections, and dense float64 matrices built by a loop over them."""

import numpy as np
import torch
from torch import Tensor

from linnet.sparse import SparseLinear

ROW = [0, 2, 1, 2, 0, 4, 3, 4]
COL = [1, 0, 2, 2, 6, 5, 3, 0]
PAIRS = torch.tensor([ROW, COL])  # of a map 7 -> 5


def matrix(layer: SparseLinear, values: Tensor | None = None) -> np.ndarray:
    """W from crow, col and values alone, by a loop: ([beings,] out, in)."""
    v = (layer.values if values is None else values).detach().double().numpy()
    w = np.zeros((*layer.leading, layer.out_features, layer.in_features))
    for i in range(layer.out_features):
        for k in range(int(layer.crow[i]), int(layer.crow[i + 1])):
            w[..., i, int(layer.col[k])] += v[..., k]
    return w


def check_gradients(layer: SparseLinear, batch: int) -> None:
    """Output and all gradients of a float64 layer against the dense formulas."""
    w, r, c = matrix(layer), *layer.indices.numpy()
    x = torch.randn(batch, *layer.leading, layer.in_features, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    gradients = torch.autograd.grad(y, [x, layer.values, layer.bias], g)
    a, b = x.detach().numpy(), g.numpy()
    lead = "p" if layer.beings else ""
    np.testing.assert_allclose(
        y.detach(), np.einsum(f"k{lead}i,{lead}oi->k{lead}o", a, w) + layer.bias.detach().numpy()
    )
    np.testing.assert_allclose(gradients[0], np.einsum(f"k{lead}o,{lead}oi->k{lead}i", b, w), atol=1e-12)
    full = np.einsum(f"k{lead}o,k{lead}i->{lead}oi", b, a)
    np.testing.assert_allclose(gradients[1], full[..., r, c], atol=1e-12)
    np.testing.assert_allclose(gradients[2], b.sum(0), atol=1e-12)


def mask_of(pairs: Tensor) -> Tensor:
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[tuple(pairs)] = True
    return mask

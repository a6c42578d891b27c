"""What the tests of dynamic sparse training share: a layer as a dense matrix, a training loop, twins."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnet import RigL, SparseLinear

Array = np.ndarray
N, M = 12, 9  # inputs and outputs


def weight(layer: SparseLinear, values: Tensor | None = None) -> Array:
    """What has the shape of ``values`` as a dense matrix, by a loop: ([beings,] out, in), NaN where nothing is."""
    tensor = layer.values if values is None else values
    w = np.full((*layer.leading, layer.out_features, layer.in_features), np.nan)
    flat = w.reshape(-1, layer.out_features, layer.in_features)
    for i, v in enumerate(tensor.detach().double().reshape(-1, layer.nnz)):
        crow, col = (t[i] if layer.apart else t for t in (layer.crow, layer.col))
        for row in range(layer.out_features):
            for k in range(int(crow[row]), int(crow[row + 1])):
                flat[i, row, int(col[k])] = v[k]
    return w


def places(layer: SparseLinear) -> set[tuple[int, int]]:
    return {(int(r), int(c)) for r, c in layer.indices.T}


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0, batch: int = 4) -> None:
    leaf = next(m for m in layer.modules() if isinstance(m, SparseLinear))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(batch, *leaf.leading, leaf.in_features, generator=generator, dtype=leaf.values.dtype)
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()


RIGL = RigL(every=2, until=100, alpha=0.5)


def twin(**options: Any) -> tuple[SparseLinear, SparseLinear]:
    layer = SparseLinear(N, M, sparsity=0.7, dtype=torch.float64, **{"dynamic": RIGL, **options})
    return layer, copy.deepcopy(layer)


def same(first: SparseLinear, second: SparseLinear, exact: bool = True) -> None:
    for name, tensor in first.state_dict().items():
        if exact or not tensor.is_floating_point():
            assert torch.equal(tensor, second.state_dict()[name]), name
        else:
            torch.testing.assert_close(tensor, second.state_dict()[name])

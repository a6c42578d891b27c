"""to_onnx: export any model to an ONNX file."""

import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from linnet.convert.maps_replaced import with_maps_replaced
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap
from linnet.sparse.gather_scatter import GatherScatter
from linnet.sparse.linear import SparseLinear

LARGEST_DENSE_FILE = 2**24
"""Number of entries up to which a sparse matrix is dense in an ONNX file."""


def to_onnx(
    model: nn.Module,
    args: Tensor | tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
) -> None:
    """Export ``model`` to an ONNX file, in eval mode, with every matrix as a constant.

    Every map becomes a matrix product, so that the file needs neither custom operators nor LAPACK. A sparse layer of up
    to 2²⁴ entries is dense in the file; a larger one stores its connections, gathers inputs and scatters products.
    Needs the ``export`` extra.

    Args:
        model: the model; it is not changed.
        args: example input, or a tuple of inputs.
        path: the file to write.
        dynamic_batch: whether dim 0 of every input may vary.
    """

    def constant(name: str, module: nn.Module) -> nn.Module:
        if isinstance(module, SparseLinear) and module.in_features * module.out_features > LARGEST_DENSE_FILE:
            return GatherScatter(module)
        if isinstance(module, LinearMap) and module.beings is not None:
            return Linear.from_linears(module.to_linears())
        return module.to_linear()  # type: ignore[operator]

    inputs = args if isinstance(args, tuple) else (args,)
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if dynamic_batch else None
    baked = with_maps_replaced(model, constant).eval().requires_grad_(False)
    with warnings.catch_warnings():  # torch's exporter and its dependencies call deprecated functions of their own
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(baked, inputs, path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)

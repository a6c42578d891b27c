"""Dense matrices from sparse ones, and nn.Linear from a matrix."""

import torch
from torch import Tensor, nn

LARGEST_DENSE = 10**8
"""Entries up to which a sparse matrix is made dense: 400 MB in float32."""


def dense(weight: Tensor) -> Tensor:
    """``weight`` as it is, or, if it is sparse, as a dense tensor; gradients pass.

    Raises:
        ValueError: it is sparse and would have more than 10⁸ entries.
    """
    if weight.layout == torch.strided:
        return weight
    if weight.numel() > LARGEST_DENSE:
        raise ValueError(
            f"A sparse matrix must have at most {LARGEST_DENSE:,} entries to be made dense, "
            f"got {weight.numel():,} in shape {tuple(weight.shape)}"
        )
    return weight.to_dense()


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An nn.Linear that owns copies of the given tensors."""
    out_features, in_features = weight.shape
    plain = nn.utils.skip_init(
        nn.Linear, in_features, out_features, bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                getattr(plain, name).copy_(tensor)
                getattr(plain, name).requires_grad_(tensor.requires_grad)
    return plain

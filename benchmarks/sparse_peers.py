"""Sparse layers of other packages, and of torch itself; each package is optional."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import linnet
from peers import load

__all__ = ["LINNET", "Peer", "made", "peers"]

LINNET = "linnet SparseLinear"


@dataclass(frozen=True)
class Peer:
    """A kind of layer: how to build it, n x n of a sparsity, and the package that it needs."""

    name: str
    build: Callable[[int, float], nn.Module]
    package: str = ""
    note: str = ""


class TorchSparse(nn.Module):
    """F.linear with a CSR matrix as its weight; the gradient of the weight is dense."""

    def __init__(self, n: int, sparsity: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(linnet.SparseLinear(n, n, sparsity=sparsity).to_csr())
        self.bias = nn.Parameter(torch.zeros(n))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


class Masked(nn.Module):
    """A dense matrix times a mask, as in most implementations of sparse training."""

    def __init__(self, n: int, sparsity: float) -> None:
        super().__init__()
        self.linear = nn.Linear(n, n)
        self.register_buffer("mask", (torch.rand(n, n) >= sparsity).float())

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.linear.weight * self.get_buffer("mask"), self.linear.bias)


def sparseprop(n: int, sparsity: float) -> nn.Module:
    dense = nn.Linear(n, n)
    with torch.no_grad():
        dense.weight.mul_(torch.rand(n, n) >= sparsity)
    return load("sparseprop.modules").SparseLinear.from_dense(dense)


def peers(foreign: bool = True) -> list[Peer]:
    """linnet's layer, and with ``foreign`` those of torch and of other packages."""
    own = [Peer(LINNET, lambda n, s: linnet.SparseLinear(n, n, sparsity=s))]
    if not foreign:
        return own
    return [
        *own,
        Peer("sparselab", lambda n, s: load("sparselab").SparseLinear(n, n, sparsity=s), "sparselab"),
        Peer("SparseProp", sparseprop, "sparseprop"),
        Peer("torch F.linear, CSR", TorchSparse, "torch", "dense gradient of the weight"),
        Peer("dense times mask", Masked, "torch", "no memory saved"),
        Peer(
            "sparselinear",
            lambda n, s: load("sparselinear").SparseLinear(n, n, sparsity=s),
            "sparselinear",
            "needs torch_sparse",
        ),
    ]


def made(row: Peer, n: int, sparsity: float, batch: int) -> nn.Module | str:
    """The layer, or one line that says why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = row.build(n, sparsity)
            x = torch.randn(batch, n, requires_grad=True)
            layer(x).sum().backward()
            grads = [parameter.grad for parameter in layer.parameters()]
            if x.grad is None or not math.isfinite(float(x.grad.sum())) or not any(g is not None for g in grads):
                return "gives no gradient"
            return layer
    except ImportError as error:
        return f"not installed: {error}".replace("\n", " ")
    except Exception as error:  # whatever somebody else's code may raise
        return f"failed: {type(error).__name__}: {str(error)[:120]}".replace("\n", " ")

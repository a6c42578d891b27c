"""What each class promises, written a second time: in NumPy and SciPy, on A = Wᵀ, knowing nothing of the layers' code.

``PROMISES[class name](a, layer)`` is a residual, 0 where the promise holds; ``LAWS`` say the same of what the layer
does to a vector; ``NEAREST`` gives the nearest matrices of the structure, where ``assign`` claims to find them.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from linnet import LinearMap
from support.promises_fast import PROMISES_FAST
from support.promises_nonnegative import PROMISES_NONNEGATIVE
from support.promises_spectral import PROMISES_SPECTRAL
from support.promises_stable import PROMISES_STABLE
from support.promises_symplectic import PROMISES_SYMPLECTIC

Array = np.ndarray


def symmetric(a: Array, layer: LinearMap) -> float:
    return float(np.abs(a - a.T).max() / max(np.abs(a).max(), 1e-300))


def orthogonal(a: Array, layer: LinearMap) -> float:
    return float(np.abs(a.T @ a - np.eye(len(a))).max())


def right_stochastic(a: Array, layer: LinearMap) -> float:
    return float(max(np.abs(a.sum(1) - 1).max(), -a.min()))


def identity(a: Array, layer: LinearMap) -> float:
    return float(np.abs(a - np.eye(*a.shape)).max())


def sparse(a: Array, layer: LinearMap) -> float:
    indices = layer.indices[a.being] if layer.apart else layer.indices
    output, input = indices.cpu().numpy()
    outside = a.copy()
    outside[input, output] = 0
    return float(np.abs(outside).max() / max(np.abs(a).max(), 1e-300))


PROMISES: dict[str, Callable[[Array, LinearMap], float]] = {
    "IdentityLinear": identity,
    "OrthogonalLinear": orthogonal,
    "RightStochasticLinear": right_stochastic,
    "SparseLinear": sparse,
    "SymmetricLinear": symmetric,
    **PROMISES_FAST,
    **PROMISES_NONNEGATIVE,
    **PROMISES_SPECTRAL,
    **PROMISES_STABLE,
    **PROMISES_SYMPLECTIC,
}


def keeps_the_vector(layer: LinearMap, x: Tensor) -> Tensor:
    kept = min(layer.in_features, layer.out_features)
    return (layer(x)[..., :kept] - x[..., :kept]).abs().max() + layer(x)[..., kept:].abs().sum()


def keeps_the_norm(layer: LinearMap, x: Tensor) -> Tensor:
    return (layer(x).norm(dim=-1) / x.norm(dim=-1) - 1).abs().max()


def keeps_the_sum(layer: LinearMap, x: Tensor) -> Tensor:
    p = x.abs()
    y = layer(p)
    return ((y.sum(-1) - p.sum(-1)) / p.sum(-1)).abs().max() + (-y).clamp_min(0).max()


def is_its_own_transpose(layer: LinearMap, x: Tensor) -> Tensor:
    u, v = x[::2], x[1::2]
    scale = layer(u).norm() * v.norm() + 1e-30
    return ((layer(u) * v).sum() - (u * layer(v)).sum()).abs() / scale


LAWS: dict[str, Callable[[LinearMap, Tensor], Tensor]] = {
    "IdentityLinear": keeps_the_vector,
    "OrthogonalLinear": keeps_the_norm,
    "RightStochasticLinear": keeps_the_sum,
    "SymmetricLinear": is_its_own_transpose,
}


def simplex_rows(a: Array, layer: LinearMap) -> Array:
    """Row by row the p = max(r − t, 0) that sums to 1, the shift t found by root search."""
    rows = []
    for r in a.reshape(-1, a.shape[-1]):
        t = scipy.optimize.brentq(lambda t, r=r: np.maximum(r - t, 0).sum() - 1, r.min() - 1, r.max(), xtol=1e-15)
        rows.append(np.maximum(r - t, 0))
    return np.array(rows).reshape(a.shape)


def polar(a: Array, layer: LinearMap) -> Array | None:
    return None if layer.reflectors else np.array([scipy.linalg.polar(one)[0] for one in a])


def largest_entries(a: Array, layer: LinearMap) -> Array:
    """The nnz places, the same for all beings unless each has its own, that keep most of the Frobenius norm."""
    if layer.apart:
        return np.stack([one * (one**2 >= np.sort(one**2, None)[-layer.nnz]) for one in a])
    weight = (a**2).sum(0)
    return a * (weight >= np.sort(weight, None)[-layer.nnz])


# A stack of matrices, (maps, in, out) -> the nearest in the Frobenius norm; None where `assign` does not claim that.
NEAREST: dict[str, Callable[[Array, LinearMap], Array | None]] = {
    "IdentityLinear": lambda a, layer: np.broadcast_to(np.eye(*a.shape[1:]), a.shape),
    "Linear": lambda a, layer: a,
    "OrthogonalLinear": polar,
    "RightStochasticLinear": simplex_rows,
    "SparseLinear": largest_entries,
    "SymmetricLinear": lambda a, layer: (a + a.transpose(0, 2, 1)) / 2,
}


class Matrix(np.ndarray):
    """A, and which being of a population it belongs to."""

    being = 0


def matrices(weight: Tensor) -> list[Matrix]:
    """W, one or a population, sparse or dense -> every A = Wᵀ in float64."""
    w = weight.detach()
    w = w if w.layout == torch.strided else w.to_dense()
    found = [one.T.view(Matrix) for one in w.cpu().double().numpy().reshape(-1, *w.shape[-2:])]
    for being, a in enumerate(found):
        a.being = being
    return found

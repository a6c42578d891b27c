"""What the maps with bounded singular values, norms and ranks promise, a second time, on A = Wᵀ."""

import numpy as np
import scipy.linalg

from linnet import LinearMap

Array = np.ndarray


# ---------------------------------------------------------------- the promises a second time, on A = Wᵀ


def beyond(values: Array, low: float, high: float) -> float:
    return float(max(low - values.min(), values.max() - high, 0) / max(abs(low), abs(high)))


def singular_interval(a: Array, layer: LinearMap) -> float:
    return beyond(np.linalg.svd(a, compute_uv=False), layer.sigma_min, layer.sigma_max)


def symmetric_singular_interval(a: Array, layer: LinearMap) -> float:
    return max(singular_interval(a, layer), float(np.abs(a - a.T).max()) / layer.sigma_max)


def eigenvalue_interval(a: Array, layer: LinearMap) -> float:
    low, high = layer.sigma_min, layer.sigma_max
    asymmetry = float(np.abs(a - a.T).max()) / max(abs(low), abs(high))
    return max(asymmetry, beyond(scipy.linalg.eigvalsh((a + a.T) / 2), low, high))


def orthonormal(a: Array, layer: LinearMap) -> float:
    tall = a if a.shape[0] >= a.shape[1] else a.T
    return float(np.abs(tall.T @ tall - np.eye(tall.shape[1])).max())


def contraction(a: Array, layer: LinearMap) -> float:
    return beyond(np.array([np.linalg.norm(a, 2)]), 0, layer.bound)


def norm_between(a: Array, layer: LinearMap) -> float:
    return beyond(np.array([np.linalg.norm(a, layer.p)]), layer.sigma_min, layer.sigma_max)


def nothing_is_lost(a: Array, layer: LinearMap) -> float:
    s = np.linalg.svd(a, compute_uv=False)
    return float(max(layer.epsilon - s[-1], 0) / max(s[0], layer.epsilon))


def low_rank(a: Array, layer: LinearMap) -> float:
    s = np.linalg.svd(a, compute_uv=False)
    r = max(1, min(a.shape) // 4) if layer.rank is None else layer.rank
    return float(s[r] / max(s[0], 1e-300)) if r < len(s) else 0.0


PROMISES_SPECTRAL = {
    "BoundedNormLinear": norm_between,
    "ContractiveLinear": contraction,
    "LowRankLinear": low_rank,
    "SVDLinear": singular_interval,
    "SVDLinearLearnBounds": singular_interval,
    "SpectralLinear": singular_interval,
    "StiefelLinear": orthonormal,
    "SymmetricSVDLinear": symmetric_singular_interval,
    "SymmetricSpectralLinear": eigenvalue_interval,
    "TrivialNullSpaceLinear": nothing_is_lost,
}

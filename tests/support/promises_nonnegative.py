"""What the non-negative, stochastic and dominant maps promise, a second time, on A = Wᵀ."""

import numpy as np

Array = np.ndarray


def non_negative(a: Array, layer) -> float:
    return float(max(-a.min(), 0) / max(np.abs(a).max(), 1e-300))


def left_stochastic(a: Array, layer) -> float:
    return float(max(np.abs(a.sum(0) - 1).max(), -a.min()))


def perron_frobenius(a: Array, layer) -> float:
    sums = a.sum(1)
    return float(max((layer.sigma_min - sums).max(), (sums - layer.sigma_max).max(), -a.min(), 0) / layer.sigma_max)


def doubly_stochastic(a: Array, layer) -> float:
    return float(max(np.abs(a.sum(0) - 1).max(), np.abs(a.sum(1) - 1).max(), -a.min()))


def diagonally_dominant(a: Array, layer) -> float:
    rest = np.abs(a).sum(1) - np.abs(np.diag(a))
    return float(max((rest + layer.gap - np.abs(np.diag(a))).max(), 0) / max(np.abs(a).max(), layer.gap))


PROMISES_NONNEGATIVE = {
    "DiagonallyDominantLinear": diagonally_dominant,
    "DoublyStochasticLinear": doubly_stochastic,
    "LeftStochasticLinear": left_stochastic,
    "NonNegativeLinear": non_negative,
    "PerronFrobeniusLinear": perron_frobenius,
}

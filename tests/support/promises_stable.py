"""What the stable maps promise, a second time, on A = Wᵀ."""

import numpy as np


def in_disc(a, radius):
    return float(max(0, np.abs(np.linalg.eigvals(a)).max() / radius - 1))


def hurwitz(a, layer):
    return float(max(0, np.linalg.eigvals(a).real.max() + layer.alpha) / max(np.linalg.norm(a), layer.alpha, 1e-300))


def gershgorin(a, layer):
    center, radius = (layer.sigma_max + layer.sigma_min) / 2, (layer.sigma_max - layer.sigma_min) / 2
    if layer.real:
        values = np.linalg.eigvalsh((a + a.T) / 2)
        wrong = max(np.abs(a - a.T).max(), layer.sigma_min - values[0], values[-1] - layer.sigma_max)
    else:
        wrong = np.abs(np.linalg.eigvals(a) - center).max() - radius
    return float(max(0, wrong) / max(abs(layer.sigma_min), abs(layer.sigma_max)))


def stable_split(a, layer):
    return float(max(0, np.abs(a).sum(1).max() / layer.sigma_max - 1))


PROMISES_STABLE = {
    "GershgorinLinear": gershgorin,
    "HurwitzLinear": hurwitz,
    "PowerBoundLinear": lambda a, layer: in_disc(a, layer.max_p),
    "SchurDecompositionLinear": lambda a, layer: in_disc(a, layer.bound),
    "SchurStableLinear": lambda a, layer: in_disc(a, layer.bound),
    "SoftPowerBoundLinear": lambda a, layer: in_disc(a, layer.max_p),
    "StableSplitLinear": stable_split,
}

"""What the stable maps promise, a second time, on A = Wᵀ."""

import numpy as np


def in_disc(a, radius):
    return float(max(0, np.abs(np.linalg.eigvals(a)).max() / radius - 1))


def hurwitz(a, layer):
    return float(max(0, np.linalg.eigvals(a).real.max() + layer.alpha) / max(np.linalg.norm(a), layer.alpha, 1e-300))


def stable_split(a, layer):
    return float(max(0, np.abs(a).sum(1).max() / layer.sigma_max - 1))


PROMISES_STABLE = {
    "HurwitzLinear": hurwitz,
    "PowerBoundLinear": lambda a, layer: in_disc(a, layer.max_p),
    "SchurStableLinear": lambda a, layer: in_disc(a, layer.bound),
    "StableSplitLinear": stable_split,
}

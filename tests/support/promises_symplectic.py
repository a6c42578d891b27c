"""What symplectic, Hamiltonian, skew and positive semidefinite maps promise, a second time, on A = Wᵀ."""

import numpy as np
import scipy.linalg


def form(n):
    m = n // 2
    return np.block([[np.zeros((m, m)), np.eye(m)], [-np.eye(m), np.zeros((m, m))]])


def symplectic(a, layer):
    return float(np.abs(a.T @ form(len(a)) @ a - form(len(a))).max() / max(1.0, np.linalg.norm(a, 2)) ** 2)


def hamiltonian(a, layer):
    ja = form(len(a)) @ a
    return float(np.abs(ja - ja.T).max() / max(np.abs(a).max(), 1e-300))


def skew(a, layer):
    return float(np.abs(a + a.T).max() / max(np.abs(a).max(), 1e-300))


def damped_skew(a, layer):
    gamma = layer.sign * np.diag(a)
    rest = a - np.diag(np.diag(a))
    wrong = [
        np.abs(rest + rest.T).max(),
        gamma.max() - gamma.min(),
        layer.sigma_min - gamma.min(),
        gamma.max() - layer.sigma_max,
    ]
    return float(max(0, *wrong) / max(np.abs(a).max(), layer.sigma_max))


def psd(a, layer):
    values = scipy.linalg.eigvalsh((a + a.T) / 2)
    wrong = [np.abs(a - a.T).max(), layer.epsilon - values[0]]
    wrong += [] if layer.condition is None else [values[-1] / layer.condition - values[0]]
    return float(max(0, *wrong) / max(np.abs(values).max(), layer.epsilon, 1e-300))


PROMISES_SYMPLECTIC = {
    "DampedSkewSymmetricLinear": damped_skew,
    "HamiltonianLinear": hamiltonian,
    "PSDLinear": psd,
    "SkewSymmetricLinear": skew,
    "SymplecticLinear": symplectic,
}

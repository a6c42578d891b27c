"""The spectral radius, and an estimate of it by powers of the matrix."""

import torch
from torch import Tensor


def radius(weight: Tensor) -> Tensor:
    """The largest modulus of an eigenvalue, (..., n, n) -> (...)."""
    return torch.linalg.eigvals(weight).abs().amax(-1)


def radius_estimate(weight: Tensor, iterations: int) -> Tensor:
    """‖Wᵏ‖_F^(1/k) for k = iterations: never below the spectral radius, and falling to it as k grows.

    Wᵏ by squaring, normalized each time: 2 log₂ k products. For W = S⁻¹NS with a normal N it is at most
    (√n cond(S))^(1/k) times too large.

    Reference:
        I. Gelfand, Normierte Ringe, 1941.
    """
    tiny = torch.finfo(weight.dtype).tiny
    power, log_norm = weight, weight.new_zeros(weight.shape[:-2])
    for i, bit in enumerate(f"{iterations:b}"):
        if i:
            power, log_norm = power @ power, 2 * log_norm
            power = power @ weight if bit == "1" else power
        norm = torch.linalg.matrix_norm(power)
        log_norm = log_norm + norm.clamp_min(tiny).log()
        power = power / norm.clamp_min(tiny)[..., None, None]
    return torch.where(norm > 0, (log_norm / iterations).exp(), 0.0)

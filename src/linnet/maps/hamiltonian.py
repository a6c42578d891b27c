"""Generators of symplectic matrices: the linear Hamiltonian systems."""

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.symplectic import blocks, check_even, joined, symplectic_form
from linnet.maps.math.triangles import mirror, symmetric_part, upper_triangle


class HamiltonianLinear(LinearMap):
    """y = x A + b with (JA)ᵀ = JA, exactly: the generators of symplectic maps, ẋ = x A is a linear Hamiltonian system.

    A = [[E, G], [Q, −Eᵀ]] with G and Q symmetric, so eigenvalues come in pairs ±λ. Any other matrix is assigned as its
    projection, the nearest in the Frobenius norm.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal and
            even.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - block: ([beings,] m, m) with m = n/2
        - upper, lower: ([beings,] m(m+1)/2)

    Raises:
        ValueError: in_features != out_features, or they are odd.

    Example:
        >>> a = HamiltonianLinear(4, 4).weight.mT
        >>> bool((a[:2, :2] == -a[2:, 2:].mT).all())
        True

    Reference:
        K. R. Meyer, D. C. Offin, Introduction to Hamiltonian dynamical systems and the N-body problem, 2017.
    """

    family = "symplectic"
    promise = "(JA)ᵀ = JA"
    square = True
    decays = ("block", "upper", "lower")

    block: nn.Parameter
    upper: nn.Parameter
    lower: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        m = check_even(type(self).__name__, self.in_features)
        triangle = (m * (m + 1) // 2,)
        return {"block": (m, m), "upper": triangle, "lower": triangle}

    def _weight(self, block: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
        m = self.in_features // 2
        return joined(block, mirror(upper, m), mirror(lower, m), -block.mT).mT

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        e, g, q, f = blocks(weight.mT)
        return {
            "block": (e - f.mT) / 2,
            "upper": upper_triangle(symmetric_part(g)),
            "lower": upper_triangle(symmetric_part(q)),
        }

    def _violation(self, weight: Tensor) -> Tensor:
        form = symplectic_form(self.in_features // 2, weight)
        turned = form @ weight.mT
        scale = weight.abs().amax((-2, -1)).clamp_min(torch.finfo(weight.dtype).tiny)
        return (turned - turned.mT).abs().amax((-2, -1)) / scale

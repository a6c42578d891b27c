"""Symplectic matrices, which preserve areas in phase space."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linnet.core.autograd import autocast_off
from linnet.core.checks import check_input
from linnet.core.linear_map import LinearMap
from linnet.maps.math.symplectic import (
    FACTORS,
    PIVOTS,
    check_even,
    compose,
    compressed_symmetric,
    compressed_symmetric_raw,
    factorize,
    symplectic_form,
    transform,
    unshear,
)


class SymplecticLinear(LinearMap):
    """y = x A + b with AᵀJA = J: volume and every area Σ dp∧dq in phase space are preserved, and A has an inverse.

    W = F₁F₂F₃F₄F₅, in turn [[I, S], [0, I]] and [[I, 0], [S, I]] with S = Sᵀ; five reach every symplectic matrix. The
    forward is five products of half the size; so is :meth:`inverse`. The promise is kept to rounding relative to
    max(1, ‖A‖²), the size of the terms that cancel in AᵀJA.

    ``assign`` factorizes a symplectic matrix, to rounding times the conditioning of its eigenvectors. Any other matrix
    becomes a symplectic one that shares what it can of its upper blocks, which is not the nearest.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal and
            even. The input is (q, p): first all positions, then all momenta.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - factors: ([beings,] 5, m, m) with m = n/2; of each its symmetric part is taken, and of that the root mean
          square r becomes 10 asinh(r/10), so that huge parameters do not make the product overflow

    Raises:
        ValueError: in_features != out_features, or they are odd.

    Example:
        >>> layer = SymplecticLinear(4, 4)
        >>> x = torch.randn(8, 4)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True

    Reference:
        P. Jin, Z. Lin, B. Xiao, Optimal unit triangular factorization of symplectic matrices, 2022, arXiv 2108.00223.
    """

    family = "symplectic"
    promise = "AᵀJA = J"
    square = True

    factors: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        m = check_even(type(self).__name__, self.in_features)
        return {"factors": (FACTORS, m, m)}

    def _weight(self, factors: Tensor) -> Tensor:
        return compose(compressed_symmetric(factors))

    def _product(self, x: Tensor, factors: Tensor) -> Tensor:
        return transform(x, factors)

    def inverse(self, output: Tensor) -> Tensor:
        """The input that gives this output: the same products with −S in the opposite order.

        Shape:
            - output: (*, n); with beings (*, beings, n)
            - result: as the output
        """
        check_input(output, self.out_features, self.beings)
        m = self.in_features // 2
        wide = torch.promote_types(self.factors.dtype, torch.float32)
        with autocast_off(output.device.type):
            y = output.to(wide) if self.bias is None else output.to(wide) - self.bias.to(wide)
            y = y.unsqueeze(-2)  # (..., [beings,] 1, n): a row of its own for each matrix
            p, q = unshear(y[..., :m], y[..., m:], compressed_symmetric(self.factors.to(wide)))
            return torch.cat((p, q), -1).squeeze(-2).to(self.factors.dtype)

    def logabsdet(self) -> Tensor:
        """log |det A| = 0, ([beings])."""
        return self.factors.new_zeros(self.leading)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        # All factors 0, the identity, is what remains if every pivot fails: the error of NaN is below none.
        best = weight.new_zeros(*weight.shape[:-2], FACTORS, *[weight.shape[-1] // 2] * 2)
        least = torch.linalg.matrix_norm(compose(best) - weight)
        for pivot in PIVOTS:
            tried = factorize(weight, pivot)
            error = torch.linalg.matrix_norm(compose(tried) - weight)
            better = error < least
            best = torch.where(better[..., None, None, None], tried, best)
            least = torch.where(better, error, least)
        return {"factors": compressed_symmetric_raw(best)}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        # Only the symmetric part counts: a symmetric draw has it in full, and weight decay nothing else to shrink.
        raw["factors"].normal_(0, 0.5 / math.sqrt(self.in_features), generator=generator)
        upper = raw["factors"].triu()
        raw["factors"].copy_(upper + upper.triu(1).mT)

    def _violation(self, weight: Tensor) -> Tensor:
        form = symplectic_form(self.in_features // 2, weight)
        scale = torch.linalg.matrix_norm(weight, 2).clamp_min(1.0)[..., None, None]
        # AᵀJA − J relative to ‖A‖², with entries of at most 1: squares cannot overflow
        unit = weight / scale
        return (unit.mT @ form @ unit - form / scale.square()).abs().amax((-2, -1))

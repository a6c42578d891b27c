"""Matrices by their real Schur form, A = P T Pᵀ: moduli and angles of the eigenvalues are the parameters.

Above its diagonal blocks T could be anything, and A as large as one likes with the same eigenvalues; rounding then
moves them. So T is written T = D⁻¹KD, D diagonal with ratios of at most max_cond and K = Λ + G C G, where Λ holds the
blocks γR(θ), G² = r − γ and ‖C‖₂ < 1. With Γ the diagonal of the moduli, Γ + G² = r, and

    K = [√Γ, G] diag(R, C) [√Γ, G]ᵀ

is a product of two matrices of norm √r and a contraction, so ‖K‖₂ <= r: A is a contraction in a basis conditioned no
worse than max_cond, as the maps of linnet.maps.math.bases are, and for the same reason r = bound·(1 − max_cond² eps).
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.checks import check_number
from linnet.core.linear_map import LinearMap
from linnet.maps.math.bases import D_SCALE, bounded_ratios, in_basis, orthogonal, out_of_basis, rounding_margin
from linnet.maps.math.householder import reflections
from linnet.maps.math.intervals import EDGE, sigmoid_raw
from linnet.maps.math.schur import (
    ALL_ORDERS,
    SLACK,
    entries_above,
    equalize_diagonals,
    inside_ball,
    inside_ball_raw,
    invariant_pairs,
    matrix_above,
    norm_reducing_scales,
    repeat_for_rows,
    rotation_parts,
    rotations,
)
from linnet.maps.math.spectral_radius import radius


class SchurDecompositionLinear(LinearMap):
    """y = x A + b with A = P T Pᵀ in real Schur form: eigenvalues γe^{±iθ}, their moduli γ at most ``bound``, always.

    P is orthogonal and T = D⁻¹(Λ + G C G)D: Λ has blocks γR(θ) along the diagonal, for odd n a last one of the single
    number γ cos θ; G is diagonal, G² = bound·(1 − max_cond² eps) − γ; C is any matrix above the diagonal blocks with
    ‖C‖₂ < 1; D is any positive diagonal matrix with ratios of at most max_cond. C and D make A non-normal: its norm is
    up to max_cond times the bound. All matrices of this form are reached. Real eigenvalues come in equal pairs (for
    odd n but one); :class:`linnet.SchurStableLinear` has different ones too.

    ``penalty()`` is l2·mean((1 − γ)²), summed over the beings: it draws the eigenvalues to the unit circle, where a
    recurrent net neither forgets nor explodes. It stands beside the promise, which needs no penalty.

    ``assign`` takes the matrix of another layer exactly if it finds P, D and C within the bounds; it tries the
    eigenvalues in several orders, up to n = 9 in all. Of any other matrix it cuts off what is out of bounds: moduli
    to the bound, C to the ball, and of two different real eigenvalues it takes the mean. That need not be the nearest.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        l2: the weight of the penalty, at least 0.
        bound: the largest modulus of an eigenvalue, above 0.
        max_cond: the largest ratio of two entries of D, above 1.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - vectors: ([beings,] n, n), the reflections whose product is P
        - moduli, angles: ([beings,] ⌈n/2⌉); γ is a sine of the first, between 0 and the bound, θ is the second
        - upper: ([beings,] number of entries above the blocks)
        - scales: ([beings,] n)

    Raises:
        ValueError: in_features != out_features, l2 < 0, bound <= 0, one of them is not finite, or max_cond is not in
            (1, 1024].

    Example:
        >>> layer = SchurDecompositionLinear(8, 8)
        >>> bool(layer.eigvals().abs().max() <= 1)
        True

    Reference:
        G. Kerg et al., Non-normal recurrent neural network (nnRNN): learning long time dependencies while improving
        expressivity with transient dynamics, 2019, arXiv 1905.12080; G. H. Golub, C. F. Van Loan, Matrix computations,
        2013 (the real Schur form).
    """

    family = "stable"
    promise = "ρ(A) <= bound"
    square = True
    penalized = True

    vectors: nn.Parameter
    scales: nn.Parameter
    upper: nn.Parameter
    moduli: nn.Parameter
    angles: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        l2: float = 0.01,
        bound: float = 1.0,
        max_cond: float = 100.0,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_number(0, l2=l2)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be a finite number > 0, got {bound}")
        self.l2, self.bound, self.max_cond = l2, bound, max_cond
        self._radius = bound * (1 - rounding_margin(max_cond))
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, blocks = self.in_features, -(-self.in_features // 2)
        above = (n * (n - 1) - n // 2 * 2) // 2
        return {"vectors": (n, n), "scales": (n,), "upper": (above,), "moduli": (blocks,), "angles": (blocks,)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"l2": 0.5, "bound": 2.0, "max_cond": 10.0, "in_features": 5, "out_features": 5}]

    def _quarters(self, moduli: Tensor) -> Tensor:
        """Raw values -> angles φ with γ = r cos² φ and G² = r − γ = r sin² φ; raw values around 0 give 0 to π/2.

        As functions of φ both √γ and G are smooth at the ends, where √(r − γ) would have an infinite slope.
        """
        return math.pi / 4 - moduli / 2

    def _weight(self, vectors: Tensor, scales: Tensor, moduli: Tensor, angles: Tensor, upper: Tensor) -> Tensor:
        n, r, quarters = self.in_features, self._radius, self._quarters(moduli)
        gamma, g = r * quarters.cos().square(), repeat_for_rows(math.sqrt(r) * quarters.sin(), n)
        # everything that is zero below the blocks stays so, so K has the eigenvalues of Λ
        c = inside_ball(matrix_above(upper, n))
        k = rotations(gamma * angles.cos(), gamma * angles.sin(), n) + g.unsqueeze(-1) * c * g.unsqueeze(-2)
        return in_basis(k, orthogonal(vectors), bounded_ratios(scales, self.max_cond)).mT

    def penalty(self) -> Tensor:
        gamma = self._radius * self._quarters(self.moduli).cos().square()
        return self.l2 * (1 - gamma).square().mean(-1).sum()

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        a, n = weight.mT, self.in_features
        basis, moduli = invariant_pairs(a)
        # The layer's present P and D are tried first: what the layer is already is then assigned exactly.
        tries = [self._fitted(a, self.vectors.detach().double(), self.scales.detach().double())]
        for order in self._orders(moduli):
            # Invariant subspaces in this order, made orthonormal from left to right: QᵀAQ is a real Schur form.
            columns = torch.stack((2 * order, 2 * order + 1), -1).flatten(-2)
            columns = torch.cat((columns, columns.new_full((*columns.shape[:-1], n % 2), n - 1)), -1)
            q = torch.linalg.qr(basis.gather(-1, columns.unsqueeze(-2).expand_as(basis)))[0]
            vectors = reflections(equalize_diagonals(q, a))[0]
            tries.append(self._fitted(a, vectors, self._scales(a, orthogonal(vectors))))
        found, least = tries[0], weight.new_full(weight.shape[:-2], torch.inf)
        for raw in tries:
            moved = torch.linalg.matrix_norm(self._weight(**raw) - weight)
            better = moved < least
            least = torch.where(better, moved, least)
            for name, value in raw.items():
                chosen = better.reshape(*better.shape, *[1] * (value.dim() - better.dim()))
                found[name] = torch.where(chosen, value, found[name])
        return found

    def _orders(self, moduli: Tensor) -> list[Tensor]:
        """Orders of the pairs to try, (..., n//2) each: every order gives another Schur form of the same matrix."""
        first = moduli[..., : self.in_features // 2 * 2 : 2]
        pairs = first.shape[-1]
        if pairs <= ALL_ORDERS:
            listed = list(itertools.permutations(range(pairs)))
            return [torch.tensor(order, dtype=torch.long, device=moduli.device).expand(first.shape) for order in listed]
        return [first.argsort(-1), first.argsort(-1, descending=True)]

    def _scales(self, a: Tensor, q: Tensor) -> Tensor:
        """The raw values of a good D for the Schur form in the basis Q.

        Inside a block, D makes [[a, b], [c, a]], where b and c have opposite signs, a multiple of a rotation:
        b d₁/d₂ = −c d₂/d₁. Between the blocks it makes the norm of C small.
        """
        half = math.log(self.max_cond) / 2
        t = q.mT @ a @ q
        above, below = t.diagonal(1, -2, -1)[..., ::2], t.diagonal(-1, -2, -1)[..., ::2]
        # where b and c have one sign, the eigenvalues are real, and the block becomes the mean of them times I
        turning = above * below < 0
        ratio = torch.where(turning, -below / torch.where(turning, above, 1.0), 1.0).log() / 4
        ratio = ratio.clamp(-half * (1 - EDGE), half * (1 - EDGE))
        inner = torch.stack((ratio, -ratio), -1).flatten(-2)
        inner = torch.cat((inner, torch.zeros_like(t[..., 0, : self.in_features % 2])), -1)
        k = t * (inner.unsqueeze(-1) - inner.unsqueeze(-2)).exp()
        g = repeat_for_rows(
            (self._radius * (1 - self._shares(torch.hypot(*rotation_parts(k))))).sqrt(), self.in_features
        )
        m = matrix_above(entries_above(t), self.in_features) / g.unsqueeze(-1) / g.unsqueeze(-2)
        return D_SCALE * sigmoid_raw(norm_reducing_scales(m, inner, half * (1 - EDGE)), -half, half)

    def _shares(self, gamma: Tensor) -> Tensor:
        """γ/r, away from 0 and 1."""
        share = gamma / self._radius
        return torch.where(share < EDGE / 2, EDGE, torch.where(share > 1 - EDGE / 2, 1 - SLACK / 10, share))

    def _fitted(self, a: Tensor, vectors: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """The raw tensors of the matrix nearest to A that has the given P and D, but for the two clippings."""
        n = self.in_features
        k = out_of_basis(a, orthogonal(vectors), bounded_ratios(scales, self.max_cond))
        cos, sin = rotation_parts(k)
        gamma = torch.hypot(cos, sin)
        # For odd n the last eigenvalue is γ cos θ, here with γ slightly above its modulus: with θ = 0 the cosine would
        # be at its maximum, and θ without a gradient.
        if n % 2:
            last = gamma[..., -1:]
            gamma = torch.cat(
                (gamma[..., :-1], last + 1e-3 * last * (1 - SLACK / 10 - last / self._radius).clamp_min(0)), -1
            )
        share = self._shares(gamma)
        angles = torch.atan2(sin, cos)
        if n % 2:
            last = (cos[..., -1:] / (self._radius * share[..., -1:])).clamp(-1, 1).acos()
            angles = torch.cat((angles[..., :-1], last), -1)
        g = repeat_for_rows((self._radius * (1 - share)).sqrt(), n)
        c = matrix_above(entries_above(k), n) / g.unsqueeze(-1) / g.unsqueeze(-2)
        return {
            "vectors": vectors,
            "scales": scales,
            "moduli": 2 * (math.pi / 4 - share.sqrt().acos()),
            "angles": angles,
            "upper": entries_above(inside_ball_raw(c)),
        }

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["vectors"].normal_(generator=generator)
        raw["scales"].normal_(0, D_SCALE / 4, generator=generator)
        # γ = r(1 + sin)/2 is then uniform between 0 and r
        raw["moduli"].uniform_(-1, 1, generator=generator).asin_()
        raw["angles"].uniform_(-math.pi, math.pi, generator=generator)
        raw["upper"].normal_(0, 1 / math.sqrt(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return (radius(weight) / self.bound - 1).clamp_min(0)

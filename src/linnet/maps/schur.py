"""Matrices by their real Schur form, A = P T Pᵀ: moduli and angles of the eigenvalues are the parameters.

Off its diagonal blocks T could be anything, and A as large as one likes with the same eigenvalues; rounding then moves
them. So T is written T = D⁻¹KD, D diagonal with ratios of at most max_cond and K = Λ + G C G, where Λ holds the blocks
γR(θ), G² = r − γ and ‖C‖₂ < 1. Because Γ + G² = r, K = [√Γ, G] diag(R, C) [√Γ, G]ᵀ is a product of two matrices of
norm √r and a contraction, so ‖K‖₂ <= r: A is a contraction in a basis conditioned no worse than max_cond, as the maps
of linnet.maps.stable are, and for the same reason r = bound·(1 − max_cond² eps).
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.power import radius
from linnet.maps.ranges import EDGE, within_raw
from linnet.maps.reflections import reflections
from linnet.maps.shrinking import check_number
from linnet.maps.stable import GENTLE, in_basis, orthogonal, out_of_basis, stretch, tightened

__all__ = ["SchurDecompositionLinear"]

ALL_ORDERS = 4  # pairs of eigenvalues up to which `assign` tries them in every order
STEPS = 40  # of the search for D
SLACK = 0.01  # left by `assign` where C is cut off, a tenth of it where γ is, so that rounding does not cut again


def in_blocks(values: Tensor, n: int) -> Tensor:
    """One number for each block, (..., ⌈n/2⌉) -> one for each row, (..., n)."""
    return values.repeat_interleave(2, -1)[..., :n]


def rotations(cos: Tensor, sin: Tensor, n: int) -> Tensor:
    """(..., ⌈n/2⌉) each -> blocks [[cos, −sin], [sin, cos]] along the diagonal, (..., n, n), for odd n cos the last."""
    below = torch.stack((sin, torch.zeros_like(sin)), -1).flatten(-2)[..., : n - 1]
    turned = torch.diag_embed(below, -1) if n > 1 else torch.zeros_like(cos).unsqueeze(-1)
    return torch.diag_embed(in_blocks(cos, n)) + turned - turned.mT


def rotation_parts(k: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, (..., ⌈n/2⌉), of the :func:`rotations` nearest to the diagonal blocks of K, (..., n, n)."""
    diagonal = k.diagonal(dim1=-2, dim2=-1)
    turn = k.diagonal(-1, -2, -1)[..., ::2] - k.diagonal(1, -2, -1)[..., ::2]
    cos = (diagonal[..., : 2 * turn.shape[-1] : 2] + diagonal[..., 1::2]) / 2
    if k.shape[-1] % 2:
        return torch.cat((cos, diagonal[..., -1:]), -1), torch.cat((turn / 2, 0 * diagonal[..., -1:]), -1)
    return cos, turn / 2


def above_blocks(n: int, device: torch.device) -> Tensor:
    """Where the entries above the diagonal blocks stand in an n × n matrix written as one row.

    First all that are two or more above the diagonal, row by row, then those next to it and between two blocks.
    """
    rows, columns = torch.triu_indices(n, n, 2, device=device)
    between = torch.arange(1, n - 1, 2, device=device) if n > 2 else torch.arange(0, device=device)
    return torch.cat((rows * n + columns, between * (n + 1) + 1))


def filled(upper: Tensor, n: int) -> Tensor:
    """The entries above the diagonal blocks, in the order of :func:`above_blocks` -> (..., n, n)."""
    places = above_blocks(n, upper.device).expand(upper.shape)
    return upper.new_zeros(*upper.shape[:-1], n * n).scatter(-1, places, upper).unflatten(-1, (n, n))


def taken(matrix: Tensor) -> Tensor:
    """The inverse of :func:`filled`; what stands elsewhere is left out."""
    return matrix.flatten(-2)[..., above_blocks(matrix.shape[-1], matrix.device)]


def norm(matrix: Tensor) -> Tensor:
    """‖·‖₂, (..., 1, 1); not by svdvals, whose bits depend on whether a gradient is wanted."""
    return torch.linalg.svd(matrix, full_matrices=False)[1][..., :1, None]


def inside_ball(x: Tensor) -> Tensor:
    """X -> C = X/√(1 + ‖X‖₂²): one to one between all matrices and those with ‖C‖₂ < 1; zeros stay zeros."""
    size = norm(x)
    return x / torch.hypot(size, torch.ones_like(size))


def inside_ball_raw(c: Tensor) -> Tensor:
    """The inverse of :func:`inside_ball`; what is not inside the ball is shrunk, by :data:`SLACK` more than needed."""
    size = norm(c)
    c = torch.where(size <= 1 - EDGE / 2, c, c * (1 - SLACK) / size.clamp_min(0.5))
    return c / (1 - norm(c).square()).sqrt()


def invariant_pairs(a: Tensor) -> tuple[Tensor, Tensor]:
    """A real basis, (..., n, n), whose columns 2k and 2k + 1 span an invariant subspace of A, and the moduli (..., n).

    Conjugate eigenvalues come first, then real ones in ascending order.
    """
    values, vectors = torch.linalg.eig(a)
    real = values.imag == 0
    order = torch.where(real, values.real, 0).argsort(stable=True, dim=-1)
    order = order.gather(
        -1, real.gather(-1, order).int().argsort(stable=True, dim=-1)
    )  # LAPACK gives pairs side by side
    vectors = vectors.gather(-1, order.unsqueeze(-2).expand_as(vectors))
    second = (torch.arange(a.shape[-1], device=a.device) % 2 == 1) & ~real.gather(-1, order)
    return torch.where(second.unsqueeze(-2), vectors.imag, vectors.real), values.abs().gather(-1, order)


def level(q: Tensor, a: Tensor) -> Tensor:
    """Q turned inside each pair of columns so that the 2 × 2 blocks of QᵀAQ have equal diagonals, as in LAPACK."""
    n = q.shape[-1]
    t = q.mT @ a @ q
    diagonal = t.diagonal(dim1=-2, dim2=-1)
    across = t.diagonal(1, -2, -1)[..., ::2] + t.diagonal(-1, -2, -1)[..., ::2]
    uneven = diagonal[..., : 2 * across.shape[-1] : 2] - diagonal[..., 1::2]
    turn = (torch.atan2(across, uneven) - math.pi / 2) / 2
    turn = torch.cat((turn, torch.zeros_like(diagonal[..., : n % 2])), -1)
    return q @ rotations(turn.cos(), turn.sin(), n)


def spread(m: Tensor, inner: Tensor, half: float) -> Tensor:
    """log d, (..., n), |log d| <= half, that makes ‖D M D⁻¹‖₂ small: inner, given inside each block, plus one number.

    The norm is a convex function of log d; a subgradient method with Polyak's steps, stopped below 0.98.
    """
    n = m.shape[-1]
    room = half - inner.abs()[..., ::2]  # (..., ⌈n/2⌉)
    blocks = room.shape[-1]
    best = inner
    least = norm(m * (inner.unsqueeze(-1) - inner.unsqueeze(-2)).exp())
    for share in (1.0, 0.5, 0.0):  # the rows above are the smaller the faster d grows
        ramp = torch.linspace(-share, share, blocks, dtype=m.dtype, device=m.device) if blocks > 1 else 0.0
        moved = room * ramp
        for _ in range(STEPS):
            d = in_blocks(moved, n) + inner
            u, s, vh = torch.linalg.svd(m * (d.unsqueeze(-1) - d.unsqueeze(-2)).exp())
            better = (s[..., :1, None] < least) & (least >= 0.98)  # one being's search is no matter of the others
            best = torch.where(better.squeeze(-1), d, best)
            least = torch.where(better, s[..., :1, None], least)
            if bool((least < 0.98).all()):
                return best
            slope = s[..., :1] * (u[..., 0].square() - vh[..., 0, :].square())
            slope = torch.cat((slope, torch.zeros_like(slope[..., : n % 2])), -1).unflatten(-1, (blocks, 2)).sum(-1)
            length = (s[..., :1] - 0.9).clamp_min(0) / slope.square().sum(-1, keepdim=True).clamp_min(1e-30)
            moved = torch.minimum(torch.maximum(moved - length * slope, -room), room)
    return best


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

    promise = "ρ(A) <= bound"
    square = True
    penalized = True

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
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        check_number(0, l2=l2)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be a finite number > 0, however: {bound}")
        self.l2, self.bound, self.max_cond = l2, bound, max_cond
        self._radius = bound * (1 - tightened(max_cond))
        n, blocks = self.in_features, -(-self.in_features // 2)
        above = (n * (n - 1) - n // 2 * 2) // 2

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*self.leading, *shape, device=device, dtype=dtype))

        self.vectors, self.scales, self.upper = empty(n, n), empty(n), empty(above)
        self.moduli, self.angles = empty(blocks), empty(blocks)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"l2": 0.5, "bound": 2.0, "max_cond": 10.0, "in_features": 5, "out_features": 5}]

    def _quarters(self, moduli: Tensor) -> Tensor:
        """The angles between 0 and π/2 for raw values around 0 of which cos² is γ and sin² is what is left of r."""
        return math.pi / 4 - moduli / 2

    def _weight(self, vectors: Tensor, scales: Tensor, moduli: Tensor, angles: Tensor, upper: Tensor) -> Tensor:
        n, r, quarters = self.in_features, self._radius, self._quarters(moduli)
        gamma, g = r * quarters.cos().square(), in_blocks(math.sqrt(r) * quarters.sin(), n)
        c = inside_ball(filled(upper, n))
        k = rotations(gamma * angles.cos(), gamma * angles.sin(), n) + g.unsqueeze(-1) * c * g.unsqueeze(-2)
        return in_basis(k, orthogonal(vectors), stretch(scales, self.max_cond)).mT

    def penalty(self) -> Tensor:
        gamma = self._radius * self._quarters(self.moduli).cos().square()
        return self.l2 * (1 - gamma).square().mean(-1).sum()

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        a, n = weight.mT, self.in_features
        basis, moduli = invariant_pairs(a)
        tries = [self._fitted(a, self.vectors.detach().double(), self.scales.detach().double())]
        for order in self._orders(moduli):
            columns = torch.stack((2 * order, 2 * order + 1), -1).flatten(-2)
            columns = torch.cat((columns, columns.new_full((*columns.shape[:-1], n % 2), n - 1)), -1)
            q = torch.linalg.qr(basis.gather(-1, columns.unsqueeze(-2).expand_as(basis)))[0]
            vectors = reflections(level(q, a))[0]
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
        """Orders of the pairs to try, (..., n//2) each."""
        first = moduli[..., : self.in_features // 2 * 2 : 2]
        pairs = first.shape[-1]
        if pairs <= ALL_ORDERS:
            listed = list(itertools.permutations(range(pairs)))
            return [torch.tensor(order, dtype=torch.long, device=moduli.device).expand(first.shape) for order in listed]
        return [first.argsort(-1), first.argsort(-1, descending=True)]

    def _scales(self, a: Tensor, q: Tensor) -> Tensor:
        """The raw values of a good D for the Schur form in the basis Q."""
        half = math.log(self.max_cond) / 2
        t = q.mT @ a @ q
        above, below = t.diagonal(1, -2, -1)[..., ::2], t.diagonal(-1, -2, -1)[..., ::2]
        turning = above * below < 0  # else the eigenvalues are real
        ratio = torch.where(turning, -below / torch.where(turning, above, 1.0), 1.0).log() / 4
        ratio = ratio.clamp(-half * (1 - EDGE), half * (1 - EDGE))
        inner = torch.stack((ratio, -ratio), -1).flatten(-2)
        inner = torch.cat((inner, torch.zeros_like(t[..., 0, : self.in_features % 2])), -1)
        k = t * (inner.unsqueeze(-1) - inner.unsqueeze(-2)).exp()
        g = in_blocks((self._radius * (1 - self._shares(torch.hypot(*rotation_parts(k))))).sqrt(), self.in_features)
        m = filled(taken(t), self.in_features) / g.unsqueeze(-1) / g.unsqueeze(-2)
        return GENTLE * within_raw(spread(m, inner, half * (1 - EDGE)), -half, half)

    def _shares(self, gamma: Tensor) -> Tensor:
        """γ/r, away from 0 and 1."""
        share = gamma / self._radius
        return torch.where(share < EDGE / 2, EDGE, torch.where(share > 1 - EDGE / 2, 1 - SLACK / 10, share))

    def _fitted(self, a: Tensor, vectors: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """The raw tensors of the matrix nearest to A that has the given P and D, but for the two clippings."""
        n = self.in_features
        k = out_of_basis(a, orthogonal(vectors), stretch(scales, self.max_cond))
        cos, sin = rotation_parts(k)
        gamma = torch.hypot(cos, sin)
        if n % 2:  # the last eigenvalue is γ cos θ: a γ slightly larger, for at θ = 0 its gradient would be 0
            last = gamma[..., -1:]
            gamma = torch.cat(
                (gamma[..., :-1], last + 1e-3 * last * (1 - SLACK / 10 - last / self._radius).clamp_min(0)), -1
            )
        share = self._shares(gamma)
        angles = torch.atan2(sin, cos)
        if n % 2:
            last = (cos[..., -1:] / (self._radius * share[..., -1:])).clamp(-1, 1).acos()
            angles = torch.cat((angles[..., :-1], last), -1)
        g = in_blocks((self._radius * (1 - share)).sqrt(), n)
        c = filled(taken(k), n) / g.unsqueeze(-1) / g.unsqueeze(-2)
        return {
            "vectors": vectors,
            "scales": scales,
            "moduli": 2 * (math.pi / 4 - share.sqrt().acos()),
            "angles": angles,
            "upper": taken(inside_ball_raw(c)),
        }

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        raw["vectors"].normal_(generator=generator)
        raw["scales"].normal_(0, GENTLE / 4, generator=generator)
        raw["moduli"].uniform_(-1, 1, generator=generator).asin_()  # γ uniform between 0 and the bound
        raw["angles"].uniform_(-math.pi, math.pi, generator=generator)
        raw["upper"].normal_(0, 1 / math.sqrt(self.in_features), generator=generator)

    def _violation(self, weight: Tensor) -> Tensor:
        return (radius(weight) / self.bound - 1).clamp_min(0)

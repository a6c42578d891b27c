"""The real Schur form: its diagonal blocks, the entries above them, and a diagonal scaling that makes it small.

Rows and columns are paired: (0, 1), (2, 3), ...; for odd n the last one is alone. A *block* is one pair's 2 × 2 matrix.
"""

import math

import torch
from torch import Tensor

from linnet.maps.math.intervals import EDGE

# Pairs of eigenvalues up to which `assign` tries every order of them.
ALL_ORDERS = 4
# Steps of the search for D from each start.
STEPS = 40
# What `assign` leaves free where it cuts C off, and a tenth of it where it cuts γ off: rounding does not cut again.
SLACK = 0.01
# The norm at which the search for D ends: C is then well inside the ball.
SMALL_ENOUGH, AIM = 0.98, 0.9


def repeat_for_rows(values: Tensor, n: int) -> Tensor:
    """One number for each block, (..., ⌈n/2⌉) -> one for each row, (..., n)."""
    return values.repeat_interleave(2, -1)[..., :n]


def rotations(cos: Tensor, sin: Tensor, n: int) -> Tensor:
    """(..., ⌈n/2⌉) each -> blocks [[cos, −sin], [sin, cos]] along the diagonal, (..., n, n), for odd n cos the last."""
    below = torch.stack((sin, torch.zeros_like(sin)), -1).flatten(-2)[..., : n - 1]
    turned = torch.diag_embed(below, -1) if n > 1 else torch.zeros_like(cos).unsqueeze(-1)
    return torch.diag_embed(repeat_for_rows(cos, n)) + turned - turned.mT


def rotation_parts(k: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, (..., ⌈n/2⌉), of the :func:`rotations` nearest to the diagonal blocks of K, (..., n, n)."""
    # The nearest γR(θ) to [[a, b], [c, d]] in the Frobenius norm has γ cos θ = (a + d)/2 and γ sin θ = (c − b)/2.
    diagonal = k.diagonal(dim1=-2, dim2=-1)
    turn = k.diagonal(-1, -2, -1)[..., ::2] - k.diagonal(1, -2, -1)[..., ::2]
    cos = (diagonal[..., : 2 * turn.shape[-1] : 2] + diagonal[..., 1::2]) / 2
    if k.shape[-1] % 2:
        return torch.cat((cos, diagonal[..., -1:]), -1), torch.cat((turn / 2, 0 * diagonal[..., -1:]), -1)
    return cos, turn / 2


def places_above(n: int, device: torch.device) -> Tensor:
    """Where the entries above the diagonal blocks stand in an n × n matrix written as one row.

    First all that are two or more above the diagonal, row by row, then those next to it and between two blocks.
    """
    rows, columns = torch.triu_indices(n, n, 2, device=device)
    between = torch.arange(1, n - 1, 2, device=device) if n > 2 else torch.arange(0, device=device)
    return torch.cat((rows * n + columns, between * (n + 1) + 1))


def matrix_above(upper: Tensor, n: int) -> Tensor:
    """The entries above the diagonal blocks, in the order of :func:`places_above` -> (..., n, n)."""
    places = places_above(n, upper.device).expand(upper.shape)
    return upper.new_zeros(*upper.shape[:-1], n * n).scatter(-1, places, upper).unflatten(-1, (n, n))


def entries_above(matrix: Tensor) -> Tensor:
    """The entries of a matrix above its diagonal blocks: the inverse of :func:`matrix_above`."""
    return matrix.flatten(-2)[..., places_above(matrix.shape[-1], matrix.device)]


def norm(matrix: Tensor) -> Tensor:
    """‖·‖₂, (..., 1, 1); not by svdvals, whose bits depend on whether a gradient is wanted."""
    return torch.linalg.svd(matrix, full_matrices=False)[1][..., :1, None]


def inside_ball(x: Tensor) -> Tensor:
    """X -> C = X/√(1 + ‖X‖₂²): one to one between all matrices and those with ‖C‖₂ < 1; zeros stay zeros."""
    # A factor for the whole matrix keeps the zeros below the blocks, which a map of singular values would fill.
    size = norm(x)
    return x / torch.hypot(size, torch.ones_like(size))


def inside_ball_raw(c: Tensor) -> Tensor:
    """The inverse of :func:`inside_ball`; what is not inside the ball is shrunk, by :data:`SLACK` more than needed."""
    size = norm(c)
    c = torch.where(size <= 1 - EDGE / 2, c, c * (1 - SLACK) / size.clamp_min(0.5))
    return c / (1 - norm(c).square()).sqrt()


def invariant_pairs(a: Tensor) -> tuple[Tensor, Tensor]:
    """A real basis, (..., n, n), whose columns 2k and 2k + 1 span an invariant subspace of A, and the moduli (..., n).

    Conjugate eigenvalues come first, then real ones in ascending order, so that those of a pair, of which the layer
    takes the mean, are close.
    """
    values, vectors = torch.linalg.eig(a)
    real = values.imag == 0
    # Two stable sorts: real eigenvalues by size, then all complex ones in front. LAPACK gives conjugates side by side,
    # and stable sorting leaves them so.
    order = torch.where(real, values.real, 0).argsort(stable=True, dim=-1)
    order = order.gather(-1, real.gather(-1, order).int().argsort(stable=True, dim=-1))
    # An eigenvector x + iy of a complex eigenvalue, and its conjugate, span the same space as x and y.
    vectors = vectors.gather(-1, order.unsqueeze(-2).expand_as(vectors))
    second = (torch.arange(a.shape[-1], device=a.device) % 2 == 1) & ~real.gather(-1, order)
    return torch.where(second.unsqueeze(-2), vectors.imag, vectors.real), values.abs().gather(-1, order)


def equalize_diagonals(q: Tensor, a: Tensor) -> Tensor:
    """Q turned inside each pair of columns so that the 2 × 2 blocks of QᵀAQ have equal diagonals, as in LAPACK."""
    # Turning [[p, q], [r, s]] by θ makes the difference of its diagonal (p − s) cos 2θ + (q + r) sin 2θ, which is 0 for
    # 2θ = atan2(q + r, p − s) − π/2.
    n = q.shape[-1]
    t = q.mT @ a @ q
    diagonal = t.diagonal(dim1=-2, dim2=-1)
    across = t.diagonal(1, -2, -1)[..., ::2] + t.diagonal(-1, -2, -1)[..., ::2]
    uneven = diagonal[..., : 2 * across.shape[-1] : 2] - diagonal[..., 1::2]
    turn = (torch.atan2(across, uneven) - math.pi / 2) / 2
    turn = torch.cat((turn, torch.zeros_like(diagonal[..., : n % 2])), -1)
    return q @ rotations(turn.cos(), turn.sin(), n)


def norm_reducing_scales(m: Tensor, inner: Tensor, half: float) -> Tensor:
    """log d, (..., n), |log d| <= half, that makes ‖D M D⁻¹‖₂ small: inner, given inside each block, plus one number.

    The norm is a convex function of log d. It is decreased by a subgradient method with Polyak's steps
    (value − aim)/‖slope‖², until it is below 0.98.

    Reference:
        R. S. Sezginer, M. L. Overton, The largest singular value of e^X A e^−X is convex on convex sets of commuting
        matrices, 1990.
    """
    n = m.shape[-1]
    # What the number of a block may be, so that with ± inner it stays within half.
    room = half - inner.abs()[..., ::2]  # (..., ⌈n/2⌉)
    blocks = room.shape[-1]
    best = inner
    least = norm(m * (inner.unsqueeze(-1) - inner.unsqueeze(-2)).exp())
    # M is zero below its blocks, and an entry (i, j) above them is scaled by dᵢ/dⱼ: the faster d grows, the smaller.
    for share in (1.0, 0.5, 0.0):
        ramp = torch.linspace(-share, share, blocks, dtype=m.dtype, device=m.device) if blocks > 1 else 0.0
        moved = room * ramp
        for _ in range(STEPS):
            d = repeat_for_rows(moved, n) + inner
            u, s, vh = torch.linalg.svd(m * (d.unsqueeze(-1) - d.unsqueeze(-2)).exp())
            # A being whose search has ended keeps what it found: the result does not depend on the other beings.
            better = (s[..., :1, None] < least) & (least >= SMALL_ENOUGH)
            best = torch.where(better.squeeze(-1), d, best)
            least = torch.where(better, s[..., :1, None], least)
            if bool((least < SMALL_ENOUGH).all()):
                return best
            # ∂σ₁/∂(log dᵢ) = σ₁(uᵢ² − vᵢ²), as uᵀ(D M D⁻¹)v changes by uᵢ(Mv)ᵢ and by −(uᵀM)ᵢvᵢ
            slope = s[..., :1] * (u[..., 0].square() - vh[..., 0, :].square())
            slope = torch.cat((slope, torch.zeros_like(slope[..., : n % 2])), -1).unflatten(-1, (blocks, 2)).sum(-1)
            length = (s[..., :1] - AIM).clamp_min(0) / slope.square().sum(-1, keepdim=True).clamp_min(1e-30)
            moved = torch.minimum(torch.maximum(moved - length * slope, -room), room)
    return best

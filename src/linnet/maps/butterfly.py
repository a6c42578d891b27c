"""Butterfly matrices: products of log₂ n factors of 2 × 2 blocks.

The factor of stride s = 2^k acts on the pairs of places that differ in bit k alone. With growing strides, when bit k
is transformed, the bits below it belong to the output already and the bits above it still to the input. So there is one
path from each input to each output, and an entry of the product is a single product of m = log₂ n numbers,

    w_oi = Π_k T_k[i_{>k}, o_{<k}, o_k, i_k],

and "tied" means that T_k does not depend on i_{>k}. The lower and the upper half of the factors multiply out into two
block-diagonal matrices, which a product with a vector needs alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.two_stages import two_stages


def multiply_out(factors: Sequence[Tensor]) -> Tensor:
    """Factors T_k, (..., blocks, 2^k, 2, 2), of growing stride -> their product, (..., blocks, 2^m, 2^m).

    The axes of T_k are i_{>k}, o_{<k}, o_k, i_k; where factors are tied, blocks is 1 in all of them, else it halves
    from one to the next.
    """
    # One more bit turns two blocks of the product, for i_k = 0 and 1, into one of twice the size. The product keeps the
    # rows o_{<k} and the columns i_{<k}; the factor adds o_k in front of the rows and i_k in front of the columns.
    product = factors[0].squeeze(-3)  # (..., blocks, 2, 2)
    for factor in factors[1:]:
        blocks = factor.shape[-4]
        halves = product.shape[-3] // blocks if product.shape[-3] > 1 else 1
        inner = product.unflatten(-3, (blocks, halves)).transpose(-3, -2)  # (..., blocks, o_{<k}, i_k, i_{<k})
        outer = factor.transpose(-3, -2).unsqueeze(-1)  # (..., blocks, o_k, o_{<k}, i_k, 1)
        product = (outer * inner.unsqueeze(-4)).flatten(-2).flatten(-3, -2)
    return product


def butterfly_factors(w: Tensor, inputs: int, tied: bool) -> list[Tensor]:
    """Factors T_k as in :func:`multiply_out` with about the product w, (..., n, n), of which ``inputs`` columns count.

    Bit by bit from the lowest: the numbers that share T_k[i_{>k}, o_{<=k}, ·] are a matrix with rows i_k, which is of
    rank one iff that T_k can be split off. What is split off is the nearest of rank one, so that factors of an exact
    product are found exactly.
    """
    factors = []
    rest = w.unsqueeze(-3)  # (..., o_{<k}, o_{>=k}, i_{>=k})
    bits = w.shape[-1].bit_length() - 1
    for k in range(bits):
        size = rest.shape[-1] // 2
        x = rest.unflatten(-1, (size, 2)).unflatten(-3, (size, 2))  # (..., o_{<k}, o_{>k}, o_k, i_{>k}, i_k)
        x = x.movedim(-3, -4).movedim(-1, -3)  # (..., o_{<k}, o_k, i_k, o_{>k}, i_{>k})
        if tied:
            # The vector is shared by all i_{>k}: it is found from the places whose both inputs i_k count, and the rest
            # is the least-squares fit to the inputs that count; the columns of padding hold nothing.
            places = 2 * torch.arange(size, device=w.device) + torch.arange(2, device=w.device).unsqueeze(-1)
            known = (places < inputs).to(rest.real.dtype)  # (i_k, i_{>k})
            whole = known[:1] * known[1:] if inputs > 1 else known[:1]
            t, strength = _first_vector((x * whole).flatten(-2))  # (..., o_{<k}, o_k, i_k)
            weights = t[..., None, None] * known.unsqueeze(-2)
            rest = (weights.conj() * x).sum(-3) / weights.abs().square().sum(-3).clamp_min(1e-300)
            factor = t.unsqueeze(-4)  # (..., 1, o_{<k}, o_k, i_k)
            strength = strength[..., None, None]
        else:
            columns = x.movedim(-1, -4)  # (..., o_{<k}, i_{>k}, o_k, i_k, o_{>k})
            t, strength = _first_vector(columns)
            rest = (t.conj().unsqueeze(-1) * columns).sum(-2).movedim(-3, -1)  # (..., o_{<k}, o_k, o_{>k}, i_{>k})
            factor = t.movedim(-4, -3)  # (..., i_{>k}, o_{<k}, o_k, i_k)
            strength = strength.movedim(-2, -1).unsqueeze(-2)  # (..., o_{<k}, o_k, 1, i_{>k})
        # The singular value holds the size of all factors from this bit on: each takes an equal part of it.
        share = strength ** (1 / (bits - k))
        rest = rest / torch.where(share > 0, share, 1.0)
        share = share[..., 0, :].movedim(-1, -3)  # (..., blocks, o_{<k}, o_k)
        factor = factor * share.unsqueeze(-1)
        rest = rest.transpose(-4, -3).flatten(-4, -3)  # o_{<=k} with o_k as its highest bit
        # After the last bit what is left is one number for each output: it goes into the last factor.
        if k == bits - 1:
            last = rest.squeeze((-2, -1)).unflatten(-1, (2, -1)).transpose(-2, -1)  # (..., o_{<k}, o_k)
            factor = factor * last.unsqueeze(-3).unsqueeze(-1)
        factors.append(factor)
        inputs = -(-inputs // 2)
    return factors


def _first_vector(x: Tensor) -> tuple[Tensor, Tensor]:
    """First left singular vector, (..., 2), and singular value, (...), of matrices (..., 2, c)."""
    u, sigma, _ = torch.linalg.svd(x, full_matrices=False)
    return u[..., 0], sigma[..., 0]


class ButterflyLinear(LinearMap):
    """y = x A + b with W = Aᵀ a product of log₂ n butterfly factors, padded and cut to any sizes.

    n is the least power of two that holds both sizes. A product with a vector takes two batched ones of size √n. A
    butterfly matrix of the same options is assigned exactly; any other as what splitting off the nearest factor bit by
    bit leaves, which is near but need not be the nearest. With raw numbers so large that entries could pass 1e30 they
    are scaled down.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`.
        complex: whether the features are complex numbers, each of them two features, its real and its imaginary part;
            both sizes must then be even.
        tied_weight: whether the blocks of a factor share their numbers: n − 1 matrices of 2 × 2, or (n/2) log₂ n.
        increasing_stride: whether the input meets the strides 1, 2, 4, ..., n/2 in this order, or in the reverse.
        ortho_init: whether every 2 × 2 matrix starts as a rotation (unitary if complex), so that for
            in_features = out_features = n A starts orthogonal; otherwise outputs start with nn.Linear's scale.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)
        - twiddle: tied ([beings,] n − 1, 2, 2), stride s at s − 1 and after; else ([beings,] log₂ n, n/2, 2, 2);
          complex ones end with an axis of 2 more

    Raises:
        ValueError: complex, and a size is odd.

    Example:
        >>> layer = ButterflyLinear(8, 8, bias=False, ortho_init=True)
        >>> torch.allclose(layer.weight @ layer.weight.mT, torch.eye(8), atol=1e-5)
        True

    Reference:
        T. Dao, A. Gu, M. Eichhorn, A. Rudra, C. Ré, Learning fast algorithms for linear transforms using butterfly
        factorizations, 2019, arXiv 1903.05895; L. Zheng, E. Riccietti, R. Gribonval, Efficient identification of
        butterfly sparse matrix factorizations, 2021, arXiv 2110.01235.
    """

    family = "few-parameters"
    promise = "Aᵀ is a product of log₂ n butterfly factors"
    fast = True
    decays = ("twiddle",)

    twiddle: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        complex: bool = False,
        tied_weight: bool = True,
        increasing_stride: bool = True,
        ortho_init: bool = False,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.complex, self.tied_weight = complex, tied_weight
        self.increasing_stride, self.ortho_init = increasing_stride, ortho_init
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        if self.complex and (self.in_features % 2 or self.out_features % 2):
            raise ValueError(
                "in_features and out_features must be even, since complex features are pairs, "
                f"got {self.in_features} and {self.out_features}"
            )
        places = (self._n - 1,) if self.tied_weight else (self._bits, self._n // 2)
        return {"twiddle": (*places, 2, 2, *((2,) if self.complex else ()))}

    @property
    def _bits(self) -> int:
        """log₂ n, the number of factors."""
        parts = 2 if self.complex else 1
        return max(1, (max(self.in_features, self.out_features) // parts - 1).bit_length())

    @property
    def _n(self) -> int:
        """The least power of two that holds both sizes, at least 2."""
        return 2**self._bits

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [
            {},
            {"tied_weight": False},
            {"increasing_stride": False},
            {"tied_weight": False, "increasing_stride": False, "ortho_init": True},
            {"complex": True, "in_features": 8, "out_features": 6},
            {"complex": True, "tied_weight": False, "ortho_init": True, "in_features": 6, "out_features": 10},
        ]

    def _factors(self, twiddle: Tensor) -> list[Tensor]:
        """The T_k, (..., blocks, 2^k, 2, 2), of growing stride; with falling strides those of the transpose."""
        matrix_axes = 3 if self.complex else 2
        # An entry of W is a product of m = `_bits` numbers: with each at most 10^(30/m) it is at most 1e30, which
        # float32 holds. Larger numbers are scaled down, by a factor that is a constant to autograd.
        limit = 10 ** (30 / self._bits)
        axes = tuple(range(-matrix_axes - (1 if self.tied_weight else 2), 0))
        largest = twiddle.detach().abs().amax(axes, keepdim=True)
        twiddle = twiddle / (largest / limit).clamp_min(1)
        strides = [2**k for k in range(self._bits)]
        if self.tied_weight:
            parts = [t.unsqueeze(-matrix_axes - 2) for t in twiddle.split(strides, -matrix_axes - 1)]
        else:
            stages = twiddle.unbind(-matrix_axes - 2)
            parts = [
                t.unflatten(-matrix_axes - 1, (self._n // (2 * s), s)) for t, s in zip(stages, strides, strict=True)
            ]
        factors = []
        for t in parts:
            t = torch.complex(t[..., 0], t[..., 1]) if self.complex else t
            factors.append(t if self.increasing_stride else t.mT)
        return factors

    def _weight(self, twiddle: Tensor) -> Tensor:
        parts = 2 if self.complex else 1
        w = multiply_out(self._factors(twiddle)).squeeze(-3)
        w = w if self.increasing_stride else w.mT
        w = w[..., : self.out_features // parts, : self.in_features // parts]
        return _as_real_matrix(w) if self.complex else w

    def _product(self, x: Tensor, twiddle: Tensor) -> Tensor:
        x = torch.complex(x[..., 0::2], x[..., 1::2]) if self.complex else x
        x = F.pad(x, (0, self._n - x.shape[-1])) if x.shape[-1] < self._n else x
        # Half of the factors multiplied out are a block-diagonal matrix of blocks √n: two batched products in place of
        # log₂ n passes over the data.
        factors, half = self._factors(twiddle), (self._bits + 1) // 2
        low, high = 2**half, 2 ** (self._bits - half)
        lower = multiply_out(factors[:half])  # (..., high or 1, low, low)
        if half == self._bits:
            y = x @ (lower.mT if self.increasing_stride else lower).squeeze(-3)
        else:  # to each residue of the place belongs an upper butterfly of its own, (..., low, high, high)
            upper = multiply_out([t.unflatten(-3, (-1, low)).movedim(-3, -5) for t in factors[half:]]).squeeze(-3)
            lower = lower.expand(*lower.shape[:-3], high, low, low)
            if self.increasing_stride:
                y = two_stages(x, lower, upper)
            else:
                x = x.unflatten(-1, (high, low)).movedim(-3, -1).transpose(-3, -2)  # (..., low, high, batch)
                z = (upper.mT @ x).transpose(-3, -2)  # (..., high, low, batch)
                y = (lower.mT @ z).movedim(-1, -3).flatten(-2)
        y = torch.view_as_real(y.resolve_conj()).flatten(-2) if self.complex else y
        return y if y.shape[-1] == self.out_features else y[..., : self.out_features].clone()

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        w = _as_complex_matrix(weight) if self.complex else weight
        w = w if self.increasing_stride else w.mT
        inputs = w.shape[-1]
        w = F.pad(w, (0, self._n - inputs, 0, self._n - w.shape[-2]))
        factors = butterfly_factors(w, inputs, self.tied_weight)
        if not self.increasing_stride:
            factors = [t.mT for t in factors]
        if self.tied_weight:
            twiddle = torch.cat([t.squeeze(-4) for t in factors], -3)
        else:
            twiddle = torch.stack([t.flatten(-4, -3) for t in factors], -4)
        return {"twiddle": torch.view_as_real(twiddle.resolve_conj()) if self.complex else twiddle}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        twiddle = raw["twiddle"]
        if not self.ortho_init:
            inputs = self.in_features // (2 if self.complex else 1)
            # An entry of W is a product of m numbers with E|t|² = scale²/2 each, so E|w|² = scale^(2m)/n, as 2^m = n;
            # in nn.Linear it is 1/(3·inputs).
            scale = (self._n / (3 * inputs)) ** (1 / (2 * self._bits))
            bound = scale * math.sqrt(0.75 if self.complex else 1.5)  # E|t|² = scale²/2
            twiddle.uniform_(-bound, bound, generator=generator)
            return
        places = twiddle.shape[: -3 if self.complex else -2]
        angles = torch.empty(4 if self.complex else 1, *places, device=twiddle.device, dtype=torch.float64)
        angle, *phases = angles.uniform_(-math.pi, math.pi, generator=generator)
        # A unitary 2 × 2 matrix is a rotation with phases on its rows and columns.
        rotation = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
        if self.complex:
            a, b, c = phases
            turns = torch.stack([a + c, b + c, c - b, c - a], -1).unflatten(-1, (2, 2))
            rotation = torch.view_as_real(torch.polar(torch.ones_like(turns), turns) * rotation)
        twiddle.copy_(rotation)

    def _violation(self, weight: Tensor) -> Tensor:
        size = weight.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        weight = weight / size
        nearest = self._weight(**self._assign(weight))
        # the factors come from singular values, which round relative to the norm
        return (weight - nearest).abs().amax((-2, -1)) / torch.linalg.matrix_norm(weight).clamp_min(1)


def _as_real_matrix(w: Tensor) -> Tensor:
    """Complex (..., o, i) -> the real (..., 2o, 2i) that does the same to real and imaginary parts in turn."""
    rows = torch.stack([torch.stack([w.real, -w.imag], -1), torch.stack([w.imag, w.real], -1)], -3)
    return rows.flatten(-4, -3).flatten(-2)


def _as_complex_matrix(w: Tensor) -> Tensor:
    """The complex matrix nearest to a real one, (..., 2o, 2i) -> (..., o, i): the inverse of the above."""
    re = (w[..., 0::2, 0::2] + w[..., 1::2, 1::2]) / 2
    im = (w[..., 1::2, 0::2] - w[..., 0::2, 1::2]) / 2
    return torch.complex(re, im)

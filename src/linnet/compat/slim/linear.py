"""The structured linear maps of neuromancer.slim.linear, name for name, on linnet's maps.

Every class has the interface of neuromancer.slim: ``layer(x)``, ``effective_W()`` of shape (insize, outsize),
``reg_error()``, ``eig()``. The linnet map of the same name, ``layer.linear``, keeps the promise of the class. Where the
code and the documentation of slim disagree, linnet follows the documentation. :class:`LinearBase` describes insize,
outsize and bias, the linnet map describes the other arguments.
"""

from typing import Any

import torch
from torch import Tensor, nn

from linnet import maps as structured
from linnet.compat.slim.base import LinearBase, Mapped, SquareLinear
from linnet.compat.slim.bounded import (
    GershgorinLinear,
    PerronFrobeniusLinear,
    PowerBoundLinear,
    SchurDecompositionLinear,
    SpectralLinear,
    StableSplitLinear,
    SVDLinear,
    SVDLinearLearnBounds,
    SymmetricSpectralLinear,
    SymmetricSVDLinear,
    TrivialNullSpaceLinear,
)
from linnet.compat.slim.butterfly import Butterfly, complex_matrix, paired
from linnet.core import linear as core_linear

__all__ = [
    "BoundedNormLinear",
    "Butterfly",
    "ButterflyLinear",
    "DampedSkewSymmetricLinear",
    "GershgorinLinear",
    "Hprod",
    "IdentityGradReLU",
    "IdentityInitLinear",
    "IdentityLinear",
    "L0Linear",
    "LassoLinear",
    "LassoLinearRELU",
    "LeftStochasticLinear",
    "Linear",
    "LinearBase",
    "NonNegativeLinear",
    "OrthogonalLinear",
    "PSDLinear",
    "PerronFrobeniusLinear",
    "PowerBoundLinear",
    "RightStochasticLinear",
    "SVDLinear",
    "SVDLinearLearnBounds",
    "SchurDecompositionLinear",
    "SkewSymmetricLinear",
    "SpectralLinear",
    "SplitLinear",
    "SquareLinear",
    "StableSplitLinear",
    "SymmetricLinear",
    "SymmetricSVDLinear",
    "SymmetricSpectralLinear",
    "SymplecticLinear",
    "TrivialNullSpaceLinear",
    "maps",
    "square_maps",
    "tall_maps",
]


def Hprod(x: Tensor, u: Tensor, k: int) -> Tensor:
    """Reflect the last k coordinates of x by H = I − 2vvᵀ/‖v‖², v the last k coordinates of u; x itself if v = 0.

    Args:
        x: (*, n).
        u: (n,).
        k: number of coordinates, 1 <= k <= n.

    Raises:
        ValueError: u is not (n,), or k is not in 1..n.

    Example:
        >>> y = Hprod(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 1.0, 0.0]), 2)
        >>> torch.allclose(y, torch.tensor([1.0, -2.0, 3.0]))
        True
    """
    if u.dim() != 1 or x.dim() < 1 or x.shape[-1] != len(u):
        raise ValueError(f"x must be (*, n) and u (n,), got {tuple(x.shape)} and {tuple(u.shape)}")
    n = len(u)
    if not 1 <= k <= n:
        raise ValueError(f"k must be in 1..{n}, got {k}")
    kept, turned = x[..., : n - k], x[..., n - k :]
    reflected = structured.householder_product(turned.reshape(-1, k), u[n - k :].unsqueeze(0))
    return torch.cat([kept, reflected.reshape(turned.shape)], -1)


class IdentityGradReLU(torch.autograd.Function):
    """max(x, 0) whose gradient is that of x: ``IdentityGradReLU.apply(x)``.

    Example:
        >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> IdentityGradReLU.apply(x).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        """max(input, 0)."""
        return input.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """The unchanged gradient."""
        return grad_output


class Linear(Mapped, of=core_linear.Linear):
    """y = x A + b with A unconstrained. ``weight`` is Aᵀ, (outsize, insize), as in nn.Linear."""

    @property
    def weight(self) -> Tensor:
        """Aᵀ, (outsize, insize)."""
        return self.linear.weight

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.linear.weight = value  # type: ignore[misc]  # it is assigned


class IdentityInitLinear(Linear, of=structured.IdentityInitLinear):
    """y = x A + b with A = I and b = 0 at the start."""

    def __init__(self, insize: int, outsize: int, bias: bool = False, **kwargs: Any) -> None:
        super().__init__(insize, outsize, bias, **kwargs)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class IdentityLinear(IdentityInitLinear, of=structured.IdentityLinear):
    """y = x, truncated or padded with zeros if outsize differs; nothing is learned, and the bias stays 0."""

    def __init__(self, insize: int, outsize: int, bias: bool = False, **kwargs: Any) -> None:
        super().__init__(insize, outsize, bias, **kwargs)
        self.requires_grad_(False)


class NonNegativeLinear(Mapped, of=structured.NonNegativeLinear):
    """A >= 0."""


class LassoLinear(Mapped, of=structured.LassoLinear):
    """``reg_error()`` = gamma Σ|a_ij|; ``layer.linear.prox(lr)`` after a step makes entries exactly 0."""

    def __init__(self, insize: int, outsize: int, bias: bool = False, gamma: float = 1.0, **kwargs: Any) -> None:
        self._init_map(insize, outsize, bias, {"gamma": gamma}, kwargs)


class LassoLinearRELU(Mapped, of=structured.LassoLinearRELU):
    """A = max(u, 0) − max(v, 0) with ``reg_error()`` = gamma Σ(max(u, 0) + max(v, 0))."""

    def __init__(self, insize: int, outsize: int, bias: bool = False, gamma: float = 1.0, **kwargs: Any) -> None:
        self._init_map(insize, outsize, bias, {"gamma": gamma}, kwargs)


class L0Linear(Mapped, of=structured.L0Linear):
    """``reg_error()`` is the weighted expected number of nonzero entries of A; each input has one gate.

    ``effective_W()`` is the matrix of eval mode; in training mode ``forward`` draws the gates.
    """

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = True,
        weight_decay: float = 1.0,
        droprate_init: float = 0.5,
        temperature: float = 2.0 / 3.0,
        lamda: float = 1.0,
    ) -> None:
        options = {
            "weight_decay": weight_decay,
            "droprate_init": droprate_init or 0.5,  # slim's rule
            "temperature": temperature,
            "lamda": lamda,
        }
        self._init_map(insize, outsize, bias, options, {})


class ButterflyLinear(Mapped, of=structured.ButterflyLinear):
    """Aᵀ is a product of log₂ n butterfly factors.

    With ``complex``, inputs are (*, insize, 2), outputs (*, outsize, 2), ``effective_W()`` is complex, and the bias is
    (2 outsize,), with alternating real and imaginary parts.
    """

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        complex: bool = False,
        tied_weight: bool = True,
        increasing_stride: bool = True,
        ortho_init: bool = False,
        **kwargs: Any,
    ) -> None:
        options = {
            "complex": complex,
            "tied_weight": tied_weight,
            "increasing_stride": increasing_stride,
            "ortho_init": ortho_init,
        }
        parts = 2 if complex else 1
        self._init_map(parts * insize, parts * outsize, bias, options, kwargs)
        self.complex, self.in_features, self.out_features = complex, insize, outsize

    def effective_W(self) -> Tensor:
        return complex_matrix(self.linear) if self.complex else super().effective_W()

    def forward(self, x: Tensor) -> Tensor:
        return paired(self.linear, x) if self.complex else self.linear(x)


class LeftStochasticLinear(Mapped, of=structured.LeftStochasticLinear):
    """A >= 0 and every column of A sums to 1."""


class RightStochasticLinear(Mapped, of=structured.RightStochasticLinear):
    """A >= 0 and every row of A sums to 1."""


class SymmetricLinear(Mapped, SquareLinear, of=structured.SymmetricLinear):
    """A = Aᵀ."""


class SkewSymmetricLinear(Mapped, SquareLinear, of=structured.SkewSymmetricLinear):
    """A = −Aᵀ."""


class DampedSkewSymmetricLinear(SkewSymmetricLinear, of=structured.DampedSkewSymmetricLinear):
    """A = S − γI, S = −Sᵀ, γ in [sigma_min, sigma_max]: the real part of every eigenvalue is −γ."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        sigma_min: float = 0.1,
        sigma_max: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self._init_map(insize, outsize, bias, {"sigma_min": sigma_min, "sigma_max": sigma_max}, kwargs)


class PSDLinear(Mapped, SquareLinear, of=structured.PSDLinear):
    """A = Aᵀ with eigenvalues >= 0."""


class OrthogonalLinear(Mapped, SquareLinear, of=structured.OrthogonalLinear):
    """AᵀA = I."""


class SymplecticLinear(Mapped, of=structured.SymplecticLinear):
    """AᵀJA = J."""


class SplitLinear(Mapped, of=structured.SplitLinear):
    """A = B − C with B, C >= 0."""

    linear: structured.SplitLinear

    @property
    def B(self) -> Tensor:
        """B, (insize, outsize), differentiable."""
        return self.linear.B

    @property
    def C(self) -> Tensor:
        """C, (insize, outsize), differentiable."""
        return self.linear.C


class BoundedNormLinear(Linear, of=structured.BoundedNormLinear):
    """sigma_min <= ‖A‖_p <= sigma_max, the induced norm for p = 1, 2, inf, or Frobenius' ("fro")."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        p: float | str = 2,
        **kwargs: Any,
    ) -> None:
        self._init_map(insize, outsize, bias, {"sigma_min": sigma_min, "sigma_max": sigma_max, "p": p}, kwargs)


square_maps: set[type[LinearBase]] = {
    SymmetricLinear,
    SkewSymmetricLinear,
    DampedSkewSymmetricLinear,
    PSDLinear,
    OrthogonalLinear,
    SymplecticLinear,
    SchurDecompositionLinear,
    SymmetricSpectralLinear,
    SymmetricSVDLinear,
    GershgorinLinear,
    PowerBoundLinear,
}
"""The classes that need insize == outsize."""

tall_maps: set[type[LinearBase]] = {TrivialNullSpaceLinear}
"""The classes that need insize <= outsize."""

maps: dict[str, type[LinearBase]] = {
    "l0": L0Linear,
    "linear": Linear,
    "nneg": NonNegativeLinear,
    "lasso": LassoLinear,
    "lstochastic": LeftStochasticLinear,
    "rstochastic": RightStochasticLinear,
    "pf": PerronFrobeniusLinear,
    "symmetric": SymmetricLinear,
    "skew_symetric": SkewSymmetricLinear,  # slim's spelling
    "damp_skew_symmetric": DampedSkewSymmetricLinear,
    "split": SplitLinear,
    "stable_split": StableSplitLinear,
    "spectral": SpectralLinear,
    "softSVD": SVDLinear,
    "learnSVD": SVDLinearLearnBounds,
    "orthogonal": OrthogonalLinear,
    "psd": PSDLinear,
    "symplectic": SymplecticLinear,
    "butterfly": ButterflyLinear,
    "schur": SchurDecompositionLinear,
    "identity": IdentityLinear,
    "gershgorin": GershgorinLinear,
    "bounded_Lp_norm": BoundedNormLinear,
    "trivial_nullspace": TrivialNullSpaceLinear,
    "Power_bound": PowerBoundLinear,
    "identity_init": IdentityInitLinear,
    "lasso_relu": LassoLinearRELU,
    "symmetric_SVD": SymmetricSVDLinear,
    "symmetric_spectral": SymmetricSpectralLinear,
}
"""Every concrete class by its name in slim; the last four have no name in slim."""

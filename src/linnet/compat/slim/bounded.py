"""The maps of slim with bounded singular values, eigenvalues or row sums."""

from typing import Any

from torch import Tensor

from linnet import maps as structured
from linnet.compat.slim.base import Mapped, SquareLinear


class PerronFrobeniusLinear(Mapped, of=structured.PerronFrobeniusLinear):
    """A >= 0 with row sums, and therefore the dominant eigenvalue, in [sigma_min, sigma_max]."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        sigma_min: float = 0.8,
        sigma_max: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self._init_map(insize, outsize, bias, {"sigma_min": sigma_min, "sigma_max": sigma_max}, kwargs)


class StableSplitLinear(Mapped, of=structured.StableSplitLinear):
    """A = B − C with B, C >= 0 and row sums of B + C in [sigma_min, sigma_max]."""

    linear: structured.StableSplitLinear

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        **kwargs: Any,
    ) -> None:
        options = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        self._init_map(insize, outsize, bias, options, kwargs)

    @property
    def B(self) -> Tensor:
        """B, (insize, outsize), differentiable."""
        return self.linear.B

    @property
    def C(self) -> Tensor:
        """C, (insize, outsize), differentiable."""
        return self.linear.C


class SVDLinear(Mapped, of=structured.SVDLinear):
    """A = U Σ Vᵀ with singular values in [sigma_min, sigma_max], a hard promise: ``reg_error()`` is 0."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        **kwargs: Any,
    ) -> None:
        options = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        self._init_map(insize, outsize, bias, options, kwargs)


class SVDLinearLearnBounds(SVDLinear, of=structured.SVDLinearLearnBounds):
    """A = U Σ Vᵀ with singular values in a learned interval inside [sigma_min, sigma_max]."""


class SymmetricSVDLinear(SVDLinear, of=structured.SymmetricSVDLinear):
    """A = Aᵀ = U diag(± s) Uᵀ with singular values s in [sigma_min, sigma_max]."""


class SpectralLinear(Mapped, of=structured.SpectralLinear):
    """A = U Σ Vᵀ, U and V products of reflections, with singular values in [sigma_min, sigma_max]."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        n_U_reflectors: int | None = None,
        n_V_reflectors: int | None = None,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        **kwargs: Any,
    ) -> None:
        options = {
            "n_U_reflectors": n_U_reflectors,
            "n_V_reflectors": n_V_reflectors,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
        }
        self._init_map(insize, outsize, bias, options, kwargs)


class SymmetricSpectralLinear(SpectralLinear, of=structured.SymmetricSpectralLinear):
    """A = U Σ Uᵀ with eigenvalues in [sigma_min, sigma_max]."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        n_reflectors: int | None = None,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        **kwargs: Any,
    ) -> None:
        options = {"n_reflectors": n_reflectors, "sigma_min": sigma_min, "sigma_max": sigma_max}
        self._init_map(insize, outsize, bias, options, kwargs)


class SchurDecompositionLinear(Mapped, SquareLinear, of=structured.SchurDecompositionLinear):
    """A = P T Pᵀ, P orthogonal, T in real Schur form; ``reg_error()`` pulls the moduli of the eigenvalues towards 1."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        l2: float = 0.01,
        **kwargs: Any,
    ) -> None:
        options = {"l2": l2}
        self._init_map(insize, outsize, bias, options, kwargs)


class GershgorinLinear(Mapped, SquareLinear, of=structured.GershgorinLinear):
    """Eigenvalues in [sigma_min, sigma_max], or, if not ``real``, in the disc with that diameter."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = 1.0,
        real: bool = True,
        **kwargs: Any,
    ) -> None:
        options = {"sigma_min": sigma_min, "sigma_max": sigma_max, "real": real}
        self._init_map(insize, outsize, bias, options, kwargs)


class TrivialNullSpaceLinear(Mapped, of=structured.TrivialNullSpaceLinear):
    """x A = 0 only for x = 0: singular values of A are at least epsilon; insize <= outsize."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        bias: bool = False,
        rank: int | None = None,
        epsilon: float = 0.1,
        **kwargs: Any,
    ) -> None:
        options = {"rank": rank, "epsilon": epsilon}
        self._init_map(insize, outsize, bias, options, kwargs)


class PowerBoundLinear(Mapped, of=structured.PowerBoundLinear):
    """The spectral radius of A is at most max_p, a hard promise."""

    def __init__(
        self,
        insize: int,
        outsize: int,
        max_p: float = 1,
        pwr_iters: int = 200,
        bias: bool = False,
        **kwargs: Any,
    ) -> None:
        options = {"max_p": max_p, "pwr_iters": pwr_iters}
        self._init_map(insize, outsize, bias, options, kwargs)

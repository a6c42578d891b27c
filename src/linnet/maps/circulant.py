"""Circulant matrices: circular convolution."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.autograd import eager, through_reference
from linnet.maps.abstract.invertible import Invertible


def wrapped(n: int, device: torch.device) -> Tensor:
    """(n, n): the number (j − i) mod n at row j, column i."""
    places = torch.arange(n, device=device)
    return (places.unsqueeze(-1) - places) % n


def circulant(c: Tensor) -> Tensor:
    """(..., n) -> W, (..., n, n), with w_ji = c_{(j−i) mod n}, so that W x is the circular convolution of x and c."""
    return c[..., wrapped(c.shape[-1], c.device)]


def wrapped_means(w: Tensor) -> Tensor:
    """The c of the nearest circulant matrix: the means of the wrapped diagonals, (..., n, n) -> (..., n)."""
    n = w.shape[-1]
    places = torch.arange(n, device=w.device)
    return w[..., (places.unsqueeze(-1) + places) % n, places].mean(-1)  # row k holds every w_ji with j − i = k


def convolve_reference(x: Tensor, kernel: Tensor) -> Tensor:
    """Circular convolution of rows x, (..., batch, n), and kernel, (..., n), in operations that autograd sees."""
    x = F.pad(x, (0, 0, 0, 1))  # MKL refuses to transform an empty batch
    y = torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(kernel).unsqueeze(-2), n=kernel.shape[-1])
    return y[..., :-1, :]


class _Convolve(torch.autograd.Function):
    """:func:`convolve_reference` for one map: two transforms of the batch in each direction, all of real numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        if len(x) == 0:
            ctx.save_for_backward(x, kernel)
            return x.clone()
        spectrum, symbol = torch.fft.rfft(x), torch.fft.rfft(kernel)
        ctx.save_for_backward(x, kernel, spectrum, symbol)
        return torch.fft.irfft(spectrum * symbol, n=kernel.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, *kept = ctx.saved_tensors
        if torch.is_grad_enabled() or not eager():
            return through_reference(convolve_reference, (x, kernel), ctx.needs_input_grad, grad)
        if len(x) == 0:
            return grad, torch.zeros_like(kernel)
        spectrum, symbol = kept
        g, n = torch.fft.rfft(grad), kernel.shape[-1]
        gx = gk = None
        # y = irfft(x̂ ĉ): with Fourier transforms unitary up to a factor, dL/dĉ = Σ over the batch of conj(x̂) ĝ, and
        # dL/dx̂ = ĝ conj(ĉ)
        if ctx.needs_input_grad[1]:
            gk = torch.fft.irfft(torch.linalg.vecdot(spectrum, g, dim=0), n=n)
        if ctx.needs_input_grad[0]:
            gx = torch.fft.irfft(g.mul_(symbol.conj().resolve_conj()), n=n)
        return gx, gk


class CirculantLinear(Invertible):
    """y = x A + b with A circulant, a_ij = c_{(j−i) mod n}: y is the circular convolution of x and c.

    The product is taken by the fast Fourier transform, for any n. Any matrix is assigned as the nearest circulant one,
    by the means of its wrapped diagonals. A rectangular map is refused.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - kernel: ([beings,] n)

    Raises:
        ValueError: in_features != out_features.

    Example:
        >>> layer = CirculantLinear(4, 4, bias=False)
        >>> x = torch.randn(4)
        >>> torch.allclose(layer(x.roll(1)), layer(x).roll(1), atol=1e-6)
        True

    Reference:
        P. J. Davis, Circulant matrices, 1979; Y. Cheng et al., An exploration of parameter redundancy in deep networks
        with circulant projections, 2015, arXiv 1502.03436.
    """

    family = "few-parameters"
    promise = "a_ij = c_{(j−i) mod n}"
    fast = True
    square = True
    decays = ("kernel",)

    kernel: nn.Parameter

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"kernel": (self.in_features,)}

    def _weight(self, kernel: Tensor) -> Tensor:
        return circulant(kernel)

    def _product(self, x: Tensor, kernel: Tensor) -> Tensor:
        if self.beings is None and eager():
            return _Convolve.apply(x, kernel)
        return convolve_reference(x, kernel)

    def _solve(self, y: Tensor, raw: dict[str, Tensor]) -> Tensor:
        wide = raw["kernel"].dtype
        if y.numel() == 0:  # MKL refuses to transform an empty batch
            return super()._solve(y, raw)
        # ŷ = x̂ ĉ, so x̂ = ŷ/ĉ; the kernel's transform broadcasts, ([beings,] n/2 + 1) against (*, [beings,] n/2 + 1)
        spectrum = torch.fft.rfft(y.to(wide)) / torch.fft.rfft(raw["kernel"])
        return torch.fft.irfft(spectrum, n=self.in_features).to(y.dtype)

    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        return circulant(torch.fft.irfft(1 / torch.fft.rfft(raw["kernel"]), n=self.in_features))

    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        # the eigenvalues of a circulant matrix are the Fourier transform of its kernel
        return torch.fft.fft(raw["kernel"]).abs().log().sum(-1)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"kernel": wrapped_means(weight)}

    def _violation(self, weight: Tensor) -> Tensor:
        distance = (weight - circulant(wrapped_means(weight))).abs().amax((-2, -1))
        return distance / weight.abs().amax((-2, -1)).clamp_min(torch.finfo(weight.dtype).tiny)

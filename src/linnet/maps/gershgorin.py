"""Matrices whose row sums bound their eigenvalues: nothing is computed but sums."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.maps.math.intervals import check_interval
from linnet.maps.math.simplex import project_l1
from linnet.maps.math.triangles import mirror


def shrunk(rows: Tensor, largest: float, symmetric: bool) -> Tensor:
    """Rows with Σ|r| <= largest as they are, larger ones scaled down to it; an entry and its mirror image alike."""
    # A symmetric matrix stays symmetric if entry (i, j) is scaled by what the larger of rows i and j needs.
    sums = rows.abs().sum(-1)
    sums = torch.maximum(sums.unsqueeze(-1), sums.unsqueeze(-2)) if symmetric else sums.unsqueeze(-1)
    return rows * (largest / sums.clamp_min(largest))


class GershgorinLinear(LinearMap):
    """y = x A + b with every eigenvalue of A in the disc over [sigma_min, sigma_max]; real: in the interval itself.

    With the centre c and the radius r of the interval, the rows of A − cI have absolute sums of at most r, so that
    every Gershgorin disc of A lies in the disc over the interval. With real=True A is symmetric as well. The parameters
    are the entries of A − cI, of which rows that are too large are scaled down. All matrices with these row sums are
    reached, and weight decay pulls A to cI.

    ``assign`` takes a matrix with these row sums exactly. Any other becomes, for real=False, the nearest of them; for
    real=True its symmetric part with rows scaled down, which need not be the nearest.

    Args:
        in_features, out_features, bias, beings, device, dtype: as in :class:`LinearMap`; the sizes must be equal.
        sigma_min: the lower end of the interval.
        sigma_max: the upper end of the interval.
        real: whether A is symmetric, so that its eigenvalues are real.

    Shape:
        - input: (*, n); with beings (*, beings, n)
        - output: as the input
        - entries: ([beings,] n(n+1)/2) with real=True, the upper triangle; ([beings,] n, n) otherwise, as A

    Raises:
        ValueError: in_features != out_features, or not sigma_min < sigma_max.

    Example:
        >>> layer = GershgorinLinear(8, 8, sigma_min=-1.0, sigma_max=0.5)
        >>> values = layer.eigvals().real
        >>> bool((values > -1.0001).all() and (values < 0.5001).all())
        True

    Reference:
        S. Gershgorin, Über die Abgrenzung der Eigenwerte einer Matrix, 1931; J. Drgoňa et al., Spectral
        analysis and stability of deep neural dynamics, 2020, arXiv 2011.13492.
    """

    family = "stable"
    promise = "|λ − c| <= r, the disc over [sigma_min, sigma_max]; real: A = Aᵀ"
    square = True

    entries: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_min: float = 0.0,
        sigma_max: float = 1.0,
        real: bool = True,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.sigma_min, self.sigma_max = check_interval(sigma_min, sigma_max, lowest=-math.inf, strict=True)
        if not isinstance(real, bool):
            raise TypeError(f"real must be True or False, got {real!r}")
        self.real = real
        self._center, self._radius = (sigma_min + sigma_max) / 2, (sigma_max - sigma_min) / 2
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.in_features
        return {"entries": (n * (n + 1) // 2,) if self.real else (n, n)}

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [{}, {"real": False}, {"sigma_min": -2.0, "sigma_max": -0.5}]

    def _weight(self, entries: Tensor) -> Tensor:
        n = self.in_features
        rows = shrunk(mirror(entries, n) if self.real else entries, self._radius, self.real)
        return rows.mT + self._center * torch.eye(n, device=entries.device, dtype=entries.dtype)

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        n = self.in_features
        rows = weight.mT - self._center * torch.eye(n, device=weight.device, dtype=weight.dtype)
        if not self.real:
            return {"entries": project_l1(rows, self._radius)}
        upper = torch.triu_indices(n, n, device=weight.device)
        return {"entries": shrunk((rows + rows.mT) / 2, self._radius, True)[..., *upper]}

    def _draw(self, raw: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        n, entries = self.in_features, raw["entries"]
        diagonal = torch.triu_indices(n, n).diff(dim=0)[0] == 0 if self.real else torch.eye(n, dtype=torch.bool)
        diagonal = diagonal.to(entries.device)
        # half of the radius for the rest of a row, the other half for the diagonal: no row is scaled down
        entries.uniform_(-1, 1, generator=generator)
        entries.mul_(torch.where(diagonal, self._radius / 2, self._radius / (2 * max(n - 1, 1))))

    def _violation(self, weight: Tensor) -> Tensor:
        scale = max(abs(self.sigma_min), abs(self.sigma_max))
        if self.real:
            values = torch.linalg.eigvalsh((weight + weight.mT) / 2)
            wrong = (values - self._center).abs().amax(-1) - self._radius
            wrong = torch.maximum(wrong, (weight - weight.mT).abs().amax((-2, -1)))
        else:
            wrong = (torch.linalg.eigvals(weight) - self._center).abs().amax(-1) - self._radius
        return wrong.clamp_min(0) / scale

"""What spectra.py draws with: the matrices of a class in three states, the ways to draw them, the promised regions."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

import linnet
from linnet.core.palette import BLUE, GREY, ORANGE

GREEN, SKY = "#009E73", "#56B4E9"  # Okabe and Ito's, as the three above
N, MEMBERS, STEPS, RATE, TARGET = 12, 4, 100, 0.1, 1.5
APART = 0.5  # distance of the axes in `stacked`

# state -> colour, marker, size and text of the legend; drawn in this order
LOOKS: dict[str, tuple[str, str, int, str]] = {
    "fresh": (BLUE, "o", 26, "fresh"),
    "trained": (ORANGE, "o", 9, f"after {STEPS} steps of AdamW, lr {RATE}"),
    "hundred": (GREEN, "+", 26, "raw parameters × 100"),
    "linear": (GREY, "x", 14, "nn.Linear after the same steps"),
}
REGION: dict[str, Any] = {"facecolor": SKY, "alpha": 0.25, "edgecolor": "none", "zorder": 0}
EDGE: dict[str, Any] = {"color": SKY, "linewidth": 1.5, "zorder": 1}


def nowhere(ax: Axes) -> None:
    """The region of a class that promises nothing of the spectrum."""


@dataclass(frozen=True)
class Panel:
    """One class, how it is drawn, and the region that it promises."""

    layer: type[linnet.LinearMap]
    draw: Callable[[Axes, "Panel"], None]
    region: Callable[[Axes], None] = nowhere
    options: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, int] = (N, N)
    window: tuple[float, float, float] = (0.0, 0.0, 1.7)  # centre and half width
    scaled: bool = False  # divide the eigenvalues of each member by the largest modulus
    states: tuple[str, ...] = tuple(LOOKS)
    note: str = ""
    title: str = ""


# ---------------------------------------------------------------- the matrices


def train(layer: linnet.LinearMap) -> linnet.LinearMap:
    """AdamW towards y = x T with a random T of spectral radius about TARGET; each member has a T of its own."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 1, layer.in_features, generator=draw, dtype=torch.float64)
    target = torch.randn(MEMBERS, layer.in_features, layer.out_features, generator=draw, dtype=torch.float64)
    y = torch.einsum("bmi,mio->bmo", x.expand(-1, MEMBERS, -1), target) * TARGET / math.sqrt(layer.in_features)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=0.1)
    for _ in range(STEPS):
        loss = (layer(x) - y).square().mean() + linnet.penalty(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer


def fresh(cls: type[linnet.LinearMap], sizes: tuple[int, int], options: dict[str, Any]) -> linnet.LinearMap:
    layer = cls(*sizes, False, beings=MEMBERS, dtype=torch.float64, **options)
    layer.reset_parameters(seeds=range(MEMBERS))
    return layer


@cache
def unstructured(sizes: tuple[int, int]) -> Tensor:
    return train(fresh(linnet.Linear, sizes, {})).weight.detach().mT


def matrices(panel: Panel, state: str) -> Tensor:
    """A of every member, (members, in, out)."""
    if state == "linear":
        return unstructured(panel.sizes)
    layer = fresh(panel.layer, panel.sizes, panel.options)
    if state == "trained":
        train(layer)
    if state == "hundred":
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(100)
    weight = layer.weight.detach()
    return (weight if weight.layout == torch.strided else weight.to_dense()).mT


# ---------------------------------------------------------------- the ways to draw them


def scatter(ax: Axes, state: str, x: Tensor, y: Tensor) -> None:
    colour, marker, size, _ = LOOKS[state]
    hollow = state == "fresh"
    ax.scatter(
        x.flatten(),
        y.flatten(),
        s=size,
        marker=marker,
        facecolors="none" if hollow else colour,
        edgecolors=colour if hollow else None,
        linewidths=0.9 if hollow or marker != "o" else 0,
        zorder=3,
    )


def plane(ax: Axes, panel: Panel) -> None:
    """Eigenvalues in the complex plane."""
    for state in panel.states:
        values = torch.linalg.eigvals(matrices(panel, state))
        if panel.scaled:
            values = values / values.abs().amax(-1, keepdim=True)
        scatter(ax, state, values.real, values.imag)
    x, y, half = panel.window
    ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal")
    axes_through_zero(ax)


def stacked(ax: Axes, panel: Panel, upright: bool = False) -> None:
    """Eigenvalues in the complex plane, each state with a real (if upright, an imaginary) axis of its own."""
    extent = panel.window[2]
    for row, state in enumerate(panel.states):
        values = torch.linalg.eigvals(matrices(panel, state))
        if panel.scaled:
            values = values / values.abs().amax(-1, keepdim=True)
        x, y = (values.imag, values.real) if upright else (values.real, values.imag)
        y = y - row * APART - (extent - APART if state == "linear" else 0)
        scatter(ax, state, *((y, x) if upright else (x, y)))
    rows = (len(panel.states) - 1) * APART + (2 * extent - APART if "linear" in panel.states else 0)
    along, across = ("y", "x") if upright else ("x", "y")
    ax.set(**{f"{along}lim": (-extent, extent), f"{across}lim": (-rows, APART), f"{across}ticks": []}, aspect="equal")


def upright(ax: Axes, panel: Panel) -> None:
    stacked(ax, panel, True)


def logarithmic(ax: Axes, panel: Panel) -> None:
    """Eigenvalues in the complex plane, both axes logarithmic beyond 1."""
    ax.set_xscale("symlog", linthresh=1)
    ax.set_yscale("symlog", linthresh=1)
    for state in panel.states:
        values = torch.linalg.eigvals(matrices(panel, state))
        scatter(ax, state, values.real, values.imag)
    axes_through_zero(ax)
    farthest = max(abs(end) for end in (*ax.get_xlim(), *ax.get_ylim()))
    ax.set(box_aspect=1, xlim=(-farthest, farthest), ylim=(-farthest, farthest))


def mirrored(ax: Axes, panel: Panel) -> None:
    """log |λ| and arg λ: the mirror image of each point belongs to 1/λ̄."""
    for state in panel.states:
        values = torch.linalg.eigvals(matrices(panel, state))
        scatter(ax, state, values.abs().log10(), values.angle() / math.pi)
    ax.set(xlabel="log₁₀ |λ|", ylabel="arg λ / π", ylim=(-1.1, 1.1), box_aspect=1)


def line(ax: Axes, panel: Panel) -> None:
    """Singular values, one row for each state."""
    for row, state in enumerate(panel.states):
        values = torch.linalg.svdvals(matrices(panel, state))
        scatter(ax, state, values, torch.full_like(values, -row))
    ax.set(yticks=[], ylim=(-len(panel.states) + 0.3, 0.7), xlim=(-0.1, 3.2), xlabel="singular values", box_aspect=0.6)


def ranked(ax: Axes, panel: Panel) -> None:
    """Singular values by number."""
    ax.set_yscale("symlog", linthresh=0.05)
    for place, state in enumerate(panel.states):
        values = torch.linalg.svdvals(matrices(panel, state))
        number = torch.arange(1, values.shape[-1] + 1).expand_as(values)
        scatter(ax, state, number + (place - 1.5) / 6, values)
    ax.set(xlabel="number of the singular value", ylabel="singular value", box_aspect=0.8)
    ax.set_ylim(bottom=-0.02)


def paint(ax: Axes, a: Tensor) -> None:
    size = float(a.abs().max())
    ax.imshow(torch.where(a == 0, torch.nan, a), cmap="PuOr", vmin=-size, vmax=size, interpolation="nearest")
    ax.set(xticks=[], yticks=[])


def image(ax: Axes, panel: Panel) -> None:
    """A of one trained member; white is exactly zero."""
    paint(ax, matrices(panel, panel.states[0])[0])


def supports(*patterns: Tensor) -> Callable[[Axes, Panel], None]:
    """Where the factors of a product are not zero."""

    def draw(ax: Axes, panel: Panel) -> None:
        gap = torch.zeros(len(patterns[0]), 1)
        lines = [torch.cat((left, gap, right), -1) for left, right in zip(patterns[::2], patterns[1::2], strict=True)]
        between = torch.zeros(1, lines[0].shape[-1])
        paint(ax, torch.cat([row for line in lines for row in (line, between)][:-1]))

    return draw


def blocks(ax: Axes, panel: Panel) -> None:
    """As :func:`image`, with lines between blocks of four."""
    image(ax, panel)
    for place in range(4, panel.sizes[0], 4):
        ax.axhline(place - 0.5, color="0.3", linewidth=0.7)
        ax.axvline(place - 0.5, color="0.3", linewidth=0.7)


def parts(ax: Axes, panel: Panel) -> None:
    """B and C of one trained member of a split map, side by side: no entry is negative."""
    layer: Any = train(fresh(panel.layer, panel.sizes, panel.options))
    b, c = layer.B.detach()[0], layer.C.detach()[0]
    paint(ax, torch.cat((b, torch.zeros_like(b[:, :1]), c), -1))


def found(ax: Axes, panel: Panel) -> None:
    """A of one map that looked for a sparse matrix in noisy data; white is exactly zero."""
    draw = torch.Generator().manual_seed(2)
    n, m = panel.sizes
    target = torch.randn(n, m, generator=draw) * (torch.rand(n, m, generator=draw) < 0.2)
    x = torch.randn(200, n, generator=draw)
    y = x @ target + 0.5 * torch.randn(200, m, generator=draw)
    layer: Any = panel.layer(n, m, False, **panel.options)
    layer.reset_parameters(seeds=0)
    torch.manual_seed(0)
    rate = 0.05
    proximal = isinstance(layer, linnet.LassoLinear)
    optimizer = (torch.optim.SGD if proximal else torch.optim.Adam)(layer.parameters(), lr=rate)
    for _ in range(400):
        loss = (layer(x) - y).square().sum(-1).mean() / 2 + (0 if proximal else linnet.penalty(layer))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if proximal:
            layer.prox(rate)
    weight = layer.eval().weight.detach()
    paint(ax, target if panel.title else (weight if weight.layout == torch.strided else weight.to_dense()).mT)


def axes_through_zero(ax: Axes) -> None:
    ax.axhline(0, color="0.85", linewidth=0.7, zorder=0.5)
    ax.axvline(0, color="0.85", linewidth=0.7, zorder=0.5)


# ---------------------------------------------------------------- the regions


def disc(radius: float = 1.0, centre: float = 0.0, hole: float = 0.0) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.add_patch(Circle((centre, 0), radius, **REGION))
        ax.add_patch(Circle((centre, 0), radius, fill=False, **EDGE))
        if hole:
            ax.add_patch(Circle((centre, 0), hole, fill=False, linestyle="--", **EDGE))

    return draw


def circle(ax: Axes) -> None:
    ax.add_patch(Circle((0, 0), 1, fill=False, **{**EDGE, "linewidth": 4, "alpha": 0.6}))


def outside(radius: float) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.set_facecolor((*matplotlib.colors.to_rgb(SKY), 0.25))
        ax.add_patch(Circle((0, 0), radius, facecolor="white", edgecolor=SKY, linewidth=1.5, zorder=1))

    return draw


def band(low: float, high: float) -> Callable[[Axes], None]:
    """low <= Re λ <= high, or the same of singular values."""

    def draw(ax: Axes) -> None:
        ax.axvspan(low, high, **REGION)
        for end in (low, high):
            if math.isfinite(end) and abs(end) < 1e5:
                ax.axvline(end, **EDGE)

    return draw


def rows(*ends: tuple[float, float], upright: bool = False) -> Callable[[Axes], None]:
    """Intervals of the axes that :func:`stacked` gives to the three states."""

    def draw(ax: Axes) -> None:
        for row in range(3):
            for low, high in ends:
                corner, size = (low, -row * APART - 0.1), (high - low, 0.2)
                corner, size = (corner[::-1], size[::-1]) if upright else (corner, size)
                ax.add_patch(Rectangle(corner, *size, **{**REGION, "alpha": 0.5}))

    return draw


def perron(ax: Axes) -> None:
    """The disc, and the point of its rim that is an eigenvalue."""
    disc()(ax)
    ax.add_patch(Circle((1, 0), 0.09, fill=False, **EDGE))


def above(low: float) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.axhspan(low, 1e6, **REGION)
        ax.axhline(low, **EDGE)

    return draw


def nothing_beyond(rank: int) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.axvspan(0, rank + 0.5, **REGION)
        ax.axvline(rank + 0.5, **EDGE)
        ax.axhline(0, **EDGE)

    return draw


def mirror(ax: Axes) -> None:
    ax.axvline(0, **EDGE)


def axes_as_mirrors(ax: Axes) -> None:
    ax.axvline(0, **EDGE)
    ax.axhline(0, **EDGE)

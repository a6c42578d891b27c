"""Draws the picture of each page of docs/maps: ``python docs/maps/spectra.py [page ...]``.

Every structured map is drawn in three states, four random members each: fresh, after steps of AdamW at a large learning
rate towards a random matrix that breaks the promise, and fresh with its raw parameters times 100. nn.Linear after the
same steps stands beside them.
"""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from drawing import (
    LOOKS,
    SKY,
    Panel,
    above,
    axes_as_mirrors,
    band,
    blocks,
    circle,
    disc,
    found,
    image,
    line,
    logarithmic,
    mirror,
    mirrored,
    nothing_beyond,
    nowhere,
    outside,
    parts,
    perron,
    plane,
    ranked,
    rows,
    stacked,
    supports,
    upright,
)
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

import linnet

TALL = (8, 16)
SMALL = (0.0, 0.0, 1.2)
FAST: dict[str, Any] = {"sizes": (16, 16), "states": ("trained",)}
PLACE = torch.arange(16).unsqueeze(-1)

PAGES: dict[str, list[Panel]] = {
    "orthogonal": [
        Panel(linnet.OrthogonalLinear, plane, circle),
        Panel(linnet.OrthogonalLinear, plane, circle, {"reflectors": 3}, note="reflectors=3"),
        Panel(linnet.StiefelLinear, line, band(0.985, 1.015), sizes=TALL, note="8 → 16"),
    ],
    "singular-values": [
        Panel(linnet.SVDLinear, line, band(0.1, 1), sizes=TALL, note="8 → 16"),
        Panel(linnet.SVDLinearLearnBounds, line, band(0.1, 1), sizes=TALL, note="8 → 16"),
        Panel(
            linnet.SpectralLinear,
            line,
            band(0.1, 1),
            {"n_U_reflectors": 3, "n_V_reflectors": 3},
            note="3 reflectors on both sides",
        ),
        Panel(linnet.ContractiveLinear, line, band(0, 1)),
        Panel(linnet.BoundedNormLinear, line, band(0.1, 1), note="the largest is in the interval"),
        Panel(linnet.SymmetricSVDLinear, stacked, rows((-1, -0.1), (0.1, 1)), note="eigenvalues"),
        Panel(linnet.SymmetricSpectralLinear, stacked, rows((0.1, 1)), note="eigenvalues"),
    ],
    "stable": [
        Panel(linnet.SchurStableLinear, plane, disc(0.99)),
        Panel(linnet.PowerBoundLinear, plane, disc(1)),
        Panel(linnet.SchurDecompositionLinear, plane, disc(1)),
        Panel(linnet.StableSplitLinear, plane, disc(1)),
        Panel(linnet.GershgorinLinear, stacked, rows((0, 1)), note="real=True"),
        Panel(linnet.GershgorinLinear, plane, disc(0.5, 0.5), {"real": False}, note="real=False"),
        Panel(linnet.HurwitzLinear, logarithmic, band(-1e4, -0.1), note="logarithmic beyond 1"),
        Panel(linnet.DampedSkewSymmetricLinear, logarithmic, band(-0.5, -0.1), note="logarithmic beyond 1"),
        Panel(linnet.SoftPowerBoundLinear, logarithmic, disc(1), note="soft; logarithmic beyond 1"),
    ],
    "symmetric": [
        Panel(linnet.SymmetricLinear, stacked, rows((-1.2, 1.2)), window=SMALL, scaled=True),
        Panel(linnet.PSDLinear, stacked, rows((0, 1.2)), window=SMALL, scaled=True),
        Panel(linnet.SkewSymmetricLinear, upright, rows((-1.2, 1.2), upright=True), window=SMALL, scaled=True),
    ],
    "symplectic": [
        Panel(linnet.SymplecticLinear, mirrored, mirror, sizes=(8, 8), note="size 8"),
        Panel(linnet.HamiltonianLinear, plane, axes_as_mirrors, window=SMALL, scaled=True, note="λ / max |λ|"),
    ],
    "stochastic": [
        Panel(linnet.RightStochasticLinear, plane, perron),
        Panel(linnet.LeftStochasticLinear, plane, perron),
        Panel(linnet.DoublyStochasticLinear, plane, perron),
        Panel(linnet.PerronFrobeniusLinear, plane, disc(1, hole=0.8)),
    ],
    "nonnegative": [
        Panel(linnet.NonNegativeLinear, plane, perron, window=SMALL, scaled=True, note="λ / max |λ|"),
        Panel(
            linnet.DiagonallyDominantLinear,
            logarithmic,
            outside(0.5),
            {"gap": 0.5},
            note="gap=0.5; logarithmic beyond 1",
        ),
        Panel(linnet.SplitLinear, parts, states=(), note="B and C of a trained A = B − C"),
    ],
    "few-parameters": [
        Panel(linnet.ButterflyLinear, image, **FAST),
        Panel(
            linnet.ButterflyLinear,
            supports(*(((PLACE == PLACE.mT) | (PLACE == PLACE.mT ^ 2**k)).double() for k in range(4))),
            states=(),
            note="its four factors",
        ),
        Panel(linnet.MonarchLinear, image, **FAST),
        Panel(
            linnet.MonarchLinear,
            supports((PLACE // 4 == PLACE.mT // 4).double(), (PLACE % 4 == PLACE.mT % 4).double()),
            states=(),
            note="its two factors, R and P L Pᵀ",
        ),
        Panel(linnet.CirculantLinear, image, **FAST),
        Panel(linnet.BlockDiagonalLinear, blocks, **FAST),
        Panel(linnet.KroneckerLinear, blocks, **FAST, note="4 × 4 blocks, multiples of one"),
    ],
    "sparse": [
        Panel(linnet.Linear, found, sizes=(16, 16), states=(), title="the matrix to be found"),
        Panel(linnet.Linear, found, sizes=(16, 16), states=()),
        Panel(linnet.LassoLinear, found, options={"gamma": 0.1}, sizes=(16, 16), states=(), note="prox(lr)"),
        Panel(linnet.LassoLinearRELU, found, options={"gamma": 0.1}, sizes=(16, 16), states=(), note="penalty()"),
        Panel(
            linnet.L0Linear,
            found,
            options={"group": "weight", "lamda": 0.02, "weight_decay": 0.0},
            sizes=(16, 16),
            states=(),
            note='penalty(), group="weight"',
        ),
        Panel(linnet.SparseLinear, found, options={"sparsity": 0.8}, sizes=(16, 16), states=(), note="sparsity=0.8"),
    ],
    "rank": [
        Panel(linnet.LowRankLinear, ranked, nothing_beyond(3), {"rank": 3}, note="rank=3"),
        Panel(linnet.TrivialNullSpaceLinear, ranked, above(0.1), sizes=TALL, note="8 → 16"),
    ],
    "free": [
        Panel(linnet.Linear, plane, states=("fresh", "trained"), note="the same as nn.Linear"),
        Panel(linnet.IdentityInitLinear, plane, states=("fresh", "trained")),
        Panel(linnet.IdentityLinear, plane, states=("fresh",)),
    ],
}


def legend(figure: Any, panels: list[Panel], columns: int) -> None:
    entries: list[Any] = []
    for state, (colour, marker, size, text) in LOOKS.items():
        if any(state in panel.states and panel.draw not in (image, blocks) for panel in panels):
            face = "none" if state == "fresh" else colour
            look: dict[str, Any] = {"marker": marker, "markersize": size**0.5, "markeredgecolor": colour}
            entries.append(Line2D([], [], linestyle="", markerfacecolor=face, label=text, **look))
    if any(panel.region is not nowhere for panel in panels):
        entries.append(Patch(facecolor=SKY, alpha=0.5, label="promised"))
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def draw_page(name: str, panels: list[Panel], folder: Path) -> None:
    columns = 4 if len(panels) in (4, 7) else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    size = 2.7 * columns, 2.9 * rows + 0.5
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for ax in grid.flat[len(panels) :]:
        ax.axis("off")
    for ax, panel in zip(grid.flat, panels, strict=False):
        panel.draw(ax, panel)
        panel.region(ax)
        ax.set_title((panel.title or panel.layer.__name__) + (f"\n{panel.note}" if panel.note else ""), fontsize=9)
        ax.tick_params(labelsize=7)
        ax.xaxis.label.set_size(7)
        ax.yaxis.label.set_size(7)
    legend(figure, panels, 2 if columns == 2 else 3)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(128).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for page in sys.argv[1:] or PAGES:
        draw_page(page, PAGES[page], Path(__file__).parent)

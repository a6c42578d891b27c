"""Pictures of a run: learning curves, spectra and connectivity."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from torch import Tensor

from linnet.cli.pictures import save_picture
from linnet.cli.train.layer_spec import LayerSpec
from linnet.cli.train.run import Run
from linnet.cli.train.training import Fit
from linnet.core.linear_map import LinearMap
from linnet.core.palette import line_style
from linnet.decoupled.diagnostics import plot_diagnostics

TICKS = (0, 20, 40, 60, 70, 80, 85, 90, 92, 94, 96, 97, 98, 99, 100)
LARGEST_SPECTRUM = 1024
LARGEST_PICTURE = 4096


def draw(run: Run, fits: list[list[Fit]]) -> list[Path]:
    """curves.png, spectra.png, connectivity.png and synthesizers.png, as there is, in the run's folder."""
    pictures = (curves, spectra, connectivity, synthesizers)
    return [path for each in pictures for path in save_picture(run.out / f"{each.__name__}.png", each, run, fits)]


def curves(run: Run, fits: list[list[Fit]]) -> Figure:
    """Validation accuracy of each epoch: mean over the seeds, and the range from the lowest to the highest."""
    figure = Figure(figsize=(9, max(4.8, 0.24 * len(run.specs))), layout="constrained")
    axes = figure.add_subplot()
    epochs = np.arange(1, run.settings.epochs + 1)
    everything = []
    for index, (spec, members) in enumerate(zip(run.specs, fits, strict=True)):
        values = 100 * np.array([member.val_accuracy for member in members])  # (seeds, epochs)
        everything.append(values)
        mean, style = values.mean(0), line_style(index)
        if len(epochs) == 1:  # side by side, so that they can be told apart
            place = 1 + 0.06 * (index - (len(run.specs) - 1) / 2)
            axes.errorbar(
                [place], mean, [mean - values.min(0), values.max(0) - mean], label=spec.text, fmt="o", **style
            )
        else:
            axes.plot(epochs, mean, label=spec.text, linewidth=1.8, **style)
            axes.fill_between(epochs, values.min(0), values.max(0), color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%), log scale of the error")
    axes.set_yscale("function", functions=(_stretch, _unstretch))
    lowest, highest = (float(limit) for limit in _stretch(np.array([np.min(everything), np.max(everything)])))
    margin = max(0.05 * (highest - lowest), 0.2)
    bottom, top = max(0.0, _unstretch(lowest - margin)), min(100.0, _unstretch(highest + margin))
    axes.set_ylim(bottom, top)
    ticks = [tick for tick in TICKS if bottom <= tick <= top]
    axes.yaxis.set_major_locator(FixedLocator(ticks) if len(ticks) > 3 else MaxNLocator(6))
    axes.xaxis.set_major_locator(FixedLocator([1]) if len(epochs) == 1 else MaxNLocator(integer=True))
    axes.set_xlim(*((0.5, 1.5) if len(epochs) == 1 else (1, len(epochs))))
    spread = f", mean and range over {run.settings.seeds} seeds" if run.settings.seeds > 1 else ""
    axes.set_title(f"{run.data.name}: validation accuracy{spread}")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _stretch(accuracy: Any) -> Any:
    """-log of the error in percent, with 1 added: what matters among good networks is how much error is left."""
    return -np.log(101 - np.clip(accuracy, None, 100))


def _unstretch(height: Any) -> Any:
    return 101 - np.exp(-height)


def spectra(run: Run, fits: list[list[Fit]]) -> Figure | None:
    """Eigenvalues of a hidden weight of each kind in the complex plane, and the singular values of all of them."""
    kinds = _hidden_layers(run, fits, LARGEST_SPECTRUM)
    if not kinds:
        return None
    columns = min(3, len(kinds) + 1)
    figure, (*panels, summary) = _grid(len(kinds) + 1, 3.6, 3.4, legend=0.25 * -(-len(kinds) // columns))
    with torch.no_grad():
        for (index, spec, layer), axes in zip(kinds, panels, strict=True):
            axes.set_title(spec.text, fontsize=10)
            if not _dense(layer.weight).isfinite().all():
                _say(axes, "diverged:\nnot finite")
                continue
            singular = layer.svdvals().reshape(-1, min(layer.in_features, layer.out_features)).cpu().numpy()
            rank = np.arange(1, singular.shape[1] + 1)
            summary.plot(rank, singular.mean(0), label=spec.text, linewidth=1.8, **line_style(index))
            _eigenvalues(axes, layer, line_style(index)["color"])
    summary.set_title("singular values of all", fontsize=10)
    summary.set_xlabel("rank")
    summary.set_ylim(bottom=0)
    summary.grid(alpha=0.3)
    if summary.lines:
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{run.data.name}: a hidden weight of each kind after training, seed {run.settings.seed}")
    return figure


def _eigenvalues(axes: Axes, layer: LinearMap, colour: str) -> None:
    if layer.in_features != layer.out_features:
        _say(axes, "not square:\nno eigenvalues")
        return
    values = layer.eigvals().reshape(-1).cpu().numpy()
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    axes.plot(circle.real, circle.imag, color="0.6", linewidth=1)
    axes.scatter(values.real, values.imag, s=9, color=colour, alpha=0.7, linewidths=0)
    limit = 1.08 * max(1.0, np.abs(values).max())
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="real", ylabel="imaginary")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()


def connectivity(run: Run, fits: list[list[Fit]]) -> Figure | None:
    """|W| of a hidden layer of each kind, seed 0, being 0; white is exactly zero."""
    kinds = _hidden_layers(run, fits, LARGEST_PICTURE)
    if not kinds:
        return None
    figure, panels = _grid(len(kinds), 3.8, 3.6)
    # From a blue that still stands out from the white of an absent connection.
    colours = LinearSegmentedColormap.from_list("blues", ["#cfe1f2", "#4292c6", "#08306b"]).with_extremes(bad="white")
    for (_, spec, layer), axes in zip(kinds, panels, strict=True):
        matrix = _dense(layer.weight).reshape(-1, layer.out_features, layer.in_features)[0].abs().cpu().numpy()
        axes.set_title(spec.text + (", being 0" if spec.beings else ""), fontsize=10)
        if not np.isfinite(matrix).all():
            _say(axes, "diverged:\nnot finite")
            continue
        image = axes.imshow(np.ma.masked_equal(matrix, 0), cmap=colours, interpolation="nearest", vmin=0)
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.set(xlabel="input", ylabel="output")
        for spine in axes.spines.values():
            spine.set_visible(True)
    figure.suptitle(
        f"{run.data.name}: |W| of a hidden layer after training, seed {run.settings.seed} (white: exactly 0)"
    )
    return figure


def synthesizers(run: Run, fits: list[list[Fit]]) -> Figure | None:
    """How well the synthesizers of each kind's first seed predicted, over the epochs."""
    kinds = [(spec, members[0]) for spec, members in zip(run.specs, fits, strict=True) if members[0].synthesizers]
    if not kinds:
        return None
    figure = Figure(figsize=(12, 3.3 * len(kinds)), layout="constrained")
    for (spec, member), axes in zip(kinds, figure.subplots(len(kinds), 3, squeeze=False), strict=True):
        plot_diagnostics(member.synthesizers, list(axes), steps=range(1, len(member.synthesizers) + 1))
        axes[1].set_title(spec.text, fontsize=10)
        for panel in axes:
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{run.data.name}: predicted gradients beside those that came, seed {run.settings.seed}")
    return figure


def _grid(count: int, width: float, height: float, legend: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Panels of this size in rows of three at most, with room for a legend below."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + legend), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, list(panels[:count])


def _hidden_layers(run: Run, fits: list[list[Fit]], largest: int) -> list[tuple[int, LayerSpec, LinearMap]]:
    """A hidden layer of each kind after training with the first seed, unless it is too large, and the kind's number."""
    layers = [(i, spec, _hidden(fits[i][0], spec)) for i, spec in enumerate(run.specs)]
    return [(i, spec, layer) for i, spec, layer in layers if layer and max(layer.weight.shape[-2:]) <= largest]


def _hidden(member: Fit, spec: LayerSpec) -> LinearMap | None:
    """The last layer of this kind from hidden to hidden; without one, the first of this kind."""
    layers = [module for module in member.net.modules() if type(module) is spec.kind and isinstance(module, LinearMap)]
    square = [layer for layer in layers[1:-1] or layers if layer.in_features == layer.out_features]
    if square:
        return square[-1]
    return layers[0] if layers else None


def _dense(weight: Tensor) -> Tensor:
    return weight.detach().to_dense() if weight.layout != torch.strided else weight.detach()

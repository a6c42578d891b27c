"""Plots of connectivity: where connections are, how many each unit has, and how both change during training."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linnet.core.palette import BLUE, ORANGE
from linnet.sparse.dynamic.update import Move
from linnet.sparse.metrics import degrees

PIXELS = 512
"""Larger matrices are drawn as densities, this many cells along the longer side."""


def plot_connectivity(layer: Any, axes: Any = None, *, being: int | None = None) -> Any:
    """Draw where the connections are: rows are outputs, columns inputs.

    A small matrix is drawn exactly, a large one as the density of connections, in memory O(nnz).

    Args:
        layer: a sparse layer.
        axes: matplotlib Axes; None makes a figure.
        being: which one, of a population with a wiring for each.

    Returns:
        The Axes.

    Raises:
        ValueError: ``being`` is missing, or given where there is one wiring.

    Example:
        >>> from linnet import SparseLinear
        >>> axes = plot_connectivity(SparseLinear(100, 50, small_world=True))
        >>> axes.get_xlabel(), axes.get_ylabel()
        ('input', 'output')
    """
    row, col = _one(layer.indices, being, 2)
    rows, cols = layer.out_features, layer.in_features
    scale = max(1.0, max(rows, cols) / PIXELS)
    height, width = max(1, round(rows / scale)), max(1, round(cols / scale))
    cells = row * height // rows * width + col * width // cols
    density = torch.bincount(cells.cpu(), minlength=height * width).view(height, width).double()
    area = rows * cols / (height * width)
    axes = _axes(axes)
    image = axes.imshow(
        (density / area).numpy(),
        cmap="Greys",
        vmin=0,
        vmax=1 if area == 1 else None,
        interpolation="nearest",
        aspect="auto",
        extent=(0, cols, rows, 0),
    )
    if area > 1:
        axes.figure.colorbar(image, ax=axes, label="share of places connected")
    axes.set(xlabel="input", ylabel="output", title=f"{layer.nnz:,} of {rows:,} x {cols:,} connections")
    return axes


def plot_degrees(layer: Any, axes: Any = None, *, being: int | None = None) -> Any:
    """Draw histograms of the numbers of connections: of the outputs (fan-in) and of the inputs (fan-out).

    Args:
        layer: a sparse layer.
        axes: matplotlib Axes; None makes a figure.
        being: which one, of a population with a wiring for each.

    Returns:
        The Axes.

    Raises:
        ValueError: ``being`` is missing, or given where there is one wiring.

    Example:
        >>> from linnet import SparseLinear
        >>> plot_degrees(SparseLinear(100, 50)).get_ylabel()
        'share of units'
    """
    axes = _axes(axes)
    fan_in, fan_out = degrees(layer)
    for name, degree, colour in (("fan-in of outputs", fan_in, BLUE), ("fan-out of inputs", fan_out, ORANGE)):
        one = _one(degree, being, 1).cpu()
        low, high = int(one.min()), int(one.max())
        step = max(1, (high - low) // 40)
        edges = torch.arange(low, high + step + 1, step) - 0.5
        axes.hist(
            one.numpy(),
            bins=edges.tolist(),
            weights=[1 / one.numel()] * one.numel(),
            alpha=0.6,
            color=colour,
            label=f"{name}, mean {one.double().mean():.3g}",
        )
    axes.set(xlabel="connections of a unit", ylabel="share of units", title="Degrees")
    axes.legend()
    return axes


@dataclass
class Snapshots:
    """The number of connections of each input at chosen steps: pass it as ``Rewiring(..., on_move=snapshots)``.

    Args:
        every: rewirings from one snapshot to the next.
        weighted: sum |w| instead of counting connections.

    Attributes:
        steps: the optimizer step of each snapshot, as the rewired layer counts.
        images: for each snapshot the degree of every input, (in,).

    Example:
        >>> from linnet import SparseLinear
        >>> snapshots = Snapshots()
        >>> snapshots.take(SparseLinear(16, 8, sparsity=0.5), step=0)
        >>> snapshots.steps, snapshots.images[0].shape
        ([0], torch.Size([16]))
    """

    every: int = 1
    weighted: bool = False
    steps: list[int] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    _seen: int = 0

    def take(self, layer: Any, step: int) -> None:
        """Take a snapshot of a layer; of a population the mean over the beings."""
        col = layer.col.long()
        weights = layer.values.detach().abs() if self.weighted else torch.ones_like(layer.values)
        weights = weights.reshape(-1, layer.nnz)
        total = weights.new_zeros(weights.shape[0], layer.in_features)
        self.images.append(total.scatter_add_(1, col.expand(weights.shape), weights).mean(0).cpu())
        self.steps.append(step)

    def __call__(self, move: Move) -> None:
        self._seen += 1
        if self._seen % self.every == 0:
            self.take(move.layer, move.step)


def plot_growth(snapshots: Snapshots, shape: tuple[int, int] | None = None, *, columns: int = 8) -> Any:
    """Draw the growth of a layer over training as a strip of images: the degree of each input at each snapshot.

    Args:
        snapshots: the snapshots; of more than ``columns``, that many at equal distances are drawn.
        shape: of an image, such as (28, 28); None: one row of pixels.
        columns: the largest number of images.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: there is no snapshot, or ``shape`` has another number of pixels.

    Example:
        >>> from linnet import SparseLinear
        >>> snapshots = Snapshots()
        >>> snapshots.take(SparseLinear(16, 8, sparsity=0.5), step=0)
        >>> len(plot_growth(snapshots, (4, 4)).axes)
        2
    """
    import matplotlib.pyplot as plt

    if not snapshots.images:
        raise ValueError("plot_growth needs a snapshot, got none")
    size = snapshots.images[0].numel()
    height, width = shape or (1, size)
    if height * width != size:
        raise ValueError(f"shape must have as many pixels as there are inputs, {size}, got {shape}")
    count = min(columns, len(snapshots.images))
    chosen = [round(i * (len(snapshots.images) - 1) / max(1, count - 1)) for i in range(count)]
    top = max(float(snapshots.images[i].max()) for i in chosen)
    figure, grid = plt.subplots(1, count, figsize=(1.6 * count + 1, 2.2), squeeze=False, layout="constrained")
    for axes, i in zip(grid[0], chosen, strict=True):
        image = axes.imshow(snapshots.images[i].view(height, width).numpy(), cmap="viridis", vmin=0, vmax=top)
        axes.set_title(f"step {snapshots.steps[i]:,}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    label = "sum of |w|" if snapshots.weighted else "connections of an input"
    figure.colorbar(image, ax=list(grid[0]), label=label, shrink=0.7)
    return figure


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6, 4.5), layout="constrained")[1]


def _one(tensor: Tensor, being: int | None, axes: int) -> Tensor:
    """The part of a tensor that belongs to one being, if each being has its own wiring."""
    if tensor.dim() == axes:
        if being is not None:
            raise ValueError(f"being is for a population with a wiring for each, got {being=} for one wiring")
        return tensor
    if being is None or not 0 <= being < len(tensor):
        raise ValueError(f"being must lie in 0..{len(tensor) - 1}, got {being}")
    return tensor[being]

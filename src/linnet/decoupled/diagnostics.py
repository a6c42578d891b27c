"""What synthesizers are worth: how their predictions compare with the targets over training, and memory saved."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linnet.core.palette import line_style

__all__ = ["activation_memory", "plot_diagnostics"]

PANELS = {
    "cosine": "cosine of prediction and target",
    "norm_ratio": "length, prediction / target",
    "loss": "squared error / mean square of targets",
}
"""What is drawn, and how its axis is called."""


def plot_diagnostics(
    history: Sequence[Mapping[str, Any]], axes: Sequence[Any] | None = None, *, steps: Sequence[float] | None = None
) -> list[Any]:
    """Draw what ``DNI.diagnostics()`` gave over training: cosine, ratio of lengths and error of every synthesizer.

    Args:
        history: what ``diagnostics()`` returned, once for each point in time.
        axes: three matplotlib Axes; None makes a figure.
        steps: where the points lie on the horizontal axis; None for 1, 2, 3, ...

    Returns:
        The Axes.

    Raises:
        ValueError: there is nothing to draw.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from linnet import DNI
        >>> net = DNI(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)))
        >>> history = []
        >>> for step in range(5):
        ...     net(torch.randn(16, 4)).square().mean().backward()
        ...     history.append(net.diagnostics())
        >>> [axes.get_ylabel() for axes in plot_diagnostics(history)][0]
        'cosine of prediction and target'
    """
    cuts = list(dict.fromkeys(name.partition("/")[2] for point in history for name in point))
    if not cuts:
        raise ValueError("There must be something to draw, got no synthesizer has learned yet")
    if axes is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 3.6), layout="constrained")
        axes = list(figure.subplots(1, len(PANELS)))
    places = list(range(1, len(history) + 1)) if steps is None else list(steps)
    for panel, (quantity, label) in zip(axes, PANELS.items(), strict=True):
        for i, cut in enumerate(cuts):
            values = [float(point.get(f"{quantity}/{cut}", float("nan"))) for point in history]
            panel.plot(places, values, label=f"after {cut}", linewidth=1.6, **line_style(i))
        panel.set(xlabel="step" if steps is None else "", ylabel=label)
        panel.grid(alpha=0.3)
    axes[0].axhline(1, color="0.6", linewidth=1)
    axes[0].legend(frameon=False, fontsize=8)
    return list(axes)


def activation_memory(step: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for backward at the highest point of a training step, each storage once.

    Parameters count when a backward formula keeps them; take the difference of two networks with the same ones.

    Args:
        step: a function without arguments: forward, loss and backward.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), torch.zeros(100, 4)
        >>> activation_memory(lambda: net(x).sum().backward())  # the input, and the output of tanh
        4800
    """
    alive: dict[int, list[int]] = {}  # storage -> [how often it is kept, its bytes]
    now = highest = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, highest
            self.tensor = tensor
            storage = tensor.untyped_storage()
            self.key = storage.data_ptr()
            entry = alive.setdefault(self.key, [0, storage.nbytes()])
            entry[0] += 1
            if entry[0] == 1:
                now += entry[1]
                highest = max(highest, now)

        def __del__(self) -> None:
            nonlocal now
            entry = alive[self.key]
            entry[0] -= 1
            if entry[0] == 0:
                now -= entry[1]
                del alive[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return highest

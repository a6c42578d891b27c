"""Diagnostics of decoupled training: the quality of predicted gradients, and the memory of activations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linnet.core.palette import line_style

PANELS = {
    "cosine": "cosine of prediction and target",
    "norm_ratio": "length, prediction / target",
    "loss": "squared error / mean square of targets",
}
"""The quantities that are drawn, and the labels of their axes."""


def plot_diagnostics(
    history: Sequence[Mapping[str, Any]], axes: Sequence[Any] | None = None, *, steps: Sequence[float] | None = None
) -> list[Any]:
    """Draw ``DNI.diagnostics()`` over training: cosine, norm ratio and error of every synthesizer.

    Args:
        history: the results of ``diagnostics()``, one for each point in time.
        axes: three matplotlib Axes; None makes a figure.
        steps: horizontal coordinates of the points; None is 1, 2, 3, ...

    Returns:
        The Axes.

    Raises:
        ValueError: history contains no measurement.

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
        raise ValueError("history is empty: call diagnostics() after a backward, when a synthesizer has learned")
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
    """Peak number of bytes that autograd keeps for backward during a training step, each storage counted once.

    Parameters count when a backward formula keeps them; compare two networks with the same parameters.

    Args:
        step: a function without arguments that runs forward, loss and backward.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), torch.zeros(100, 4)
        >>> activation_memory(lambda: net(x).sum().backward())  # the input, and the output of tanh
        4800
    """
    alive: dict[int, list[int]] = {}  # storage -> [number of tensors kept in it, its bytes]
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

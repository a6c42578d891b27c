"""Demo: a layer of 100 000 x 100 000 that learns in the memory of a small one."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from linnet.cli.data.data_sets import Data
from linnet.cli.tour.demos.demo import Demo, Progress, accuracy
from linnet.cli.train.cost import peak_memory
from linnet.core.palette import BLUE, GREY, ORANGE
from linnet.sparse.linear import SparseLinear

WIDTH, CONNECTIONS, BATCH, RATE = 100_000, 1_000_000, 32, 1e-3


def wide_net(features: int, classes: int) -> nn.Sequential:
    """The net with a 100 000 x 100 000 layer in the middle."""
    return nn.Sequential(
        SparseLinear(features, WIDTH, sparsity=0.95),
        nn.ReLU(),
        SparseLinear(WIDTH, WIDTH, sparsity=1 - CONNECTIONS / WIDTH**2),
        nn.ReLU(),
        SparseLinear(WIDTH, classes, sparsity=0.5),
    )


def dense_net(features: int, classes: int, parameters: int) -> nn.Sequential:
    """The nn.Linear net of the same depth with about as many parameters: w² + (features + classes) w = parameters."""
    half = (features + classes) / 2
    hidden = int((half**2 + parameters) ** 0.5 - half)
    return nn.Sequential(
        nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def run(data: Data, progress: Progress) -> Demo:
    """Holds if the wide net learns (test accuracy above 85 %) with a peak below a tenth of the dense weights alone.

    nn.Linear of this width cannot be built; an nn.Linear net with as many parameters is trained beside it, with the
    same optimizer and the same batches: one pass over the training data.
    """
    torch.manual_seed(0)
    wide = wide_net(data.features, data.classes)
    parameters = sum(p.numel() for p in wide.parameters())
    nets = {"wide": wide, "dense": dense_net(data.features, data.classes, parameters)}
    dense_bytes = 4 * (data.features * WIDTH + WIDTH**2 + WIDTH * data.classes)
    inputs, targets = data.train.inputs, data.train.targets
    peaks, tests = {}, {}
    for name, net in nets.items():
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)

        def step(batch: torch.Tensor, net: nn.Module = net, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            F.cross_entropy(net(inputs[batch]), targets[batch]).backward()
            optimizer.step()

        torch.manual_seed(0)
        batches = torch.randperm(len(inputs)).split(BATCH)  # one pass over the training data
        for done, batch in enumerate(batches):
            step(batch)
            if name == "wide":
                progress(done / len(batches))
        peaks[name] = peak_memory(net, optimizer, partial(step, torch.arange(BATCH)))
        with torch.no_grad():
            tests[name] = float(accuracy(net(data.test.inputs), data.test.targets))

    progress(1.0)

    def draw(axes: Any) -> None:
        labels = [
            f"nn.Linear {WIDTH:,}²\n(weights only)",
            "linnet, a step\nwith Adam",
            "nn.Linear of as\nmany parameters",
        ]
        sizes = [dense_bytes / 1e9, peaks["wide"] / 1e9, peaks["dense"] / 1e9]
        bars = axes.bar(labels, sizes, color=[GREY, BLUE, ORANGE])
        accuracies = (
            "cannot be built",
            f"{100 * tests['wide']:.0f} % accuracy",
            f"{100 * tests['dense']:.0f} % accuracy",
        )
        for bar, size, right in zip(bars, sizes, accuracies, strict=True):
            axes.text(
                bar.get_x() + bar.get_width() / 2, size * 1.15, f"{size:.2g} GB\n{right}", ha="center", fontsize=8
            )
        axes.set_yscale("log")
        axes.set_ylim(top=dense_bytes / 1e9 * 10)
        axes.tick_params(axis="x", labelsize=8)
        axes.set(title=f"A layer {WIDTH:,} wide: memory", ylabel="gigabytes")

    return Demo(
        claim=f"A {WIDTH:,} x {WIDTH:,} layer is trained on digits",
        plain=f"{dense_bytes / 1e9:.0f} GB for the weights alone",
        linnet=f"{peaks['wide'] / 1e9:.2f} GB peak memory of a step, {100 * tests['wide']:.0f} % accuracy",
        holds=tests["wide"] > 0.85 and peaks["wide"] < dense_bytes / 10,
        note=(
            f"nn.Linear with as many parameters ({parameters:,}) and the same steps: "
            f"{100 * tests['dense']:.0f} % accuracy, {peaks['dense'] / 1e9:.2f} GB"
        ),
        draw=draw,
        numbers={
            "parameters": parameters,
            "dense_weight_bytes": dense_bytes,
            "peak_bytes": peaks,
            "test_accuracy": tests,
        },
    )

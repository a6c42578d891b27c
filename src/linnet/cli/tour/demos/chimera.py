"""Demo: one net of every family of layers, trained without waiting for the loss, beside backpropagation."""

import functools
import statistics
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from linnet.cli.data.data_sets import Data, Split
from linnet.cli.tour.demos.demo import Demo, Progress
from linnet.core.being import Spread
from linnet.core.linear import Linear
from linnet.core.measures import tolerance, violation
from linnet.core.palette import BLUE, GREY, ORANGE
from linnet.decoupled.dni import DNI
from linnet.decoupled.sources.synthetic import Synthetic
from linnet.decoupled.synthesizers.linear import LinearSynthesizer
from linnet.maps import OrthogonalLinear, SymmetricLinear
from linnet.sparse import KWinners, RigL, SparseLinear
from linnet.wide.losses import per_being

BEINGS, EPOCHS, BATCH, RATE, SEEDS = 3, 20, 64, 2e-3, (0, 1, 2)
EVERY = 20
"""Steps between two rewirings of the sparse layer."""


def chimera(features: int, classes: int) -> nn.Sequential:
    """An orthogonal layer, a sparse one with rewiring and K winners behind it, and a population on top."""
    return nn.Sequential(
        OrthogonalLinear(features, features), nn.BatchNorm1d(features), nn.ReLU(),
        SparseLinear(features, 128, sparsity=0.8, dynamic=RigL(every=EVERY)), nn.BatchNorm1d(128), KWinners(128, 0.5),
        Spread(), Linear(128, 64, beings=BEINGS), nn.LayerNorm(64), nn.ReLU(),
        SymmetricLinear(64, 64, beings=BEINGS), nn.LayerNorm(64), nn.ReLU(),
        Linear(64, classes, beings=BEINGS),
    )  # fmt: skip


def sources(classes: int) -> dict[int | str, Synthetic]:
    """A source for each cut, conditioned on the labels; inside the population every being has its own synthesizer."""
    own = functools.partial(LinearSynthesizer, beings=BEINGS)
    one, many = Synthetic(context=classes), Synthetic(own, context=classes)
    return {2: one, 6: one, 9: many, 12: many}


def accuracy(net: nn.Module, split: Split) -> float:
    """In percent, the mean over the beings."""
    net.eval()
    with torch.no_grad():
        right = net(split.inputs).argmax(-1) == split.targets.unsqueeze(1)
    return 100 * float(right.double().mean())


def train(data: Data, seed: int, decouple: bool) -> dict[str, Any]:
    """Train the net of all families with one seed: accuracy, violation, rewirings, cuts."""
    torch.manual_seed(seed)
    net = chimera(data.features, data.classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    model: nn.Module = net
    if decouple:
        model = DNI(net, optimizer, gradient=sources(data.classes), example=data.train.inputs[:2])
    sparse = next(module for module in net if isinstance(module, SparseLinear))
    moves, before = 0, sparse.indices.clone()
    curve = []
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.randperm(len(data.train.targets)).split(BATCH):
            x, y = data.train.inputs[rows], data.train.targets[rows]
            optimizer.zero_grad()
            with model.context(y) if isinstance(model, DNI) else nullcontext():
                output = model(x)
            per_being(F.cross_entropy)(output, y).sum().backward()
            optimizer.step()
            if not torch.equal(before, sparse.indices):
                moves, before = moves + 1, sparse.indices.clone()
        curve.append(accuracy(net, data.val))
    return {
        "curve": curve,
        "test": accuracy(net, data.test),
        "violation": float(violation(net)),
        "moves": moves,
        "cuts": len(model.at) if isinstance(model, DNI) else 0,
    }


def run(data: Data, progress: Progress) -> Demo:
    """Holds if the accuracies differ by 2 points or less, every promise holds, and there are as many rewirings."""
    runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for done, seed in enumerate(SEEDS):
        for decouple in runs:
            runs[decouple].append(train(data, seed, decouple))
        progress((done + 1) / len(SEEDS))
    tests = {decouple: [run["test"] for run in some] for decouple, some in runs.items()}
    plain, ours = (statistics.fmean(tests[decouple]) for decouple in (False, True))
    shown = {decouple: ", ".join(f"{value:.1f}" for value in values) for decouple, values in tests.items()}
    worst = max(run["violation"] for run in runs[True])
    moves = {run["moves"] for some in runs.values() for run in some}

    def draw(axes: Any) -> None:
        for decouple, colour, label in ((False, ORANGE, "backpropagation"), (True, BLUE, "synthetic gradients")):
            for i, run in enumerate(runs[decouple]):
                axes.plot(range(1, EPOCHS + 1), run["curve"], color=colour, label=None if i else label)
        axes.axhline(100, color=GREY, linestyle=":")
        axes.set(title="All families in one net", xlabel="epoch", ylabel="validation accuracy (%)")
        axes.legend(fontsize=8, loc="lower right")

    return Demo(
        claim=(
            "One net of an orthogonal, a dynamic sparse and a symmetric layer and a population, trained with synthetic "
            "gradients"
        ),
        plain=f"the same net with backpropagation: {plain:.1f} % accuracy",
        linnet=f"{ours:.1f} %, no layer waits for the loss; {runs[True][0]['cuts']} cuts",
        holds=abs(plain - ours) <= 2 and worst <= tolerance(torch.float32) and len(moves) == 1,
        note=(
            f"test accuracy over {BEINGS} beings, {shown[True]} for seeds {SEEDS[0]} to {SEEDS[-1]}, with "
            f"backpropagation {shown[False]}; {max(moves)} rewirings; largest violation {worst:.0e}"
        ),
        draw=draw,
        numbers={"backprop": runs[False], "dni": runs[True]},
    )

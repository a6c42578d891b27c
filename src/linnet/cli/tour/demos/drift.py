"""Demo: connections that drift to the pixels that matter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.cli.data.data_sets import Data
from linnet.cli.tour.demos.demo import Demo, Progress, accuracy, count_steps, mean_and_range, percent
from linnet.core.being import Spread
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap
from linnet.core.palette import BLUE, GREY, ORANGE
from linnet.sparse.dynamic.rewiring import Rewiring
from linnet.sparse.dynamic.rules import RigL
from linnet.sparse.dynamic.update import Move
from linnet.sparse.linear import SparseLinear
from linnet.sparse.plots import Snapshots
from linnet.wide.losses import per_being

SIDE, HIDDEN, SPARSITY, SEEDS, EPOCHS, BATCH = 24, 128, 0.97, 5, 20, 64
RATES = (1e-3, 3e-3)
ALPHA, EVERY = 0.3, 10


def hidden_in_noise(data: Data) -> tuple[dict[str, Tensor], Tensor]:
    """Pictures of SIDE x SIDE: the digit in the middle, noise of the same size around it; and where the digit is."""
    generator = torch.Generator().manual_seed(0)
    side = round(data.features**0.5)
    edge = (SIDE - side) // 2
    where = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    where[edge : edge + side, edge : edge + side] = True
    found = {}
    for name in ("train", "val", "test"):
        inputs = getattr(data, name).inputs
        pictures = torch.randn(len(inputs), SIDE * SIDE, generator=generator)
        pictures[:, where.flatten()] = inputs
        found[name] = pictures
    return found, where.flatten()


def build(kind: str, classes: int, steps: int) -> nn.Sequential:
    """SEEDS nets at once; sparse ones have connections of their own."""
    torch.manual_seed(0)
    size, sparse = (SIDE * SIDE, HIDDEN), {"sparsity": SPARSITY, "beings": SEEDS, "shared": False}
    first: LinearMap
    if kind == "nn.Linear":
        first = Linear(*size, beings=SEEDS)
    elif kind == "static":
        first = SparseLinear(*size, **sparse)  # type: ignore[arg-type]
    else:
        first = SparseLinear(*size, dynamic=RigL(every=EVERY, alpha=ALPHA).ending(steps), **sparse)  # type: ignore[arg-type]
    return nn.Sequential(Spread(), first, nn.ReLU(), Linear(HIDDEN, classes, beings=SEEDS))


@dataclass
class Trained:
    """Nets of one kind of layer and one learning rate, and the share of their connections on the digit over time."""

    net: nn.Sequential
    where: Tensor
    snapshots: Snapshots = field(default_factory=Snapshots)
    shares: list[list[float]] = field(default_factory=list)

    def record(self, layer: Any, step: int) -> None:
        self.snapshots.take(layer, step)
        self.shares.append(self.where[layer.col.long()].double().mean(1).tolist())

    def after_move(self, move: Move) -> None:
        self.record(move.layer, move.step)


def train(
    kind: str, rate: float, pictures: Tensor, where: Tensor, data: Data, step_done: Callable[[], None]
) -> Trained:
    """Train one net a being on digits hidden in noise and record where the connections are."""
    net = build(kind, data.classes, EPOCHS * -(-len(pictures) // BATCH))
    trained = Trained(net, where)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    if kind == "RigL":
        trained.record(net[1], 0)
        Rewiring(net, optimizer, on_move=trained.after_move)
    loss = per_being(F.cross_entropy)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(pictures)).split(BATCH):
            optimizer.zero_grad()
            loss(net(pictures[batch]), data.train.targets[batch]).sum().backward()
            optimizer.step()
        step_done()
    return trained


def run(data: Data, progress: Progress) -> Demo:
    """Holds if in every net the share of connections on the digit grows, and RigL beats fixed connections.

    Better by more than the larger of the two standard deviations over the seeds, on the test split. The learning rate
    of each kind is chosen on the validation split from the same grid, and so was how much noise there is: in a field of
    16 x 16 with 5 % of the connections the means were within a standard deviation, 93.3 and 92.2 %.
    """
    pictures, where = hidden_in_noise(data)
    kinds = ("nn.Linear", "static", "RigL")
    step_done = count_steps(progress, len(kinds) * len(RATES) * EPOCHS)

    def score(trained: Trained, split: str) -> Tensor:
        with torch.no_grad():
            return accuracy(trained.net(pictures[split]), getattr(data, split).targets)

    tests: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for kind in kinds:
        runs = {rate: train(kind, rate, pictures["train"], where, data, step_done) for rate in RATES}
        scores = {rate: score(run, "val") for rate, run in runs.items()}
        rate = max(RATES, key=lambda r: scores[r].mean())
        trained = runs[rate]  # at the end that of RigL
        tests[kind] = score(trained, "test")
        numbers[kind] = {
            "learning_rate": rate,
            "validation_accuracy": {str(r): scores[r].tolist() for r in RATES},
            "test_accuracy": tests[kind].tolist(),
        }
    shares = torch.tensor(trained.shares)  # (snapshots, seeds)
    numbers["RigL"]["share_on_the_digit"] = trained.shares

    def draw(axes: Any) -> None:
        steps, images = trained.snapshots.steps, trained.snapshots.images
        mean_and_range(axes, steps, shares, color=BLUE, label="RigL")
        axes.axhline(100 * float(where.double().mean()), color=ORANGE, linestyle="--", label="static")
        axes.set(title="Connections drift to a digit in noise", xlabel="step", ylabel="connections on the digit, %")
        axes.set_ylim(0, 100)
        axes.legend(fontsize=8, loc="upper left")
        for i, left in ((0, 0.42), (-1, 0.7)):
            inset = axes.inset_axes((left, 0.55, 0.26, 0.36))
            inset.imshow(images[i].view(SIDE, SIDE).numpy(), cmap="Greys", vmin=0, vmax=float(images[-1].max()))
            inset.set_title(f"step {steps[i]}", fontsize=7, pad=2, color=GREY)
            inset.set(xticks=[], yticks=[])

    pixels = 100 * float(where.double().mean())
    on_the_digit = f"{100 * shares[-1].mean():.0f} % of the connections end on the digit"
    better = tests["RigL"].mean() - tests["static"].mean() > max(tests["RigL"].std(), tests["static"].std())
    return Demo(
        claim=f"With {1 - SPARSITY:.0%} of the connections, nets find digits hidden in noise",
        plain=f"{percent(tests['nn.Linear'], 1)} accuracy, with all connections",
        linnet=f"{percent(tests['RigL'], 1)} accuracy, {on_the_digit}",
        holds=bool((shares[-1] > shares[0]).all() and better),
        note=(
            f"{pixels:.0f} % of the pixels show the digit, and {100 * shares[0].mean():.0f} % of the connections begin "
            f"there; fixed connections reach {percent(tests['static'], 1)}"
        ),
        draw=draw,
        numbers=numbers,
    )

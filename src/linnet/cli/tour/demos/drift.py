"""Act: connections that drift to the pixels that matter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.cli.data.data_sets import Data
from linnet.cli.tour.demos.demo import BLUE, GREY, ORANGE, Act, accuracy
from linnet.core.being import Spread
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap
from linnet.sparse.dynamic.rewiring import Rewiring
from linnet.sparse.dynamic.rules import RigL
from linnet.sparse.dynamic.update import Move
from linnet.sparse.linear import SparseLinear
from linnet.sparse.plots import Snapshots
from linnet.wide.losses import per_being

__all__ = ["perform"]

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
class Course:
    """A kind of layer trained at one learning rate: the nets, and the share of connections on the digit as it went."""

    net: nn.Sequential
    where: Tensor
    snapshots: Snapshots = field(default_factory=Snapshots)
    shares: list[list[float]] = field(default_factory=list)

    def look(self, layer: Any, step: int) -> None:
        self.snapshots.take(layer, step)
        self.shares.append(self.where[layer.col.long()].double().mean(1).tolist())

    def moved(self, move: Move) -> None:
        self.look(move.layer, move.step)


def train(kind: str, rate: float, pictures: Tensor, where: Tensor, data: Data, tick: Callable[[], None]) -> Course:
    net = build(kind, data.classes, EPOCHS * -(-len(pictures) // BATCH))
    course = Course(net, where)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    if kind == "RigL":
        course.look(net[1], 0)
        Rewiring(net, optimizer, on_move=course.moved)
    loss = per_being(F.cross_entropy)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(pictures)).split(BATCH):
            optimizer.zero_grad()
            loss(net(pictures[batch]), data.train.targets[batch]).sum().backward()
            optimizer.step()
        tick()
    return course


def perform(data: Data, progress: Callable[[float], None]) -> Act:
    """Holds if in every net the share of connections on the digit grows, and RigL beats connections that stay.

    Better by more than the larger of the two standard deviations over the seeds, on the test split. The learning rate
    of each kind is chosen on the validation split from the same grid, and so was how much noise there is: in a field of
    16 x 16 with 5 % of the connections the means were within a standard deviation, 93.3 and 92.2 %.
    """
    pictures, where = hidden_in_noise(data)
    kinds = ("nn.Linear", "static", "RigL")
    total, done = len(kinds) * len(RATES) * EPOCHS, 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done / total)

    def measured(course: Course, split: str) -> Tensor:
        with torch.no_grad():
            return accuracy(course.net(pictures[split]), getattr(data, split).targets)

    tests: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for kind in kinds:
        runs = {rate: train(kind, rate, pictures["train"], where, data, tick) for rate in RATES}
        scores = {rate: measured(run, "val") for rate, run in runs.items()}
        rate = max(RATES, key=lambda r: scores[r].mean())
        course = runs[rate]  # at the end that of RigL
        tests[kind] = measured(course, "test")
        numbers[kind] = {
            "learning_rate": rate,
            "validation_accuracy": {str(r): scores[r].tolist() for r in RATES},
            "test_accuracy": tests[kind].tolist(),
        }
    shares = torch.tensor(course.shares)  # (snapshots, seeds)
    numbers["RigL"]["share_on_the_digit"] = course.shares

    def draw(axes: Any) -> None:
        steps, images = course.snapshots.steps, course.snapshots.images
        axes.plot(steps, 100 * shares.mean(1), color=BLUE, label="RigL")
        axes.fill_between(steps, 100 * shares.amin(1), 100 * shares.amax(1), color=BLUE, alpha=0.2, linewidth=0)
        axes.axhline(100 * float(where.double().mean()), color=ORANGE, linestyle="--", label="static")
        axes.set(title="Connections drift to a digit in noise", xlabel="step", ylabel="connections on the digit, %")
        axes.set_ylim(0, 100)
        axes.legend(fontsize=8, loc="upper left")
        for i, left in ((0, 0.42), (-1, 0.7)):
            inset = axes.inset_axes((left, 0.55, 0.26, 0.36))
            inset.imshow(images[i].view(SIDE, SIDE).numpy(), cmap="Greys", vmin=0, vmax=float(images[-1].max()))
            inset.set_title(f"step {steps[i]}", fontsize=7, pad=2, color=GREY)
            inset.set(xticks=[], yticks=[])

    def said(kind: str) -> str:
        return f"{100 * tests[kind].mean():.1f} ± {100 * tests[kind].std():.1f} %"

    pixels = 100 * float(where.double().mean())
    better = tests["RigL"].mean() - tests["static"].mean() > max(tests["RigL"].std(), tests["static"].std())
    return Act(
        claim=f"With {1 - SPARSITY:.0%} of the connections, nets find digits hidden in noise",
        plain=f"{said('nn.Linear')} right, with all connections",
        linnet=f"{said('RigL')} right, {100 * shares[-1].mean():.0f} % of the connections end on the digit",
        holds=bool((shares[-1] > shares[0]).all() and better),
        note=(
            f"{pixels:.0f} % of the pixels show the digit, and {100 * shares[0].mean():.0f} % of the connections begin "
            f"there; connections that stay reach {said('static')}"
        ),
        draw=draw,
        numbers=numbers,
    )

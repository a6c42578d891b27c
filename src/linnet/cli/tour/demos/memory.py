"""Demo: a recurrent net that must remember a picture over 100 blank steps."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.cli.data.data_sets import Data
from linnet.cli.tour.demos.demo import Demo, Progress, accuracy, count_steps, mean_and_range, percent
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap
from linnet.core.measures import violation
from linnet.core.palette import BLUE, GREY, ORANGE
from linnet.maps.orthogonal import OrthogonalLinear
from linnet.wide.losses import per_being

WAIT, HIDDEN, SEEDS, EPOCHS, BATCH = 100, 64, 3, 8, 64
RATES = (3e-4, 1e-3)


class Recurrent(nn.Module):
    """h ← tanh(W h + U xₜ + b) over the rows of a picture and then WAIT blank steps; a population of SEEDS nets."""

    def __init__(self, hidden: LinearMap, row: int, classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = Linear(row, hidden.in_features, bias=False, beings=hidden.beings)
        self.output = Linear(hidden.in_features, classes, beings=hidden.beings)

    def forward(self, rows: Tensor) -> Tensor:
        w, b = self.hidden.weight.mT, self.hidden.bias  # W is built once for the whole sequence
        state = rows.new_zeros(len(w), len(rows), w.shape[-1])  # (beings, batch, hidden)
        for t in range(rows.shape[1] + WAIT):
            z = torch.baddbmm(b.unsqueeze(1), state, w)  # type: ignore[union-attr]
            if t < rows.shape[1]:
                z = z + self.input(rows[:, t, None]).transpose(0, 1)
            state = z.tanh()
        return self.output(state.transpose(0, 1))


def build(kind: str, row: int, classes: int) -> Recurrent:
    """A recurrent net of one kind for each seed."""
    torch.manual_seed(0)
    hidden: LinearMap = (OrthogonalLinear if kind == "orthogonal" else Linear)(HIDDEN, HIDDEN, beings=SEEDS)
    if kind == "started orthogonal":
        hidden.assign(OrthogonalLinear(HIDDEN, HIDDEN, beings=SEEDS).weight)
    if kind != "nn.Linear":
        nn.init.zeros_(hidden.bias)  # type: ignore[arg-type]
    return Recurrent(hidden, row, classes)


def train(kind: str, rate: float, data: Data, step_done: Callable[[], None]) -> tuple[Recurrent, list[list[float]]]:
    """A population of SEEDS nets trained at once, and its validation accuracy after every epoch."""
    rows = data.train.inputs.unflatten(1, (8, 8))
    net = build(kind, 8, data.classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    loss = per_being(F.cross_entropy)
    curve = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows)).split(BATCH):
            optimizer.zero_grad()
            loss(net(rows[batch]), data.train.targets[batch]).sum().backward()
            optimizer.step()
        with torch.no_grad():
            curve.append(accuracy(net(data.val.inputs.unflatten(1, (8, 8))), data.val.targets).tolist())
        step_done()
    return net, curve


def run(data: Data, progress: Progress) -> Demo:
    """Holds if, on the test split, nn.Linear stays below 20 % and the orthogonal map above 60 % (means over the seeds).

    The learning rate of each kind is chosen on the validation split from the same grid. The third kind is an nn.Linear
    that merely starts orthogonal.
    """
    kinds = ("nn.Linear", "started orthogonal", "orthogonal")
    step_done = count_steps(progress, len(kinds) * len(RATES) * EPOCHS)
    curves: dict[str, list[list[float]]] = {}
    tests: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        runs = {rate: train(kind, rate, data, step_done) for rate in RATES}
        rate = max(RATES, key=lambda r: torch.tensor(runs[r][1][-1]).mean())
        net, curves[kind] = runs[rate]
        with torch.no_grad():
            tests[kind] = accuracy(net(data.test.inputs.unflatten(1, (8, 8))), data.test.targets)
        off = OrthogonalLinear(HIDDEN, HIDDEN, beings=SEEDS).violation(net.hidden.weight).max()
        numbers[kind] = {
            "test_accuracy": tests[kind].tolist(),
            "learning_rate": rate,
            "distance_from_orthogonal": float(off),
            "violation": float(violation(net)),
            "validation_curve": curves[kind],
        }

    def draw(axes: Any) -> None:
        labels = ("nn.Linear", "nn.Linear, started orthogonal", "OrthogonalLinear")
        for kind, color, label in zip(kinds, (GREY, ORANGE, BLUE), labels, strict=True):
            mean_and_range(axes, range(1, EPOCHS + 1), torch.tensor(curves[kind]), color=color, label=label)
        axes.axhline(100 / data.classes, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set(title=f"Remember a digit for {WAIT} blank steps", xlabel="epoch", ylabel="validation accuracy, %")
        axes.set_ylim(0, 100)
        axes.legend(fontsize=8, loc="upper left")

    started = percent(tests["started orthogonal"])
    drifted = numbers["started orthogonal"]["distance_from_orthogonal"]
    return Demo(
        claim=f"A recurrent net classifies a digit {WAIT} blank steps after it saw the digit",
        plain=f"{percent(tests['nn.Linear'])} accuracy",
        linnet=f"{percent(tests['orthogonal'])} accuracy",
        holds=bool(tests["nn.Linear"].mean() < 0.2 and tests["orthogonal"].mean() > 0.6),
        note=(
            f"nn.Linear that only starts orthogonal reaches {started}; after training it is {drifted:.1g} away from "
            f"orthogonal, the orthogonal layer {numbers['orthogonal']['violation']:.0e}"
        ),
        draw=draw,
        numbers=numbers,
    )

"""All four families in one net under synthetic gradients, beside the same net of nn.Linears under backpropagation.

    python examples/chimera.py run               # about three minutes of one core: writes chimera.json
    python examples/chimera.py train FOLDER      # one run, saved after every epoch; goes on where it was killed

In between, to tell what costs what: the net of all families under backpropagation. An orthogonal layer, a sparse one
whose connections move, winners, and a population of three on top; digits. Each being has synthesizers of its own, for
one for all can learn no more than what the gradients of the beings have in common. Each kind may choose among three
learning rates, which fall as a cosine, by the mean on the validation split of seeds 100 to 104; then seeds 0 to 4, and
the test split is read once. (At a constant rate 4 of 10 decoupled runs lost 6 points or more for some late epochs.)
"""

import json
import math
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import linnet
from linnet.cli.data.data_sets import Data, Split, load_data
from linnet.cli.tour.demos.chimera import chimera, sources

HERE = Path(__file__).parent
EPOCHS, BATCH, SEEDS, TUNING_SEEDS = 60, 64, range(5), range(100, 105)
RATES = (1e-3, 2e-3, 4e-3)


def network(kind: str, features: int, classes: int) -> nn.Sequential:
    """``linnet``: all families; ``nn.Linear``: the same sizes with plain layers, one net instead of three."""
    if kind == "nn.Linear":
        return nn.Sequential(
            nn.Linear(features, features), nn.BatchNorm1d(features), nn.ReLU(),
            nn.Linear(features, 128), nn.BatchNorm1d(128), nn.ReLU(),
            nn.Linear(128, 64), nn.LayerNorm(64), nn.ReLU(),
            nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(),
            nn.Linear(64, classes),
        )  # fmt: skip
    return chimera(features, classes)


def train(kind: str, data: Data, seed: int, lr: float, epochs: int = EPOCHS, path: Path | None = None) -> nn.Sequential:
    """One run; with a path it is saved after every epoch, and goes on from what is there."""
    torch.manual_seed(seed)
    net = network(kind, data.features, data.classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    model: nn.Module = net
    if kind == "linnet":
        model = linnet.DNI(net, optimizer, gradient=sources(data.classes), example=data.train.inputs[:2])
    first = 0
    if path is not None and path.exists():
        first = linnet.load(path, into=model, optimizer=optimizer).step or 0
    for epoch in range(first, epochs):
        model.train()
        for group in optimizer.param_groups:  # of the epoch alone: nothing to save
            group["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for rows in torch.randperm(len(data.train.targets)).split(BATCH):
            x, y = data.train.inputs[rows], data.train.targets[rows]
            optimizer.zero_grad()
            with model.context(y) if isinstance(model, linnet.DNI) else nullcontext():
                output = model(x)
            one = output.dim() == 2
            loss = F.cross_entropy(output, y) if one else linnet.per_being(F.cross_entropy)(output, y).sum()
            loss.backward()
            optimizer.step()
        if path is not None:
            linnet.save(model, path, optimizer=optimizer, step=epoch + 1)
    return net


@torch.no_grad()
def accuracy(net: nn.Module, split: Split) -> float:
    """In percent; of a population the mean over its beings."""
    output = net.eval()(split.inputs)
    targets = split.targets if output.dim() == 2 else split.targets.unsqueeze(1)
    return 100 * float((output.argmax(-1) == targets).double().mean())


def run() -> dict[str, Any]:
    data, found = load_data("digits"), {}
    for kind in ("nn.Linear", "linnet, backpropagation", "linnet"):
        tried = {}
        for lr in RATES:
            tried[lr] = statistics.fmean(accuracy(train(kind, data, seed, lr), data.val) for seed in TUNING_SEEDS)
        lr = max(tried, key=lambda rate: tried[rate])
        tests = [accuracy(train(kind, data, seed, lr), data.test) for seed in SEEDS]
        mean, spread = statistics.fmean(tests), statistics.stdev(tests)
        found[kind] = {"validation": {str(k): v for k, v in tried.items()}, "lr": lr, "test": tests, "mean": mean}
        print(f"{kind}: {mean:.2f} ± {spread:.2f} % of the test split, lr {lr}: {', '.join(f'{t:.1f}' for t in tests)}")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["run"]:
        (HERE / "chimera.json").write_text(json.dumps(run(), indent=1) + "\n")
    elif sys.argv[1:2] == ["train"] and len(sys.argv) == 3:
        Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
        train("linnet", load_data("digits"), 0, RATES[1], path=Path(sys.argv[2]) / "chimera.safetensors")
    else:
        sys.exit(__doc__)

"""How well do networks learn whose layers do not wait for the loss? The table of Jaderberg et al., with more methods.

    python examples/synthetic_gradients.py fashion-mnist --data-dir FOLDER --results runs.jsonl
    python examples/synthetic_gradients.py mnist --data-dir FOLDER --results runs.jsonl
    python examples/synthetic_gradients.py --table runs.jsonl

Fully connected, 256 units, batch norm and ReLU behind every hidden layer, a cut in front of every layer but the first,
batches of 256, Adam, 2000 steps. Each method may choose among four settings, on the validation split of the first data
set in the results file, with a seed of its own, at 6 layers and 1000 steps; then seeds 0 to 4, and the test split is
read once. Every run is one line of the results file; a run that is there is not made again. What came out is in
synthetic_gradients.md.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import linnet
from linnet.tasks.data import Data, load_data

WIDTH, BATCH, STEPS, TUNING_STEPS = 256, 256, 2000, 1000
SEEDS, TUNING_SEED, TUNING_LAYERS = range(5), 100, 6
RATES = (3e-4, 1e-3)
PLAIN: tuple[dict[str, float], ...] = tuple({"lr": lr} for lr in (1e-4, 3e-4, 1e-3, 3e-3))
SETTINGS: dict[str, tuple[dict[str, float], ...]] = {
    "no backprop": PLAIN,
    "backprop": PLAIN,
    "DNI": tuple({"lr": lr, "decay": decay} for lr, decay in itertools.product(RATES, (0.97, 0.99))),
    "cDNI": tuple({"lr": lr, "decay": decay} for lr, decay in itertools.product(RATES, (0.97, 0.99))),
    "DNI (Adam)": tuple({"lr": lr, "own_lr": own} for lr, own in itertools.product(RATES, (0.03, 0.1))),
    "cDNI (Adam)": tuple({"lr": lr, "own_lr": own} for lr, own in itertools.product(RATES, (0.03, 0.1))),
    "local loss": tuple({"lr": lr, "own_lr": own} for lr, own in itertools.product(RATES, (1e-3, 1e-2))),
    "feedback": PLAIN,
}
"""The settings that each method may choose among: the network's learning rate, and that of synthesizers or heads.

DNI and cDNI have linear synthesizers by least squares, those named (Adam) by Adam.
"""

PAPER = {
    ("mnist", 3): {"no backprop": 9.3, "backprop": 2.0, "DNI": 1.9, "cDNI": 2.2},
    ("mnist", 6): {"no backprop": 21.4, "backprop": 1.8, "DNI": 4.3, "cDNI": 1.6},
}
"""Test error in percent after 500 000 steps: Jaderberg et al., 2017, arXiv 1608.05343."""


def network(features: int, classes: int, layers: int) -> nn.Sequential:
    """``layers`` hidden layers and one for the classes."""
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(features, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
        features = WIDTH
    return nn.Sequential(*modules, nn.Linear(features, classes))


def decoupled(
    method: str, net: nn.Sequential, classes: int, own_lr: float = 0.0, decay: float | None = None
) -> nn.Module:
    own = functools.partial(torch.optim.Adam, lr=own_lr)
    source: linnet.Source
    if method == "backprop":
        return net
    if method == "no backprop":
        net[:-1].requires_grad_(False)
        return net
    if method == "local loss":
        source = linnet.LocalLoss(F.cross_entropy, classes, optim=own)
    elif method == "feedback":
        source = linnet.DirectFeedback()
    else:
        context = classes if method.startswith("cDNI") else None
        if decay is None:
            source = linnet.Synthetic(optim=own, context=context)
        else:
            source = linnet.Synthetic(functools.partial(linnet.LeastSquaresSynthesizer, decay=decay), context=context)
    return linnet.DNI(net, gradient=source)


def train(method: str, data: Data, layers: int, seed: int, steps: int, lr: float, **own: float) -> Any:
    """One run: the trained network, the CPU seconds, and the last diagnostics."""
    torch.manual_seed(seed)
    net = network(data.features, data.classes, layers)
    model = decoupled(method, net, data.classes, **own)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
    inputs, targets = data.train
    order = torch.Generator().manual_seed(seed)
    seen: list[dict[str, Tensor]] = []
    start = time.process_time()
    for step in range(steps):
        rows = torch.randint(len(targets), (BATCH,), generator=order)
        x, y = inputs[rows], targets[rows]
        optimizer.zero_grad()
        if isinstance(model, linnet.DNI) and model.conditioned:
            with model.context(y):
                output = model(x)
        else:
            output = model(x)
        F.cross_entropy(output, y).backward()
        optimizer.step()
        if isinstance(model, linnet.DNI) and steps - step <= 200:
            seen.append(model.diagnostics())
    cosines = {
        name: statistics.fmean(float(s[name]) for s in seen) for name in (seen[-1] if seen else ()) if "cos" in name
    }
    return net, time.process_time() - start, cosines


@torch.no_grad()
def error(net: nn.Module, split: Any) -> float:
    """In percent."""
    net.eval()
    wrong = sum(
        int((net(x).argmax(1) != y).sum()) for x, y in zip(split[0].split(2000), split[1].split(2000), strict=True)
    )
    return 100 * wrong / len(split[1])


def experiment(data: Data, path: Path, depths: list[int], methods: list[str]) -> None:
    done = read(path)

    def once(key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        for line in done:
            if all(line.get(name) == value for name, value in key.items()):
                return line
        line = key | make()
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        return line

    for layers in depths:
        for method in methods:
            settings = SETTINGS[method]
            tried = [
                once(tuning(method, setting), functools.partial(tune, data, method, setting)) for setting in settings
            ]
            chosen = min(tried, key=lambda line: line["val_error"])["setting"]
            for seed in SEEDS:
                key = {"kind": "run", "data": data.name, "method": method, "layers": layers, "seed": seed}
                once(key, functools.partial(run, data, method, layers, seed, chosen))


def tuning(method: str, setting: dict[str, float]) -> dict[str, Any]:
    return {"kind": "tuning", "method": method, "setting": setting}


def tune(data: Data, method: str, setting: dict[str, float]) -> dict[str, Any]:
    net, seconds, _ = train(method, data, TUNING_LAYERS, TUNING_SEED, TUNING_STEPS, **setting)
    return {"data": data.name, "val_error": error(net, data.val), "cpu_seconds": seconds}


def run(data: Data, method: str, layers: int, seed: int, setting: dict[str, float]) -> dict[str, Any]:
    net, seconds, cosines = train(method, data, layers, seed, STEPS, **setting)
    return {"setting": setting, "test_error": error(net, data.test), "cpu_seconds": seconds, "cosines": cosines}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation, every single run, and the paper's value."""
    rows = [
        "| data | layers | method | test error % | runs | CPU s | setting | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs = [line for line in lines if line["kind"] == "run"]
    for name, layers, method in dict.fromkeys((r["data"], r["layers"], r["method"]) for r in runs):
        cell = [r for r in runs if (r["data"], r["layers"], r["method"]) == (name, layers, method)]
        errors = [r["test_error"] for r in cell]
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        setting = ", ".join(f"{key} {value:g}" for key, value in cell[0]["setting"].items())
        paper = PAPER.get((name, layers), {}).get(method, "–")
        rows.append(
            f"| {name} | {layers} | {method} | {statistics.fmean(errors):.2f}{spread} | "
            f"{', '.join(f'{e:.2f}' for e in errors)} | {statistics.fmean(r['cpu_seconds'] for r in cell):.0f} | "
            f"{setting} | {paper} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=["digits", "mnist", "fashion-mnist"])
    parser.add_argument("--data-dir", help="folder with the IDX files")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 3])
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="METHOD")
    parser.add_argument("--results", type=Path, default=Path("synthetic_gradients.jsonl"))
    parser.add_argument("--table", type=Path, nargs="+", metavar="RESULTS", help="print the table of results and stop")
    options = parser.parse_args()
    if options.table:
        print(table([line for path in options.table for line in read(path)]))
    elif options.data is None:
        parser.error("a data set is needed")
    else:
        torch.set_num_threads(1)
        experiment(load_data(options.data, options.data_dir), options.results, options.layers, options.methods)


if __name__ == "__main__":
    main()

"""How well do networks learn whose layers do not wait for the loss? The table of Jaderberg et al., with more methods.

    python examples/synthetic_gradients.py fashion-mnist --data-dir FOLDER --results runs.jsonl
    python examples/synthetic_gradients.py mnist --data-dir FOLDER --results runs.jsonl
    python examples/synthetic_gradients.py digits --results runs.jsonl
    python examples/synthetic_gradients.py --table runs.jsonl
    python examples/synthetic_gradients.py --picture synthetic_gradients.png runs.jsonl

Fully connected, 256 units, batch norm and ReLU behind every hidden layer, a cut in front of every layer but the first,
batches of 256, Adam, 2000 steps. Each method may choose among four settings, on the validation split of the first data
set in the results file, with a seed of its own, at 6 layers and 1000 steps; then seeds 0 to 4, and the test split is
read once. On digits it is the documented loop, ``DNI(net, optim=opt)``, with two hidden layers and nothing chosen.
Every run is one line of the results file; a run that is there is not made again. With ``--quick`` runs are short, and
go to a file of their own. What came out is in synthetic_gradients.md.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import linnet
from linnet.cli.data.data_sets import Data, load_data

WIDTH, BATCH, STEPS, DIGITS_STEPS = 256, 256, 2000, 800
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
        name: statistics.fmean(float(s[name]) for s in seen if name in s)
        for name in (seen[-1] if seen else ())
        if "cos" in name
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


def documented(method: str, data: Data, norm: bool, seed: int, steps: int) -> float:
    """The loop of the documentation, no setting chosen: two hidden layers of 128, batches of 64; the test error."""
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for features in (data.features, 128):
        modules += [nn.Linear(features, 128), *([nn.BatchNorm1d(128)] if norm else []), nn.ReLU()]
    net = nn.Sequential(*modules, nn.Linear(128, data.classes))
    net[:-1].requires_grad_(method != "no backprop")
    opt = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    model = linnet.DNI(net, optim=opt) if method == "DNI (Adam)" else net
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data.train.targets), (64,), generator=order)
        opt.zero_grad()
        output = model(data.train.inputs[rows])
        loss = F.cross_entropy(output, data.train.targets[rows])
        loss.backward()
        opt.step()
    return error(net, data.test)


class Results:
    """The runs in a file; those that are there are not made again.

    Args:
        path: of the file, a JSON object on each line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = read(path)

    def once(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        for line in self.lines:
            if all(line.get(name) == value for name, value in key.items()):
                return line
        line = key | make()
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        return line


def experiment(
    data: Data, results: Results, depths: Sequence[int], methods: Iterable[str], seeds: Iterable[int], steps: int
) -> None:
    for layers, method in itertools.product(depths, methods):
        tried = [
            results.once(tuning(method, setting), functools.partial(tune, data, method, setting, steps // 2))
            for setting in SETTINGS[method]
        ]
        chosen = min(tried, key=lambda line: line["val_error"])["setting"]
        for seed in seeds:
            key = {"kind": "run", "data": data.name, "method": method, "layers": layers, "seed": seed}
            results.once(key, functools.partial(run, data, method, layers, seed, chosen, steps))


def on_digits(results: Results, seeds: Iterable[int], steps: int) -> None:
    data = load_data("digits")
    for norm, method, seed in itertools.product((True, False), ("no backprop", "backprop", "DNI (Adam)"), seeds):
        name = data.name if norm else f"{data.name}, no norm layers"
        key = {"kind": "run", "data": name, "method": method, "layers": 2, "seed": seed}

        def make(method: str = method, norm: bool = norm, seed: int = seed) -> dict[str, Any]:
            start = time.process_time()
            found = documented(method, data, norm, seed, steps)
            return {"setting": {"lr": 1e-3}, "test_error": found, "cpu_seconds": time.process_time() - start}

        results.once(key, make)


def tuning(method: str, setting: dict[str, float]) -> dict[str, Any]:
    return {"kind": "tuning", "method": method, "setting": setting}


def tune(data: Data, method: str, setting: dict[str, float], steps: int) -> dict[str, Any]:
    net, seconds, _ = train(method, data, TUNING_LAYERS, TUNING_SEED, steps, **setting)
    return {"data": data.name, "val_error": error(net, data.val), "cpu_seconds": seconds}


def run(data: Data, method: str, layers: int, seed: int, setting: dict[str, float], steps: int) -> dict[str, Any]:
    net, seconds, cosines = train(method, data, layers, seed, steps, **setting)
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
        paper = PAPER.get((name, layers), {}).get(method.removesuffix(" (Adam)"), "–")
        rows.append(
            f"| {name} | {layers} | {method} | {statistics.fmean(errors):.2f}{spread} | "
            f"{', '.join(f'{e:.2f}' for e in errors)} | {statistics.fmean(r['cpu_seconds'] for r in cell):.0f} | "
            f"{setting} | {paper} |"
        )
    return "\n".join(rows)


def cosines(lines: list[dict[str, Any]]) -> str:
    """Markdown: mean over the seeds of the cosine of synthetic gradient and target, cut by cut from the bottom."""
    rows = ["| data | layers | method | cosine at each cut, from the bottom |", "|---|---|---|---|"]
    runs = [line for line in lines if line["kind"] == "run" and line.get("cosines")]
    for name, layers, method in dict.fromkeys((r["data"], r["layers"], r["method"]) for r in runs):
        cell = [
            list(r["cosines"].values()) for r in runs if (r["data"], r["layers"], r["method"]) == (name, layers, method)
        ]
        means = [statistics.fmean(values) for values in zip(*cell, strict=True)]
        rows.append(f"| {name} | {layers} | {method} | {' '.join(f'{mean:.2f}' for mean in means)} |")
    return "\n".join(rows)


def picture(lines: list[dict[str, Any]], path: Path) -> None:
    """The test error of every run, a panel for each data set and depth."""
    import matplotlib.pyplot as plt

    runs = [line for line in lines if line["kind"] == "run" and line["layers"] > 2]
    panels = sorted({(r["data"], r["layers"]) for r in runs})
    methods = [method for method in SETTINGS if any(r["method"] == method for r in runs)]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2), sharey=True, squeeze=False)
    for axis, (name, layers) in zip(axes[0], panels, strict=True):
        for place, method in enumerate(methods):
            errors = [r["test_error"] for r in runs if (r["data"], r["layers"], r["method"]) == (name, layers, method)]
            axis.plot(errors, [place] * len(errors), "o", alpha=0.6, markersize=5)
        axis.set(xscale="log", xlim=(1.5, 100), title=f"{name}, {layers} layers", xlabel="test error, %")
        axis.set_xticks(ticks := [2, 5, 10, 20, 50], [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_yticks(range(len(methods)), methods)
        axis.grid(alpha=0.3)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=["digits", "mnist", "fashion-mnist"])
    parser.add_argument("--data-dir", help="folder with the IDX files")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 3])
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="METHOD")
    parser.add_argument("--quick", action="store_true", help="20 steps and one seed")
    parser.add_argument("--results", type=Path, default=Path("synthetic_gradients.jsonl"))
    parser.add_argument("--table", type=Path, nargs="+", metavar="RESULTS", help="print the tables of results and stop")
    parser.add_argument("--picture", type=Path, nargs="+", metavar="FILE", help="draw results: the picture, then them")
    options = parser.parse_args(arguments)
    if options.table or options.picture:
        paths = options.table or options.picture[1:]
        lines = [line for path in paths for line in read(path)]
        if options.picture:
            picture(lines, options.picture[0])
        else:
            print(table(lines), cosines(lines), sep="\n\n")
        return
    if options.data is None:
        parser.error("a data set is needed")
    torch.set_num_threads(1)
    path = options.results.with_suffix(".quick.jsonl") if options.quick else options.results
    results, seeds = Results(path), SEEDS[:1] if options.quick else SEEDS
    if options.data == "digits":
        on_digits(results, seeds, 20 if options.quick else DIGITS_STEPS)
    else:
        data, steps = load_data(options.data, options.data_dir), 20 if options.quick else STEPS
        experiment(data, results, options.layers, options.methods, seeds, steps)


if __name__ == "__main__":
    main()

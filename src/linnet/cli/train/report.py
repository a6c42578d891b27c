"""What a run of ``linnet train`` found: the table, results.json, the pictures and report.html."""

import platform
import statistics
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from linnet.cli import report as html
from linnet.cli.progress import say, table
from linnet.cli.run_folder import seeds_of
from linnet.cli.train import pictures
from linnet.cli.train.cost import Cost
from linnet.cli.train.run import Run
from linnet.cli.train.settings import TRAINING
from linnet.cli.train.training import Fit
from linnet.core.measures import tolerance, violation

COLUMNS = ("layer", "in net", "parameters", "test %", "time", "memory", "violation")


def report(run: Run, fits: list[list[Fit]], costs: list[Cost]) -> None:
    """Write results.json, the pictures and report.html, and print what was found."""
    results = results_of(run, fits, costs)
    numbers = html.write_results(run.out / "results.json", results)
    drawn = pictures.draw(run, fits)
    data, layers = results["data"], results["layers"]
    about = f"{data['train']} samples to train, {data['val']} to validate, {data['test']} to test; "
    about += f"{data['features']} features, {data['classes']} classes"
    seeds = [
        (layer["layer"], seed["seed"], seed["best_epoch"], f"{100 * best:.1f}", f"{100 * seed['test_accuracy']:.1f}")
        for layer in layers
        for seed in layer["seeds"]
        for best in [seed["val_accuracy"][seed["best_epoch"] - 1]]
    ]
    meanings, notes = _legend(results)
    parts = [
        html.paragraph(about),
        html.table(COLUMNS, _rows(results)),
        html.table(("column", "what it says"), list(meanings.items())),
        *map(html.paragraph, notes),
        *map(html.picture, drawn),
        html.heading("Every seed"),
        html.table(("layer", "seed", "best epoch", "validation %", "test %"), seeds),
    ]
    command = html.command_of("train", run.settings, run.out)
    page = html.write_report(run.out, f"linnet train: {data['name']}", command, parts, numbers, run.settings)
    Console().print(table(COLUMNS, _rows(results), texts=1))
    legend = [f"{name:<10}  {meaning}" for name, meaning in meanings.items()] + notes
    files = ", ".join(path.name for path in (numbers, *drawn, page))
    say("\n".join(["", *legend, "", f"{run.out}: {files}"]))


def results_of(run: Run, fits: list[list[Fit]], costs: list[Cost]) -> dict[str, Any]:
    """Everything that a run found, ready for JSON: settings, versions, and for each layer the numbers of every seed."""
    layers = []
    for spec, members, cost in zip(run.specs, fits, costs, strict=True):
        net = members[0].net
        promise = getattr(spec.kind, "promise", "none")
        violations = [float(violation(member.net)) for member in members]
        dtype = next(net.parameters()).dtype
        layers.append(
            {
                "layer": spec.text,
                "class": spec.class_name,
                "options": spec.options,
                "promise": promise,
                "hard": getattr(spec.kind, "hard", True),
                "carriers": net.carriers,
                "depth": run.settings.depth,
                "beings": spec.beings,
                "parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
                "test_accuracy": _summary([member.test_accuracy for member in members]),
                "best_val_accuracy": _summary([max(member.val_accuracy) for member in members]),
                "step_time": {"ratio": cost.ratio, "median_seconds": cost.seconds, "steps_timed": cost.rounds},
                "peak_memory_bytes": cost.peak_bytes,
                "violation": {
                    "max": max(violations),
                    "per_seed": violations,
                    "tolerance": tolerance(dtype),
                    "holds": max(violations) <= tolerance(dtype),
                },
                "seeds": [
                    {
                        "seed": seed,
                        "best_epoch": member.best_epoch,
                        "test_accuracy": member.test_accuracy,
                        "train_loss": member.train_loss,
                        "val_accuracy": member.val_accuracy,
                        "weights": run.path(spec, seed).relative_to(run.out).as_posix(),
                    }
                    for seed, member in zip(seeds_of(run.settings), members, strict=True)
                ],
            }
        )
    data = run.data
    return {
        "settings": asdict(run.settings),
        "data": {
            "name": data.name,
            "sha256": data.fingerprint,
            "classes": data.classes,
            "features": data.features,
            "labels": list(data.labels),
            **{name: len(getattr(data, name).targets) for name in ("train", "val", "test")},
        },
        "layers": layers,
        "versions": html.versions(),
        "machine": {"device": _device_name(run), "platform": platform.platform()},
    }


def _rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            layer["layer"],
            f"{layer['carriers']}/{layer['depth']}",
            f"{layer['parameters']:,}",
            _percent(layer["test_accuracy"]),
            f"×{layer['step_time']['ratio']:.2f}",
            _bytes(layer["peak_memory_bytes"]),
            _verdict(layer),
        )
        for layer in results["layers"]
    ]


def _legend(results: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What the columns of the table mean, and what else there is to say."""
    settings = results["settings"]
    seeds, decouple = settings["seeds"], settings["decouple"]
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed (--seeds k for a spread)"
    meanings = {
        "in net": "how many of the network's layers are of this kind; the others are linear",
        "test %": f"accuracy, {spread}; weights chosen on the validation split",
        "time": "of a training step, nn.Linear in the same network = 1, measured in turn",
        "memory": "peak of a training step, without the batch",
    }
    if any(layer["promise"] != "none" for layer in results["layers"]):
        meanings["violation"] = "distance from the promise after training; ok: within rounding"
    if any(layer["beings"] for layer in results["layers"]):
        meanings["beings=n"] = "n networks trained at once; accuracy is the mean over them, the rest is for all n"
    if decouple == "none":
        return meanings, []
    return meanings, [f"All networks, including the nn.Linear one, were trained with {TRAINING[decouple]}."]


def _verdict(layer: dict[str, Any]) -> str:
    if layer["promise"] == "none":
        return "–"
    found = layer["violation"]
    verdict = "ok" if found["holds"] else ("BROKEN" if layer["hard"] else "soft")
    return f"{found['max']:.0e} {verdict}" if found["max"] else f"0 {verdict}"


def _percent(summary: dict[str, Any]) -> str:
    mean = f"{100 * summary['mean']:.1f}"
    return mean if summary["std"] is None else f"{mean} ± {100 * summary['std']:.1f}"


def _summary(values: list[Any]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def _device_name(run: Run) -> str:
    device = run.settings.torch_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

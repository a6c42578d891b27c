"""What a run of ``linnet train`` found: the table, results.json and report.html."""

import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from linnet.checkpoint import replacing
from linnet.cli import report as html
from linnet.cli.train.cost import Cost
from linnet.cli.train.settings import DECOUPLED, seeds_of
from linnet.cli.train.training import Fit, Run
from linnet.core.measures import tolerance, violation

__all__ = ["legend", "results_of", "table_of", "write_report", "write_results"]

COLUMNS = ("layer", "in net", "parameters", "test %", "time", "memory", "violation")


def results_of(run: Run, fits: list[list[Fit]], costs: list[Cost]) -> dict[str, Any]:
    """Everything that a run found, ready for JSON: settings, versions, and for each layer the numbers of every seed.

    Args:
        run: the run.
        fits: for each layer, one for each seed.
        costs: for each layer.
    """
    layers = []
    for spec, members, cost in zip(run.specs, fits, costs, strict=True):
        net = members[0].net
        promise = getattr(spec.kind, "promise", "none")
        violations = [float(violation(member.net)) for member in members]
        dtype = next(net.parameters()).dtype
        layers.append(
            {
                "layer": spec.text,
                "class": f"{spec.kind.__module__}.{spec.kind.__qualname__}",
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


def write_results(results: dict[str, Any], out: Path) -> Path:
    """results.json, strict JSON: a number that is not finite becomes null."""
    path = out / "results.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(results), indent=1, allow_nan=False) + "\n")
    return path


def table_of(results: dict[str, Any]) -> Table:
    """One line for each layer, at most 80 columns wide."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(COLUMNS[0], overflow="fold")
    for title in COLUMNS[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for row in _rows(results):
        table.add_row(*map(escape, row))
    return table


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


def write_report(run: Run, results: dict[str, Any], numbers: Path, pictures: Sequence[Path]) -> Path:
    """report.html: all of it on one page.

    Args:
        run: the run.
        results: what it found.
        numbers: the file that they are in.
        pictures: of the run.
    """
    data = results["data"]
    about = f"{data['train']} samples to train, {data['val']} to validate, {data['test']} to test; "
    about += f"{data['features']} features, {data['classes']} classes"
    seeds = [
        (layer["layer"], seed["seed"], seed["best_epoch"], f"{100 * best:.1f}", f"{100 * seed['test_accuracy']:.1f}")
        for layer in results["layers"]
        for seed in layer["seeds"]
        for best in [seed["val_accuracy"][seed["best_epoch"] - 1]]
    ]
    notes = [line.partition("  ")[::2] for line in legend(results).splitlines()]
    parts = [
        html.paragraph(about),
        html.table(COLUMNS, _rows(results)),
        html.table(("column", "what it says"), [(name, meaning.strip()) for name, meaning in notes if meaning]),
        *(html.paragraph(text) for text, meaning in notes if not meaning),
        *map(html.picture, pictures),
        html.heading("Every seed"),
        html.table(("layer", "seed", "best epoch", "validation %", "test %"), seeds),
        html.heading("How to do it again"),
        html.settings_of(run.settings),
        html.folded(f"Every number: {numbers.name}", numbers.read_text()),
    ]
    command = html.command_of("train", run.settings, run.out)
    return html.write_page(run.out, f"linnet train: {run.data.name}", command, parts)


def legend(results: dict[str, Any]) -> str:
    """What the columns of the table mean."""
    settings = results["settings"]
    seeds = settings["seeds"]
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed (--seeds k for a spread)"
    lines = [
        "in net      how many of the network's layers are of this kind; the others are linear",
        f"test %      accuracy, {spread}; weights chosen on the validation split",
        "time        of a training step, nn.Linear in the same network = 1, measured in turn",
        "memory      highest point of a training step, without the batch",
    ]
    if any(layer["promise"] != "none" for layer in results["layers"]):
        lines.append("violation   distance from the promise after training; ok: within rounding")
    if any(layer["beings"] for layer in results["layers"]):
        lines.append("beings=n    n networks trained at once; accuracy is the mean over them, the rest is for all n")
    if settings["decouple"] != "none":
        lines.append(f"All networks, that of nn.Linear too, were trained with {DECOUPLED[settings['decouple']]}.")
    return "\n".join(lines)


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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _device_name(run: Run) -> str:
    device = run.settings.torch_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

"""Training: one network for each kind of layer and seed; it can be interrupted at any moment."""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from linnet import checkpoint
from linnet.cli.data.data_sets import Split
from linnet.cli.progress import Progress
from linnet.cli.run_folder import resume_settings, seeds_of
from linnet.cli.torchrun import ALONE, Workers
from linnet.cli.train.layer_spec import LayerSpec
from linnet.cli.train.run import Run, open_run
from linnet.cli.train.settings import Settings
from linnet.core.measures import penalty
from linnet.decoupled.dni import DNI
from linnet.modules.blocks import MLP

_EVALUATION_BATCH = 2048

Watch = Callable[[LayerSpec, int, int, float], None]
"""Called as (layer, seed, epochs done, validation accuracy)."""


@dataclass
class Fit:
    """One network, trained: the weights are those of the best epoch. The lists have an entry for each epoch."""

    net: MLP
    train_loss: list[float] = field(default_factory=list)  # cross-entropy, the mean over batches and beings
    val_accuracy: list[float] = field(default_factory=list)
    test_accuracy: float | None = None  # of ``net``; None while it is being trained
    # what DNI.diagnostics() says, the mean over every tenth batch
    synthesizers: list[dict[str, float]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, of the highest validation accuracy, the first on ties; 0 before the first."""
        return self.val_accuracy.index(max(self.val_accuracy)) + 1 if self.val_accuracy else 0


def fit_all(run: Run, workers: Workers = ALONE) -> list[list[Fit]]:
    """Train the networks of a run: a list for each kind of layer, with one network for each seed."""
    settings = run.settings
    totals = dict.fromkeys(settings.layers, settings.seeds * settings.epochs)
    with Progress(totals, quiet=not workers.first) as progress:

        def watch(spec: LayerSpec, seed: int, epochs: int, val_accuracy: float) -> None:
            state = f"seed {seed}  validation {100 * val_accuracy:5.1f} %"
            line = f"{spec.text}  {state}" if epochs == settings.epochs else ""
            progress.show(spec.text, (seed - settings.seed) * settings.epochs + epochs, state, line=line)

        return [[fit(run, spec, seed, watch, workers) for seed in seeds_of(settings)] for spec in run.specs]


def work(out: str, workers: Workers) -> None:
    """What each worker of ``linnet train --nproc`` does."""
    run = open_run(resume_settings(Settings, out), out, resume=True)
    dist.barrier()  # nobody saves while somebody still clears what a killed save has left
    fit_all(run, workers)


def fit(run: Run, spec: LayerSpec, seed: int, watch: Watch | None = None, workers: Workers = ALONE) -> Fit:
    """Train one network, from the last completed epoch if there is one, and read its test accuracy once.

    After each epoch everything that is needed to resume is written to ``run.path(spec, seed)``.

    The workers share the batches, and the first of them writes.
    """
    settings, path = run.settings, run.path(spec, seed)
    device = settings.torch_device()
    net = run.build(spec, seed)
    result = Fit(net)
    best: dict[str, Tensor] = {}
    model, optimizer = run.trainable(net, spec)
    if path.exists():
        extra = checkpoint.info(path).extra
        if extra["test_accuracy"] is not None:
            checkpoint.load(path, into=net, rng=False)
            return Fit(net, **extra)
        extra = checkpoint.load(path, into=model, optimizer=optimizer).extra
        best = extra.pop("best")
        result = Fit(net, **extra)
        if watch:
            watch(spec, seed, len(result.val_accuracy), result.val_accuracy[-1])
    parallel = workers.wrap(model)
    train, val = run.data.train.to(device), run.data.val.to(device)
    # Every worker draws the same order, from the same seed, and takes its own part of each batch.
    for epoch in range(len(result.val_accuracy) + 1, settings.epochs + 1):
        model.train()
        total = torch.zeros((), device=device)
        seen: list[dict[str, Tensor]] = []
        for i, rows in enumerate(torch.randperm(len(train.targets)).to(device).split(settings.batch_size)):
            own = workers.own(rows)
            weight = workers.weight(own, rows)
            total += training_step(parallel, optimizer, train.inputs[own], train.targets[own], spec, weight) * len(own)
            if isinstance(model, DNI) and i % 10 == 9:
                seen.append(model.diagnostics())
        if seen and seen[-1]:
            result.synthesizers.append(
                {name: statistics.fmean(float(point[name]) for point in seen if name in point) for name in seen[-1]}
            )
        result.train_loss.append(workers.total(total).item() / len(train.targets))
        result.val_accuracy.append(accuracy(net, val, spec))
        if result.best_epoch == epoch:
            best = {key: value.detach().clone() for key, value in net.state_dict().items()}
        extra = _plain(result) | {"best": best}
        if workers.first:
            checkpoint.save(model, path, optimizer=optimizer, step=epoch, extra=extra)
        if watch:
            watch(spec, seed, epoch, result.val_accuracy[-1])
    net.load_state_dict(best)
    result.test_accuracy = accuracy(net, run.data.test.to(device), spec)
    if workers.first:
        checkpoint.save(net, path, step=result.best_epoch, rng=False, extra=_plain(result))
    return result


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    spec: LayerSpec,
    weight: float = 1.0,
) -> Tensor:
    """One step, in which the cross-entropy counts ``weight``; returns it, for a population the mean over its beings."""
    optimizer.zero_grad()
    context = model.context(targets) if isinstance(model, DNI) and model.conditioned else nullcontext()
    with context:
        output = model(spec.batch(inputs))
    loss = spec.loss(output, targets) if len(targets) else output.sum()  # of nothing: a share can be empty
    (weight * loss + penalty(model)).backward()
    optimizer.step()
    return loss.detach() / (spec.beings or 1)


@torch.no_grad()
def accuracy(net: nn.Module, split: Split, spec: LayerSpec) -> float:
    """The share of samples that are classified right, for a population the mean over its beings."""
    net.eval()
    right = 0
    for inputs, targets in zip(*(tensor.split(_EVALUATION_BATCH) for tensor in split), strict=True):
        classes = net(spec.batch(inputs)).argmax(-1)
        right += int((classes == (targets if spec.beings is None else targets.unsqueeze(1))).sum())
    return right / (len(split.targets) * (spec.beings or 1))


def _plain(result: Fit) -> dict[str, Any]:
    return {name: value for name, value in vars(result).items() if name != "net"}

"""The main job: the same network with each kind of layer, trained on real data; it can be interrupted at any moment."""

import os
import random
import re
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet import checkpoint
from linnet.cli.data.data_sets import Data, Split, load_data
from linnet.cli.run_folder import check_new, clear_left_overs, read_record, writable, write_record
from linnet.cli.torchrun import ALONE, Replicas
from linnet.cli.train.settings import LayerSpec, Settings, differences, seeds_of
from linnet.core.measures import penalty
from linnet.decoupled.dni import DNI
from linnet.decoupled.sources.direct_feedback import DirectFeedback
from linnet.decoupled.sources.local_loss import LocalLoss
from linnet.decoupled.sources.source import Source
from linnet.decoupled.sources.synthetic import Synthetic
from linnet.modules.blocks import MLP
from linnet.wide.losses import per_being

__all__ = ["Fit", "Run", "accuracy", "fit", "prepare", "trainable", "training_step"]

_EVALUATION_BATCH = 2048

Watch = Callable[[LayerSpec, int, int, float], None]
"""Called as (layer, seed, epochs done, validation accuracy)."""


@dataclass(frozen=True)
class Run:
    """A run that may start: all that it was given has been checked, and its folder is ready.

    Attributes:
        settings: what to do.
        specs: the kinds of layer.
        data: the data set.
        out: the run's folder.
    """

    settings: Settings
    specs: list[LayerSpec]
    data: Data
    out: Path

    def build(self, spec: LayerSpec, seed: int) -> MLP:
        """The network of a layer and a seed as it is before training."""
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        return _build(self.settings, spec, self.data)

    def path(self, spec: LayerSpec, seed: int) -> Path:
        """The checkpoint of a layer and a seed: the last completed epoch, and in the end the chosen weights."""
        slug = re.sub(r"[^A-Za-z0-9.=_-]+", "-", spec.text)[:100]
        return self.out / "nets" / f"{self.settings.layers.index(spec.text):02d}-{slug}-seed{seed}.safetensors"


@dataclass
class Fit:
    """One network, trained: the weights are those of the best epoch.

    Attributes:
        net: the network.
        train_loss: cross-entropy of each epoch, the mean over its batches (and over the beings).
        val_accuracy: of each epoch.
        test_accuracy: of ``net``; None while it is being trained.
        synthesizers: of each epoch, what ``DNI.diagnostics()`` says, the mean over every tenth of its batches.
    """

    net: MLP
    train_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    test_accuracy: float | None = None
    synthesizers: list[dict[str, float]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, of the highest validation accuracy, the first on ties; 0 before the first."""
        return self.val_accuracy.index(max(self.val_accuracy)) + 1 if self.val_accuracy else 0


def prepare(settings: Settings, out: str | os.PathLike[str], *, resume: bool = False) -> Run:
    """Check everything that can be wrong and make the run's folder, or find the one to resume.

    Sets the number of torch's threads for the process.

    Args:
        settings: what to do.
        out: folder of the run; new or empty, unless ``resume``.
        resume: go on with the run in ``out``, whose settings and data must be the same.

    Raises:
        ValueError: data, layers or folder are not what they must be.
    """
    torch.set_num_threads(settings.threads)
    data = load_data(settings.data, settings.data_dir, target=settings.target)
    specs = settings.specs()
    run = Run(settings, specs, data, Path(out))
    for spec in specs:
        net = _build(settings, spec, data)
        if not list(net.parameters()):
            raise ValueError(f"A network to train must have parameters, got it has none with {spec.text}")
        trainable(net, run, spec)
    if resume:
        if different := differences(settings, resumed_settings(out)):
            raise ValueError(f"A run is resumed with its own settings, got {'; '.join(different)} as in {out}")
        if read_record(run.out)["data_sha256"] != data.fingerprint:
            raise ValueError(f"A run is resumed on its own data, got {settings.data} differs from that of {out}")
        clear_left_overs(run.out)
        clear_left_overs(run.out / "nets")
        for path in (run.path(spec, seed) for spec in specs for seed in seeds_of(settings)):
            if path.exists():
                checkpoint.info(path)
        (run.out / "nets").mkdir(exist_ok=True)
        return run
    with writable(out):
        check_new(run.out)
        write_record(run.out, settings, data.fingerprint)
        (run.out / "nets").mkdir()
        # what a net of this run needs to judge something new
        about = {"mean": data.mean, "std": data.std, "labels": list(data.labels) or list(range(data.classes))}
        checkpoint.save(nn.Identity(), run.out / "data.safetensors", rng=False, extra=about)
    return run


def resumed_settings(out: str | os.PathLike[str]) -> Settings:
    """The settings of the run in a folder.

    Raises:
        ValueError: there is none, or its record is damaged.
    """
    record = read_record(Path(out))
    try:
        return Settings(**record["settings"] | {"layers": tuple(record["settings"]["layers"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"The record of a run must be whole, got {out}/run.json is not ({error})") from error


def fit(run: Run, spec: LayerSpec, seed: int, watch: Watch | None = None, replicas: Replicas = ALONE) -> Fit:
    """Train one network, from the last completed epoch if there is one, and read its test accuracy once.

    After each epoch everything that is needed to go on is written to ``run.path(spec, seed)``.

    Args:
        run: the run.
        spec: the kind of layer.
        seed: of the network, and of the order of the samples.
        watch: told of each epoch.
        replicas: the processes that share the batches; the first of them writes.
    """
    settings, path = run.settings, run.path(spec, seed)
    device = settings.torch_device()
    net = run.build(spec, seed)
    result = Fit(net)
    best: dict[str, Tensor] = {}
    model, optimizer = trainable(net, run, spec)
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
    replica = replicas.wrap(model)
    train, val = (Split(*(t.to(device) for t in split)) for split in (run.data.train, run.data.val))
    for epoch in range(len(result.val_accuracy) + 1, settings.epochs + 1):
        model.train()
        total = torch.zeros((), device=device)
        seen: list[dict[str, Tensor]] = []
        for i, rows in enumerate(torch.randperm(len(train.targets)).to(device).split(settings.batch_size)):
            own = replicas.own(rows)
            weight = replicas.weight(own, rows)
            total += training_step(replica, optimizer, train.inputs[own], train.targets[own], spec, weight) * len(own)
            if isinstance(model, DNI) and i % 10 == 9:
                seen.append(model.diagnostics())
        if seen and seen[-1]:
            result.synthesizers.append(
                {name: statistics.fmean(float(point[name]) for point in seen if name in point) for name in seen[-1]}
            )
        result.train_loss.append(replicas.total(total).item() / len(train.targets))
        result.val_accuracy.append(accuracy(net, val, spec))
        if result.best_epoch == epoch:
            best = {key: value.detach().clone() for key, value in net.state_dict().items()}
        extra = _plain(result) | {"best": best}
        if replicas.first:
            checkpoint.save(model, path, optimizer=optimizer, step=epoch, extra=extra)
        if watch:
            watch(spec, seed, epoch, result.val_accuracy[-1])
    net.load_state_dict(best)
    result.test_accuracy = accuracy(net, Split(*(t.to(device) for t in run.data.test)), spec)
    if replicas.first:
        checkpoint.save(net, path, step=result.best_epoch, rng=False, extra=_plain(result))
    return result


def trainable(net: MLP, run: Run, spec: LayerSpec) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The module to train, which is the net itself or the net under synthetic gradients, and the net's optimizer."""
    optimizer = torch.optim.Adam(net.parameters(), lr=run.settings.lr)
    if run.settings.decouple == "none":
        return net, optimizer
    example = _for_beings(run.data.train.inputs[:1].to(run.settings.torch_device()), spec)
    gradient = _source(run.settings.decouple, run.data.classes, spec)
    return DNI(net, optim=optimizer, gradient=gradient, example=example), optimizer


def _source(kind: str, classes: int, spec: LayerSpec) -> Source:
    if kind == "local":
        return LocalLoss(partial(_loss, spec=spec), classes)
    if kind == "dfa":
        return DirectFeedback()
    return Synthetic(context=classes if kind == "cdni" else None)


def _loss(output: Tensor, targets: Tensor, spec: LayerSpec) -> Tensor:
    """Cross-entropy, for a population the sum over its beings."""
    if spec.beings is None:
        return F.cross_entropy(output, targets)
    return per_being(F.cross_entropy)(output, targets).sum()


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
    told = model.context(targets) if isinstance(model, DNI) and model.conditioned else nullcontext()
    with told:
        output = model(_for_beings(inputs, spec))
    loss = _loss(output, targets, spec) if len(targets) else output.sum()  # of nothing: a share can be empty
    (weight * loss + penalty(model)).backward()
    optimizer.step()
    return loss.detach() / (spec.beings or 1)


@torch.no_grad()
def accuracy(net: nn.Module, split: Split, spec: LayerSpec) -> float:
    """The share of samples that are classified right, for a population the mean over its beings."""
    net.eval()
    right = 0
    for inputs, targets in zip(*(tensor.split(_EVALUATION_BATCH) for tensor in split), strict=True):
        found = net(_for_beings(inputs, spec)).argmax(-1)
        right += int((found == (targets if spec.beings is None else targets.unsqueeze(1))).sum())
    return right / (len(split.targets) * (spec.beings or 1))


def _for_beings(inputs: Tensor, spec: LayerSpec) -> Tensor:
    """(batch, features) -> what the net takes; to a population one batch for all."""
    return inputs if spec.beings is None else inputs.unsqueeze(1)


def _build(settings: Settings, spec: LayerSpec, data: Data) -> MLP:
    return spec.build(data.features, settings.hidden, data.classes, settings.depth, settings.torch_device())


def _plain(result: Fit) -> dict[str, Any]:
    return {name: value for name, value in vars(result).items() if name != "net"}

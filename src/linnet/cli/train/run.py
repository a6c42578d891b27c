"""A run of ``linnet train``: all that it needs is checked, and its folder is opened, before the first step."""

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from linnet import checkpoint
from linnet.cli.data.data_sets import Data, load_data
from linnet.cli.run_folder import open_folder, seeds_of, write_record
from linnet.cli.train.layer_spec import LayerSpec
from linnet.cli.train.settings import Settings
from linnet.decoupled.dni import DNI
from linnet.decoupled.sources.direct_feedback import DirectFeedback
from linnet.decoupled.sources.local_loss import LocalLoss
from linnet.decoupled.sources.source import Source
from linnet.decoupled.sources.synthetic import Synthetic
from linnet.modules.blocks import MLP


@dataclass(frozen=True)
class Run:
    """A run that may start: all that it was given has been checked, and its folder is ready."""

    settings: Settings
    specs: list[LayerSpec]
    data: Data
    out: Path

    def build(self, spec: LayerSpec, seed: int) -> MLP:
        """The network of a layer and a seed as it is before training."""
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        settings = self.settings
        return spec.build(
            self.data.features, settings.hidden, self.data.classes, settings.depth, settings.torch_device()
        )

    def trainable(self, net: MLP, spec: LayerSpec) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The module to train, which is the network or, decoupled, a DNI of it, and the network's optimizer."""
        optimizer = torch.optim.Adam(net.parameters(), lr=self.settings.lr)
        if self.settings.decouple == "none":
            return net, optimizer
        example = spec.batch(self.data.train.inputs[:1].to(self.settings.torch_device()))
        return DNI(net, optim=optimizer, gradient=self._source(spec), example=example), optimizer

    def _source(self, spec: LayerSpec) -> Source:
        """Where the gradients at the cuts come from."""
        classes, kind = self.data.classes, self.settings.decouple
        if kind == "local":
            return LocalLoss(spec.loss, classes)
        if kind == "dfa":
            return DirectFeedback()
        return Synthetic(context=classes if kind == "cdni" else None)

    def path(self, spec: LayerSpec, seed: int) -> Path:
        """The checkpoint of a layer and a seed: the last completed epoch, and in the end the chosen weights."""
        slug = re.sub(r"[^A-Za-z0-9.=_-]+", "-", spec.text)[:100]
        return self.out / "nets" / f"{self.settings.layers.index(spec.text):02d}-{slug}-seed{seed}.safetensors"


def open_run(settings: Settings, out: str | os.PathLike[str], *, resume: bool = False) -> Run:
    """A new run in a new or empty folder, or the one in it, once everything that can be wrong is checked.

    Raises:
        ValueError: data, layers or folder are not what they must be.
    """
    torch.set_num_threads(settings.threads)
    data = load_data(settings.data, settings.data_dir, target=settings.target)
    run = Run(settings, settings.specs(), data, Path(out))
    for spec in run.specs:
        try:
            net = run.build(spec, settings.seed)
            if not list(net.parameters()):
                raise ValueError("a network to train must have parameters, got none")
            run.trainable(net, spec)
        except ValueError as error:
            decoupled = "" if settings.decouple == "none" else f" with `decouple` {settings.decouple}"
            raise ValueError(f"layer {spec.text}{decoupled}: {error}") from error
    open_folder(
        settings,
        out,
        resume=resume,
        source=settings.data,
        data_sha256=data.fingerprint,
        checkpoints=[run.path(spec, seed) for spec in run.specs for seed in seeds_of(settings)],
    )
    (run.out / "nets").mkdir(exist_ok=True)
    if not resume:
        write_record(run.out, settings, data.fingerprint)
        # what a net of this run needs to judge something new
        about = {"mean": data.mean, "std": data.std, "labels": list(data.labels) or list(range(data.classes))}
        checkpoint.save(nn.Identity(), run.out / "data.safetensors", rng=False, extra=about)
    return run

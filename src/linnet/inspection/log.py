"""log: write measurements of a model in training to TensorBoard, or to any writer with ``add_scalar``."""

from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.core.measures import judges, penalty
from linnet.decoupled import DNI
from linnet.sparse import KWinners, SparseLinear
from linnet.sparse.csr import among

LARGEST_SPECTRUM = 512
"""The largest size of a map whose singular values are logged."""


class Writer(Protocol):
    """The interface of a writer, such as ``torch.utils.tensorboard.SummaryWriter``; ``add_histogram`` is optional."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


@torch.no_grad()
def log(model: nn.Module, writer: Writer, step: int, *, fitness: Tensor | None = None) -> dict[str, float]:
    """Log penalties, violations, spectra, sparsity, the quality of synthetic gradients, and fitness of a model.

    Scalars: ``penalty`` of the model; for each map ``violation/<name>``, the largest of its beings; for each sparse
    layer ``density/<name>``, and ``moved/<name>``, the share of connections that are new since the last call with this
    writer; for each KWinners ``entropy/<name>``, the entropy of its duty cycle divided by the largest possible one; for
    each DNI ``cosine/<cut>``, ``norm_ratio/<cut>`` and ``loss/<cut>``; and ``fitness/best``, ``mean`` and ``worst``.
    Histograms, if the writer has ``add_histogram``: ``spectrum/<name>``, the singular values of maps up to 512 × 512;
    ``duty_cycle/<name>``; ``fitness``.

    Args:
        model: any module.
        writer: a ``SummaryWriter``, or any object with ``add_scalar(tag, value, step)``.
        step: the training step.
        fitness: fitness of the beings of a population, (beings,), higher is better.

    Returns:
        A dict from tags to scalars.

    Raises:
        TypeError: the writer has no ``add_scalar``.
        ValueError: fitness is not of shape (beings,).

    Example:
        >>> from linnet import OrthogonalLinear
        >>> class Memory(dict):
        ...     def add_scalar(self, tag, value, step):
        ...         self[tag] = value
        >>> memory = Memory()
        >>> found = log(nn.Sequential(OrthogonalLinear(4, 4)), memory, step=0)
        >>> sorted(memory), found == memory
        (['penalty', 'violation/0'], True)
    """
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(f"writer must have add_scalar(tag, value, step), got {writer!r}")
    scalars: dict[str, float] = {}
    histograms: dict[str, Tensor] = {}
    if any(callable(getattr(module, "penalty", None)) for module in model.modules()):
        scalars["penalty"] = float(penalty(model))
    judging = set(judges(model))  # without the maps inside a widened module, whose tensors have the beings in front
    for name, module in model.named_modules():
        label = name or type(module).__name__
        if isinstance(module, LinearMap) and module in judging:
            _of_map(module, label, scalars, histograms)
        if isinstance(module, SparseLinear):
            scalars[f"density/{label}"] = module.nnz / (module.in_features * module.out_features)
            if (moved := _moved(writer, module)) is not None:
                scalars[f"moved/{label}"] = moved
        if isinstance(module, KWinners) and module.duty_cycle.numel():
            histograms[f"duty_cycle/{label}"] = module.duty_cycle
            if most := module.max_entropy():
                scalars[f"entropy/{label}"] = float(module.entropy().mean()) / most
        if isinstance(module, DNI):
            prefix = f"{name}/" if name else ""
            scalars |= {f"{prefix}{tag}": float(value) for tag, value in module.diagnostics().items()}
    if fitness is not None:
        if fitness.dim() != 1 or not len(fitness):
            raise ValueError(f"fitness must have shape (beings,), got {tuple(fitness.shape)}")
        found = {"best": fitness.max(), "mean": fitness.mean(), "worst": fitness.min()}
        scalars |= {f"fitness/{which}": float(value) for which, value in found.items()}
        histograms["fitness"] = fitness
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, step)
    add_histogram = getattr(writer, "add_histogram", None)
    if add_histogram is not None:
        for tag, values in histograms.items():
            add_histogram(tag, values.detach().float().cpu().numpy(), step)
    return scalars


def _of_map(module: LinearMap, label: str, scalars: dict[str, float], histograms: dict[str, Tensor]) -> None:
    if module.promise != "none":
        scalars[f"violation/{label}"] = float(module.violation().max())
    small = max(module.in_features, module.out_features) <= LARGEST_SPECTRUM
    if small and (values := module.svdvals()).isfinite().all():
        histograms[f"spectrum/{label}"] = values.flatten()


_SEEN = "_linnet_connections"


def _moved(writer: Any, layer: SparseLinear) -> float | None:
    """The share of connections that are new since the last call with this writer; None at the first, and if static."""
    if layer.rule is None:
        return None
    seen = writer.__dict__.setdefault(_SEEN, WeakKeyDictionary()) if hasattr(writer, "__dict__") else {}
    cells = layer.cells()
    before, seen[layer] = seen.get(layer), cells
    if before is None or not cells.numel():
        return None
    rows = zip(cells.reshape(-1, cells.shape[-1]), before.reshape(-1, before.shape[-1]), strict=True)
    return 1 - float(torch.stack([among(now, then)[0].double().mean() for now, then in rows]).mean())

"""What a training step costs: time beside nn.Linear, and memory."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from linnet.cli.train.layer_spec import LayerSpec
from linnet.cli.train.run import Run
from linnet.cli.train.training import training_step

PLAIN = LayerSpec("nn.Linear", nn.Linear, {})
_WARM_UP = 3
_SECONDS = 4.0
_ROUNDS = (15, 200)


@dataclass(frozen=True)
class Cost:
    """What one training step costs."""

    seconds: float  # median time of a step
    ratio: float  # that time, divided by the one of the same network made of nn.Linear, measured in turn with it
    rounds: int  # how many steps were timed
    peak_bytes: int  # see :func:`peak_memory`


def measure(run: Run) -> list[Cost]:
    """The cost of a training step with each kind of layer, on networks built afresh.

    In each round every kind takes one step in turn, nn.Linear first, so that whatever slows the machine down slows all
    of them. The batch is the first of the training data.
    """
    settings = run.settings
    device = settings.torch_device()
    inputs, targets = (tensor[: settings.batch_size].to(device) for tensor in run.data.train)
    trained = [run.trainable(run.build(spec, settings.seed), spec) for spec in [PLAIN, *run.specs]]
    steps: list[Callable[[], object]] = [
        partial(training_step, model.train(), optimizer, inputs, targets, spec)
        for spec, (model, optimizer) in zip([PLAIN, *run.specs], trained, strict=True)
    ]
    for step in steps * _WARM_UP:
        step()
    once = sum(_timed(step, device) for step in steps)
    rounds = min(max(_ROUNDS[0], int(_SECONDS / once)), _ROUNDS[1])
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, taken in zip(steps, seconds, strict=True):
            taken.append(_timed(step, device))
    plain, *others = (statistics.median(taken) for taken in seconds)
    peaks = [peak_memory(*pair, step) for pair, step in zip(trained[1:], steps[1:], strict=True)]
    return [Cost(median, median / plain, rounds, peak) for median, peak in zip(others, peaks, strict=True)]


def peak_memory(model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[], object]) -> int:
    """Bytes of tensors at the highest point of one training step.

    Counted is what torch's allocator hands out: the parameters, buffers and optimizer state that are there before, and
    all that the step allocates: gradients, activations, temporaries. Not counted: the batch itself, and what libraries
    take for themselves. The same step gives the same number. The optimizer should have made a step, so that its state
    is there.
    """
    optimizer.zero_grad()  # gradients count as part of the step
    owned = [thing for module in model.modules() for thing in vars(module).values()]  # a synthesizer's, say
    optimizers = [optimizer, *(thing for thing in owned if isinstance(thing, torch.optim.Optimizer))]
    values = [value for each in optimizers for state in each.state.values() for value in state.values()]
    states = [value for value in values if isinstance(value, Tensor)]
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage() for t in (*model.parameters(), *model.buffers(), *states)
    }
    before = sum(storage.nbytes() for storage in held.values())
    device = next(model.parameters()).device
    if device.type == "cuda":
        start = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return before + torch.cuda.max_memory_allocated(device) - start
    with _stderr_shut(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return before + peak


def _timed(step: Callable[[], object], device: torch.device) -> float:
    _settle(device)
    start = time.perf_counter()
    step()
    _settle(device)
    return time.perf_counter() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _stderr_shut() -> Iterator[None]:
    """torch 2.13's profiler writes two lines to file descriptor 2 that no setting silences (pytorch/kineto#1325)."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

"""Pipeline: the stages of a network in several processes, none of which waits for a gradient."""

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet import checkpoint
from linnet.checkpoint.matching import undone_on_error
from linnet.core.checks import check_positive
from linnet.decoupled.engine.hooks import build_source, on_device_of
from linnet.decoupled.engine.owned_optimizer import OptimizerFactory
from linnet.decoupled.engine.places import image_axes
from linnet.decoupled.pipeline.links import END, Failure, Inbox, Message, Outbox
from linnet.decoupled.sources.source import Source
from linnet.decoupled.sources.synthetic import Synthetic
from linnet.distributed.processes import agreeing, gathered

KIND = "stages"
Batches = Iterable[tuple[Tensor, Tensor]]


class Pipeline:
    """Each stage of a network in its own process: activations pass through a queue, gradients return asynchronously.

    Every process runs the same program, started by ``torchrun``. A stage takes the next activations, gets its gradient
    from its source at once, steps, and sends its output to the next stage. The stage above sends the gradient of every
    batch, or of one in ``feedback`` batches, back; when it arrives, the source learns from it and from the activations
    of that batch. With more processes than stages, several processes train each stage on different batches
    (DistributedDataParallel): ranks 0 to r−1 hold the first stage, the next r the second, and rank i of each stage
    exchanges tensors with rank i of its neighbours. Tensors are sent through the CPU (gloo).

    Args:
        stages: the stages, the same in all processes; each process trains one. A stage may be a function without
            arguments that builds the module; it is called in the processes that need the stage.
        optim: class or factory of the optimizer, called with the list of a stage's parameters.
        criterion: the loss of the last stage, called as ``criterion(output, target)``; a mean over the batch.
        gradient: a source that is known in forward, of which each stage but the last gets a deep copy: Synthetic or
            LocalLoss. The context of a conditioned source is the targets. None is ``Synthetic()``.
        queue: number of batches that may wait between two stages.
        feedback: the gradient of one in so many batches is sent back.
        timeout: seconds without a message, or without room in its queue, after which a neighbour counts as dead.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialized; while training: a neighbour is dead.
        ValueError: the number of processes is not a multiple of the number of stages, there is only one stage, or the
            source waits for backward.

    Note:
        The speed of the processes determines which gradients have arrived at a step, so that runs differ in their last
        digits. When :meth:`train` returns, all gradients have arrived and all sources have learned: a checkpoint of
        :meth:`save` between two calls is complete. The timeout must be longer than the slowest step and any pause
        between two batches.

    Example:
        The program ``train.py``, for ``torchrun --nproc-per-node 2 train.py``::

            dist.init_process_group("gloo")
            stages = [nn.Sequential(nn.Linear(64, 128), nn.ReLU()), nn.Linear(128, 10)]
            pipe = Pipeline(stages, partial(Adam, lr=1e-3), F.cross_entropy, gradient=Synthetic(context=10))
            for epoch in range(10):
                statistics = pipe.train(loader)  # read by the processes of the first stage
            network = pipe.gather()  # the whole network, on every process

    Reference:
        M. Jaderberg et al., Decoupled neural interfaces using synthetic gradients, 2017, arXiv 1608.05343.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module | Callable[[], nn.Module]],
        optim: OptimizerFactory,
        criterion: Callable[[Any, Tensor], Tensor],
        *,
        gradient: Source | None = None,
        queue: int = 4,
        feedback: int = 1,
        timeout: float = 60.0,
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("torch.distributed is not initialized; call init_process_group() first")
        self._queue_length, self._feedback = check_positive(queue=queue, feedback=feedback)
        if timeout <= 0:
            raise ValueError(f"timeout must be positive, got {timeout!r}")
        count, world = len(stages), dist.get_world_size()
        if count < 2 or world % count:
            raise ValueError(
                "A pipeline needs at least two stages and the same number of processes for each, got "
                f"{count} stages and {world} processes"
            )
        source = Synthetic() if gradient is None else gradient
        if not isinstance(source, Source) or not source.known_in_forward:
            raise ValueError(
                f"gradient must be a source that is known in forward, Synthetic() or LocalLoss(), got "
                f"{type(source).__name__}"
            )
        self._stages, self._criterion, self._timeout = list(stages), criterion, timeout
        self._processes_per_stage = world // count
        self.stage_index, self.replica = divmod(dist.get_rank(), self._processes_per_stage)
        self.first, self.last = self.stage_index == 0, self.stage_index == count - 1
        given = stages[self.stage_index]
        self.stage = given if isinstance(given, nn.Module) else given()
        self.source = None if self.last else on_device_of(copy.deepcopy(source), self.stage)
        self._needs_target = source.needs_target
        self._own = nn.ModuleDict({"stage": self.stage} | ({} if self.source is None else {"source": self.source}))
        self._image_axes = image_axes(self._own, "stage")
        self.optimizer = optim(list(self.stage.parameters()))
        self._connect(count)
        self.steps = 0
        self._memories: dict[int, Any] = {}
        self._staleness: list[int] = []

    def _connect(self, count: int) -> None:
        """Create the groups of all pairs of neighbours and of all stages, in the same order in all processes."""
        limit = timedelta(seconds=self._timeout)
        ranks = [[s * self._processes_per_stage + r for s in range(count)] for r in range(self._processes_per_stage)]
        self._groups: dict[tuple[int, str], Any] = {}
        for replica, chain in enumerate(ranks):
            for s in range(count - 1):
                for way in ("forward", "backward"):
                    group = dist.new_group(chain[s : s + 2], timeout=limit, backend="gloo")
                    if replica == self.replica:
                        self._groups[s, way] = group
        self._model: nn.Module = self.stage
        for s in range(count):
            mine = [chain[s] for chain in ranks]
            group = dist.new_group(mine, timeout=limit) if self._processes_per_stage > 1 else None
            if group is not None and s == self.stage_index and any(p.requires_grad for p in self.stage.parameters()):
                self._model = DistributedDataParallel(self.stage, process_group=group)

    # ------------------------------------------------------------------ training

    def train(self, batches: Batches | None = None) -> dict[str, Tensor]:
        """One pass over the batches, until the last gradient has arrived.

        Args:
            batches: batches of (input, target), read by the processes of the first stage; None in the others. If
                several processes hold a stage, all must have the same number of batches.

        Returns:
            statistics of this pass: ``loss``, the mean loss of the last stage, in every process; for this process
            ``steps``, the number of ``gradients`` that arrived, ``staleness``, how many of them were 0, 1, 2, ... steps
            old, and the seconds ``waited_for_room``, ``waited_for_input`` and ``waited_at_the_end`` for the last
            gradients.

        Raises:
            RuntimeError: a neighbour is dead or silent.
        """
        self._model.train()
        failure = Failure()
        s, rank = self.stage_index, dist.get_rank()

        def link(kind: type, place: int, way: str, peer: int, room: int) -> Any:
            return kind(peer, self._groups[place, way], room, failure, self._timeout)

        above, below = rank + self._processes_per_stage, rank - self._processes_per_stage
        source = None if self.first else link(Inbox, s - 1, "forward", below, 1)
        onwards = None if self.last else link(Outbox, s, "forward", above, self._queue_length)
        returned = None if self.last else link(Inbox, s, "backward", above, 0)
        back = None if self.first else link(Outbox, s - 1, "backward", below, 0)
        links = [one for one in (source, onwards, returned, back) if one is not None]
        for one in links:
            one.start()
        self._staleness = []
        start = self.steps
        losses: list[Tensor] = []
        for message in self._incoming(source, batches):
            if returned is not None:
                self._learn(returned.arrived())
            losses += self._step(message, onwards, back)
            failure.check()
        if onwards is not None and returned is not None:
            onwards.put(END)
            for message in returned:
                self._learn([message])
        if back is not None:
            back.put(END)
        for one in links:
            one.join()
        self._memories.clear()
        return self._statistics(self.steps - start, losses, onwards, source, returned)

    def _incoming(self, source: Inbox | None, batches: Batches | None) -> Iterable[Message]:
        if source is None:
            if batches is None:
                raise ValueError("train() needs batches in the processes of the first stage, got None")
            for x, y in batches:
                yield Message(self.steps, [x, y])
            return
        yield from source

    def _step(self, message: Message, onwards: Outbox | None, back: Outbox | None) -> list[Tensor]:
        """Train this stage on one batch; return the loss if it is the last stage."""
        device = next((p.device for p in self.stage.parameters()), torch.device("cpu"))
        x, y = (tensor.to(device) for tensor in message.tensors)
        wanted = back is not None and self._wants_feedback(message.step) and x.is_floating_point()
        x = x.requires_grad_(wanted)
        self.optimizer.zero_grad()
        h = self._model(x)
        losses = []
        if self.source is None:
            loss = self._criterion(h, y)
            loss.backward()
            losses.append(loss.detach())
        else:
            self._backward(h, y, message.step)
        self.optimizer.step()
        self.steps = message.step + 1
        if onwards is not None:
            onwards.put(message.step, [h, y])
        if wanted and back is not None:
            back.put(message.step, [cast(Tensor, x.grad)])
        return losses

    def _backward(self, h: Tensor, y: Tensor, step: int) -> None:
        """Backpropagate the gradient of the source through the stage."""
        source = build_source(cast(Source, self.source), f"stage {self.stage_index}", h, self._image_axes)
        gradient, memory = source.predict(h, y if source.conditioned else None)
        if h.requires_grad:
            h.backward(gradient)
        if not self._needs_target:
            source.learn(memory, None)
        elif self._wants_feedback(step):
            self._memories[step] = memory

    def _wants_feedback(self, step: int) -> bool:
        return self._needs_target and step % self._feedback == 0

    def _learn(self, messages: Sequence[Message]) -> None:
        source = cast(Source, self.source)
        for message in messages:
            memory = self._memories.pop(message.step)
            (target,) = message.tensors
            like = next(source.buffers(), target)
            source.learn(memory, target.to(like.device))
            self._staleness.append(self.steps - 1 - message.step)

    def _statistics(
        self, steps: int, losses: list[Tensor], onwards: Any, source: Any, returned: Any
    ) -> dict[str, Tensor]:
        total = torch.stack(losses).sum().double().cpu() if losses else torch.zeros((), dtype=torch.float64)
        sums = torch.tensor([float(total), float(len(losses))], dtype=torch.float64)
        dist.all_reduce(sums)
        stale = torch.tensor(self._staleness)
        return {
            "loss": sums[0] / sums[1],
            "steps": torch.tensor(steps),
            "gradients": torch.tensor(len(stale)),
            "staleness": torch.bincount(stale) if len(stale) else torch.zeros(0, dtype=torch.int64),
            "waited_for_room": torch.tensor(0.0 if onwards is None else onwards.waited),
            "waited_for_input": torch.tensor(0.0 if source is None else source.waited),
            "waited_at_the_end": torch.tensor(0.0 if returned is None else returned.waited),
        }

    # ------------------------------------------------------------------ the whole network, checkpoints

    def gather(self) -> nn.Sequential:
        """A deep copy of the whole network, in every process. All processes must call it."""
        whole = []
        for s, given in enumerate(self._stages):
            held = self.stage if s == self.stage_index else given
            stage = copy.deepcopy(held) if isinstance(held, nn.Module) else held()
            for tensor in stage.state_dict().values():
                there = tensor.detach().cpu().contiguous()
                dist.broadcast(there, s * self._processes_per_stage)
                tensor.copy_(there)
            whole.append(stage)
        return nn.Sequential(*whole)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save stage, source, optimizer and number of steps of every process atomically. All processes must call it.

        Each process writes its own file into a new folder inside ``folder``. When all files are complete,
        ``checkpoint.safetensors`` names the new folder; until then it names the previous one. Call it between two calls
        of :meth:`train`.
        """
        folder = Path(folder)
        name = gathered(checkpoint.new_name(KIND))[0]
        with agreeing():
            (folder / name).mkdir(parents=True, exist_ok=True)
            checkpoint.save(self._own, self._path(folder / name), optimizer=self.optimizer, step=self.steps)
        with agreeing():
            if dist.get_rank() == 0:
                checkpoint.save_naming(folder, name, step=self.steps, extra=self._layout)

    def load(self, folder: str | os.PathLike[str]) -> Self:
        """Load atomically what :meth:`save` wrote with the same numbers of stages and processes. All must call it.

        Raises:
            ValueError: a file is missing, damaged or of another network, in this process or another.
        """
        with agreeing():
            found, place = checkpoint.load_naming(Path(folder), KIND, "a pipeline")
            if (saved := {key: found.extra.get(key) for key in self._layout}) != self._layout:
                raise ValueError(
                    f"The checkpoint must be of a pipeline of {self._layout}, got {saved} in {os.fspath(folder)!r}"
                )
        with undone_on_error(self._own, self.optimizer, folder), agreeing():
            step = checkpoint.load(self._path(place), into=self._own, optimizer=self.optimizer).step
        self.steps = step or 0
        return self

    @property
    def _layout(self) -> dict[str, int]:
        return {"stages": len(self._stages), "processes": dist.get_world_size()}

    def _path(self, folder: Path) -> Path:
        return folder / f"rank{dist.get_rank()}.safetensors"

"""What a run of ``linnet task`` is asked to do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from linnet.cli.setting import check_settings, option
from linnet.cli.task.sequences import Adding, ArgMax, Copy, Recall, RepeatCopy, SequenceTask, Text

TASKS: dict[str, Callable[[], SequenceTask]] = {
    "copy": Copy,
    "repeat-copy": RepeatCopy,
    "adding": Adding,
    "argmax": ArgMax,
    "recall": Recall,
}
CELLS: dict[str, Callable[[int, int], nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
STEPS = 5000


@dataclass(frozen=True)
class TaskSettings:
    """Everything that decides the numbers of a run. The defaults are those of the command line.

    Raises:
        ValueError: a setting is not what it must be.
    """

    task: str = option("copy", f"Task: {', '.join(TASKS)} or text.", choices=(*TASKS, "text"), name="TASK")
    window: int = option(3, "Number of steps that gradients go back.")
    decouple: str = option(
        "dni",
        "Gradient from beyond the window: none, synthetic (dni) or synthetic given the next targets (cdni).",
        choices=("none", "dni", "cdni"),
    )
    cell: str = option("lstm", "Recurrent cell.", choices=CELLS)
    hidden: int = option(64, "Width of the hidden state.", high=2**20)
    steps: int | None = option(None, "Number of training steps.", shown=str(STEPS))
    seconds: float | None = option(None, "CPU seconds to train for, instead of a number of steps.")
    batch_size: int = option(64, "Batch size.")
    lr: float = option(1e-3, "Learning rate of Adam.")
    synthesizer: int = option(0, "Width of the synthesizer's hidden layer; 0 for none.", low=0, high=2**20)
    synthesizer_lr: float = option(3e-3, "Learning rate of the synthesizer's Adam.")
    factor: float = option(0.3, "Factor on the synthetic gradient.", low=0)
    auxiliary: float = option(
        0.0, "Weight of the auxiliary loss, the prediction of the next synthetic gradient.", low=0
    )
    text: str | None = option(
        None, "Text in UTF-8 for the task text.", metavar="FILE", shown="prose shipped with scikit-learn"
    )
    seed: int = option(0, "First random seed.", low=0)
    seeds: int = option(1, "Number of random seeds; each trains a network of its own.")
    threads: int = option(1, "Number of CPU threads.", high=1024)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.steps is not None and self.seconds is not None:
            raise ValueError("`steps` and `seconds` exclude each other")
        if self.auxiliary and self.decouple == "none":
            raise ValueError("`auxiliary` needs synthetic gradients, got `decouple` none")
        if self.text is not None and self.task != "text":
            raise ValueError(f"`text` applies to the task text only, got the task {self.task}")

    def make(self) -> SequenceTask:
        """The task."""
        return Text.of(None if self.text is None else Path(self.text)) if self.task == "text" else TASKS[self.task]()

    def goal(self) -> float:
        """What a run has when it is over: steps, or seconds of the CPU."""
        return self.seconds if self.seconds is not None else self.steps or STEPS

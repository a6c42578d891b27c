"""What is seen of ``linnet train`` while it runs."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from linnet.cli.train.settings import LayerSpec, Settings

__all__ = ["Watcher"]


class Watcher:
    """Live progress on stderr: a bar for each kind of layer; where stderr is not a terminal, a line for each net."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        total = settings.seeds * settings.epochs
        self.tasks: dict[str, TaskID] = {
            text: self.bars.add_task(text, total=total, start=False, state="") for text in settings.layers
        }

    def __enter__(self) -> "Watcher":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, spec: LayerSpec, seed: int, epochs: int, val_accuracy: float) -> None:
        done = (seed - self.settings.seed) * self.settings.epochs + epochs
        state = f"seed {seed}  validation {100 * val_accuracy:5.1f} %"
        self.bars.start_task(self.tasks[spec.text])
        self.bars.update(self.tasks[spec.text], completed=done, state=state)
        if not self.console.is_terminal and epochs == self.settings.epochs:
            self.console.print(f"{spec.text}  {state}", highlight=False, markup=False, soft_wrap=True)

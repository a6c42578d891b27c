"""Live progress on stderr, and what else a command prints."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box, progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Progress:
    """A bar on stderr for each part of a run, from 0 to its total; where stderr is not a terminal, lines."""

    def __init__(self, totals: Mapping[str, float], *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[state]}"),
            progress.TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks = {
            name: self.bars.add_task(escape(name), total=total, start=False, state="") for name, total in totals.items()
        }

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, name: str, done: float, state: str = "", *, line: str = "") -> None:
        """Move the bar of a part; ``state`` is shown beside it, and ``line`` is printed where there are no bars."""
        self.bars.start_task(self.tasks[name])
        self.bars.update(self.tasks[name], completed=done, state=escape(state))
        if line and not self.console.is_terminal:
            say(line, self.console)


def say(text: str, console: Console | None = None) -> None:
    """Print text as it is, on stdout or on another console: no markup, no line breaks of rich's own."""
    (console or Console()).print(text, highlight=False, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a line on stderr, if that is a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        say(text, console)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 0) -> Table:
    """A table; the first ``texts`` columns are text, which is folded where it is too long, the others numbers."""
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for place, heading in enumerate(headings):
        if place < texts:
            found.add_column(heading, overflow="fold")
        else:
            found.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        found.add_row(*map(escape, row))
    return found

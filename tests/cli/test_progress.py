"""Progress on a terminal and elsewhere, and what is printed."""

import io

import pytest
from rich.console import Console

from linnet.cli import progress
from linnet.cli.progress import Progress, note, say, table


@pytest.fixture
def console(monkeypatch):
    """What a command finds as its stderr: a terminal or not."""

    def give(terminal):
        made = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        monkeypatch.setattr(progress, "Console", lambda **options: made)
        return made

    return give


def test_elsewhere_there_are_lines(console):
    made = console(terminal=False)
    with Progress({"a [b]": 4, "c": 4}) as bars:
        bars.show("a [b]", 2, "half")
        bars.show("a [b]", 4, "whole", line="a [b] is [done]")
    note("only on a terminal")
    assert made.file.getvalue() == "a [b] is [done]\n"


def test_on_a_terminal_there_are_bars(console):
    made = console(terminal=True)
    with Progress({"a [b]": 4, "c": 4}) as bars:
        bars.show("a [b]", 2, "half [x]", line="not shown")
    note("timing")
    shown = made.file.getvalue()
    assert "a [b]" in shown and "2/4" in shown and "half [x]" in shown and "0/4" in shown
    assert "not shown" not in shown and "timing" in shown


def test_text_and_tables_are_printed_as_they_are(capsys):
    say("[bold]" + "x " * 200)
    assert capsys.readouterr().out == "[bold]" + "x " * 200 + "\n"
    made = Console(file=io.StringIO(), width=30)
    made.print(table(("text", "number"), [("[a]" * 20, "1"), ("b", "1,234")], texts=1))
    lines = made.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 30 and all("…" not in line for line in lines)
    assert lines[-1].endswith("1,234") and "[a]" in lines[2]

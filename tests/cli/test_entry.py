"""The entry point of ``linnet``: version, help, exit codes, and what it needs."""

import importlib.util
import subprocess
import sys

import pytest

import linnet
from linnet.cli.commands import layers
from support.commands import command as run
from support.commands import complains


def test_version_and_help(capsys):
    assert run(capsys, "--version") == (0, f"linnet {linnet.__version__}\n", "")
    for arguments in ([], ["--help"], ["train", "--help"], ["layers", "-h"]):
        code, out, err = run(capsys, *arguments)
        assert (code, err) == (0, "")
        assert "Usage: linnet" in out


@pytest.mark.parametrize("command", ["layers", "train", "evolve", "task", "tour"])
def test_every_help_text_is_a_sentence(capsys, monkeypatch, command):
    from typer.main import get_command

    from linnet.cli.commands import app

    parsed = get_command(app).commands[command]
    texts = [parsed.help, *(parameter.help for parameter in parsed.params)]
    for text in texts:
        assert text and text[0].isupper() and text.endswith("."), text


def test_mistakes_in_the_command_itself(capsys):
    complains(capsys, "No such command 'trian'", "trian")
    complains(capsys, "No such option", "--nonsense")


@pytest.mark.parametrize("broken", [KeyboardInterrupt, EOFError])
def test_ctrl_c_anywhere_ends_with_130(capsys, monkeypatch, broken):
    def stop():
        raise broken

    monkeypatch.setattr(layers, "catalogue", stop)
    code, out, err = run(capsys, "layers")
    assert (code, out) == (130, "") and "Traceback" not in err


def test_without_the_extra(capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else real(name))
    complains(capsys, r'pip install "linnet\[cli\]"', "layers")


def test_the_library_does_not_import_what_only_the_command_line_needs():
    extra = "{'typer', 'rich', 'matplotlib', 'sklearn'}"
    script = f"import sys, linnet, linnet.checkpoint, linnet.cli; print(sorted({extra} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

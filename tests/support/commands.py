"""The command line, as its user meets it."""

import re

from linnet.cli import main


def command(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def complains(capsys, match, *arguments):
    """Exit code 2, one line on stderr, nothing else."""
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("linnet: ")
    assert re.search(match, err), err

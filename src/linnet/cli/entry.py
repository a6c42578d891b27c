"""The entry point of the command ``linnet``, and what it does about errors.

The commands themselves are in :mod:`linnet.cli.commands`; they need the extra ``cli``, this file does not.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence

from linnet.cli.errors import Stopped, UserError

EXTRA = ("typer", "rich", "matplotlib", "sklearn", "gymnasium")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``linnet`` and return its exit code: 0, 2 after a mistake of the user, 130 after Ctrl-C.

    Args:
        arguments: instead of those of the process.
    """
    try:
        if any(importlib.util.find_spec(name) is None for name in EXTRA):
            raise UserError('the command line needs its extra: pip install "linnet[cli]"')
        if "" not in sys.path and "." not in sys.path:
            sys.path.append(".")  # so that --layer module:Class finds a module of the current folder
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal without × and ± shows a question mark
        return _run(arguments)
    except (UserError, KeyboardInterrupt) as error:
        ended = error if isinstance(error, UserError) else Stopped("stopped")
        print(f"linnet: {' '.join(str(ended).split())}", file=sys.stderr)
        return ended.code


def _run(arguments: Sequence[str] | None) -> int:
    """Call the commands; typer's errors, whose classes moved between its versions, become ours."""
    from linnet.cli.commands import app

    try:
        code = app(args=arguments, prog_name="linnet", standalone_mode=False)
    except Exception as error:
        if type(error).__name__ == "Abort":  # typer's word for Ctrl-C
            raise Stopped("stopped") from None
        if hasattr(error, "format_message"):
            raise UserError(error.format_message()) from error
        if isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", str(error)):
            raise UserError("there is not enough memory for this command") from error
        raise
    return code if isinstance(code, int) else 0

"""The command ``linnet``: its entry point, and what it does about errors.

The commands themselves are in :mod:`linnet.cli.commands`; they need the extra ``cli``, this file does not.
"""

import importlib.util
import sys
from collections.abc import Sequence

from linnet.cli.errors import UserError

__all__ = ["main"]

EXTRA = ("typer", "rich", "matplotlib", "sklearn", "gymnasium")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``linnet`` and return its exit code: 0, 2 after a mistake of the user, 130 after Ctrl-C.

    Args:
        arguments: instead of those of the process.
    """
    if any(importlib.util.find_spec(name) is None for name in EXTRA):
        print('linnet: the command line needs its extra: pip install "linnet[cli]"', file=sys.stderr)
        return 2
    if "" not in sys.path and "." not in sys.path:
        sys.path.append(".")  # so that --layer module:Class finds a module of the current folder
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without × and ± shows a question mark
    try:
        from linnet.cli.commands import app

        code = app(args=arguments, prog_name="linnet", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        print("linnet: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, UserError):
            message = str(error)
        elif hasattr(error, "format_message"):  # a usage error of typer, whose base class moved between versions
            message = error.format_message()
        else:
            raise
        print(f"linnet: {' '.join(message.split())}", file=sys.stderr)
        return 2

"""The command ``linnet``."""

from linnet.cli.entry import main as main

__all__ = ["main"]

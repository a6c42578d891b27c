"""The commands of ``linnet``, a file each; what they do about errors is in :mod:`linnet.cli.entry`."""

from typing import Annotated

import typer

from linnet._version import __version__
from linnet.cli.commands import evolve, layers, task, tour, train

__all__ = ["app"]

app = typer.Typer(
    help="linnet: the linear layer in all its forms.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"linnet {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def linnet(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The command without a subcommand: the help, or the version."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (layers.layers, train.train, evolve.evolve, task.task, tour.tour):
    app.command()(command)

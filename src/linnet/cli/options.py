"""Options of the command line from a settings dataclass: one for each field, and --out, --nproc and --resume."""

import inspect
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from linnet.cli.errors import user_input
from linnet.cli.run_folder import resume_settings
from linnet.cli.setting import option_names


@dataclass(frozen=True)
class Given:
    """What was given on the command line."""

    kind: type  # the class of the settings
    values: dict[str, Any]  # the settings that were given
    out: Path | None
    resume: bool
    nproc: int

    def checking(self) -> AbstractContextManager[None]:
        """What is checked inside comes from the user, who knows a setting by the name of its option."""
        return user_input(option_names(self.kind))

    def settings(self) -> Any:
        """``values``, and for the others the defaults, or what the run to resume was begun with.

        Raises:
            ValueError: a setting is not what it must be, or there is nothing to resume.
        """
        if not self.resume:
            return self.kind(**self.values)
        if self.out is None:
            raise ValueError("--resume needs --out FOLDER, the folder of the run")
        return replace(resume_settings(self.kind, self.out), **self.values)

    def folder(self, name: str) -> Path:
        """``out``, or a new folder named after the time and what the run is about."""
        slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        return self.out or Path("runs") / f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}"


def settings_command(
    kind: type, *, out: str, nproc: str | None = None
) -> Callable[[Callable[[Given], None]], Callable[..., None]]:
    """Decorate a function of :class:`Given` so that typer makes a command of it; its docstring is the help text.

    Args:
        kind: the dataclass of the settings, each field made by :func:`linnet.cli.setting.option`.
        out: the default of ``--out``, in words.
        nproc: help text of ``--nproc``; None: there is no such option.
    """
    settings = _parameters(kind)
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [
        context,
        *settings.values(),
        _parameter("--out", Path | None, None, help="Folder of the run.", metavar="FOLDER", show_default=out),
        *([_parameter("--nproc", int, 1, help=nproc, min=1)] if nproc else []),
        _parameter("--resume", bool, False, help="Resume the run in --out with its saved settings."),
    ]

    def decorate(function: Callable[[Given], None]) -> Callable[..., None]:
        def command(context: typer.Context, **values: Any) -> None:
            given = {}
            for name, parameter in settings.items():
                source: Any = context.get_parameter_source(parameter.name)
                if source.name == "COMMANDLINE":  # not the default
                    value = values[parameter.name]
                    given[name] = tuple(value) if isinstance(value, list) else value
            function(Given(kind, given, values["out"], values["resume"], values.get("nproc", 1)))

        # typer reads the options off the signature
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The parameter of a command for each field of its settings."""
    found = {}
    hints, names = get_type_hints(kind), option_names(kind)
    for each in fields(kind):
        hint, default, about = hints[each.name], each.default, each.metadata
        if isinstance(default, tuple):  # an option that may be repeated
            hint, default = list[str], list(default)
        shown = about["shown"] or hint is not bool
        texts = {"help": about["help"], "metavar": about["metavar"], "show_default": shown}
        found[each.name] = _parameter(names[each.name], hint, default, **texts)
    return found


def _parameter(name: str, hint: Any, default: Any, **texts: Any) -> inspect.Parameter:
    if name.startswith("--"):
        bare = name.removeprefix("--").replace("-", "_")
        info: Any = typer.Option(name, **texts)  # a flag has no opposite (--no-resume) where its name is given
    else:
        bare, info = "name", typer.Argument(**texts | {"metavar": name})
    return inspect.Parameter(bare, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info])

"""The commands of ``linnet``, one function each; their errors are handled in :mod:`linnet.cli`."""

import dataclasses
import inspect
import json
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from linnet._version import __version__
from linnet.cli.errors import user_input
from linnet.cli.evolve.evolution import EvolveSettings
from linnet.cli.task.learner import TaskSettings
from linnet.cli.train.settings import DECOUPLED, Settings, layer_options, seeds_of
from linnet.core.catalogue import catalogue
from linnet.core.linear_map import LinearMap

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
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def layers(
    size: Annotated[int, typer.Option(help="Count the parameters of a square layer of this size.")] = 64,
) -> None:
    """The catalogue: every layer, what it promises, its options, and its parameters."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("promise on A", overflow="fold")
    table.add_column("options", overflow="fold")
    table.add_column(f"parameters\nat {size} × {size}", justify="right")
    with user_input():
        for name, kind in catalogue().items():
            options = {key: default for key, (_, default) in layer_options(kind).items() if key not in _SHARED}
            shown = ", ".join(
                key if default is inspect.Parameter.empty else f"{key}={_short(default)}"
                for key, default in options.items()
            )
            table.add_row(name, kind.promise, shown or "–", _parameters(kind, size))
    console = Console()
    console.print(table)
    console.print(
        "\ny = x A + b. Every layer takes bias=false, and beings=n for a population of n; wide is linear:beings=8.\n"
        "To train with one: linnet train --layer NAME:option=value, or with a class of your own: "
        "--layer package.module:Class",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


_SHARED = ("bias", "beings")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and len(str(value)) > 8 else str(value)


def _parameters(kind: type[LinearMap], size: int) -> str:
    try:
        layer = kind(size, size, device="meta")
    except ValueError:
        if size < 1:
            raise
        return "not this size"  # a power of two wanted, say
    return f"{sum(parameter.numel() for parameter in layer.parameters()):,}"


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist or mnist; or your own: a .npz file with X and y (and X_test, y_test, if there "
            "are) or a .csv file.",
            show_default=Settings.data,
            metavar="NAME|FILE",
        ),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder with the four IDX files of the data set, plain or .gz.", metavar="FOLDER")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Column of the classes in a .csv file.", show_default="the last one", metavar="NAME"),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="A kind of layer; may be given several times: a name of `linnet layers` or package.module:Class, then "
            ":option=value[,option=value].",
            show_default=", ".join(Settings.layers),
            metavar="LAYER",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default=str(Settings.epochs))] = None,
    seed: Annotated[int | None, typer.Option(help="The first seed.", show_default=str(Settings.seed))] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.", show_default=str(Settings.seeds))] = None,
    hidden: Annotated[
        int | None, typer.Option(help="Size of the hidden layers.", show_default=str(Settings.hidden))
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Number of linear layers.", show_default=str(Settings.depth))
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples in a step.", show_default=str(Settings.batch_size))
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.", show_default=str(Settings.lr))] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.", show_default=Settings.device)] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch on the CPU.", show_default=str(Settings.threads))
    ] = None,
    decouple: Annotated[
        str | None,
        typer.Option(
            help="Cut the network before every layer but the first (linnet.DNI) and train what is below by synthetic "
            "gradients (dni), the same told the label (cdni), local losses (local) or direct feedback (dfa).",
            show_default=Settings.decouple,
            metavar="|".join(DECOUPLED),
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run.", show_default="runs/DATA-TIME", metavar="FOLDER")
    ] = None,
    nproc: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that share each batch. If one dies, torchrun starts all of them again from the last epoch.",
        ),
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; its settings need not be given again.")
    ] = False,
) -> None:
    """Train the same network with each kind of layer, and show what each costs and gives."""
    given: dict[str, Any] = {
        "data": data,
        "data_dir": data_dir,
        "target": target,
        "layers": tuple(layer) if layer else None,
        "epochs": epochs,
        "seed": seed,
        "seeds": seeds,
        "hidden": hidden,
        "depth": depth,
        "batch_size": batch_size,
        "lr": lr,
        "device": device,
        "threads": threads,
        "decouple": decouple,
    }
    given = {name: value for name, value in given.items() if value is not None}
    # Imported here: `linnet layers` and `--help` need neither matplotlib nor the training loop.
    from linnet.cli.torchrun import start
    from linnet.cli.train.cost import measure
    from linnet.cli.train.pictures import draw
    from linnet.cli.train.report import legend, results_of, table_of, write_report, write_results
    from linnet.cli.train.training import fit, prepare, resumed_settings
    from linnet.cli.train.watcher import Watcher

    with user_input():
        before = _to_resume(resume, out)
        settings = Settings(**given) if before is None else dataclasses.replace(resumed_settings(before), **given)
        folder = out or Path("runs") / f"{Path(settings.data).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        if nproc > 1 and settings.decouple != "none":
            raise ValueError(f"--nproc shares batches of whole networks, got --decouple {settings.decouple}")
        run = prepare(settings, folder, resume=resume)
    try:
        if nproc > 1:
            start(nproc, "linnet.cli.train.worker", str(run.out))
        with Watcher(settings) as watcher:
            fits = [[fit(run, spec, seed, watcher) for seed in seeds_of(settings)] for spec in run.specs]
        if watcher.console.is_terminal:  # a plain line: something that moves would disturb the clock
            watcher.console.print("timing one training step of each kind in turn …")
        costs = measure(run)
        results = results_of(run, fits, costs)
        numbers, pictures = write_results(results, run.out), draw(run, fits)
        page = write_report(run, results, numbers, pictures)
    except KeyboardInterrupt:
        raise _stopped("train", folder) from None
    console = Console()
    console.print(table_of(results))
    shown = ", ".join(path.name for path in [numbers, *pictures, page])
    console.print(f"\n{legend(results)}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"\n{run.out}: {shown}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def tour(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the numbers.", metavar="FOLDER")] = Path("tour"),
    act: Annotated[
        list[str] | None,
        typer.Option(help="One act only; may be given several times.", show_default="all", metavar="ACT"),
    ] = None,
) -> None:
    """Short acts on real data: things that nn.Linear cannot do, beside nn.Linear."""
    from linnet.cli.tour.tour import check_tour, run_tour

    with user_input():
        check_tour(out, act or ())
    run_tour(out, act or ())


@app.command()
def evolve(
    env: Annotated[
        str | None, typer.Option(help="Gymnasium id of the environment.", show_default=EvolveSettings.env, metavar="ID")
    ] = None,
    beings: Annotated[
        int | None, typer.Option(help="Size of the population.", show_default=str(EvolveSettings.beings))
    ] = None,
    generations: Annotated[
        int | None, typer.Option(help="Stop after so many.", show_default=str(EvolveSettings.generations))
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="ga: selection and mutation; es: OpenAI's evolution strategy; lowrank: es with noise of low rank.",
            show_default=EvolveSettings.strategy,
            metavar="ga|es|lowrank",
        ),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Episodes of each being.", show_default=str(EvolveSettings.episodes))
    ] = None,
    hidden: Annotated[
        int | None, typer.Option(help="Size of the hidden layers.", show_default=str(EvolveSettings.hidden))
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Number of linear layers.", show_default=str(EvolveSettings.depth))
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Size of mutation or noise.", show_default="0.3 for ga, else 0.1")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="es, lowrank: learning rate of Adam.", show_default=str(EvolveSettings.lr))
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="ga: the share that has children.", show_default=str(EvolveSettings.share))
    ] = None,
    elites: Annotated[
        int | None, typer.Option(help="ga: the best so many stay as they are.", show_default=str(EvolveSettings.elites))
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="lowrank: rank of the noise.", show_default=str(EvolveSettings.rank))
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize", help="Normalize what the beings observe.", show_default=False)
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="Stop when the best being reaches this.", show_default="the environment's own, if it has one"
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            help="Beings whose environments share a seed.",
            show_default=str(EvolveSettings.block),
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random.", show_default=str(EvolveSettings.seed))
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch on the CPU.", show_default=str(EvolveSettings.threads))
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run.", show_default="runs/ENV-TIME", metavar="FOLDER")
    ] = None,
    nproc: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that hold the population together. If one dies, torchrun starts all of them again from the "
            "last generation.",
        ),
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; its settings need not be given again.")
    ] = False,
) -> None:
    """Evolve a population of policies in a Gymnasium environment; the best is saved as an ordinary module."""
    names = [field.name for field in dataclasses.fields(EvolveSettings)]
    given = {name: value for name, value in locals().items() if name in names and value is not None}
    from linnet.cli.evolve.evolution import found, resumed
    from linnet.cli.evolve.report import processes, report, watching
    from linnet.cli.torchrun import start
    from linnet.evolve.shards import check_shards

    with user_input():
        before = _to_resume(resume, out)
        settings = EvolveSettings(**given) if before is None else dataclasses.replace(resumed(before), **given)
        slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in settings.env)
        folder = out or Path("runs") / f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}"
        shards = processes(settings)
        if nproc > 1:
            if shards is not None:
                raise ValueError("--nproc starts the processes, got torchrun has started them already")
            check_shards(settings.beings, settings.block, nproc)
        evolution = found(settings, folder, resume=resume, shards=shards)
    try:
        if nproc > 1:
            start(nproc, "linnet.cli.evolve.worker", str(folder), json.dumps(dataclasses.asdict(settings)))
            evolution.restore()
        else:
            with watching(evolution) as watch:
                evolution.run(watch)
        report(evolution)
    except KeyboardInterrupt:
        raise _stopped("evolve", folder) from None


@app.command()
def task(
    name: Annotated[
        str | None,
        typer.Argument(
            help="copy, repeat-copy, adding, argmax, recall or text.",
            show_default=TaskSettings.task,
            metavar="TASK",
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Steps that a gradient goes back.", show_default=str(TaskSettings.window))
    ] = None,
    decouple: Annotated[
        str | None,
        typer.Option(
            help="What comes after a window: none; dni: a synthetic gradient; cdni: one that is told the answers.",
            show_default=TaskSettings.decouple,
            metavar="none|dni|cdni",
        ),
    ] = None,
    cell: Annotated[
        str | None, typer.Option(help="The network.", show_default=TaskSettings.cell, metavar="lstm|gru|rnn")
    ] = None,
    hidden: Annotated[
        int | None, typer.Option(help="Size of its state.", show_default=str(TaskSettings.hidden))
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many.", show_default="5000")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after so many seconds of the CPU instead.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences in a step.", show_default=str(TaskSettings.batch_size))
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.", show_default=str(TaskSettings.lr))] = None,
    synthesizer: Annotated[
        int | None,
        typer.Option(
            help="Hidden layer of the synthesizer; 0: none, it is linear.", show_default=str(TaskSettings.synthesizer)
        ),
    ] = None,
    synthesizer_lr: Annotated[
        float | None, typer.Option(help="Learning rate of its Adam.", show_default=str(TaskSettings.synthesizer_lr))
    ] = None,
    factor: Annotated[
        float | None, typer.Option(help="Of the synthetic gradient.", show_default=str(TaskSettings.factor))
    ] = None,
    auxiliary: Annotated[
        float | None,
        typer.Option(help="Weight of foretelling the next one.", show_default=str(TaskSettings.auxiliary)),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="text: a file in UTF-8.", show_default="the prose that scikit-learn ships with", metavar="FILE"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The first seed.", show_default=str(TaskSettings.seed))] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.", show_default=str(TaskSettings.seeds))] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch on the CPU.", show_default=str(TaskSettings.threads))
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run.", show_default="runs/TASK-TIME", metavar="FOLDER")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; its settings need not be given again.")
    ] = False,
) -> None:
    """Teach a recurrent network to remember, by gradients that go back only a few steps."""
    names = [field.name for field in dataclasses.fields(TaskSettings)]
    given = {name: value for name, value in (locals() | {"task": name}).items() if name in names and value is not None}
    from linnet.cli.task.learner import found, resumed
    from linnet.cli.task.report import report, watching

    with user_input():
        before = _to_resume(resume, out)
        settings = TaskSettings(**given) if before is None else dataclasses.replace(resumed(before), **given)
        folder = out or Path("runs") / f"{settings.task}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = found(settings, folder, resume=resume)
    learners = []
    try:
        with watching(settings) as watch:
            for number in seeds_of(settings):
                learners.append(run.learner(number))
                learners[-1].run(watch)
        report(run, learners)
    except KeyboardInterrupt:
        raise _stopped("task", folder) from None


def _to_resume(resume: bool, out: Path | None) -> Path | None:
    """The folder of the run to go on with; None if it is a new one."""
    if resume and out is None:
        raise ValueError("--resume must say which run: --out FOLDER, got none given")
    return out if resume else None


def _stopped(command: str, folder: Path) -> typer.Exit:
    """Say how to go on, and the exit after Ctrl-C."""
    again = f"linnet {command} --resume --out {shlex.quote(str(folder))}"
    Console(stderr=True).print(f"linnet: stopped; to go on: {again}", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(130)

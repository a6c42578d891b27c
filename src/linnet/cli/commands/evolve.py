"""``linnet evolve``: a population plays a Gymnasium environment."""

from linnet.cli.errors import interruptible
from linnet.cli.evolve.settings import EvolveSettings
from linnet.cli.options import Given, settings_command


@settings_command(
    EvolveSettings,
    out="runs/ENV-TIME",
    nproc="Number of processes that the population is sharded across; if one dies, all restart from the last "
    "generation.",
)
def evolve(given: Given) -> None:
    """Evolve a population of policies in a Gymnasium environment and save the best as an ordinary module."""
    from linnet.cli.evolve.report import report
    from linnet.cli.evolve.run import open_run, run_generations, shards_of_torchrun
    from linnet.cli.torchrun import start

    with given.checking():
        settings = given.settings()
        folder = given.folder(settings.env)
        shards = shards_of_torchrun(settings)
        if given.nproc > 1:
            if shards is not None:
                raise ValueError("--nproc starts processes of its own; omit it under torchrun")
            if settings.beings % (given.nproc * settings.block):
                multiple = f"a multiple of --nproc · `block`, {given.nproc} · {settings.block}"
                raise ValueError(f"`beings` must be {multiple}, got {settings.beings}")
        evolution = open_run(settings, folder, resume=given.resume, shards=shards)
    with interruptible("evolve", folder):
        if given.nproc > 1:
            start(given.nproc, "linnet.cli.evolve.run", folder)
            evolution.restore()
        else:
            run_generations(evolution)
        report(evolution)

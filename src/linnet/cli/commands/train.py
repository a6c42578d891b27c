"""``linnet train``: the same network with each kind of layer."""

from pathlib import Path

from linnet.cli.errors import interruptible
from linnet.cli.options import Given, settings_command
from linnet.cli.train.settings import Settings


@settings_command(
    Settings,
    out="runs/DATA-TIME",
    nproc="Number of processes that share each batch; if one dies, all restart from the last epoch.",
)
def train(given: Given) -> None:
    """Train the same network with each kind of layer and compare their cost and accuracy."""
    # Imported here: `linnet layers` and `--help` need neither matplotlib nor the training loop.
    from linnet.cli.progress import note
    from linnet.cli.torchrun import start
    from linnet.cli.train.cost import measure
    from linnet.cli.train.report import report
    from linnet.cli.train.run import open_run
    from linnet.cli.train.training import fit_all

    with given.checking():
        settings = given.settings()
        folder = given.folder(Path(settings.data).stem)
        if given.nproc > 1 and settings.decouple != "none":
            raise ValueError(f"--nproc shares batches of whole networks, got `decouple` {settings.decouple}")
        run = open_run(settings, folder, resume=given.resume)
    with interruptible("train", folder):
        if given.nproc > 1:
            start(given.nproc, "linnet.cli.train.training", folder)
        fits = fit_all(run)
        note("timing one training step of each kind in turn …")  # nothing moves: it would disturb the clock
        report(run, fits, measure(run))

"""``linnet task``: a recurrent network learns to remember."""

from linnet.cli.errors import interruptible
from linnet.cli.options import Given, settings_command
from linnet.cli.task.settings import TaskSettings


@settings_command(TaskSettings, out="runs/TASK-TIME")
def task(given: Given) -> None:
    """Train an RNN with truncated BPTT, with or without synthetic gradients."""
    from linnet.cli.task.report import report
    from linnet.cli.task.run import learn, open_run

    with given.checking():
        settings = given.settings()
        folder = given.folder(settings.task)
        run = open_run(settings, folder, resume=given.resume)
    with interruptible("task", folder):
        report(run, learn(run))

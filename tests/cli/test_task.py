"""``linnet task``: the tasks against loops over their sequences, runs that resume, the command for its user."""

import dataclasses
import itertools
import json
import math
import random
import runpy
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from linnet.checkpoint import info
from linnet.cli import main
from linnet.cli.run_folder import resume_settings
from linnet.cli.task import learner as sequence_runs
from linnet.cli.task.learner import Learner
from linnet.cli.task.pictures import draw, picture
from linnet.cli.task.run import open_run
from linnet.cli.task.sequences import Adding, ArgMax, Copy, Recall, RepeatCopy, Text, shipped_text
from linnet.cli.task.settings import TASKS, TaskSettings
from support import commands
from support.paths import ROOT

PROSE = "the quick brown fox jumps over the lazy dog. " * 60
TINY = {"hidden": 8, "batch_size": 4, "synthesizer": 8, "steps": 3}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(tensor: torch.Tensor, sample: int) -> list[list[float]]:
    return tensor[:, sample].tolist()


def command(capsys, *arguments):
    return commands.command(capsys, "task", *arguments)


def tiny(folder, *more):
    return ["--hidden", 8, "--batch-size", 4, "--synthesizer", 8, "--steps", 60, "--out", folder, *more]


# ---------------------------------------------------------------------- the tasks


@pytest.mark.parametrize("level", [1, 2, 5])
def test_copy(level):
    batch = Copy(bits=3).draw(6, level, generator())
    for b in range(6):
        steps = rows(batch.input, b)
        assert len(steps) == 2 * level + 2
        assert steps[0] == [0, 0, 0, 1, 0] and steps[level + 1] == [0, 0, 0, 0, 1]
        assert all(step == [0] * 5 for step in steps[level + 2 :])
        shown = [step[:3] for step in steps[1 : level + 1]]
        assert shown == rows(batch.target, b) and {bit for row in shown for bit in row} <= {0.0, 1.0}
        assert all(step[3:] == [0, 0] for step in steps[1 : level + 1])
    assert batch.asked == list(range(level + 2, 2 * level + 2))


@pytest.mark.parametrize("level", range(1, 11))
def test_repeat_copy(level):
    order = [(n, r) for n in range(1, 6) for r in range(1, n + 1)]
    n, r = order[level - 1]
    batch = RepeatCopy(bits=2).draw(3, level, generator())
    for b in range(3):
        steps, answers = rows(batch.input, b), rows(batch.target, b)
        assert len(steps) == (r + 1) * n + 3  # the length that the paper's entries have
        assert steps[0] == [0, 0, 1, 0]
        assert steps[n + 1] == pytest.approx([0, 0, 0, r / 10])
        shown = [step[:2] for step in steps[1 : n + 1]]
        assert answers == [[*row, 0] for row in shown] * r + [[0, 0, 1]]
        assert all(step == [0] * 4 for step in steps[n + 2 :])
    assert batch.asked == list(range(n + 2, (r + 1) * n + 3))


@pytest.mark.parametrize("kind", [Adding, ArgMax])
def test_digits(kind):
    task, draws, lengths = kind(digits=4, length=6), generator(), set()
    for _ in range(40):
        batch = task.draw(5, 1, draws)
        lengths.add(len(batch.input) - 1)
        assert batch.asked == [len(batch.input) - 1]
        for b in range(5):
            codes = [step.index(1) for step in rows(batch.input, b)]
            assert all(sum(step) == 1 for step in rows(batch.input, b))
            assert codes.pop() == 4 and max(codes) < 4
            answer = sum(codes) if kind is Adding else codes.index(max(codes))
            assert batch.target[0, b].item() == answer
    assert lengths == {2, 3, 4, 5, 6}


def test_recall():
    batch = Recall(bits=2, delay=5).draw(200, 1, generator())
    assert batch.input.shape == (6, 200, 4) and batch.asked == [5]
    assert torch.equal(batch.target[0], batch.input[0, :, :2])
    marks = torch.zeros(6, 2)
    marks[0, 0] = marks[5, 1] = 1
    assert (batch.input[:, :, 2:] == marks.unsqueeze(1)).all()
    assert (batch.input[5, :, :2] == 0).all()
    means = batch.input[:5, :, :2].mean(1)
    assert ((means > 0.35) & (means < 0.65)).all()  # distractors are bits as well


def test_text():
    text = "".join(random.Random(0).choice("abcde fgh") for _ in range(3000))
    task = Text(text, length=20)
    codes = [task.characters.index(character) for character in text]
    assert torch.cat([task.train_codes, task.val_codes, task.test_codes]).tolist() == codes
    assert [len(part) for part in (task.train_codes, task.val_codes, task.test_codes)] == [2700, 150, 150]
    batch = task.draw(50, 1, generator())
    for b in range(50):
        extract = "".join(task.characters[step.index(1)] for step in rows(batch.input, b))
        after = "".join(task.characters[code] for code in batch.target[:, b].tolist())
        assert len(extract) == 20 and extract[1:] == after[:-1] and extract + after[-1] in text[:2700]
    tests = task.test(1, generator())
    assert tests.target[:, 0].tolist() == codes[2851:]
    assert task.loss(torch.zeros(149, 1, 9), tests).item() == pytest.approx(math.log2(9))
    with pytest.raises(ValueError, match="more than 20 characters to train, got 15 in all"):
        Text("abc" * 5, length=20)


def test_the_text_that_is_installed_is_prose():
    text = shipped_text()
    assert len(text) > 40_000 and "Fisher" in text and text == shipped_text()


@pytest.mark.parametrize(
    "task", [Copy(), RepeatCopy(), Recall(), ArgMax(), Adding(), Text(PROSE)], ids=lambda t: type(t).__name__
)
def test_batches_come_from_their_generator_and_hold_different_sequences(task):
    one, two = generator(1), generator(1)
    first, again, second = task.draw(32, 3, one), task.draw(32, 3, two), task.draw(32, 3, one)
    assert torch.equal(first.input, again.input) and torch.equal(first.target, again.target)
    assert first.input.shape != second.input.shape or not torch.equal(first.input, second.input)
    assert len(first.input.transpose(0, 1).flatten(1).unique(dim=0)) > 8
    assert first.input.shape[2] == task.inputs and first.hints.shape == (len(first.asked), 32, task.hint_size)


def test_losses_by_hand():
    for task in (Copy(3), Recall()):
        batch = task.draw(4, 2, generator())
        output = torch.randn(*batch.input.shape[:2], task.outputs, generator=generator(1))
        total, count = 0.0, 0
        for i, step in enumerate(batch.asked):
            for b in range(4):
                for logit, bit in zip(output[step, b].tolist(), batch.target[i, b].tolist(), strict=True):
                    p = 1 / (1 + math.exp(-logit))
                    total -= math.log2(p if bit else 1 - p)
                    count += 1
        assert task.loss(output, batch).item() == pytest.approx(total / count, rel=1e-5)
    task = Adding()
    batch = task.draw(4, 1, generator())
    output = torch.randn(len(batch.input), 4, 1, generator=generator(1))
    squares = [(output[-1, b, 0] - batch.target[0, b, 0]).item() ** 2 for b in range(4)]
    assert task.loss(output, batch).item() == pytest.approx(sum(squares) / 4, rel=1e-5)
    task = ArgMax()
    batch = task.draw(4, 1, generator())
    output = torch.randn(len(batch.input), 4, task.outputs, generator=generator(1))
    picked = [torch.softmax(output[-1, b].double(), 0)[batch.target[0, b]].log2().item() for b in range(4)]
    assert task.loss(output, batch).item() == pytest.approx(-sum(picked) / 4, rel=1e-5)


def test_the_context_tells_the_next_answers():
    task = Copy(bits=2)
    batch = task.draw(5, 4, generator())  # asked at steps 6 to 9
    signs = 2 * batch.target - 1
    for t, known, far in ((0, [0, 1, 2], 0.6), (6, [0, 1, 2], 0.0), (8, [2, 3], -0.0), (10, [], 0.0)):
        expected = torch.zeros(5, 7)
        for place, answer in enumerate(known):
            expected[:, 2 * place : 2 * place + 2] = signs[answer]
        expected[:, 6] = far
        torch.testing.assert_close(batch.context(t), expected)
    assert batch.context(0).shape[1] == task.context


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", [*TASKS, "text"])
@pytest.mark.parametrize("decouple", ["none", "dni", "cdni"])
def test_every_task_with_every_gradient(name, decouple, tmp_path):
    (tmp_path / "prose.txt").write_text(PROSE)
    text = str(tmp_path / "prose.txt") if name == "text" else None
    cell = {"none": "rnn", "dni": "gru", "cdni": "lstm"}[decouple]
    settings = TaskSettings(task=name, decouple=decouple, cell=cell, text=text, **TINY)
    learner = Learner(settings, settings.make(), 0)
    before = [parameter.clone() for parameter in learner.net.network.parameters()]
    learner.run()
    assert learner.step == 3 and math.isfinite(learner.loss) and learner.done == 1
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.net.network.parameters(), strict=True))
    assert bool(learner.net.cuts) == (decouple != "none")
    assert (learner.net.cuts["state"].conditioned if learner.net.cuts else False) == (decouple == "cdni")


def test_it_learns_and_the_curriculum_goes_on():
    """With gradients through the whole sequence, it is learned; the untrained network knows nothing."""
    settings = TaskSettings(decouple="none", window=100, hidden=32, steps=250, lr=1e-2)
    learner = Learner(settings, Copy(bits=1), 0)
    assert 0.9 < learner.test(1)
    learner.run()
    assert learner.level >= 3
    levels = [point.level for point in learner.curve]
    assert levels == sorted(levels) and [point.step for point in learner.curve] == list(range(50, 251, 50))


def test_a_level_is_left_when_a_batch_is_below_the_threshold(monkeypatch):
    learner = Learner(TaskSettings(**TINY), Copy(), 0)
    real = learner.task.loss
    for value, level in ((0.2, 1), (0.14, 2), (0.16, 2), (0.1, 3)):
        monkeypatch.setattr(learner.task, "loss", lambda output, batch, v=value: real(output, batch) * 0 + v)
        learner.train_step()
        assert learner.level == level


@pytest.mark.parametrize("decouple", ["none", "dni", "cdni"])
def test_a_run_resumes_bit_for_bit(decouple, tmp_path):
    settings = TaskSettings(decouple=decouple, **{**TINY, "steps": 120}, auxiliary=0.1 if decouple == "dni" else 0.0)
    whole = open_run(settings, tmp_path / "whole").learner(0)
    whole.run()
    open_run(dataclasses.replace(settings, steps=50), tmp_path / "parts").learner(0).run()
    rest = open_run(settings, tmp_path / "parts", resume=True).learner(0)
    assert rest.step == 50 and rest.loss is None
    rest.run()
    assert rest.loss == whole.loss
    for one, two in ((whole.net, rest.net), (whole.head, rest.head)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[key]), key
    # the point at step 50 was a last one too
    assert [p.loss for p in rest.curve] == [p.loss for p in whole.curve]
    done = open_run(settings, tmp_path / "parts", resume=True).learner(0)
    assert done.loss == whole.loss and done.done == 1


def interrupted_at(step, monkeypatch):
    """Ctrl-C in the middle of a step; all checkpoints that can be written are."""
    real = Learner.train_step

    def train_step(learner):
        if learner.step == step:
            raise KeyboardInterrupt
        return real(learner)

    monkeypatch.setattr(sequence_runs, "SAVED_AFTER", 0.0)
    monkeypatch.setattr(Learner, "train_step", train_step)


def same(one: Learner, two: Learner) -> bool:
    """Whether two networks, their optimizers, curves and marks are the same, to the bit."""
    tensors = [
        [*learner.whole.state_dict().values(), *(v for s in learner.optimizer.state.values() for v in s.values())]
        for learner in (one, two)
    ]
    curves = [[(p.step, p.loss, p.level, p.cosine) for p in learner.curve] for learner in (one, two)]
    equal = [torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*tensors, strict=True)]
    return all(equal) and curves[0] == curves[1] and (one.loss, one.level) == (two.loss, two.level)


@pytest.mark.parametrize(
    "options",
    [
        {"decouple": "dni", "auxiliary": 0.1},
        {"task": "recall", "decouple": "cdni", "cell": "gru"},
        {"task": "repeat-copy", "decouple": "dni", "synthesizer": 0},
        {"task": "text", "decouple": "none", "cell": "rnn"},
    ],
    ids=lambda options: options.get("task", "copy"),
)
def test_a_run_that_is_interrupted_goes_on_bit_for_bit(tmp_path, monkeypatch, options):
    if options.get("task") == "text":
        (tmp_path / "prose.txt").write_text(PROSE)
        options = options | {"text": str(tmp_path / "prose.txt")}
    monkeypatch.setattr(sequence_runs, "EVERY", 10)
    settings = TaskSettings(**{**TINY, "steps": 32, "lr": 0.01, **options})
    whole = open_run(settings, tmp_path / "whole").learner(0)
    whole.run()
    with monkeypatch.context() as patch:
        interrupted_at(26, patch)
        with pytest.raises(KeyboardInterrupt):
            open_run(settings, tmp_path / "parts").learner(0).run()
    torch.manual_seed(99)  # whatever happens in between
    rest = open_run(settings, tmp_path / "parts", resume=True).learner(0)
    assert rest.step == 20 and rest.loss is None
    rest.run()
    assert same(rest, whole) and len(whole.curve) == 4


def test_a_checkpoint_is_written_when_the_last_one_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(sequence_runs, "EVERY", 5)
    learner, saved = Learner(TaskSettings(**{**TINY, "steps": 40}), Copy(), 0), []
    monkeypatch.setattr(sequence_runs.time, "monotonic", lambda: 7 + learner.step / 2.5)  # a point every two seconds
    monkeypatch.setattr(Learner, "save", lambda learner: saved.append(learner.step))
    learner.run()
    assert saved == [15, 30, 40]


def test_seconds_that_were_spent_before_an_interruption_count(tmp_path, monkeypatch):
    settings = TaskSettings(seconds=160.0, **{**TINY, "steps": None})

    def clock_from(start):
        clock = itertools.count(start)
        monkeypatch.setattr(sequence_runs.time, "process_time", lambda: next(clock))

    clock_from(0)
    whole = open_run(settings, tmp_path / "whole").learner(0)
    whole.run()
    assert whole.step == 160 and whole.seconds == 160
    clock_from(0)
    with monkeypatch.context() as patch:
        interrupted_at(130, patch)
        with pytest.raises(KeyboardInterrupt):
            open_run(settings, tmp_path / "parts").learner(0).run()
    clock_from(5000)  # another process, whose clock says something else
    rest = open_run(settings, tmp_path / "parts", resume=True).learner(0)
    assert rest.seconds == 100
    rest.run()
    assert (rest.step, rest.seconds) == (160, 160) and same(rest, whole)
    assert [point.seconds for point in rest.curve] == [50, 100, 150, 160]


def test_kill_9_and_resume_end_as_a_run_that_was_left_alone(capsys, tmp_path):
    arguments = ["copy", "--seeds", 2, *tiny(tmp_path / "killed", "--steps", 160)]
    code = "import sys; from linnet.cli.task import learner; learner.SAVED_AFTER = 0.0; "
    code += "from linnet.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "task", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    second = tmp_path / "killed" / "seed1.safetensors"
    try:
        deadline = time.monotonic() + 120
        while not second.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 50 <= info(second).step < 160, "the run was killed too late to show anything"
    assert not (tmp_path / "killed" / "results.json").exists()
    assert command(capsys, "--resume", "--out", tmp_path / "killed")[0] == 0
    assert command(capsys, *arguments, "--out", tmp_path / "whole")[0] == 0
    settings = resume_settings(TaskSettings, tmp_path / "whole")
    runs = [open_run(settings, tmp_path / name, resume=True) for name in ("killed", "whole")]
    for seed in (0, 1):
        assert same(*(run.learner(seed) for run in runs))

    def without_times(folder):
        results = json.loads((folder / "results.json").read_text())
        for row in (row for seed in results["seeds"] for row in (seed, *seed["curve"])):
            assert row.pop("seconds") > 0
        return results

    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*"))


def test_ctrl_c_and_the_command_that_it_names(capsys, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_at(55, patch)
        code, out, err = command(capsys, "recall", *tiny(tmp_path / "a run", "--steps", 120))
    assert (code, out) == (130, "") and err.startswith("linnet: stopped; resume with: ")
    assert main(shlex.split(err.partition("resume with: ")[2])[1:]) == 0
    assert command(capsys, "recall", *tiny(tmp_path / "whole", "--steps", 120))[0] == 0
    settings = resume_settings(TaskSettings, tmp_path / "whole")
    assert same(*(open_run(settings, tmp_path / name, resume=True).learner(0) for name in ("a run", "whole")))


def test_seconds_end_a_run(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("linnet.cli.task.learner.time.process_time", lambda: next(clock))
    learner = Learner(TaskSettings(seconds=7.0, **{**TINY, "steps": None}), Copy(), 0)
    learner.run()
    assert learner.step == 7 and learner.seconds == 7 and learner.curve[-1].step == 7


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            {"task": "sorting"},
            "task must be one of copy, repeat-copy, adding, argmax, recall, text, got 'sorting'",
        ),
        ({"decouple": "yes"}, "decouple must be one of none, dni, cdni, got 'yes'"),
        ({"cell": "mlp"}, "cell must be one of lstm, gru, rnn"),
        ({"window": 0}, "window must be a positive integer"),
        ({"steps": 5, "seconds": 1.0}, "`steps` and `seconds` exclude each other"),
        ({"seconds": math.nan}, "seconds must be positive and finite, got nan"),
        ({"factor": -1.0}, "factor must be at least 0"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"auxiliary": 0.1, "decouple": "none"}, "`auxiliary` needs synthetic gradients"),
        ({"text": "a.txt"}, "`text` applies to the task text only, got the task copy"),
        ({"seed": -1}, "seed must be an integer from 0 to"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        TaskSettings(**wrong)


# ---------------------------------------------------------------------- the command


def test_the_command(capsys, tmp_path):
    code, out, err = command(capsys, "copy", "--window", 2, "--seeds", 2, *tiny(tmp_path / "run"))
    assert code == 0
    assert "results.json, curves.png" in out and "over 2 seeds" in out
    assert [line.split("  ")[0] for line in err.splitlines()] == ["seed 0", "seed 1"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["step"] for row in results["seeds"]] == [60, 60] and results["unit"] == "bits"
    losses = [row["loss"] for row in results["seeds"]]
    assert results["loss"]["mean"] == pytest.approx(sum(losses) / 2)
    assert results["loss"]["std"] == pytest.approx(abs(losses[0] - losses[1]) / math.sqrt(2))
    assert [point["step"] for point in results["seeds"][0]["curve"]] == [50, 60]
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = command(capsys, "--resume", "--out", tmp_path / "run", "--steps", 80, "--seeds", 1)
    assert code == 0 and json.loads((tmp_path / "run" / "results.json").read_text())["seeds"][0]["step"] == 80


def test_the_command_on_a_text(capsys, tmp_path):
    (tmp_path / "prose.txt").write_text(PROSE)
    arguments = ["text", "--text", tmp_path / "prose.txt", "--decouple", "none", *tiny(tmp_path / "run")]
    code, out, _ = command(capsys, *arguments)
    assert code == 0 and "bits per character" in out and "–" in out and "±" not in out


def test_mistakes_are_one_line(capsys, tmp_path):
    def complains(message, *arguments):
        code, _, err = command(capsys, *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err

    complains("TASK must be one of", "sorting")
    complains(f"cannot read {tmp_path}/none.txt: No such file", "text", "--text", tmp_path / "none.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff" * 1000)
    complains(f"cannot read {tmp_path}/bytes: 'utf-8' codec", "text", "--text", tmp_path / "bytes")
    complains("--out FOLDER", "--resume")
    complains("no run to resume in", "--resume", "--out", tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    complains("must be new or empty", "--out", tmp_path / "full")
    open_run(TaskSettings(**TINY), tmp_path / "run")
    complains("with other settings: --window was 3, got 5", "--resume", "--window", 5, "--out", tmp_path / "run")
    complains("cannot become shorter", "--resume", "--steps", 2, "--out", tmp_path / "run")
    state = tmp_path / "run" / "seed0.safetensors"
    state.write_bytes(b"half of one")
    complains("seed0.safetensors' is not a valid linnet checkpoint", "--resume", "--out", tmp_path / "run")
    for damaged in ("{", "[]", "{}", '{"settings": {"x": 1}, "data_sha256": null}'):
        (tmp_path / "run" / "run.json").write_text(damaged)
        complains("cannot resume", "--resume", "--out", tmp_path / "run")
    prose = tmp_path / "prose.txt"
    prose.write_text(PROSE)
    open_run(TaskSettings(task="text", text=str(prose), **TINY), tmp_path / "read")
    prose.write_text(PROSE.replace("lazy", "busy", 1))
    complains("prose.txt has changed", "--resume", "--out", tmp_path / "read")


def test_stopped_by_the_user(capsys, tmp_path, monkeypatch):
    def stop(self, watch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "run", stop)
    code, _, err = command(capsys, *tiny(tmp_path / "a run"))
    assert code == 130 and f"linnet task --resume --out '{tmp_path / 'a run'}'" in err


def test_the_picture_shows_every_point(tmp_path):
    run = open_run(TaskSettings(window=2, **{**TINY, "steps": 200}), tmp_path / "run")
    learner = run.learner(0)
    learner.run()
    losses, levels, cosines = picture(run, [learner]).axes
    shown = {axes: axes.lines[0].get_xydata().tolist() for axes in (losses, levels, cosines)}
    assert shown[losses] == [[p.step, p.loss] for p in learner.curve]
    assert shown[levels] == [[p.step, p.level] for p in learner.curve]
    assert shown[cosines] == [[p.step, p.cosine] for p in learner.curve if p.cosine is not None]
    assert draw(run, [learner])[0].stat().st_size > 10_000


def test_the_example_of_long_sequences(tmp_path):
    path = ROOT / "examples" / "long_sequences.py"
    example = runpy.run_path(str(path))
    jobs = [*itertools.islice(example["copy_jobs"](seconds=0.01), 3), *itertools.islice(example["recall_jobs"](2), 3)]
    said: list[str] = []
    for _ in range(2):  # the second time there is nothing left to do
        example["run"](iter(jobs), tmp_path / "found.jsonl", said.append)
    rows = example["read"](tmp_path / "found.jsonl")
    assert len(rows) == len(said) == 6
    assert [row["job"]["method"] for row in rows] == ["none", "dni", "none", "none", "dni", "cdni"]
    text = example["page"](rows)
    both = [row["loss of 3 rows"] for row in rows if row["job"]["method"] == "none" and "loss of 3 rows" in row]
    assert f"| truncated BPTT | {sum(both) / 2:.3f} ± {abs(both[0] - both[1]) / math.sqrt(2):.3f} |" in text
    assert f"| 16 | cDNI | {rows[5]['loss']:.3f} |" in text

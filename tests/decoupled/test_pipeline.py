"""Pipelines over processes: messages, training, statistics, checkpoints, failures."""

import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import linnet
from linnet import DNI, Backprop, LocalLoss, Pipeline, Synthetic
from linnet.decoupled.pipeline.links import DTYPES, END, Failure, Inbox, Outbox
from support.paths import ROOT
from support.processes import context

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)
CRITERION = F.cross_entropy


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def stages(seed=0, slow=0.0):
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
    return [first, nn.Sequential(Slow(slow), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))]


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1297]], y[order[:1297]], x[order[1297:]], y[order[1297:]]


def batches(count, size=64, seed=0):
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        rows = torch.randint(len(x), (size if i < count - 1 else 5,), generator=generator)  # a smaller last one
        yield x[rows], y[rows]


def accuracy(net):
    _, _, x, y = digits()
    net.eval()
    with torch.no_grad():
        return float((net(x).argmax(1) == y).double().mean())


def in_one_process(count, gradient):
    net = nn.Sequential(*stages())
    dni = DNI(net, at=["0"], gradient=gradient)
    opt = ADAM(list(net.parameters()))
    for x, y in batches(count):
        opt.zero_grad()
        with dni.context(y):
            loss = CRITERION(dni(x), y)
        loss.backward()
        opt.step()
    return accuracy(net)


def start(body, world, *args, patience=60.0):
    """Run ``body(rank, folder, *args)`` in so many processes; return what each wrote or raised, and the exit codes."""
    with tempfile.TemporaryDirectory() as folder:
        running = [context().Process(target=process, args=(rank, world, folder, body, args)) for rank in range(world)]
        for one in running:
            one.start()
        for one in running:
            one.join(patience)
            if one.is_alive():
                one.kill()
                one.join()
        found = [torch.load(path) if (path := Path(folder, f"{rank}.pt")).exists() else None for rank in range(world)]
        return found, [one.exitcode for one in running]


def process(rank, world, folder, body, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    try:
        found = body(rank, folder, *args)
    except Exception as error:
        traceback.print_exc()
        found = f"{type(error).__name__}: {error}"
    torch.save(found, Path(folder, f"{rank}.pt"))
    if not isinstance(found, str):
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)  # threads of a failed pipeline may still wait inside gloo


# ---------------------------------------------------------------------- two processes


def post(rank):
    """Tensors of every dtype, not contiguous, without axes, empty, with all axes, through a pair of links."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=20))
    failure = Failure()
    sent = [torch.arange(6).view(2, 3).to(dtype) for dtype in DTYPES]
    if rank == 0:
        box = Outbox(1, group, 2, failure, 20.0)
        box.start()
        for i, tensor in enumerate(sent):
            box.put(i, [tensor.mT, torch.tensor(i)])  # not contiguous, and without axes
        box.put(100, [torch.zeros(0, 3), torch.zeros(1, 1, 1, 1, 1, 1, 1, 1)])
        box.put(END)
        box.join()
        return True
    box = Inbox(0, group, 1, failure, 20.0)
    box.start()
    found = []
    while (message := box.get()).step != END:
        found.append((message.step, *message.tensors))
    box.join()
    right = all(a.dtype == b.dtype and torch.equal(a, b.mT) for (_, a, _), b in zip(found, sent, strict=False))
    return right and [step for step, *_ in found] == [*range(len(sent)), 100] and found[-1][1].shape == (0, 3)


def two(rank, folder):
    """All tests of two running processes, one after the other."""
    found = {"tensors": post(rank)}
    context = Synthetic(context=10)
    for name, options in {
        "every": {"gradient": context},
        "one in ten": {"gradient": context, "feedback": 10},
        "local": {"gradient": LocalLoss(CRITERION, 10, optim=ADAM)},
    }.items():
        pipe = Pipeline(stages(), ADAM, CRITERION, timeout=30, **options)
        statistics = pipe.train(batches(200) if pipe.first else None)
        found[name] = accuracy(pipe.gather()), statistics
    # the whole, as it is on either process
    pipe = Pipeline([functools.partial(part, 0) for part in (first, second)], ADAM, CRITERION, gradient=context)
    pipe.train(batches(20))
    found["whole"] = pipe.gather().state_dict()
    # a checkpoint takes up where it was
    pipe.save(f"{folder}/kept")
    other = Pipeline(stages(seed=5), ADAM, CRITERION, gradient=context).load(f"{folder}/kept")
    same = [
        torch.equal(a, b)
        for a, b in zip(pipe.gather().state_dict().values(), other.gather().state_dict().values(), strict=True)
    ]
    own = pipe._own.state_dict(), other._own.state_dict()
    same += [set(own[0]) == set(own[1]), *(torch.equal(own[0][key], own[1][key]) for key in own[0])]
    moments = [optimizer.state_dict()["state"] for optimizer in (pipe.optimizer, other.optimizer)]
    same += [torch.equal(moments[0][i][key], moments[1][i][key]) for i in moments[0] for key in moments[0][i]]
    found["kept"] = all(same) and other.steps == 20 and len(same) > 20
    found["after"] = other.train(batches(5, seed=9))["steps"]
    # a slow second stage
    pipe = Pipeline(stages(slow=0.05), ADAM, CRITERION, gradient=context, queue=40)
    found["slow"] = pipe.train(batches(25) if pipe.first else None)
    pipe = Pipeline(stages(slow=0.02), ADAM, CRITERION, gradient=context, queue=1)
    found["narrow"] = pipe.train(batches(25) if pipe.first else None)
    return found


def first(seed):
    return stages(seed)[0]


def second(seed):
    return stages(seed)[1]


def test_two_processes():
    (lower, upper), codes = start(two, 2)
    assert codes == [0, 0] and not isinstance(lower, str) and not isinstance(upper, str), (lower, upper)
    assert lower["tensors"] and upper["tensors"]
    alone = in_one_process(200, Synthetic(context=10))
    assert alone > 0.93
    assert lower["every"][0] == upper["every"][0]  # one network, gathered on either process
    # chance is 0.1; what late gradients cost depends on how late the machine makes them
    assert lower["every"][0] > 0.6 and lower["one in ten"][0] > 0.5 and lower["local"][0] > alone - 0.1
    every, sparse, local = (lower[name][1] for name in ("every", "one in ten", "local"))
    assert [int(s["gradients"]) for s in (every, sparse, local)] == [200, 20, 0]
    assert all(int(s["steps"]) == 200 for s in (every, sparse, local))
    assert int(every["staleness"].sum()) == 200
    assert 0 < float(every["loss"]) == float(upper["every"][1]["loss"]) < 1.5
    assert all(torch.equal(value, upper["whole"][name]) for name, value in lower["whole"].items())
    assert not torch.equal(lower["whole"]["0.0.weight"], stages()[0][0].weight)
    assert lower["kept"] and upper["kept"]
    assert int(lower["after"]) == int(upper["after"]) == 5
    slow, narrow = lower["slow"], lower["narrow"]
    assert len(slow["staleness"]) > 10  # the first stage ran on without its gradients
    assert float(slow["waited_for_room"]) < 0.3 * 25 * 0.05  # nor did it wait for anything else while there was room
    assert float(narrow["waited_for_room"]) > 0.2 * 25 * 0.02 and len(narrow["staleness"]) <= 9
    assert all(name in slow for name in ("waited_for_input", "waited_at_the_end"))


# ---------------------------------------------------------------------- ends that are not orderly


def killed(rank, folder, victim):
    pipe = Pipeline(stages(), ADAM, CRITERION, gradient=Synthetic(context=10), timeout=5)

    def data():
        for i, batch in enumerate(batches(10_000)):
            if i == 20 and victim == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    if rank == victim == 1:
        handle = pipe.stage.register_forward_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if pipe.steps == 20 else None
        )
        assert handle
    pipe.train(data() if rank == 0 else None)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_stage_ends_the_other_with_a_clear_error(victim):
    began = time.monotonic()
    found, codes = start(killed, 2, victim)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 0
    assert found[1 - victim].startswith("RuntimeError: Pipeline failed: rank"), found
    assert f"rank {victim}" in found[1 - victim]
    assert time.monotonic() - began < 45


# ---------------------------------------------------------------------- two processes for each of two stages


def four(rank, folder):
    pipe = Pipeline(stages(), ADAM, CRITERION, gradient=Synthetic(context=10), timeout=30)
    data = list(batches(150, size=32, seed=pipe.replica)) if pipe.first else None
    statistics = pipe.train(data)
    return accuracy(pipe.gather()), {name: value.clone() for name, value in pipe.stage.state_dict().items()}, statistics


@pytest.mark.slow
def test_two_processes_for_each_stage_keep_one_set_of_weights():
    found, codes = start(four, 4, patience=120)
    assert codes == [0] * 4 and not any(isinstance(one, str) for one in found), found
    for a, b in ((0, 1), (2, 3)):
        weights = [name for name in found[a][1] if "running" not in name and "tracked" not in name]
        assert all(torch.equal(found[a][1][name], found[b][1][name]) for name in weights)
    assert found[0][0] > 0.9 and int(found[0][2]["gradients"]) == 150


def test_what_a_pipeline_refuses():
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialized; call init_process_group\(\) first"):
        Pipeline(stages(), ADAM, CRITERION)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            with pytest.raises(ValueError, match="2 stages and 1 processes"):
                Pipeline(stages(), ADAM, CRITERION)
            with pytest.raises(ValueError, match="queue must be a positive integer"):
                Pipeline(stages(), ADAM, CRITERION, queue=0)
            with pytest.raises(ValueError, match="timeout must be positive"):
                Pipeline(stages(), ADAM, CRITERION, timeout=0)
        finally:
            dist.destroy_process_group()
    assert Backprop.late and linnet.Pipeline is Pipeline


@pytest.mark.slow
def test_the_example_goes_on_after_a_killed_process(tmp_path):
    example = ROOT / "examples" / "elastic_pipeline.py"
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    words = ["--nproc-per-node", "2", "--max-restarts", "5", "--monitor-interval", "0.2", str(example), str(tmp_path)]
    child = subprocess.Popen([*torchrun, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "checkpoint.safetensors").exists():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    workers = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    os.kill(workers[-1], signal.SIGKILL)
    shown, said = child.communicate(timeout=200)
    assert child.returncode == 0, said
    found = re.search(r"(\d+) steps, ([\d.]+) % of the test split", shown)
    assert found, shown
    assert int(found[1]) % 20 == 0  # whole epochs, none twice
    assert shown.count("epoch 20: loss") == 1
    assert float(found[2]) > 92
    assert len(list(tmp_path.glob("stages-*"))) == 1


def refuses(rank, folder):
    """Load files that are not checkpoints of this pipeline, in one process or in all; the pipeline stays unchanged."""
    pipe = Pipeline(stages(), ADAM, CRITERION)
    pipe.save(f"{folder}/kept")
    other = Pipeline(stages(seed=5), ADAM, CRITERION)
    before = {name: value.clone() for name, value in other._own.state_dict().items()}
    said = []
    for damage in ("a file", "the layout"):
        if rank == 1 and damage == "a file":
            (file,) = Path(folder, "kept").glob("stages-*/rank1.safetensors")
            file.write_bytes(file.read_bytes()[:-1])
        if rank == 1 and damage == "the layout":
            path = Path(folder, "kept", "checkpoint.safetensors")
            extra = linnet.load(path, into=nn.Identity()).extra | {"processes": 4}
            linnet.save(nn.Identity(), path, extra=extra)
        dist.barrier()
        try:
            other.load(f"{folder}/kept")
        except ValueError as error:
            said.append(str(error))
        dist.barrier()
    kept = all(torch.equal(before[name], value) for name, value in other._own.state_dict().items())
    return {"said": said, "kept": kept}


def test_what_one_process_cannot_load_none_takes_over():
    found, codes = start(refuses, 2)
    assert codes == [0, 0] and all(one["kept"] for one in found), found
    for one in found:
        assert "truncated or altered" in one["said"][0]
        assert re.search(r"must be of a pipeline of .*'processes': 2}, got .*'processes': 4} in ", one["said"][1])


def half_saved(rank, folder):
    """A save that fails on one process, when the other has written its file."""
    pipe = Pipeline(stages(), ADAM, CRITERION)
    pipe.save(f"{folder}/kept")
    kept = {name: value.clone() for name, value in pipe.stage.state_dict().items()}
    with torch.no_grad():
        for parameter in pipe.stage.parameters():
            parameter.add_(1)
    if rank == 1:
        pipe.stage.register_buffer("kept", torch.zeros(2, dtype=torch.complex128))  # safetensors has no such
    said = ""
    try:
        pipe.save(f"{folder}/kept")
    except (TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
    other = Pipeline(stages(seed=5), ADAM, CRITERION).load(f"{folder}/kept")
    return {
        "said": said,
        "kept": all(torch.equal(kept[name], value) for name, value in other.stage.state_dict().items()),
    }


def test_a_save_that_fails_on_one_process_leaves_the_former_checkpoint_of_all():
    found, codes = start(half_saved, 2)
    assert codes == [0, 0] and all(one["kept"] for one in found), found
    assert found[1]["said"].startswith("TypeError: model.stage.kept must have a dtype that safetensors stores")
    assert found[0]["said"].startswith("ValueError: Process 1 could not save or load the checkpoint: ")

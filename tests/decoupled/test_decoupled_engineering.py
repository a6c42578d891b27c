"""Decoupled networks with the rest of PyTorch and of linnet: autocast, accumulation, DDP, compile, memory, rewiring."""

import copy
import gc
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import linnet
from linnet import DNI, Delayed, DirectFeedback, LocalLoss, Synthetic
from support.processes import start
from support.stages import SOURCES, adam, batches, close, grads, network, output_of, same_state, step, train


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "delayed"])
def test_gradients_accumulate(name):
    """Over two passes the gradients are the sum of those of each pass, from the same state of the sources."""
    dni = DNI(network(), gradient=SOURCES[name])
    train(dni, adam(dni.network), batches(3))
    dni.zero_grad()
    for source in dni.cuts.values():
        source.learn = lambda memory, target: None
    alone = []
    for x, y in batches(2, seed=5):
        other = copy.deepcopy(dni)
        other.zero_grad()
        step(other, torch.optim.SGD(other.network.parameters(), lr=0.0), x, y)
        alone.append(grads(other.network))
    dni.zero_grad()
    for x, y in batches(2, seed=5):
        F.cross_entropy(output_of(dni, x, y), y).backward()
    assert close(grads(dni.network), [a + b for a, b in zip(*alone, strict=True)])


@pytest.mark.parametrize("name", SOURCES)
def test_bf16_autocast_is_near_float32(name):
    """The same steps in both: losses agree to the precision of bfloat16, the sources stay in float32."""
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = network(width=32).float()
        dni, opt = DNI(net, gradient=SOURCES[name]), adam(net)
        x, y = next(batches(1, size=64))
        x = x.float()
        found = []
        for _ in range(10):
            opt.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                output = output_of(dni, x, y)
                loss = F.cross_entropy(output, y)
            loss.backward()
            opt.step()
            found.append(loss.item())
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
        assert all(p.dtype == torch.float32 for p in dni.parameters())
        losses.append(found)
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 0.03
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("name", SOURCES)
def test_forwards_without_backward_leave_memory_flat(name):
    dni = DNI(network(), gradient=SOURCES[name])
    train(dni, adam(dni.network), batches(3))
    state = {key: value.clone() for key, value in dni.state_dict().items()}
    x, y = next(batches(1))

    def alive():
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    counts = []
    gc.collect()
    gc.freeze()  # what earlier tests have left, and may die here, is not counted
    try:
        for i in range(200):
            output_of(dni, x, y)
            if i in (10, 199):
                gc.collect()
                counts.append(alive())
    finally:
        gc.unfreeze()
    assert counts[0] == counts[1]
    assert all(torch.equal(state[key], value) for key, value in dni.state_dict().items())


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_eval_and_no_grad_store_nothing(name, mode):
    dni = DNI(network(), gradient=SOURCES[name])
    before = {key: value.clone() for key, value in dni.state_dict().items()}
    x, _ = next(batches(1))
    dni.train(mode == "no_grad")
    with torch.set_grad_enabled(mode == "eval"):
        assert torch.equal(dni(x), dni.network(x))
    after = dni.state_dict()
    assert set(before) == set(after) and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it in every input
@pytest.mark.parametrize("name", SOURCES)
def test_compiled_stages_are_the_eager_ones(name):
    torch.compiler.reset()
    x = next(batches(1))[0]
    expected = DNI(network(), gradient=SOURCES[name], example=x)
    net = network()
    stages = [torch.compile(part, backend="aot_eager") for part in (net[:2], net[2:4], net[4:])]
    compiled = DNI(nn.Sequential(*stages), gradient=SOURCES[name], example=x)
    for own, theirs in zip(compiled.cuts.values(), expected.cuts.values(), strict=True):
        own.load_state_dict(theirs.state_dict())  # what a source draws depends on the name of its cut
    train(expected, adam(expected.network), batches(4))
    train(compiled, adam(net), batches(4))
    assert close(expected.network.parameters(), net.parameters(), 1e-9)


def test_activation_memory_is_that_of_one_stage():
    """K equal stages: at most 1/K of backpropagation's, plus what the linear synthesizers keep: their two inputs."""
    for stages in (3, 6):
        torch.manual_seed(0)
        width, batch, depth = 32, 256, 4
        blocks = []
        for _ in range(stages * depth):
            blocks += [nn.Linear(width, width), nn.Tanh()]
        net = nn.Sequential(*blocks)
        x = torch.randn(batch, width)
        weights = sum(p.numel() * 4 for name, p in net.named_parameters() if "weight" in name)
        plain = linnet.activation_memory(lambda net=net, x=x: net(x).sum().backward()) - weights
        dni = DNI(net, at=[2 * depth * i - 1 for i in range(1, stages)], example=x)
        found = linnet.activation_memory(lambda dni=dni, x=x: dni(x).sum().backward()) - weights / stages
        share = (stages - 1) * 2 * (batch * width * 4 + width * width * 4)
        assert found <= plain / stages + share + batch * width * 4
        assert plain > stages * depth * batch * width * 4 * 0.9


def test_a_rewiring_layer_counts_one_step_per_step_of_its_optimizer():
    """With deferred and immediate updates the connections are rewired in the same steps as in plain training."""
    counts = {}
    for kind in ("plain", "deferred", "immediate"):
        torch.manual_seed(0)
        layer = linnet.SparseLinear(12, 12, sparsity=0.5, dynamic=linnet.RigL(every=4, until=100))
        net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), layer, nn.Tanh(), nn.Linear(12, 3))
        opt = adam(net)
        options = {} if kind == "plain" else {"optim": opt, "update": kind, "gradient": Synthetic(context=3)}
        model = net if kind == "plain" else DNI(net, **options)
        moved = []
        before = layer.indices.clone()
        for i, (x, y) in enumerate(batches(12)):
            opt.zero_grad()
            if kind == "plain":
                loss = F.cross_entropy(model(x.float()), y)
            else:
                with model.context(y):
                    loss = F.cross_entropy(model(x.float()), y)
            loss.backward()
            opt.step()
            if not torch.equal(before, layer.indices):
                moved.append(i)
                before = layer.indices.clone()
        counts[kind] = moved
    assert counts["plain"] == [3, 7, 11]
    assert counts["deferred"] == counts["immediate"] == counts["plain"]


# ---------------------------------------------------------------------- two processes


SHARED = {
    "synthetic": Synthetic(context=3),
    "mixed": Synthetic(context=3, mix=0.5),
    "least squares": Synthetic(linnet.LeastSquaresSynthesizer, context=3),
    "local": LocalLoss(F.cross_entropy, 3),
    "feedback": DirectFeedback(),
    "delayed": Delayed(1),
}


def joined(name):
    dni = DNI(network(), gradient=SHARED[name], example=torch.zeros(1, 4, dtype=torch.float64))
    train(dni, adam(dni.network), batches(5, size=8))
    return dni


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    faults = []
    for name, source in SHARED.items():
        try:
            torch.manual_seed(0)
            dni = DNI(network(seed=0), gradient=source, example=torch.zeros(1, 4, dtype=torch.float64))
            if rank:
                for source in dni.cuts.values():  # what the processes have at first need not be equal
                    for tensor in (*source.parameters(), *source.buffers()):
                        tensor.data.add_(1)
            linnet.share_sources(dni)
            ddp, opt = DistributedDataParallel(dni), adam(dni.network)
            for x, y in batches(5, size=8):
                x, y = x[4 * rank : 4 * rank + 4], y[4 * rank : 4 * rank + 4]
                opt.zero_grad()
                F.cross_entropy(output_of(dni, x, y, ddp), y).backward()
                opt.step()
            expected = joined(name)
            for (key, a), b in zip(dni.named_parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=f"{name}: {key}")
        except Exception as error:
            faults.append(f"{name} on rank {rank}: {type(error).__name__}: {error}")
    Path(folder, f"{rank}.txt").write_text("\n".join(faults))
    dist.barrier()
    dist.destroy_process_group()


def test_under_ddp_two_processes_are_one_with_the_joined_batch():
    with tempfile.TemporaryDirectory() as folder:
        start(worker, folder)
        assert [Path(folder, f"{rank}.txt").read_text() for rank in range(2)] == ["", ""]


def test_sharing_needs_processes_and_built_sources():
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialized; call init_process_group\(\) first"):
        linnet.share_sources(DNI(network()))
    assert same_state(network(), network())

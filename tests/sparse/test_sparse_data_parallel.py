"""Dynamic sparse training under DistributedDataParallel: two processes decide as one with the whole batch does."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet import GSE, SET, GradualMagnitude, Rewiring, RigL, Rule, SparseLinear
from linnet.sparse import share_wiring
from support.processes import start

RULES: list[Rule] = [RigL(every=2, alpha=0.5), GSE(every=2, alpha=0.5, candidates=3.0), SET(every=2)]
STEPS = 7


def model(rule: Rule | None, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"sparsity": 0.7, "dtype": torch.float64}
    return nn.Sequential(
        SparseLinear(10, 8, dynamic=rule or False, **options),
        nn.Tanh(),
        SparseLinear(8, 6, dynamic=rule or False, max_size=20, **options),
    )


def train(net: nn.Module, part: slice, check: Any = None) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for t in range(STEPS):
        x = torch.randn(6, 10, generator=torch.Generator().manual_seed(t), dtype=torch.float64)[part]
        optimizer.zero_grad()
        net(x).square().sum(-1).mean().backward()
        optimizer.step()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    part = slice(0, 3) if rank == 0 else slice(3, 6)
    for i, rule in enumerate(RULES):
        for shared in (False, True):
            net = model(rule, seed=rank)  # the processes begin with other connections
            if shared:
                share_wiring(net)
            parallel = DistributedDataParallel(net)
            assert len(parallel.modules_buffers) == (0 if shared else 14)
            train(parallel, part)
            found[f"{i} {shared}"] = net.state_dict()
    net = model(None, seed=rank)
    share_wiring(net)
    parallel = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rewiring = Rewiring(parallel, optimizer, RULES[0])
    found["broken"] = "nothing"
    for t in range(2):
        parallel(torch.ones(2, 10, dtype=torch.float64)).sum().backward()
        if t == 1:  # somebody has changed the topology of one process
            net[0].reconnect(model(None, seed=5 + rank)[0].cells())
        try:
            optimizer.step()
        except RuntimeError as error:
            found["broken"] = str(error)
    rewiring.remove()
    pruned = model(GradualMagnitude(every=1, until=9))
    try:
        train(DistributedDataParallel(pruned), part)
        found["pruned"] = "nothing"
    except ValueError as error:
        found["pruned"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = Path(tmp_path_factory.mktemp("ddp"))
    start(work, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("i", range(len(RULES)))
@pytest.mark.parametrize("shared", [False, True])
def test_two_processes_are_one(found: list[dict[str, Any]], i: int, shared: bool) -> None:
    alone = model(RULES[i])
    start = alone[0].cells()
    train(alone, slice(None))
    assert not torch.equal(alone[0].cells(), start)
    first, second = (one[f"{i} {shared}"] for one in found)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor)


def test_processes_that_differ_are_told(found: list[dict[str, Any]]) -> None:
    assert all("must have the same connections" in one["broken"] for one in found)


def test_pruning_is_refused(found: list[dict[str, Any]]) -> None:
    assert all("needs a rule that keeps the number of connections" in one["pruned"] for one in found)


def test_share_wiring_needs_processes() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        share_wiring(model(None))


def test_the_comparison_of_hashes_notices_any_difference() -> None:
    from linnet.sparse.dynamic.update import digest

    cells = torch.arange(0, 1000, 3)
    for i in range(0, 300, 37):
        other: Tensor = cells.clone()
        other[i] += 1
        assert digest(other) != digest(cells)

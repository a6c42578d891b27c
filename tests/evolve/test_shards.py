"""Populations sharded across two processes equal those of one process bit for bit."""

import copy
import dataclasses
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

import linnet
from linnet import SparseLinear, WideAdam, WideDeep, evolve, widen
from linnet.cli.evolve.run import open_run
from linnet.cli.evolve.settings import EvolveSettings
from linnet.cli.run_folder import resume_settings
from linnet.evolve import Shards
from support.processes import start

PARENTS = torch.tensor([5, 5, 0, 7, 3, 3, 1, 2])


def populations():
    torch.manual_seed(0)
    return {
        "widened": widen(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), 8),
        "deep": WideDeep(8, 3, 4, 2, 2, nn.PReLU()),
        "sparse": SparseLinear(6, 5, sparsity=0.5, beings=8, shared=False),
    }


def part_of(population, rows):
    """A population of some beings, by hand."""
    part = (
        linnet.stack([linnet.single(population, i) for i in range(8)][rows])
        if isinstance(population, linnet.Wide)
        else None
    )
    if isinstance(population, WideDeep):
        part = WideDeep(4, 3, 4, 2, 2, nn.PReLU())
    if isinstance(population, SparseLinear):
        part = SparseLinear(6, 5, sparsity=0.5, beings=4, shared=False)
    state = {name: tensor[rows] for name, tensor in population.state_dict().items()}
    part.load_state_dict(state)
    return part


def meet(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )


def moves(rank, folder):
    meet(rank, folder)
    shards, wrong = Shards(8, block=2), []
    for name, whole in populations().items():
        part = part_of(whole, slice(shards.start, shards.stop))
        optimizers = [
            WideAdam(p.parameters(), beings=n, lr=torch.arange(1.0, n + 1)) for p, n in ((whole, 8), (part, 4))
        ]
        optimizers[1].param_groups[0]["lr"] += shards.start
        for p, optimizer, first in ((whole, optimizers[0], 0), (part, optimizers[1], shards.start)):
            for parameter in p.parameters():
                numbers = torch.arange(first, first + len(parameter), dtype=parameter.dtype)
                parameter.grad = numbers.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter).clone()
            optimizer.step()
        evolve.reproduce(whole, PARENTS, optimizers[0])
        evolve.reproduce(part, PARENTS, optimizers[1], shards=shards)
        for p, first in ((whole, 0), (part, shards.start)):
            evolve.mutate(p, evolve.Gaussian(0.1), seed=1, generation=2, keep=3, first=first)
        expected = {n: t[shards.start : shards.stop] for n, t in whole.state_dict().items()}
        wrong += [f"{name}: {n}" for n, t in part.state_dict().items() if not torch.equal(t, expected[n])]
        for a, b in zip(whole.parameters(), part.parameters(), strict=True):
            pairs = [
                (a.grad, b.grad),
                *((optimizers[0].state[a][k], optimizers[1].state[b][k]) for k in ("exp_avg", "step")),
            ]
            wrong += [name for x, y in pairs if not torch.equal(x[shards.start : shards.stop], y)]
        if not torch.equal(
            optimizers[0].param_groups[0]["lr"][shards.start : shards.stop], optimizers[1].param_groups[0]["lr"]
        ):
            wrong.append(f"{name}: rates")
    whole = torch.arange(24.0).view(8, 3)
    if not torch.equal(shards.whole(shards.own(whole)), whole):
        wrong.append("whole")
    torch.save(wrong, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def evolves(rank, folder, settings):
    meet(rank, folder)
    wrong = []
    for strategy in ("ga", "es", "lowrank"):
        own = dataclasses.replace(settings, strategy=strategy)
        run = open_run(own, f"{folder}/{strategy}", shards=Shards(own.beings, own.block))
        run.step(), run.save()
        dist.barrier()
        run = open_run(
            resume_settings(EvolveSettings, f"{folder}/{strategy}"),
            f"{folder}/{strategy}",
            resume=True,
            shards=run.shards,
        )
        run.run()
        wrong.append((run.curve, run.test().tolist()))
    torch.save(wrong, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_rows_move_between_processes_as_within_one(tmp_path):
    start(moves, str(tmp_path))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [[], []]


def test_an_evolution_on_two_processes_is_that_on_one(tmp_path):
    # more elites than a process holds beings
    settings = EvolveSettings(beings=24, block=6, generations=3, hidden=4, elites=14, normalize=True, target=1e9)
    start(evolves, str(tmp_path), settings)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert both[0] == both[1]
    for strategy, (curve, returns) in zip(("ga", "es", "lowrank"), both[0], strict=True):
        alone = open_run(dataclasses.replace(settings, strategy=strategy), tmp_path / f"{strategy} alone")
        alone.run()
        assert (alone.curve, alone.test().tolist()) == (curve, returns)
        for name in ("state.safetensors", "best.safetensors", "curve.csv"):
            one, two = ((tmp_path / folder / name).read_bytes() for folder in (f"{strategy} alone", strategy))
            assert one == two, name


def test_what_shards_refuse(tmp_path):
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialized; call init_process_group\(\)"):
        Shards(8)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"must be a multiple of 1 · 3 \(processes · block\), got 8"):
            Shards(8, block=3)
        nets = widen(nn.Linear(3, 2), 4)
        with pytest.raises(ValueError, match="must hold the 8 beings of this process, got 4"):
            evolve.reproduce(nets, torch.arange(8), shards=Shards(8))
        with pytest.raises(ValueError, match="one parent for each being; leave crossover= out"):
            evolve.reproduce(nets, range(4), mates=range(4), crossover=evolve.ByLayer(), shards=Shards(4))
        before = copy.deepcopy(nets.state_dict())
        evolve.reproduce(nets, [3, 2, 1, 0], shards=Shards(4))
        assert torch.equal(nets.state_dict()["weight"], before["weight"].flip(0))
    finally:
        dist.destroy_process_group()

"""Sharded checkpoints: what comes back on other numbers of processes, what is refused, what a failure leaves.

The programs of several processes are functions of this file; each writes what it found to ``rank.pt``.
"""

import copy
import json
import os
import re
from datetime import timedelta
from functools import partial

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import linnet
from linnet import SparseLinear, WideAdam, WideDeep, load_sharded, save_sharded
from linnet.checkpoint import sharded
from linnet.evolve import Shards
from support.processes import start


def net(seed=0):
    """Sizes that two processes cannot halve, a tied weight, a norm, a buffer of integers, a structured map."""
    torch.manual_seed(seed)
    tied = nn.Linear(7, 7)
    made = nn.Sequential(
        nn.Linear(5, 7), tied, nn.BatchNorm1d(7), tied, linnet.OrthogonalLinear(7, 7), nn.Dropout(0.3), nn.Linear(7, 1)
    )
    return made


def train(model, optimizer, steps, first=0, rank=0, world=1):
    for step in range(first, first + steps):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x.tensor_split(world)[rank]).square().mean().backward()
        optimizer.step()


def whole(tensor):
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor() if tensor.numel() else torch.empty(tensor.shape, dtype=tensor.dtype)
    return tensor


def numbers(model, optimizer=None):
    """Every tensor of a model and its optimizer, whole, by name."""
    found = {key: whole(value).clone() for key, value in model.state_dict().items()}
    if optimizer is not None:
        for i, moments in optimizer.state_dict()["state"].items():
            found |= {f"{i}.{key}": whole(value).clone() for key, value in moments.items()}
    return found


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def meet(rank, folder, world):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )


def program(rank, body, folder, world):
    meet(rank, folder, world)
    torch.save(body(rank, folder), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def together(body, folder, world=2):
    """What each process found."""
    folder.mkdir(exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    start(program, body, str(folder), world, nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def refused(call):
    try:
        call()
    except Exception as error:  # which one is what is asked
        return f"{type(error).__name__}: {error}"
    return "nothing"


# ---------------------------------------------------------------------- what comes back


def fsdp_net(seed=0):
    model = net(seed)
    fully_shard(model[4])
    fully_shard(model)
    return model


def goes_on(rank, folder):
    """What a run holds, draws and learns after it was saved, and what another does that took it over."""
    found = []
    for seed in range(2):
        model = fsdp_net(seed)
        optimizer = adam(model)
        if seed == 0:
            train(model, optimizer, 3)
            extra = {"note": ("a", torch.arange(3))}
            save_sharded(model, f"{folder}/saved", optimizer=optimizer, step=3, extra=extra)
        else:
            about = load_sharded(f"{folder}/saved", into=model, optimizer=optimizer)
        there, draw = numbers(model, optimizer), torch.rand(3)
        layout = {type(tensor).__name__ for tensor in model.state_dict().values()}
        train(model, optimizer, 2, first=3)
        found.append((there, draw, numbers(model, optimizer), layout))
    return *found, about.step, about.extra["note"][1], about.shapes["0.weight"]


def reads(rank, folder):
    model = fsdp_net(seed=1)
    optimizer = adam(model)
    load_sharded(f"{folder}/saved", into=model, optimizer=optimizer, rng=False)
    return numbers(model, optimizer)


def test_a_run_of_fsdp_goes_on_bit_for_bit_and_elsewhere(tmp_path):
    found = together(goes_on, tmp_path)
    for before, after, *about in found:
        assert same(before[0], after[0]) and torch.equal(before[1], after[1]) and same(before[2], after[2])
        assert "DTensor" in after[3] and not same(before[0], before[2])
        assert about[0] == 3 and about[1].tolist() == [0, 1, 2] and about[2] == (7, 5)
    model = net(seed=2)  # of plain tensors, on one process
    optimizer = adam(model)
    with pytest.raises(ValueError, match="must hold the generator states of 1 processes, got 2; pass rng=False"):
        load_sharded(tmp_path / "saved", into=model, optimizer=optimizer)
    load_sharded(tmp_path / "saved", into=model, optimizer=optimizer, rng=False)
    assert same(numbers(model, optimizer), found[0][0][0])
    parts = [safetensors.torch.load_file(path) for path in sorted((tmp_path / "saved").glob("shards-*/*"))]
    assert [part["model.0.weight"].shape[0] for part in parts] == [4, 3]  # each wrote its own


@pytest.mark.slow
def test_a_run_of_fsdp_on_more_processes(tmp_path):
    there = together(goes_on, tmp_path)[0][0][0]
    for one in together(reads, tmp_path, world=3):
        assert same(one, there)


def holds_nothing(rank, folder):
    found = []
    for fill in (torch.ones, torch.zeros):
        model = nn.ParameterDict({"some": fill(4, 5), "no columns": torch.zeros(5, 0), "no rows": torch.zeros(0, 5)})
        fully_shard(model)
        optimizer = adam(model)
        if fill is torch.ones:
            for parameter in model.values():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            save_sharded(model, f"{folder}/saved", optimizer=optimizer)
        load_sharded(f"{folder}/saved", into=model, optimizer=optimizer)
        found.append(numbers(model, optimizer))
    return found


def test_sharded_parameters_without_numbers(tmp_path):
    for before, after in together(holds_nothing, tmp_path):
        assert same(before, after) and len(before) == 12


def replicas(rank, folder):
    model = DistributedDataParallel(net())
    optimizer = adam(model)
    train(model, optimizer, 3, rank=rank, world=2)
    save_sharded(model, f"{folder}/saved", optimizer=optimizer, step=3)
    return numbers(model.module, optimizer)


def test_what_all_processes_hold_is_written_once(tmp_path):
    first, second = together(replicas, tmp_path)
    assert not same(first, second)  # the norms have seen other halves: those of the first process count
    (file,) = (tmp_path / "saved").glob("shards-*/*")
    assert sum("running_mean" in name for name in safetensors.torch.load_file(file)) == 1
    model = net(seed=2)
    optimizer = adam(model)
    load_sharded(tmp_path / "saved", into=model, optimizer=optimizer, rng=False)
    assert same(numbers(model, optimizer), first)


def populations():
    torch.manual_seed(0)
    return {
        "deep": lambda n: WideDeep(n, 3, 4, 2, 2, nn.PReLU()),
        "sparse": lambda n: SparseLinear(6, 5, sparsity=0.5, beings=n, shared=False),
        "trunk": lambda n: nn.Sequential(
            nn.Linear(6, 8), nn.Linear(8, 8), linnet.Spread(), linnet.Linear(8, 2, beings=n)
        ),
    }


def step_of(population, optimizer, first, count):
    """Gradients that differ by being, and are the same for what is no being's."""
    genes = linnet.wide.population.genes_of(population)
    for parameter in population.parameters():
        rows = torch.arange(first, first + count, dtype=parameter.dtype).view(-1, *[1] * (parameter.dim() - 1))
        parameter.grad = rows.expand_as(parameter).clone() if parameter in genes else torch.ones_like(parameter)
    optimizer.step()


def parted(rank, folder):
    """What the beings of a process are, and what they are in another population that took them over."""
    shards, found = Shards(8), {}
    for name, build in populations().items():
        pair = []
        for seed in (0, 10):
            torch.manual_seed(rank + seed)
            population = build(shards.local)
            if name == "trunk":
                torch.manual_seed(seed)
                population[0], population[1] = nn.Linear(6, 8), nn.Linear(8, 8)
            optimizer = torch.optim.Adam(population.parameters(), lr=0.1)
            if seed == 0:
                step_of(population, optimizer, shards.start, shards.local)
                save_sharded(population, f"{folder}/{name}", optimizer=optimizer, shards=shards, step=1)
            else:
                load_sharded(f"{folder}/{name}", into=population, optimizer=optimizer, shards=shards)
            pair.append(numbers(population, optimizer))
        found[name] = pair
    return found


def parted_again(rank, folder):
    shards, found = Shards(8), {}
    for name, build in populations().items():
        population = build(shards.local)
        optimizer = torch.optim.Adam(population.parameters(), lr=0.1)
        load_sharded(f"{folder}/{name}", into=population, optimizer=optimizer, shards=shards, rng=False)
        found[name] = numbers(population, optimizer)
    return found


def alone(folder, name):
    """A population in one process."""
    population = populations()[name](8)
    optimizer = torch.optim.Adam(population.parameters(), lr=0.1)
    load_sharded(folder / name, into=population, optimizer=optimizer, rng=False)
    return numbers(population, optimizer)


def put_together(parts, whole):
    """Check that parts are the rows of a whole, or all of it; how many are rows."""
    rows = 0
    for key, tensor in whole.items():
        pieces = [part[key] for part in parts]
        if pieces[0].shape == tensor.shape:  # nobody's, or the number of steps
            assert all(torch.equal(piece, tensor) for piece in pieces), key
        else:
            assert torch.equal(torch.cat(pieces), tensor), key
            rows += 1
    return rows


def test_beings_find_their_process(tmp_path):
    halves = together(parted, tmp_path)
    for name in populations():
        assert all(same(*half[name]) for half in halves)
        assert put_together([half[name][0] for half in halves], alone(tmp_path, name)) >= 3


@pytest.mark.slow
def test_beings_find_their_process_among_more(tmp_path):
    together(parted, tmp_path)
    quarters = together(parted_again, tmp_path, world=4)
    for name in populations():
        assert put_together([quarter[name] for quarter in quarters], alone(tmp_path, name)) >= 3


DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.bool, torch.uint8, torch.int64)


def test_one_process_without_torch_distributed(tmp_path):
    model = net()
    for dtype in DTYPES:
        model.register_buffer(f"kept_{str(dtype)[6:]}", torch.tensor([[0, 1, 1]]).to(dtype))
    model.register_buffer("empty", torch.zeros(0, 3))
    model.register_buffer("number", torch.tensor(2.5))
    model.register_buffer("view", model[0].weight.detach().t()[1:3])
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), momentum=0.9)
    train(model, optimizer, 2)
    save_sharded(model, tmp_path, optimizer=optimizer, step=2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    theirs = torch.optim.SGD(other.parameters(), lr=torch.tensor(0.5), momentum=0.9)
    found = load_sharded(tmp_path, into=other, optimizer=theirs)
    assert same(numbers(other, theirs), numbers(model, optimizer))
    assert float(theirs.param_groups[0]["lr"]) == pytest.approx(0.1)
    assert found.network is other and found.optimizer.endswith("SGD") and found.rng and found.shapes["empty"] == (0, 3)


def test_a_sparse_layer_that_moved_and_a_dni(tmp_path):
    def build():
        inner = nn.Sequential(SparseLinear(12, 10, sparsity=0.6, dynamic=True, deltaT=2), nn.ReLU(), nn.Linear(10, 2))
        optimizer = torch.optim.Adam(inner.parameters(), lr=1e-2)
        return linnet.DNI(inner, optimizer, example=torch.zeros(2, 12)), optimizer

    torch.manual_seed(0)
    model, optimizer = build()
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()
    save_sharded(model, tmp_path, optimizer=optimizer)
    other, theirs = build()
    load_sharded(tmp_path, into=other, optimizer=theirs)
    assert same(numbers(other, theirs), numbers(model, optimizer))
    x = torch.randn(4, 12)
    assert torch.equal(other.eval()(x), model.eval()(x))


class Counting(nn.Linear):
    """Its extra state is a tensor that only the state_dict holds."""

    def get_extra_state(self):
        return torch.full((7,), 9.0)

    def set_extra_state(self, state):
        pass


class Fresh(torch.optim.SGD):
    """So is the state of this optimizer."""

    def state_dict(self):
        return super().state_dict() | {"state": {i: {"moment": torch.full((7,), float(i))} for i in range(9)}}

    def load_state_dict(self, state):
        self.read = state["state"]


def test_tensors_that_only_the_state_holds_are_not_mixed_up(tmp_path):
    model = nn.Sequential(*[Counting(2, 2) for _ in range(9)])
    optimizer = Fresh(model.parameters(), lr=0.1)
    save_sharded(model, tmp_path, optimizer=optimizer)
    load_sharded(tmp_path, into=model, optimizer=optimizer)
    assert [moment["moment"][0].item() for moment in optimizer.read.values()] == list(range(9))


# ---------------------------------------------------------------------- what is refused


def different(rank, folder):
    model = net(seed=rank)
    said = refused(lambda: save_sharded(model, f"{folder}/saved"))
    return said, os.path.exists(f"{folder}/saved")


def test_parameters_that_differ_between_processes_are_not_lost_silently(tmp_path):
    for said, there in together(different, tmp_path):
        assert (
            re.match("ValueError: parameters that are no DTensors must be equal on all .* shards=", said) and not there
        )


def fails_on_one(rank, folder):
    model = fsdp_net()
    optimizer = adam(model)
    save_sharded(model, f"{folder}/saved", optimizer=optimizer, step=1)
    dist.barrier()
    before = sorted(os.listdir(f"{folder}/saved"))
    train(model, optimizer, 1)
    trained = numbers(model, optimizer)
    extra = {"set": {1, 2}} if rank == 0 else None  # a set cannot be stored
    said = [refused(lambda: save_sharded(model, f"{folder}/saved", optimizer=optimizer, step=2, extra=extra))]
    dist.barrier()  # the first process has cleared up
    kept = before == sorted(os.listdir(f"{folder}/saved"))
    other = fsdp_net(seed=3)
    theirs = adam(other)
    untouched = numbers(other, theirs)

    def late(module, state, *args):  # refuses when all is read and one has taken over what it was given
        raise RuntimeError("too late")

    if rank == 1:
        other.register_load_state_dict_post_hook(late)
    said.append(refused(lambda: load_sharded(f"{folder}/saved", into=other, optimizer=theirs)))
    return said, kept, same(untouched, numbers(other, theirs)), trained


def test_a_failure_of_one_process_is_one_of_all_and_changes_nothing(tmp_path):
    first, second = together(fails_on_one, tmp_path)
    assert first[0][0].startswith("TypeError: extra.set must be a dict") and "a set" in first[0][0]
    assert second[0][0].startswith("ValueError: Process 0 could not save or load the checkpoint: ")
    assert all(one[1] for one in (first, second))
    assert all("too late" in one[0][1] for one in (first, second)), (first[0], second[0])
    assert all(one[2] for one in (first, second))
    model = net(seed=5)
    assert load_sharded(tmp_path / "saved", into=model, rng=False).step == 1
    assert same(numbers(model), numbers(net()))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    save_sharded(model, tmp_path, optimizer=adam(model), step=1)
    return tmp_path


def target():
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "an altered shard": (lambda d: flip(next(d.glob("shards-*/*"))), "truncated or altered"),
    "an altered description": (lambda d: flip(d / "checkpoint.safetensors"), "truncated or altered"),
    "a missing shard": (
        lambda d: next(d.glob("shards-*/*")).unlink(),
        "must hold the 1 files that the description names, got 0",
    ),
    "a foreign shard": (lambda d: (next(d.glob("shards-*")) / "a.safetensors").write_bytes(b"x"), "names, got 2"),
    "another checkpoint": (
        lambda d: linnet.save(target(), d / "checkpoint.safetensors"),
        "does not describe a sharded checkpoint",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_before_anything_changes(saved, name):
    damage, said = DAMAGE[name]
    damage(saved)
    model = target()
    before = numbers(model)
    with pytest.raises(ValueError, match=said):
        load_sharded(saved, into=model)
    assert same(before, numbers(model))


HOSTILE = {
    "a path": (lambda d: d.update(folder="../elsewhere"), "folder of its files: "),
    "huge": (
        lambda d: d["tensors"].update({"model.0.weight": ["float32", [10**9, 10**9], False]}),
        "the shards do not hold",
    ),
    "a dtype that is none": (lambda d: d["tensors"]["model.0.weight"].__setitem__(0, "load"), "the shards do not hold"),
    "a tensor that is not there": (lambda d: d["tensors"].update({"x": ["float32", [1], False]}), "KeyError"),
    "a tensor that is not described": (lambda d: d["tensors"].pop("model.0.weight"), "KeyError"),
    "a dtype of no name": (lambda d: d["tensors"]["model.0.weight"].__setitem__(0, "nowhere"), "AttributeError"),
    "names that are none": (lambda d: d.update(model={"$dict": [[1, 2]]}), "must be a dict with string keys"),
    "no tree": (lambda d: d.update(model={"0.weight": {"$code": 1}}), "unknown kind"),
    "no files": (lambda d: d.update(files=3), "does not describe a sharded checkpoint"),
    "strange shapes": (lambda d: d.update(optimizer_shapes=[[[4, "x"]]]), "differ in number or in the shapes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_refused(saved, name):
    path = saved / "checkpoint.safetensors"
    description = linnet.load(path, into=nn.Identity()).extra
    change, said = HOSTILE[name]
    change(description)
    linnet.save(nn.Identity(), path, extra=description)
    model = target()
    before = numbers(model)
    with pytest.raises(ValueError, match=said):
        load_sharded(saved, into=model, optimizer=adam(model))
    assert same(before, numbers(model))


def test_shards_that_claim_a_tensor_without_end_are_refused(saved):
    (shard,) = saved.glob("shards-*/*")
    data = shard.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    about = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    about["model.0.weight"]["saved_offsets"] = [10**12, 0]
    header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(about)
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    path = saved / "checkpoint.safetensors"
    description = linnet.load(path, into=nn.Identity()).extra
    import hashlib

    description["files"] = {shard.name: hashlib.sha256(shard.read_bytes()).hexdigest()}
    description["tensors"]["model.0.weight"][1] = [10**12 + 3, 4]
    linnet.save(nn.Identity(), path, extra=description)
    with pytest.raises(ValueError, match="the shards do not hold"):
        load_sharded(saved, into=target())


def test_models_and_optimizers_that_do_not_fit(saved):
    with pytest.raises(ValueError, match=r"missing in the file: 2\.weight"):
        load_sharded(saved, into=nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"different: 1.weight \(\(2, 3\) in the file, \(5, 3\) in the model\)"):
        load_sharded(saved, into=nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)))
    model = target()
    with pytest.raises(ValueError, match=r"the file holds a .*AdamW, got a .*SGD"):
        load_sharded(saved, into=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(FileNotFoundError):
        load_sharded(saved / "nowhere", into=model)
    with pytest.raises(TypeError, match="complex128"):
        save_sharded(nn.ParameterList([torch.zeros(2, dtype=torch.complex128)]), saved)
    assert load_sharded(saved, into=model).step == 1


def beings_refused(rank, folder):
    nets = WideDeep(4, 3, 4, 2, 2)
    torch.manual_seed(0)
    plain = WideDeep(4, 3, 4, 2, 2)
    save_sharded(plain, f"{folder}/plain")
    said = [refused(partial(load_sharded, f"{folder}/plain", into=nets, shards=Shards(8)))]
    save_sharded(nets, f"{folder}/parted", shards=Shards(8))
    return [*said, refused(partial(load_sharded, f"{folder}/parted", into=nets, shards=Shards(16)))]


def test_populations_that_do_not_fit(tmp_path):
    for said in together(beings_refused, tmp_path):
        assert said[0].endswith("must hold a population of 8 beings, got none that is distributed")
        assert said[1].endswith("must hold a population of 16 beings, got one of 8")


def test_what_a_killed_save_has_left_goes_with_the_next(saved):
    (saved / "shards-0123456789ab").mkdir()
    (saved / "shards-0123456789ab" / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    (saved / ".checkpoint.safetensors.0123456789ab.tmp").write_bytes(b"half")
    (saved / "shards-of-the-data").mkdir()  # is not ours
    model = target()
    assert load_sharded(saved, into=model).step == 1
    save_sharded(model, saved, step=2)
    (saved / "shards-of-the-data").rmdir()
    assert len(list(saved.iterdir())) == 2 and load_sharded(saved, into=model).step == 2


def test_a_population_of_one_process_keeps_its_own_optimizer(tmp_path):
    nets = WideDeep(4, 3, 4, 2, 2)
    optimizer = WideAdam(nets.parameters(), beings=4, lr=torch.arange(1.0, 5) / 100)
    nets(torch.ones(3)).sum().backward()
    optimizer.step()
    save_sharded(nets, tmp_path, optimizer=optimizer)
    others = WideDeep(4, 3, 4, 2, 2)
    theirs = WideAdam(others.parameters(), beings=4, lr=0.5)
    load_sharded(tmp_path, into=others, optimizer=theirs)
    assert same(numbers(others, theirs), numbers(nets, optimizer))
    assert torch.equal(theirs.param_groups[0]["lr"], optimizer.param_groups[0]["lr"])


def goes_further(rank, folder):
    """Tensor parallelism inside FSDP, and replicas of shards: DTensors of two axes of processes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def parallel(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        return fully_shard(parallelize_module(model, mesh["tensor"], plan), mesh=mesh["data"])

    def hybrid(seed):
        torch.manual_seed(seed)
        return fully_shard(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)), mesh=mesh)

    found = {}
    for name, build in {"parallel": parallel, "hybrid": hybrid}.items():
        pair = []
        for seed in range(2):
            model = build(seed)
            pair.append((model, torch.optim.Adam(model.parameters(), lr=0.1)))
        (model, optimizer), (other, theirs) = pair
        model(torch.ones(4, 6)).square().sum().backward()
        optimizer.step()
        save_sharded(model, f"{folder}/{name}", optimizer=optimizer)
        load_sharded(f"{folder}/{name}", into=other, optimizer=theirs)
        found[name] = numbers(model, optimizer), numbers(other, theirs)
    return found


@pytest.mark.slow
def test_processes_of_two_axes(tmp_path):
    found = together(goes_further, tmp_path, world=4)[0]
    for name, (before, after) in found.items():
        assert same(before, after), name
        model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        load_sharded(tmp_path / name, into=model, optimizer=optimizer, rng=False)
        assert same(numbers(model, optimizer), before), name


def test_what_is_named_is_never_removed(saved, monkeypatch):
    """The others may die when the first process has named the new checkpoint and removed the former one."""
    named = sharded.save_naming

    def dies(*args, **options):
        named(*args, **options)
        raise RuntimeError("connection closed by peer")

    with monkeypatch.context() as patch:
        patch.setattr(sharded, "save_naming", dies)
        with pytest.raises(RuntimeError, match="connection closed"):
            save_sharded(target(), saved, step=2)
    assert load_sharded(saved, into=target()).step == 2

"""Checkpoints that build their own network: whatever linnet describes comes back, and nothing else is believed."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import linnet
from linnet.checkpoint import architecture
from linnet.checkpoint.architecture import built, described
from linnet.testing import cases
from support.paths import ROOT

CASES = [
    pytest.param(case, id=f"{name}-{case.options}-{case.beings}")
    for name, cls in linnet.catalogue().items()
    if cls.__module__.startswith("linnet.")
    for case in cases(cls)
]


def same_options(a, b):
    """Equal, tensors too."""
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a
    )


def came_back(model, tmp_path, *inputs):
    linnet.save(model, tmp_path / "m.safetensors")
    before = torch.get_rng_state()
    found = linnet.load(tmp_path / "m.safetensors", rng=False).network
    assert torch.equal(torch.get_rng_state(), before)
    assert type(found) is type(model) and repr(found) == repr(model)
    mine, theirs = model.state_dict(), found.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in found.named_parameters()
    }
    with torch.no_grad():
        for x in inputs:
            a, b = model.eval()(x), found.eval()(x)
            a, b = (y if isinstance(y, tuple) else (y,) for y in (a, b))
            assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_layer(case, dtype, tmp_path):
    layer = case.layer(dtype=dtype)
    x = case.randn(3, *case.leading, layer.in_features, dtype=dtype)
    found = came_back(layer, tmp_path, x)
    assert same_options(found.options(), layer.options())


SPARSE = {
    "small world": {"small_world": True},
    "Erdős–Rényi": {"connectivity": linnet.ErdosRenyi()},
    "fan-in": {"connectivity": linnet.ConstantFanIn(3)},
    "blocks": {"connectivity": linnet.Blocks(4)},
    "given": {"connectivity": torch.tensor([[0, 5, 7], [1, 2, 2]])},
    "SET": {"dynamic": linnet.SET(every=3)},
    "GSE": {"dynamic": linnet.GSE(every=3)},
    "RigL": {"dynamic": linnet.RigL(every=3, until=30), "beings": 2},
}


@pytest.mark.parametrize("name", SPARSE)
def test_every_wiring_and_rule(name, tmp_path):
    layer = linnet.SparseLinear(16, 16, **SPARSE[name])
    optimizer = torch.optim.Adam(layer.parameters())
    x = torch.randn(4, *layer.leading, 16)
    for _ in range(7):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    found = came_back(layer, tmp_path, x)
    assert found.rule == layer.rule
    assert same_options(found.options(), layer.options())


def test_a_pruned_layer(tmp_path):
    layer = linnet.SparseLinear(32, 32, sparsity=0.0, dynamic=linnet.GradualMagnitude(sparsity=0.97, every=1, until=10))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.randn(4, 32)).square().sum().backward()
        optimizer.step()
    assert layer.nnz < 100
    found = came_back(layer, tmp_path, torch.randn(2, 32))
    assert found.sparsity == layer.sparsity == 0.0 and found.first_nnz == layer.first_nnz


def shared():
    layer = linnet.OrthogonalLinear(8, 8)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Sequential(nn.ReLU(), layer))


def half_frozen():
    net = linnet.MLP(8, 8, 3, layer="sparse", sparsity=0.5, depth=3)
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


NETS = {
    "mlp": lambda: linnet.MLP(8, 8, 3, depth=4, layer="symmetric", activation=nn.GELU),
    "population": lambda: nn.Sequential(linnet.Spread(), linnet.MLP(8, 6, 3, beings=4)),
    "prelu population": lambda: nn.Sequential(linnet.Spread(), linnet.MLP(8, 6, 3, beings=4, activation=nn.PReLU)),
    "wide deep": lambda: nn.Sequential(linnet.Spread(), linnet.WideDeep(5, 8, 6, 3, 2)),
    "wide deep, modules": lambda: nn.Sequential(linnet.Spread(), linnet.WideDeep(5, 8, 6, 3, 2, nn.ELU(), torch.tanh)),
    "wide linear": lambda: nn.Sequential(linnet.Spread(), linnet.WideLinear(5, 8, 6)),
    "shared": shared,
    "frozen": half_frozen,
    "blocks": lambda: nn.Sequential(
        linnet.Residual(linnet.OrthogonalLinear(8, 8)),
        linnet.Residual(linnet.Repeat(nn.Linear(8, 8), 3), shortcut=linnet.FixedRandom(8, 8, layer="sparse")),
        linnet.Parallel(linnet.FixedRandom(8, 3, bias=True), nn.Linear(8, 5), merge="cat"),
    ),
    "recurrent": lambda: linnet.RNN(8, 6, 2, input_map="low-rank", hidden_map="orthogonal", batch_first=True),
    "torch": lambda: nn.Sequential(
        nn.Unflatten(-1, (2, 4)),
        nn.Conv1d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm1d(4),
        nn.LeakyReLU(0.3),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Dropout(0.2),
        nn.Linear(16, 12),
        linnet.KWinners(12, act_sparsity=0.5),
        nn.Softmax(dim=-1),
    ),
    "doubles": lambda: linnet.MLP(8, 6, 3, layer="low-rank").double(),
    "bfloat16": lambda: linnet.MLP(8, 6, 3).bfloat16(),
}


@pytest.mark.parametrize("name", NETS)
def test_every_composition(name, tmp_path):
    torch.manual_seed(0)
    net = NETS[name]()
    dtype = next(iter(net.state_dict().values())).dtype
    x = torch.randn(3, 2, 8) if name == "recurrent" else torch.randn(3, 8, dtype=dtype)
    net(x)  # batch norm and KWinners have a state
    came_back(net, tmp_path, x)


def test_shared_modules_stay_shared(tmp_path):
    found = came_back(shared(), tmp_path)
    assert found[0] is found[2] is found[3][1]


class Own(nn.Module):
    pass


def tied():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    return nn.Sequential(a, b)


def hooked():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


@pytest.mark.parametrize(
    "make",
    [
        Own,
        tied,
        hooked,
        lambda: nn.Sequential(Own()),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
        lambda: nn.Sequential(prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: linnet.DNI(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))),
        lambda: linnet.widen(nn.Linear(4, 4), 3),
        lambda: linnet.RNN(3, 4, nonlinearity=torch.sin),
    ],
)
def test_what_is_not_described_needs_a_model_to_load_into(make, tmp_path):
    model = make()
    assert described(model) is None
    linnet.save(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"does not describe its .*build the model and pass it as into="):
        linnet.load(tmp_path / "m.safetensors")
    assert linnet.load(tmp_path / "m.safetensors", into=model).network is model


def test_an_optimizer_needs_into(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    linnet.save(net, tmp_path / "m.safetensors", optimizer=optimizer)
    with pytest.raises(ValueError, match="optimizer needs into"):
        linnet.load(tmp_path / "m.safetensors", optimizer=optimizer)


# ---------------------------------------------------------------------- descriptions that lie


def lies(node):
    """Every change of one value of a description, to each of a few strange ones."""
    strange = (None, -1, 0, 10**15, 1e300, math.nan, "x", "os.system", [], {}, [[]], True, {"record": "RigL"})
    for key, value in node.items():
        rest = {k: v for k, v in node.items() if k != key}
        yield rest
        for other in strange:
            yield node | {key: other}
        if isinstance(value, dict):
            for changed in lies(value):
                yield node | {key: changed}
    yield node | {"layer": "Linear"}
    yield node | {"same": "0"}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", ["mlp", "population", "blocks", "recurrent", "torch", "wide deep", "wide linear"])
def test_a_lie_is_refused_or_builds_what_the_state_fits(name):
    net = NETS[name]()
    description, state = described(net), net.state_dict()
    json.dumps(description)
    refused = 0
    for lie in lies(description):
        try:
            found = built(lie, state)
        except (ValueError, TypeError, LookupError, RecursionError):
            refused += 1
            continue
        assert sum(t.numel() for t in [*found.parameters(), *found.buffers()]) < 4 * architecture.SMALLEST_LIMIT
    assert refused > 100


def test_deep_nesting_and_huge_sizes():
    node = {"module": "ReLU", "arguments": {"inplace": False}}
    for _ in range(5000):
        node = {"block": "Sequential", "attributes": {}, "modules": {"0": node}}
    with pytest.raises((RecursionError, ValueError)):
        built(node, {})
    layer = described(linnet.Linear(3, 3))
    for sizes in ({"in_features": 10**9}, {"out_features": 2**62}, {"beings": 10**9}):
        with pytest.raises(ValueError, match="must be an integer up to"):
            built(layer | sizes, {})
    with pytest.raises(ValueError, match="more numbers than the file"):
        built(layer | {"in_features": 60_000, "out_features": 60_000}, {})


def test_records_are_what_they_say():
    assert all(
        dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen for cls in architecture.RECORDS.values()
    )


# ---------------------------------------------------------------------- files that lie


def fuzzed(folder, start, stop):
    command = [sys.executable, "-m", "support.fuzz_checkpoints", folder, str(start), str(stop)]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)


SLICES = [(0, 120), *(pytest.param(i, i + 940, marks=pytest.mark.slow) for i in (120, 1060))]


@pytest.mark.parametrize(("start", "stop"), SLICES)
def test_broken_files_are_refused_or_load_exactly(tmp_path, start, stop):
    """2000 files under a limit of memory, each loaded into a model and without one; 120 of them by default."""
    told = fuzzed(tmp_path, start, stop)
    assert sum(told.values()) == 2 * (stop - start)
    assert told.keys() >= {f"{kind}, refused" for kind in ("flipped", "truncated", "swapped", "lied", "nested")}
    assert told["swapped, loaded"] and told["lied, loaded"]
    assert "flipped, loaded" not in told and "truncated, loaded" not in told

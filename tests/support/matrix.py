"""Compatibility matrix: rows are layers, columns are what PyTorch users put layers into, each cell is run.

``make matrix`` runs every cell and writes docs/composition.md. A cell passes, or it refuses with the error
that stands in REFUSALS, whose cause is outside linnet or in the nature of the row; anything else is a failure.
"""

import copy
import functools
import io
import pickle
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import linnet
from linnet import evolve
from support.paths import ROOT
from support.processes import start

N, BATCH = 8, 4
PAGE = ROOT / "docs" / "composition.md"


class OverBeings(nn.Module):
    """A population in the place of one map: the mean of what its beings say."""

    def __init__(self, population: nn.Module) -> None:
        super().__init__()
        self.population = population

    def forward(self, input: Tensor) -> Tensor:
        return self.population(input.unsqueeze(-2)).mean(-2)


class OverTime(nn.Module):
    """A recurrent net in the place of a map: its last output for an input that stays."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, input: Tensor) -> Tensor:
        return self.rnn(torch.stack([input, input]))[0][-1]


@dataclass(frozen=True)
class Row:
    """A layer: (*, 8) -> (*, 8)."""

    name: str
    make: Callable[..., nn.Module]
    family: str
    layer: type | None = None
    options: dict | None = None

    def __call__(self, seed: int = 0, **factory) -> nn.Module:
        torch.manual_seed(seed)
        return self.make(**factory)


def catalogue_row(name: str, cls: type, **options) -> Row:
    make = functools.partial(cls, N, N, **options)
    family = "sparse" if cls is linnet.SparseLinear else cls.__module__.rpartition(".")[2]
    return Row(name, make, family, cls, options)


WIRINGS = {
    "Uniform": linnet.Uniform(),
    "ErdosRenyi": linnet.ErdosRenyi(),
    "SmallWorld": linnet.SmallWorld(),
    "ConstantFanIn": linnet.ConstantFanIn(3),
    "Blocks": linnet.Blocks(2),
    "NM": linnet.NM(2, 4),
}
RULES = {
    "RigL": linnet.RigL(every=3, until=100),  # its updates take the place of a step of the optimizer
    "SET": linnet.SET(every=3),
    "GSE": linnet.GSE(every=3),
    "GradualMagnitude": linnet.GradualMagnitude(sparsity=0.8, every=1, until=10),
}
SHIPPED = {cls.__name__: cls for cls in linnet.catalogue().values() if cls.__module__.startswith("linnet.")}
ROWS = [
    Row("nn.Linear", functools.partial(nn.Linear, N, N), "torch"),
    *(catalogue_row(name, cls) for name, cls in sorted(SHIPPED.items())),
    *(
        catalogue_row(f"SparseLinear, {name}", linnet.SparseLinear, connectivity=wiring)
        if name in ("ConstantFanIn", "NM")
        else catalogue_row(f"SparseLinear, {name}", linnet.SparseLinear, connectivity=wiring, sparsity=0.5)
        for name, wiring in WIRINGS.items()
    ),
    *(
        catalogue_row(f"SparseLinear, {name}", linnet.SparseLinear, sparsity=0.5, dynamic=rule)
        for name, rule in RULES.items()
    ),
    Row("WideLinear", lambda **f: OverBeings(linnet.WideLinear(3, N, N, **f)), "wide"),
    Row("WideDeep", lambda **f: OverBeings(linnet.WideDeep(3, N, N, 2, N, **f)), "wide"),
    Row("KWinners", lambda device=None, dtype=None: linnet.KWinners(N, device=device).to(dtype), "winners"),
    Row("RNN", lambda **f: OverTime(linnet.RNN(N, N, 2, hidden_map="orthogonal", **f)), "recurrent"),
    Row("RNNCell", functools.partial(linnet.RNNCell, N, N), "recurrent"),
]

SYNTHESIZERS = {
    "linear": linnet.LinearSynthesizer,
    "low-rank": linnet.LowRankSynthesizer,
    "MLP": linnet.MLPSynthesizer,
    "sigmoid": linnet.SigmoidSynthesizer,
    "batch norm": linnet.BatchNormSynthesizer,
    "least squares": linnet.LeastSquaresSynthesizer,
}

# ---------------------------------------------------------------------- columns


COLUMNS: dict[str, Callable[[Row], None]] = {}
DEAR: set[str] = set()


def column(name: str, dear: bool = False):
    def add(function):
        COLUMNS[name] = function
        if dear:
            DEAR.add(name)
        return function

    return add


def net_of(layer: nn.Module, dtype=None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, N, dtype=dtype), layer, nn.Tanh(), nn.Linear(N, 3, dtype=dtype))


def data(features: int = 5, batch: int = BATCH, dtype=torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(batch, features, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def trains(model: nn.Module, x: Tensor, steps: int = 2) -> None:
    """Adam lowers nothing here, but everything that has a gradient must move and stay finite."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(x)
        assert output.isfinite().all(), "the output is not finite"
        (output.float().square().mean() + linnet.penalty(model).float()).backward()
        optimizer.step()
    after = list(model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.shape == b.shape), "nothing moved"
    assert all(p.isfinite().all() for p in after), "a parameter is not finite"


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


@column("nn.Sequential")
def in_sequential(row: Row) -> None:
    trains(net_of(row()), data())


@column("used twice")
def used_twice(row: Row) -> None:
    layer = row(dtype=torch.float64).eval()
    x = data(N, dtype=torch.float64)
    copies = copy.deepcopy(layer), copy.deepcopy(layer)
    own, *each = ([p for p in one.parameters() if p.requires_grad] for one in (layer, *copies))
    together, apart = layer(torch.tanh(layer(x))), copies[1](torch.tanh(copies[0](x)))
    close(together, apart, 1e-12)
    if own:
        whole = torch.autograd.grad(together.square().sum(), own)
        halves = torch.autograd.grad(apart.square().sum(), [*each[0], *each[1]])
        for one, a, b in zip(whole, halves[: len(own)], halves[len(own) :], strict=True):
            close(one, a + b, 1e-8)


class Flow(nn.Module):
    """The FixedHiddenMLP of the chapter: reuse, in-place arithmetic and a loop that depends on the data."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("fixed", torch.rand(N, N))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.mm(self.layer(x), self.fixed) + 1)
        x = self.layer(x) if x.sum() > 0 else -self.layer(x)
        while x.abs().sum() > 1:
            x = x / 2
        x += 1
        return x


@column("control flow")
def control_flow(row: Row) -> None:
    trains(nn.Sequential(nn.Linear(N, N), Flow(row())), data(N))


@column("nested blocks")
def nested_blocks(row: Row) -> None:
    layer = row()
    block = nn.Sequential(
        linnet.Residual(layer), linnet.Parallel(linnet.Repeat(layer, 2), nn.Linear(N, N), merge="sum")
    )
    trains(nn.Sequential(nn.Linear(5, N), linnet.Residual(block), nn.Sequential(block, nn.Linear(N, 3))), data())


@column("widen(…, 4)")
def widened(row: Row) -> None:
    member = net_of(row(dtype=torch.float64), torch.float64).eval()
    population = linnet.widen(member, 4).eval()
    x = data(dtype=torch.float64)
    close(population(x.unsqueeze(1)), member(x).unsqueeze(1).expand(-1, 4, -1), 1e-9)
    wide = linnet.widen(net_of(row()), 4)
    trains(wide, data().unsqueeze(1).expand(-1, 4, -1))


def _dni(kind: str, row: Row) -> None:
    net = net_of(row())
    source = linnet.Synthetic(SYNTHESIZERS[kind])
    model = linnet.DNI(net, gradient=source)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in net.parameters()]
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(data(batch=32, seed=step)), torch.arange(32) % 3).backward()
        optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True) if a.shape == b.shape]
    assert moved and moved[0], "the lowest layer has no gradient"
    assert all(p.isfinite().all() for p in net.parameters())


for _kind in SYNTHESIZERS:
    COLUMNS[f"DNI, {_kind}"] = functools.partial(_dni, _kind)


@column("DNI of a widened net")
def dni_of_widened(row: Row) -> None:
    net = nn.Sequential(linnet.widen(net_of(row()), 4), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    model = linnet.DNI(net, at=["0", "2"])
    trains(model, data().unsqueeze(1).expand(-1, 4, -1))


@column("an evolved population")
def evolved(row: Row) -> None:
    population = linnet.widen(lambda: net_of(row.make()), 6, seeds=range(6))
    x = data().unsqueeze(1)
    with torch.no_grad():
        before = population(x)
        fitness = -before.square().mean((0, 2))
        best = int(fitness.argmax())
        evolve.reproduce(population, torch.full((6,), best))
        children = population.eval()(x)
        assert torch.equal(children, children[:, :1].expand_as(children)), "children differ from each other"
        evolve.mutate(population, evolve.Gaussian(0.1), seed=0, generation=0, keep=1)
        mutants = population(x)
    assert torch.equal(mutants[:, 0], children[:, 0]) and not torch.equal(mutants[:, 1], children[:, 1])
    assert mutants.isfinite().all()


@column("torch.compile, aot_eager", dear=True)
def compiled(row: Row, backend: str = "aot_eager") -> None:
    net = net_of(row()).eval()
    x = data()
    torch.compiler.reset()
    try:
        made = torch.compile(net, fullgraph=True, backend=backend)
        close(made(x), net(x), 1e-4)
        net.train()
        trains(made, x)
    finally:
        torch.compiler.reset()


@column("torch.compile, inductor", dear=True)
def inductor(row: Row) -> None:
    compiled(row, "inductor")


@column("torch.export", dear=True)
def exported(row: Row) -> None:
    net = net_of(row()).eval()
    program = torch.export.export(net, (data(),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for batch in (2, 9):
        close(program(data(batch=batch)), net(data(batch=batch)))


@column("to_onnx", dear=True)
def onnx(row: Row) -> None:
    import onnxruntime

    net = net_of(row()).eval()
    with tempfile.TemporaryDirectory() as folder:
        linnet.to_onnx(net, data(), f"{folder}/net.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/net.onnx", providers=["CPUExecutionProvider"])
        for batch in (1, 9):
            x = data(batch=batch)
            (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            close(torch.from_numpy(y), net(x), 1e-4)


@column("bf16 autocast")
def autocast(row: Row) -> None:
    net = net_of(row())
    with torch.autocast("cpu", torch.bfloat16):
        y = net.eval()(data())
    close(y.float(), net(data()), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        trains(net.train(), data())


@column(".bfloat16()")
def bfloat16(row: Row) -> None:
    net = net_of(row()).bfloat16()
    assert net(data().bfloat16()).dtype == torch.bfloat16
    trains(net, data().bfloat16())


@column("GradScaler")
def scaler(row: Row) -> None:
    net = net_of(row())
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = net[0].weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(net(data()).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert not torch.equal(before, net[0].weight) and all(p.isfinite().all() for p in net.parameters())


@column("gradient checkpointing")
def checkpointed(row: Row) -> None:
    net = net_of(row(dtype=torch.float64), torch.float64)
    other = copy.deepcopy(net)
    x = data(dtype=torch.float64)
    torch.manual_seed(1)
    torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).square().sum().backward()
    torch.manual_seed(1)
    other(x).square().sum().backward()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        if b.grad is not None:
            close(a.grad, b.grad, 1e-9)


@column("functional_call, vmap")
def vmapped(row: Row) -> None:
    models = [net_of(row(seed), None).eval() for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    template = copy.deepcopy(models[0])
    x = data()

    def call(p, b):
        return torch.func.functional_call(template, (p, b), (x,))

    found = torch.func.vmap(call, randomness="different")(parameters, buffers)
    close(found, torch.stack([model(x) for model in models]), 1e-4)


@column("meta device")
def meta(row: Row) -> None:
    layer = row(device="meta")
    assert all(t.is_meta for t in [*layer.parameters(), *layer.buffers()])
    layer = layer.to_empty(device="cpu")
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    trains(net_of(layer), data())


@column("deepcopy")
def deepcopied(row: Row) -> None:
    net = net_of(row())
    trains(net, data())
    other = copy.deepcopy(net)
    trains(net, data())
    assert not torch.equal(net.eval()(data()), other.eval()(data()))
    trains(other, data())


@column("pickle")
def pickled(row: Row) -> None:
    net = net_of(row())
    trains(net, data())
    other = pickle.loads(pickle.dumps(net))
    close(other.eval()(data()), net.eval()(data()), 0)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    trains(torch.load(buffer, weights_only=False).train(), data())


@column("safetensors")
def saved(row: Row) -> None:
    net = net_of(row())
    trains(net, data())
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_model(net, f"{folder}/a.safetensors")
        other = net_of(row(1))
        if "GradualMagnitude" in row.name:  # fewer connections than a new one: its own loader resizes
            other.load_state_dict(safetensors.torch.load_file(f"{folder}/a.safetensors"))
        else:
            safetensors.torch.load_model(other, f"{folder}/a.safetensors")
        close(other.eval()(data()), net.eval()(data()), 0)
        linnet.save(net, f"{folder}/b.safetensors")
        other = net_of(row(1))
        linnet.load(f"{folder}/b.safetensors", into=other)
        close(other.eval()(data()), net.eval()(data()), 0)


@column("replace, bake")
def replaced(row: Row) -> None:
    model = nn.TransformerEncoderLayer(N, 2, N, dropout=0.0, batch_first=True)
    x = torch.randn(3, 5, N, generator=torch.Generator().manual_seed(0))
    if row.family == "torch":
        close(linnet.bake(model)(x), model(x))
        return
    layer = row()
    cls = row.layer or type(layer.population if isinstance(layer, OverBeings) else layer)
    swapped = linnet.replace(model, cls, where="linear*", **(row.options or {}))
    assert len(swapped) == 2
    trains(model, x)
    baked = linnet.bake(model.eval())
    assert {type(m) for m in baked.modules() if "inear" in type(m).__name__} <= {
        nn.Linear,
        nn.modules.linear.NonDynamicallyQuantizableLinear,
    }
    close(baked(x), model(x))


# ---------------------------------------------------------------------- what refuses


MOVING = "SparseLinear, (RigL|SET|GSE|GradualMagnitude)"
OVER_BEINGS = "WideLinear|WideDeep"
_MOVES = (
    "Dynamic sparse training cannot be widened; build one layer of all beings",
    "a wiring for each being is SparseLinear(..., beings=n, dynamic=...), which evolves as it is",
)
_BEINGS = ("widen and stack need a module without beings", "it is a population already")
_COUNT = (
    "Distributed data parallel training needs as many connections always",
    "DDP's buckets have the sizes of the first step, and pruning changes them",
)
_SHARDED = (
    "Connections can move only where all of them are",
    "FSDP2 gives each process a part of the values, and what is dropped is chosen among all (DDP does it)",
)
_EMPTY = (
    "_chunk_cat expects non-empty tensor",
    "FSDP2 cannot shard a parameter without elements, as this one of full rank has",
)
_NO_MAP = ("layer must be a LinearMap class", "replace swaps single maps; this row is none")
_ONE = ("is a population; give its number of beings, beings=n", "an nn.Linear is one map, this row is several")
REFUSALS: dict[tuple[str, str], tuple[str, str]] = {
    **{(MOVING, name): _MOVES for name in ("widen(…, 4)", "DNI of a widened net", "an evolved population")},
    **{(OVER_BEINGS, name): _BEINGS for name in ("widen(…, 4)", "DNI of a widened net", "an evolved population")},
    ("SparseLinear, GradualMagnitude", "DDP"): _COUNT,
    (MOVING, "FSDP2"): _SHARDED,
    ("TrivialNullSpaceLinear", "FSDP2"): _EMPTY,
    ("WideLinear", "replace, bake"): _ONE,
    ("WideDeep|KWinners|RNN|RNNCell", "replace, bake"): _NO_MAP,
}
"""(rows, column) -> the error that is raised, as a pattern, and its cause."""


@dataclass(frozen=True)
class Result:
    """Of one cell: "passes", "refuses" or "fails", and why."""

    row: str
    column: str
    said: str
    why: str = ""


def run(row: Row, name: str) -> Result:
    """One cell. Columns of several processes have no function of their own here: see :func:`run_together`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return judged(row.name, name, lambda: COLUMNS[name](row))


def judged(row: str, name: str, cell: Callable[[], None]) -> Result:
    expected = next((v for (rows, col), v in REFUSALS.items() if col == name and re.fullmatch(rows, row)), None)
    try:
        cell()
    except Exception as error:  # a cell may fail in any way
        said = str(error)
        if expected and re.search(expected[0], said):
            return Result(row, name, "refuses", expected[1])
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Result(row, name, "fails", f"{type(error).__name__}: {said[:300]} ({last.filename}:{last.lineno})")
    return Result(row, name, "fails", f"should refuse: {expected[1]}") if expected else Result(row, name, "passes")


# ---------------------------------------------------------------------- two processes


def ddp(row: Row, rank: int) -> None:
    """Two halves of a batch train to the weights of the whole batch on one process."""
    alone = net_of(row(dtype=torch.float64), torch.float64).eval()
    own = copy.deepcopy(alone)
    together = nn.parallel.DistributedDataParallel(own)
    _compare(alone, together, own.named_parameters, rank, torch.float64, 1e-9)


def fsdp2(row: Row, rank: int) -> None:
    """Sharded parameters train to the weights of one process."""
    alone = net_of(row()).eval()
    own = copy.deepcopy(alone)
    fully_shard(own[1]) if list(own[1].parameters()) else None
    fully_shard(own)
    whole = lambda: [(name, parameter.full_tensor()) for name, parameter in own.named_parameters()]  # noqa: E731
    _compare(alone, own, whole, rank, torch.float32, 1e-4)


def _compare(alone, together, parameters, rank: int, dtype: torch.dtype, tolerance: float) -> None:
    pair = [(net, torch.optim.SGD(net.parameters(), lr=0.1)) for net in (alone, together)]
    before = alone[0].weight.detach().clone()
    for step in range(4):
        x = data(batch=2 * BATCH, dtype=dtype, seed=step)
        for (net, optimizer), batch in zip(pair, (x, x[rank * BATCH : (rank + 1) * BATCH]), strict=True):
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()
    assert not torch.equal(before, alone[0].weight), "nothing moved"
    expected = dict(alone.named_parameters())
    for name, parameter in parameters():
        close(parameter.detach(), expected[name].detach(), tolerance)


TOGETHER = {"DDP": ddp, "FSDP2": fsdp2}


def run_together(name: str, rows: list[Row]) -> list[Result]:
    """A column of two processes: one start of them for all rows."""
    with tempfile.TemporaryDirectory() as folder:
        start(_worker, name, [row.name for row in rows], folder)
        both = [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]
    found = []
    for row, pair in zip(rows, zip(*both, strict=True), strict=True):
        said, why = max(pair, key=lambda one: ["passes", "refuses", "fails"].index(one[0]))
        found.append(Result(row.name, name, said, why))
    return found


def _worker(rank: int, name: str, rows: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    by_name = {row.name: row for row in ROWS}
    results = [judged(row, name, lambda row=row: TOGETHER[name](by_name[row], rank)) for row in rows]
    torch.save([(r.said, r.why) for r in results], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# ---------------------------------------------------------------------- the page

NAMES = [*COLUMNS, *TOGETHER]
MARKS = {"passes": "✓", "refuses": "–", "fails": "**✗**"}


def page(results: list[Result]) -> str:
    """docs/composition.md, from what the cells said."""
    cells = {(r.row, r.column): r for r in results}
    count = {said: sum(r.said == said for r in results) for said in MARKS}
    reasons: dict[str, list[Result]] = {}
    for result in results:
        if result.said == "refuses":
            reasons.setdefault(result.why, []).append(result)
    lines = [
        "# Compatibility matrix",
        "",
        f"Written by `make matrix`, which runs every cell, on torch {torch.__version__}:",
        f"{len(results)} cells, {count['passes']} pass ({100 * count['passes'] / len(results):.1f} %),",
        f"{count['refuses']} refuse, {count['fails']} fail. `make test` runs all rows in the cheap columns and one of",
        "each family in the others, `make test-all` all of them.",
        "",
        "✓ works, with equal numbers where there is something to compare with (tests/support/matrix.py says what each",
        "column does); – refuses with a clear error, for a reason given below.",
        "",
        "| # | column |",
        "|---|---|",
        *(f"| {i} | {name} |" for i, name in enumerate(NAMES, 1)),
        "",
        "| row | " + " | ".join(str(i) for i in range(1, len(NAMES) + 1)) + " |",
        "|---|" + "---|" * len(NAMES),
        *(f"| {row.name} | " + " | ".join(MARKS[cells[row.name, name].said] for name in NAMES) + " |" for row in ROWS),
        "",
        "## What refuses, and why",
        "",
    ]
    for why, found in reasons.items():
        rows = ", ".join(dict.fromkeys(r.row for r in found))
        columns = ", ".join(dict.fromkeys(r.column for r in found))
        lines.append(f"* {columns}: {rows}: {why}.")
    return "\n".join(lines) + "\n"


def main(wanted: list[str]) -> int:
    torch.set_num_threads(1)
    results: list[Result] = []
    for name in wanted or NAMES:
        start = time.perf_counter()
        found = run_together(name, ROWS) if name in TOGETHER else [run(row, name) for row in ROWS]
        results += found
        bad = [r for r in found if r.said == "fails"]
        print(f"{name}: {len(found) - len(bad)} of {len(found)} in {time.perf_counter() - start:.0f} s", flush=True)
        for r in bad:
            print("   ", r.row, r.why.replace("\n", " "), flush=True)
    if not wanted:
        PAGE.write_text(page(results))
    return int(any(r.said == "fails" for r in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

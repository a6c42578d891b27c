"""The sparse layer against dense float64 matrices that a loop over its connections builds."""

import copy
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

from linnet.sparse import RigL, SmallWorld, SparseLinear, Uniform, csr
from linnet.sparse.connectivity import SparseMap
from linnet.sparse.kernels import choice
from linnet.sparse.kernels.ops import sparse_mm, sparse_mm_t, sparse_sampled_mm
from linnet.sparse.wiring.wiring import draw_cells, revive
from linnet.testing import (
    Case,
    check_assign,
    check_constructor,
    check_copy,
    check_forward,
    check_linear_doors,
    check_meta,
    check_safetensors,
    check_seeds,
    check_state_dict,
)

ROW = [0, 2, 1, 2, 0, 4, 3, 4]
COL = [1, 0, 2, 2, 6, 5, 3, 0]
PAIRS = torch.tensor([ROW, COL])  # of a map 7 -> 5
BUFFERS = ("crow", "col", "ccol", "row", "perm")


def matrix(layer: SparseLinear, values: Tensor | None = None) -> np.ndarray:
    """W from crow, col and values alone, by a loop: ([beings,] out, in)."""
    v = (layer.values if values is None else values).detach().double().numpy()
    w = np.zeros((*layer.leading, layer.out_features, layer.in_features))
    for i in range(layer.out_features):
        for k in range(int(layer.crow[i]), int(layer.crow[i + 1])):
            w[..., i, int(layer.col[k])] += v[..., k]
    return w


def check_gradients(layer: SparseLinear, batch: int) -> None:
    """Output and all gradients of a float64 layer against the dense formulas."""
    w, r, c = matrix(layer), *layer.indices.numpy()
    x = torch.randn(batch, *layer.leading, layer.in_features, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    gradients = torch.autograd.grad(y, [x, layer.values, layer.bias], g)
    a, b = x.detach().numpy(), g.numpy()
    lead = "p" if layer.beings else ""
    np.testing.assert_allclose(
        y.detach(), np.einsum(f"k{lead}i,{lead}oi->k{lead}o", a, w) + layer.bias.detach().numpy()
    )
    np.testing.assert_allclose(gradients[0], np.einsum(f"k{lead}o,{lead}oi->k{lead}i", b, w), atol=1e-12)
    full = np.einsum(f"k{lead}o,k{lead}i->{lead}oi", b, a)
    np.testing.assert_allclose(gradients[1], full[..., r, c], atol=1e-12)
    np.testing.assert_allclose(gradients[2], b.sum(0), atol=1e-12)


# ---------------------------------------------------------------------- where the connections are

sizes = st.integers(1, 40)


@given(sizes, sizes, st.floats(0, 0.999), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_exact_count_and_no_dead_unit(n: int, m: int, sparsity: float, seed: int) -> None:
    nnz = round((1 - sparsity) * n * m)
    if nnz == 0:
        with pytest.raises(ValueError, match="must have a connection"):
            SparseLinear(n, m, sparsity=sparsity)
        return
    torch.manual_seed(seed)
    layer = SparseLinear(n, m, sparsity=sparsity)
    pairs = {(int(r), int(c)) for r, c in layer.indices.T}
    assert len(pairs) == nnz == layer.nnz == layer.values.numel()
    assert {r for r, _ in pairs} <= set(range(m)) and {c for _, c in pairs} <= set(range(n))
    assert len({r for r, _ in pairs}) == min(m, nnz) and len({c for _, c in pairs}) == min(n, nnz)
    assert list(layer.indices.T.tolist()) == sorted(map(list, pairs))


@pytest.mark.parametrize(("total", "size"), [(90, 30), (5000, 400), (5000, 2000), (5000, 4990)])
def test_cells_are_drawn_uniformly(total: int, size: int) -> None:
    generator, rounds = torch.Generator().manual_seed(0), 200
    counts, joint = np.zeros(total), 0
    for _ in range(rounds):
        cells = draw_cells(total, size, generator)
        assert cells.shape == (size,) and bool((cells.diff() > 0).all())
        counts[cells] += 1
        joint += int((cells < 2).sum()) == 2
    p = size / total
    statistic = ((counts - rounds * p) ** 2).sum() / (rounds * p * (1 - p)) * (total - 1) / total
    assert 1e-4 < scipy.stats.chi2.sf(statistic, total - 1) < 1 - 1e-4
    both = size * (size - 1) / (total * (total - 1))
    assert abs(joint - rounds * both) < 5 * math.sqrt(rounds * both * (1 - both)) + 1


def test_cells_of_a_huge_table_are_uniform() -> None:
    n, size = 100_000, 200_000
    cells = draw_cells(n * n, size, torch.Generator().manual_seed(1)).numpy()
    for unit in (cells // n, cells % n):
        counts = np.bincount(unit // 1000, minlength=100)
        assert 1e-4 < scipy.stats.chisquare(counts).pvalue
    assert 1e-4 < scipy.stats.chisquare(np.bincount(cells % 7)).pvalue


def test_uniform_moves_only_what_dead_units_take_over() -> None:
    n, nnz = 1000, 1000  # here a third of all units would be dead
    cells = draw_cells(n * n, nnz, torch.Generator().manual_seed(3))
    row, col = Uniform()(n, n, nnz, torch.Generator().manual_seed(3))
    assert torch.bincount(row, minlength=n).eq(1).all() and torch.bincount(col, minlength=n).eq(1).all()
    for unit, first in ((row, cells // n), (col, cells % n)):
        assert (unit != first).sum() == n - first.unique().numel() > 300
    alive = torch.tensor([0, 1, 1, 2])
    assert revive(alive, 3) is alive


def test_revived_units_take_from_random_owners() -> None:
    taken = np.zeros(6)
    for seed in range(3000):
        moved = revive(torch.tensor([0, 0, 0, 0, 1, 2]), 4, torch.Generator().manual_seed(seed))
        assert sorted(moved.unique().tolist()) == [0, 1, 2, 3]
        taken += (moved == 3).numpy()
    assert taken[4:].sum() == 0 and scipy.stats.chisquare(taken[:4]).pvalue > 1e-4


def test_topology_does_not_depend_on_threads() -> None:
    drawn = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            layer = SparseLinear(700, 900, sparsity=0.8)
            layer.reset_parameters(seeds=4)
            drawn.append([layer.values.detach(), *(layer.get_buffer(name) for name in BUFFERS)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def mask_of(pairs: Tensor) -> Tensor:
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[tuple(pairs)] = True
    return mask


def coo(pairs: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(pairs, torch.randn(pairs.shape[1]), (5, 7), check_invariants=False)


FORMS = {
    "pairs": lambda: PAIRS,
    "shuffled": lambda: PAIRS[:, torch.randperm(8)],
    "int32": lambda: PAIRS.int(),
    "mask": lambda: mask_of(PAIRS),
    "coo": lambda: coo(PAIRS),
    "uncoalesced": lambda: coo(torch.cat([PAIRS, PAIRS], 1)),
    "csr": lambda: coo(PAIRS).to_sparse_csr(),
    "scipy": lambda: scipy.sparse.csr_array((np.ones(8), (ROW, COL)), shape=(5, 7)),
    "scipy coo": lambda: scipy.sparse.coo_matrix((np.zeros(8), (ROW, COL)), shape=(5, 7)),
    "rule": lambda: lambda out, n, nnz, generator: PAIRS,
}


@pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant)")
@pytest.mark.parametrize("form", FORMS)
def test_given_connectivity_in_every_form(form: str) -> None:
    connectivity = FORMS[form]()
    torch.manual_seed(0)
    expected = SparseLinear(7, 5, connectivity=PAIRS)
    torch.manual_seed(0)
    layer = SparseLinear(7, 5, connectivity=connectivity, sparsity=1 - 8 / 35 if form == "rule" else 0.9)
    assert [tuple(pair) for pair in layer.indices.T.tolist()] == sorted(zip(ROW, COL, strict=True))
    assert layer.sparsity == 1 - 8 / 35
    if form != "rule":  # a rule draws a seed first
        x = torch.randn(4, 7)
        assert torch.equal(layer(x), expected(x))
        again = SparseLinear(7, 5, **layer.options())
        assert torch.equal(again.indices, layer.indices)
    layer.reset_parameters()
    assert torch.equal(layer.indices, expected.indices)


WRONG = {
    "twice": (torch.tensor([[0, 1, 0], [2, 2, 2]]), ValueError, "given once.*output 0, input 2"),
    "output out of range": (torch.tensor([[5], [0]]), ValueError, r"output indices must lie in 0\.\.4, got 5"),
    "input out of range": (torch.tensor([[0], [7]]), ValueError, r"input indices must lie in 0\.\.6, got 7"),
    "negative": (torch.tensor([[0], [-1]]), ValueError, "got -1"),
    "none": (torch.empty(2, 0, dtype=torch.long), ValueError, "must have a connection"),
    "empty mask": (torch.zeros(5, 7, dtype=torch.bool), ValueError, "must have a connection"),
    "transposed": (PAIRS.T, ValueError, r"\(2, nnz\) LongTensor.*\(8, 2\)"),
    "one axis": (torch.tensor([1, 2]), ValueError, r"\(2, nnz\) LongTensor"),
    "floats": (PAIRS.float(), ValueError, "float32"),
    "bytes": (PAIRS.byte(), ValueError, "uint8"),
    "mask of a wrong shape": (torch.ones(7, 5, dtype=torch.bool), ValueError, r"\(5, 7\), got \(7, 5\)"),
    "sparse of a wrong shape": (torch.eye(7).to_sparse(), ValueError, r"got \(7, 7\)"),
    "half sparse": (torch.ones(5, 7).to_sparse(1), ValueError, "sparse in both axes"),
    "scipy of a wrong shape": (scipy.sparse.eye_array(5), ValueError, r"got \(5, 5\)"),
    "a list": ([[0], [1]], TypeError, "connectivity must be None"),
    "a class": (Uniform, TypeError, r"such as Uniform\(\)"),
    "a rule that places too few": (lambda *_: PAIRS[:, :1], ValueError, "must place nnz=3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_connectivity_is_refused(name: str) -> None:
    connectivity, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        SparseLinear(7, 5, connectivity=connectivity)


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, float("nan"), 0.99, "0.5"])
def test_wrong_sparsity_is_refused(sparsity: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"sparsity must|must have a connection"):
        SparseLinear(7, 5, sparsity=sparsity)


# ---------------------------------------------------------------------- the abstract class


class Bare(SparseMap, catalogue=False):
    """A sparse map with nothing of its own but the two methods that every map must have."""

    def _weight(self, values: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(self.indices, values, (self.out_features, self.in_features))

    def _assign(self, weight: Tensor) -> dict[str, Tensor]:
        return {"values": weight[tuple(self.indices)]}


@pytest.mark.parametrize("connectivity", [None, PAIRS, SmallWorld()], ids=["uniform", "given", "small world"])
def test_the_constructor_of_the_abstract_class_sets_all_that_its_methods_read(connectivity: object) -> None:
    options = {"max_size": 100, "shared": None, "beings": None, "device": None, "dtype": torch.float64}
    bare = Bare(7, 5, sparsity=1 - 8 / 35, connectivity=connectivity, rule=None, **options)
    bare.reset_parameters()
    assert bare.nnz == bare.first_nnz == 8 and not bare.apart and bare.dynamic is False
    assert bare.indices.shape == (2, 8) and bare.values.all()
    bare.reconnect(torch.arange(0, 16, 2))
    assert bare.cells().tolist() == list(range(0, 16, 2))
    copy.deepcopy(bare).load_state_dict(bare.state_dict())
    bare.set_rule(RigL(every=1))
    assert bare.dynamic == RigL(every=1) and bare.count_step() == bare.steps == 1
    again = pickle.loads(pickle.dumps(bare)).to(torch.float32)
    assert again.rule == RigL(every=1) and torch.equal(again.ccol, bare.ccol) and again.steps == 1
    again.set_rule(None)
    assert sorted(again.state_dict()) == ["bias", "col", "crow", "values"]


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("tile", [2**16, 64])  # 64: several blocks of maps, several pieces of the batch
@pytest.mark.parametrize("beings", [None, 1, 9])
@pytest.mark.parametrize(("n", "m", "sparsity"), [(20, 30, 0.8), (33, 9, 0.5), (6, 50, 0.97), (1, 1, 0.0), (8, 8, 0.0)])
def test_output_and_gradients(
    monkeypatch: pytest.MonkeyPatch, tile: int, beings: int | None, n: int, m: int, sparsity: float
) -> None:
    monkeypatch.setattr(choice, "TILE", tile)
    layer = SparseLinear(n, m, sparsity=sparsity, beings=beings, dtype=torch.float64)
    for batch in (1, 5, 150):
        check_gradients(layer, batch)


@pytest.mark.parametrize("name", ["col", "row", "perm"])
def test_the_oracle_notices_a_planted_fault(name: str) -> None:
    layer = SparseLinear(20, 30, sparsity=0.8, dtype=torch.float64)
    check_gradients(layer, 5)
    buffer = layer.get_buffer(name)
    buffer[[3, 60]] = buffer[[60, 3]] if name == "perm" else (buffer[[3, 60]] + 1) % 20
    with pytest.raises(AssertionError):
        check_gradients(layer, 5)


@pytest.mark.parametrize("each", [False, True])
def test_operators(each: bool) -> None:
    layers = [SparseLinear(4, 3, sparsity=0.5, dtype=torch.float64) for _ in range(2)]
    own = layers if each else [layers[0]] * 2  # a structure for each map, or one for all
    structure = [torch.stack([layer.get_buffer(name) for layer in own]) for name in BUFFERS]
    if not each:
        structure = [tensor[0] for tensor in structure]
    shapes = {"values": (2, 6), "x": (2, 3, 4), "g": (2, 3, 3)}
    values, x, g = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes.values())
    w = torch.from_numpy(np.stack([matrix(layer, v) for layer, v in zip(own, values, strict=True)]))
    torch.testing.assert_close(sparse_mm(values, x, *structure), x @ w.mT)
    torch.testing.assert_close(sparse_mm_t(values, g, *structure), g @ w)
    sampled = torch.stack([(g[i].mT @ x[i])[tuple(own[i].indices)] for i in range(2)])
    torch.testing.assert_close(sparse_sampled_mm(g, x, *structure), sampled)
    for operator, first, second in ((sparse_mm, values, x), (sparse_mm_t, values, g), (sparse_sampled_mm, g, x)):
        assert torch.autograd.gradcheck(operator, (first, second, *structure))
        assert torch.autograd.gradgradcheck(operator, (first, second, *structure), fast_mode=True)
        torch.library.opcheck(operator, (first, second, *structure))


def test_second_derivatives_of_the_layer() -> None:
    layer = SparseLinear(6, 5, sparsity=0.5, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def forward(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return functional_call(layer, {"values": values, "bias": bias}, (x,)).sin()

    raw = [parameter.detach().clone().requires_grad_() for parameter in (layer.values, layer.bias)]
    assert torch.autograd.gradgradcheck(forward, (x, *raw), fast_mode=True)


@pytest.mark.parametrize("beings", [None, 3])
def test_vmap(beings: int | None) -> None:
    layers = [SparseLinear(7, 5, sparsity=0.5, beings=beings) for _ in range(4)]
    layer, x = layers[0], torch.randn(4, 6, *layers[0].leading, 7)
    raw = torch.stack([one.values.detach() for one in layers])

    def call(values: Tensor, x: Tensor) -> Tensor:
        return functional_call(layer, {"values": values}, (x,))

    def loss(values: Tensor, x: Tensor) -> Tensor:
        return call(values, x).square().sum()

    for dims in ((None, 0), (0, None), (0, 0), (0, 1), (1, 2)):
        a, b = (t if d is None else t.movedim(0, d) for t, d in zip((raw, x), dims, strict=True))
        rows = [[a.select(dims[0], i) if dims[0] is not None else raw[0]] for i in range(4)]
        for i in range(4):
            rows[i].append(b.select(dims[1], i) if dims[1] is not None else x[0])
        a, b = (raw[0] if dims[0] is None else a), (x[0] if dims[1] is None else b)
        torch.testing.assert_close(vmap(call, dims)(a, b), torch.stack([call(*row) for row in rows]))
        for argument in (0, 1):
            derivative = grad(loss, argument)
            torch.testing.assert_close(vmap(derivative, dims)(a, b), torch.stack([derivative(*row) for row in rows]))
    twice = vmap(vmap(call, (None, 0)), (0, None))(raw, x)
    torch.testing.assert_close(twice, torch.stack([torch.stack([call(v, one) for one in x]) for v in raw]))
    biases = torch.randn(4, *layer.leading, 5)
    over_bias = vmap(lambda bias: functional_call(layer, {"bias": bias}, (x[0],)))(biases)
    torch.testing.assert_close(over_bias, torch.stack([layer(x[0]) - layer.bias + bias for bias in biases]))


def test_jacobian_is_the_weight() -> None:
    layer = SparseLinear(7, 5, sparsity=0.5, dtype=torch.float64)
    np.testing.assert_allclose(jacrev(layer)(torch.randn(7, dtype=torch.float64)).detach(), matrix(layer))


def test_ensemble_of_topologies_trains() -> None:
    members = [SparseLinear(7, 5, sparsity=0.6) for _ in range(4)]
    assert len({str(member.indices.tolist()) for member in members}) == 4
    parameters, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")
    x = torch.randn(4, 6, 7)
    y = vmap(lambda p, b, x: functional_call(skeleton, (p, b), (x,)))(parameters, buffers, x)
    expected = torch.stack([member(one) for member, one in zip(members, x, strict=True)])
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(parameters["values"].grad, torch.stack([member.values.grad for member in members]))


@pytest.mark.parametrize("beings", [None, 3])
def test_compile_and_export_with_other_batch_sizes(beings: int | None) -> None:
    layer = SparseLinear(40, 30, beings=beings)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (torch.randn(4, *layer.leading, 40),), dynamic_shapes=({0: batch},)).module()
    for size in (3, 70):
        x = torch.randn(size, *layer.leading, 40, requires_grad=True)
        expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.values])
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), [x, layer.values]), expected)
        torch.testing.assert_close(program(x), layer(x))
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    layer = SparseLinear(300, 20, sparsity=0.5, dtype=dtype)
    x = torch.randn(8, 300, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    exact = copy.deepcopy(layer).double()(x.detach().double())
    assert y.dtype == x.grad.dtype == layer.values.grad.dtype == layer.weight.dtype == dtype
    assert (y.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()  # one rounding, at the end
    assert layer.col.dtype == torch.int32


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_outputs_start_as_large_as_those_of_linear(sparsity: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 1000)
    dense, sparse = nn.Linear(1000, 500)(x).std(), SparseLinear(1000, 500, sparsity=sparsity)(x).std()
    assert 0.95 < sparse / dense < 1.05


def test_values_start_by_the_fan_in_of_each_output() -> None:
    mask = torch.zeros(3, 400, dtype=torch.bool)
    mask[0, :100], mask[1, :] = True, True  # and an output without a connection
    layer = SparseLinear(400, 3, connectivity=mask)
    for part, fan_in in ((layer.values[:100], 100), (layer.values[100:], 400)):
        assert 0.9 / math.sqrt(fan_in) < part.abs().max() <= 1 / math.sqrt(fan_in)
    assert torch.equal(layer(torch.randn(4, 400))[:, 2], layer.bias[2].expand(4))


# ---------------------------------------------------------------------- state


def test_loading_another_topology() -> None:
    first, second = (SparseLinear(20, 30, sparsity=0.8, dtype=torch.float64) for _ in range(2))
    assert sorted(first.state_dict()) == ["bias", "col", "crow", "values"]
    identity = {name: id(tensor) for name, tensor in (*second.named_parameters(), *second.named_buffers())}
    second.load_state_dict(first.state_dict())
    assert identity == {name: id(tensor) for name, tensor in (*second.named_parameters(), *second.named_buffers())}
    np.testing.assert_array_equal(matrix(second), matrix(first))
    check_gradients(second, 4)
    third = SparseLinear(20, 30, sparsity=0.8, device="meta", dtype=torch.float64)
    third.load_state_dict(first.state_dict(), assign=True)
    check_gradients(third, 4)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    layer = SparseLinear(20, 30, sparsity=0.8)
    state, before = layer.state_dict(), copy.deepcopy(layer.state_dict())
    fewer = SparseLinear(20, 30, sparsity=0.9).state_dict()
    swapped = state["col"].clone()
    swapped[:2] = swapped[:2].flip(0)
    wrong = {
        "as many connections": fewer,
        "col must rise within each row": {**state, "col": swapped},
        r"col must lie in 0\.\.19": {**state, "col": state["col"] + 1},
        "crow must rise from 0 to nnz=120": {**state, "crow": state["crow"] // 2},
        "crow must rise from 0": {**state, "crow": state["crow"].flip(0)},
        "both int32 or both int64": {**state, "col": state["col"].float()},
    }
    for message, other in wrong.items():
        with pytest.raises(RuntimeError, match=message):
            nn.Sequential(nn.ReLU(), layer).load_state_dict({f"1.{name}": t for name, t in other.items()})
    with pytest.raises(RuntimeError, match="crow and col must be loaded together"):
        layer.load_state_dict({"col": state["col"]}, strict=False)
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in before.items())
    layer.load_state_dict({"bias": torch.ones(30)}, strict=False)
    assert torch.equal(layer.bias, torch.ones(30))


def test_seeds() -> None:
    torch.manual_seed(11)
    single = SparseLinear(20, 30)
    layer = SparseLinear(20, 30)
    assert not torch.equal(layer.col, single.col)
    layer.reset_parameters(seeds=11)
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in single.state_dict().items())
    check_gradients(copy.deepcopy(layer).double(), 3)
    population = SparseLinear(20, 30, beings=3)
    population.reset_parameters(seeds=[11, 12, 13])
    assert torch.equal(population.col, single.col) and torch.equal(population.values[0], single.values)
    other = SparseLinear(20, 30, beings=3)
    other.reset_parameters(seeds=[11, 5, 13])
    assert torch.equal(other.values[[0, 2]], population.values[[0, 2]])
    assert not torch.equal(other.values[1], population.values[1])


def test_meta_device() -> None:
    layer = SparseLinear(20, 30, sparsity=0.8, device="meta")
    layer._apply(lambda tensor: torch.full_like(tensor, 10**9, device="cpu"))  # to_empty, at its worst
    y = layer(torch.ones(2, 20))  # not drawn yet: any numbers, but no memory beyond the tensors is touched
    assert y.shape == (2, 30) and not layer.crow.any()
    layer.reset_parameters()
    check_gradients(layer.double(), 3)
    made = SparseLinear(7, 5, connectivity=PAIRS)
    with torch.device("meta"):
        lost = SparseLinear(7, 5, connectivity=PAIRS)
    assert lost.values.is_meta and lost.nnz == 8
    lost.to_empty(device="cpu")
    with pytest.raises(ValueError, match="load_state_dict"):
        lost.reset_parameters()
    lost.load_state_dict(made.state_dict())
    lost.reset_parameters()
    assert torch.equal(lost.indices, made.indices)
    check_gradients(lost.double(), 3)


def test_indices_stay_integers() -> None:
    layer = SparseLinear(20, 30)
    for cast in (layer.double, layer.half, lambda: layer.to(torch.bfloat16), lambda: layer.type(torch.float64)):
        cast()
        assert {layer.get_buffer(name).dtype for name in BUFFERS} == {torch.int32}
    check_gradients(layer, 3)


def test_bytes_per_connection() -> None:
    layer = SparseLinear(500, 500, bias=False)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(2, 500)).sum().backward()
    optimizer.step()
    tensors = [layer.values, layer.values.grad, *layer.buffers(), *optimizer.state[layer.values].values()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert total == 28 * layer.nnz + 2 * 4 * 501 + 4  # crow and ccol, and Adam's step
    given_pairs = SparseLinear(500, 500, connectivity=layer.indices)
    assert not any(isinstance(value, Tensor) for value in vars(given_pairs).values())  # no third copy
    assert len(pickle.dumps(given_pairs)) < 28 * layer.nnz
    assert len(repr(given_pairs)) < 120 and "sparsity=0.9, nnz=25000, connectivity=given" in repr(given_pairs)


def test_no_warning_and_no_filter_left_behind() -> None:
    code = """if True:
        import warnings, torch
        from linnet.sparse import SparseLinear
        SparseLinear(9, 9)(torch.randn(4, 9)).sum().backward()
        assert not [one for one in warnings.filters if "Sparse" in str(one)]
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_threads_share_the_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csr, "_warned", False)
    layer, x, found = SparseLinear(50, 50), torch.randn(4, 50), []
    threads = [threading.Thread(target=lambda: found.append(layer(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(torch.equal(y, found[0]) for y in found)


@pytest.mark.parametrize("beings", [None, 3])
@pytest.mark.parametrize(
    "check",
    [
        check_assign,
        check_constructor,
        check_copy,
        check_forward,
        check_linear_doors,
        check_meta,
        check_safetensors,
        check_seeds,
        check_state_dict,
    ],
)
def test_contract_with_given_connections(check: Callable[[Case], None], beings: int | None) -> None:
    check(Case(SparseLinear, 7, 5, {"connectivity": PAIRS}, beings))


# ---------------------------------------------------------------------- the matrix


def test_assign_takes_the_largest_entries() -> None:
    generator = np.random.default_rng(0)
    for n, m, sparsity, beings in ((7, 5, 0.5, None), (9, 9, 0.8, None), (7, 5, 0.6, 3)):
        layer = SparseLinear(n, m, sparsity=sparsity, beings=beings, dtype=torch.float64)
        w = np.round(generator.normal(size=(*layer.leading, m, n)), 1)  # rounded: with ties
        norm = np.abs(w) if beings is None else np.sqrt((w**2).sum(0))
        chosen = np.argsort(-norm.reshape(-1), kind="stable")[: layer.nnz]
        expected = np.zeros_like(w)
        expected.reshape(*layer.leading, -1)[..., chosen] = w.reshape(*layer.leading, -1)[..., chosen]
        for given_weight in (torch.from_numpy(w), torch.from_numpy(w).to_sparse()):
            layer.reset_parameters()
            moved = layer.assign(given_weight)
            np.testing.assert_array_equal(matrix(layer), expected)
            distance = np.sqrt(((w - expected) ** 2).sum((-2, -1)) / (w**2).sum((-2, -1)))
            np.testing.assert_allclose(moved, distance)
            assert (layer.violation() == 0).all() and (layer.violation(torch.from_numpy(expected)) == 0).all()
        check_gradients(layer, 3)


def test_assign_breaks_ties_by_index() -> None:
    layer = SparseLinear(6, 4, sparsity=0.5)
    assert layer.assign(torch.ones(4, 6)).item() == pytest.approx(math.sqrt(0.5))
    assert layer.cells().tolist() == list(range(12))


def test_assign_with_few_entries_leaves_the_other_connections_in_place() -> None:
    layer = SparseLinear(20, 30, sparsity=0.8)
    before = set(layer.cells().tolist())
    w = torch.zeros(30, 20)
    w[torch.arange(30), torch.arange(30) % 20] = torch.randn(30)
    assert layer.assign(w) == 0 and torch.equal(layer.weight.to_dense(), w)
    entries = set((w != 0).flatten().nonzero().squeeze(1).tolist())
    assert set(layer.cells().tolist()) - entries < before
    degree = layer.crow.diff()
    assert degree.min() >= 1 and degree[15:].sum() > 40  # spread over all rows
    layer.assign(torch.zeros(30, 20))
    assert not layer.values.any()


def test_given_connections_stay_when_a_matrix_is_assigned() -> None:
    w = torch.randn(5, 7)
    for beings in (None, 2):
        layer = SparseLinear(7, 5, connectivity=PAIRS, beings=beings)
        target = w if beings is None else torch.stack([w, -w])
        layer.weight = target.to_sparse()
        assert torch.equal(layer.indices, SparseLinear(7, 5, connectivity=PAIRS).indices)
        assert torch.equal(layer.weight.to_dense(), torch.where(mask_of(PAIRS), target, 0))
    plain = nn.Linear(7, 5)
    taken = SparseLinear.from_linear(plain, connectivity=PAIRS)
    assert torch.equal(taken.weight.to_dense(), torch.where(mask_of(PAIRS), plain.weight, 0))
    assert torch.equal(taken.bias, plain.bias)


@pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant)")
def test_assign_and_violation_take_every_layout() -> None:
    layer = SparseLinear(6, 4, sparsity=0.5)
    w = torch.randn(4, 6)
    expected = layer.assign(w), layer.weight.to_dense()
    for sparse in (w.to_sparse(), w.to_sparse_csr(), w.to_sparse_csc(), w.to_sparse_bsr((2, 3))):
        assert layer.assign(sparse) == expected[0] and torch.equal(layer.weight.to_dense(), expected[1])
        assert layer.violation(sparse) == layer.violation(w) > 0.01
    with pytest.raises(ValueError, match="sparse in all axes"):
        layer.assign(w.to_sparse(1))
    with pytest.raises(ValueError, match=r"must have shape \(4, 6\)"):
        layer.assign(w.T.to_sparse())


def test_violation_is_the_largest_entry_elsewhere() -> None:
    layer = SparseLinear(7, 5, connectivity=PAIRS)
    w = torch.where(mask_of(PAIRS), torch.randn(5, 7).clamp(-1, 1), 0)
    w[0, 1] = -4
    assert layer.violation(w) == 0
    w[4, 6] = 1e-3
    assert layer.violation(w).item() == pytest.approx(2.5e-4)
    w[4, 6] = math.nan
    assert layer.violation(w) == layer.violation(w.to_sparse()) == math.inf
    with torch.no_grad():
        layer.values[0] = math.inf
    assert layer.violation() == math.inf


def test_weight_is_sparse_and_differentiable() -> None:
    for beings in (None, 3):
        layer = SparseLinear(20, 30, beings=beings, dtype=torch.float64)
        weight = layer.weight
        assert weight.layout == torch.sparse_coo and weight.is_coalesced()
        assert torch.equal(weight.detach().coalesce().indices(), weight.detach().to_dense().to_sparse().indices())
        np.testing.assert_array_equal(weight.detach().to_dense(), matrix(layer))
        g = torch.randn(weight.shape, dtype=torch.float64)
        (found,) = torch.autograd.grad(weight.to_dense(), layer.values, g)
        np.testing.assert_array_equal(found, g.numpy()[..., *layer.indices.numpy()])


def test_what_is_too_large_is_not_made_dense() -> None:
    layer = SparseLinear(20_000, 20_000, sparsity=0.9999)
    for call in (layer.to_linear, layer.eigvals, layer.svdvals):
        with pytest.raises(ValueError, match=r"at most 100,000,000 entries.*400,000,000"):
            call()
    population = SparseLinear(20_000, 20_000, sparsity=0.99999, beings=2)
    with pytest.raises(ValueError, match="at most"):
        population.get_single(0).to_linear()


def test_a_population_is_a_loop_over_singles() -> None:
    population = SparseLinear(20, 30, beings=3)
    singles = [population.get_single(i) for i in range(3)]
    shared, own = torch.randn(5, 1, 20), torch.randn(5, 3, 20)
    for x in (shared, own):
        loop = torch.stack([single(x.expand(5, 3, 20)[:, i]) for i, single in enumerate(singles)], 1)
        torch.testing.assert_close(population(x), loop)
    x = torch.randn(2, 5, 20, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert singles[1](x).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="float64"):
        singles[1](x.double())
    singles[1](x).sum().backward()
    assert population.values.grad[1].all() and not population.values.grad[[0, 2]].any()
    torch.testing.assert_close(copy.deepcopy(singles[1])(x), singles[1](x))


# ---------------------------------------------------------------------- size


def test_a_hundred_thousand_by_a_hundred_thousand() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layer = SparseLinear(100_000, 100_000, sparsity=0.9999)
    assert layer.nnz == 1_000_000 and (layer.crow.diff() > 0).all() and layer.col.unique().numel() == 100_000
    optimizer = torch.optim.Adam(layer.parameters())
    x = torch.randn(16, 100_000)
    loss = layer(x).square().mean()
    loss.backward()
    optimizer.step()
    assert layer(x).square().mean() < loss
    weight = layer.weight.detach()
    assert layer.assign(2 * weight) == 0 and layer.violation() == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kilobytes, on macOS bytes
    assert grown < (700_000 if sys.platform == "linux" else 700_000_000)

"""The sparse layer against dense float64 matrices that a loop over its connections builds."""

import copy
import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

from linnet.sparse import SparseLinear
from linnet.sparse.connectivity import STRUCTURE
from linnet.sparse.kernels import choice
from linnet.sparse.kernels.ops import sparse_mm, sparse_mm_t, sparse_sampled_mm
from support.sparse_layers import PAIRS, check_gradients, mask_of, matrix

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
    structure = [torch.stack([layer.get_buffer(name) for layer in own]) for name in STRUCTURE]
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

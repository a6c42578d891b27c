"""Conversion of the sparse layer: populations with wirings of their own, sparsify, dense and CSR, ONNX, frozen."""

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

import linnet
import linnet.convert.onnx
from linnet import ErdosRenyi, RigL, SmallWorld, SparseLinear, Uniform, frozen, sparsify
from linnet.core.frozen import held
from linnet.sparse.gather_scatter import GatherScatter

BEINGS = 3


def matrix(layer: SparseLinear) -> np.ndarray:
    """W by a loop over the indices: ([beings,] out, in)."""
    w = np.zeros((*layer.leading, layer.out_features, layer.in_features))
    for being, one in enumerate(w.reshape(-1, *w.shape[-2:])):
        indices = layer.indices[being] if layer.apart else layer.indices
        values = layer.values[being] if layer.beings else layer.values
        for row, col, value in zip(*indices.tolist(), values.tolist(), strict=True):
            one[row, col] += value
    return w


def population(**options: Any) -> SparseLinear:
    return SparseLinear(7, 5, sparsity=0.6, beings=BEINGS, shared=False, dtype=torch.float64, **options)


# ---------------------------------------------------------------------- a wiring for each being


def test_each_being_has_a_wiring_of_its_own() -> None:
    layer = population()
    assert layer.apart and layer.indices.shape == (BEINGS, 2, 14) and layer.col.shape == (BEINGS, 14)
    assert len({str(one.tolist()) for one in layer.indices}) == BEINGS
    assert not SparseLinear(7, 5, beings=BEINGS).apart
    x = torch.randn(4, BEINGS, 7, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    w = matrix(layer)
    np.testing.assert_allclose(
        y.detach(), np.einsum("kbi,boi->kbo", x.detach(), w) + layer.bias.detach().numpy(), rtol=1e-9
    )
    g = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, layer.values], g)
    np.testing.assert_allclose(found[0], np.einsum("kbo,boi->kbi", g, w), atol=1e-12)
    full = np.einsum("kbo,kbi->boi", g, x.detach())
    expected = np.stack([one[tuple(i.numpy())] for one, i in zip(full, layer.indices, strict=True)])
    np.testing.assert_allclose(found[1], expected, atol=1e-12)
    np.testing.assert_array_equal(layer.to_dense().detach(), w)


def test_a_being_is_drawn_as_a_single_layer_is() -> None:
    layer = population()
    layer.reset_parameters(seeds=[3, 4, 5])
    for i, seed in enumerate((3, 4, 5)):
        torch.manual_seed(seed)
        single = SparseLinear(7, 5, sparsity=0.6, dtype=torch.float64)
        assert all(torch.equal(layer.state_dict()[key][i], tensor) for key, tensor in single.state_dict().items())


def test_connections_given_for_each_being() -> None:
    pairs = torch.tensor([[[0, 1, 4], [2, 2, 6]], [[3, 3, 0], [0, 1, 2]]])
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    for mask, one in zip(masks, pairs, strict=True):
        mask[tuple(one)] = True
    for connectivity in (pairs, masks):
        layer = SparseLinear(7, 5, connectivity=connectivity, beings=2)
        assert layer.apart and layer.sparsity == 1 - 3 / 35
        assert torch.equal(layer.to_dense() != 0, masks)
        again = SparseLinear(7, 5, beings=2, **layer.options())
        assert torch.equal(again.indices, layer.indices)
        layer.reset_parameters()
        assert torch.equal(layer.to_dense() != 0, masks)
    both = SparseLinear(7, 5, connectivity=pairs[0], beings=2, shared=False)
    assert both.apart and torch.equal(both.to_dense() != 0, masks[[0, 0]])
    masks[0, 0, 0] = True
    for wrong, beings, message in (
        (masks, 2, "must have equally many connections, got "),
        (pairs, 3, r"needs a population of as many beings, got \(2, 2, 3\) for beings=3"),
        (pairs, None, r"needs a population of as many beings, got \(2, 2, 3\) for beings=None"),
    ):
        with pytest.raises(ValueError, match=message):
            SparseLinear(7, 5, connectivity=wrong, beings=beings)
    with pytest.raises(ValueError, match="all beings keep, got connections for each being"):
        SparseLinear(7, 5, connectivity=pairs, beings=2, shared=True)


def test_assign_takes_the_largest_entries_of_each_being() -> None:
    layer, w = population(), torch.randn(BEINGS, 5, 7, dtype=torch.float64)
    expected = torch.stack([torch.where(one.abs() >= one.abs().flatten().sort().values[-14], one, 0) for one in w])
    for form in (w, w.to_sparse()):
        layer.reset_parameters()
        moved = layer.assign(form)
        np.testing.assert_array_equal(matrix(layer), expected)
        distance = (w - expected).flatten(1).norm(dim=1) / w.flatten(1).norm(dim=1)
        torch.testing.assert_close(moved, distance)
        assert (layer.violation() == 0).all()
    other = expected.roll(1, 0)
    assert (layer.violation(other) > 0.1).all()
    assert layer.violation(torch.where(torch.eye(BEINGS)[0, :, None, None] > 0, other, expected))[0] > 0.1
    linears = [nn.Linear(7, 5) for _ in range(BEINGS)]
    taken = SparseLinear.from_linears(linears, sparsity=0.6, shared=False)
    for linear, back in zip(linears, taken.to_linears(), strict=True):
        kept = linear.weight.abs() >= linear.weight.abs().flatten().sort().values[-14]
        assert torch.equal(back.weight, torch.where(kept, linear.weight, 0))


def test_single_beings_and_clones() -> None:
    layer = population()
    singles = [layer.get_single(i) for i in range(BEINGS)]
    x = torch.randn(4, BEINGS, 7, dtype=torch.float64)
    for i, single in enumerate(singles):
        torch.testing.assert_close(single(x[:, i]), layer(x)[:, i])
        np.testing.assert_array_equal(single.weight.detach().to_dense(), matrix(layer)[i])
    singles[1](x[:, 1]).sum().backward()
    assert layer.values.grad[1].any() and not layer.values.grad[[0, 2]].any()
    before = matrix(layer)
    layer.clone_being([0, 1], [2, 0])
    np.testing.assert_array_equal(matrix(layer), before[[1, 1, 0]])
    np.testing.assert_allclose(
        layer(x).detach(), np.einsum("kbi,boi->kbo", x, before[[1, 1, 0]]) + layer.bias.detach().numpy(), rtol=1e-9
    )


# ---------------------------------------------------------------------- construction


def test_a_generator_draws_everything() -> None:
    for options in ({}, {"beings": 2}, {"beings": 2, "shared": False}, {"dynamic": True}):
        before = torch.get_rng_state()
        first, second = (SparseLinear(20, 30, generator=torch.Generator().manual_seed(4), **options) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert all(
            torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        )
        third = SparseLinear(20, 30, generator=torch.Generator().manual_seed(5), **options)
        assert not torch.equal(first.col, third.col) and not torch.equal(first.values, third.values)
    assert "generator" not in first.options()


def test_a_wiring_may_decide_how_many_connections_there_are() -> None:
    layer = SparseLinear(100, 50, connectivity=ErdosRenyi(epsilon=4))
    assert layer.nnz == 600 == layer.values.numel() and layer.sparsity == 1 - 600 / 5000
    assert SparseLinear(100, 50, connectivity=ErdosRenyi(), sparsity=0.7).nnz == 1500


def test_small_world_is_short_for_the_wiring() -> None:
    first = SparseLinear(30, 40, small_world=True, generator=torch.Generator().manual_seed(1))
    second = SparseLinear(30, 40, connectivity=SmallWorld(), generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.indices, second.indices) and "connectivity=SmallWorld(" in repr(first)
    again = SparseLinear(30, 40, **first.options())
    assert again.small_world and again.connectivity is None


def test_nothing_is_left_of_a_layer_that_is_refused() -> None:
    before = len(list(linnet.sparse.dynamic.optimizer_hooks._REGISTERED))
    for options in ({"sparsity": 2}, {"connectivity": torch.ones(3)}, {"dynamic": True, "deltaT": -1}):
        with pytest.raises(ValueError):
            SparseLinear(7, 5, **options)
    assert len(list(linnet.sparse.dynamic.optimizer_hooks._REGISTERED)) == before


def test_weights_that_are_not_finite_are_refused() -> None:
    layer = SparseLinear(7, 5, sparsity=0.5)
    before = layer.state_dict()
    before = {key: tensor.clone() for key, tensor in before.items()}
    for bad in (torch.nan, torch.inf):
        w = torch.randn(5, 7)
        w[2, 3] = bad
        with pytest.raises(ValueError, match="weight must be finite"):
            layer.assign(w)
        plain = nn.Linear(7, 5)
        plain.weight.data.copy_(w)
        with pytest.raises(ValueError, match="weight must be finite"):
            SparseLinear.from_linear(plain, sparsity=0.5)
    assert all(torch.equal(layer.state_dict()[key], tensor) for key, tensor in before.items())


# ---------------------------------------------------------------------- out


@pytest.mark.parametrize("options", [{}, {"beings": 2}, {"beings": 2, "shared": False}])
def test_dense_csr_and_scipy(options: dict[str, Any]) -> None:
    layer = SparseLinear(7, 5, sparsity=0.6, dtype=torch.float64, **options)
    w = matrix(layer)
    csr = layer.to_csr()
    assert csr.layout == torch.sparse_csr and not csr.requires_grad
    np.testing.assert_array_equal(csr.to_dense(), w)
    arrays = layer.to_scipy() if layer.beings else [layer.to_scipy()]
    for array, one in zip(arrays, w.reshape(-1, 5, 7), strict=True):
        assert isinstance(array, scipy.sparse.csr_array)
        np.testing.assert_array_equal(array.toarray(), one)
    csr.values().zero_()
    arrays[0].data[:] = 0
    np.testing.assert_array_equal(matrix(layer), w)  # copies
    dense = layer.to_dense()
    assert dense.requires_grad and dense.layout == torch.strided
    back = SparseLinear(7, 5, connectivity=layer.to_scipy() if not layer.beings else layer.indices, **options)
    assert torch.equal(back.indices, layer.indices)


class Plain(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("options", [{}, {"beings": 2}, {"beings": 2, "shared": False}, {"bias": False}])
def test_gather_and_scatter_is_the_same_function(options: dict[str, Any]) -> None:
    layer = SparseLinear(7, 5, sparsity=0.6, **options)
    plain = GatherScatter(layer)
    shapes = (
        [(7,), (4, 7), (2, 3, 7)] if not layer.beings else [(7,), (1, 7), (2, 7), (4, 1, 7), (4, 2, 7), (3, 4, 2, 7)]
    )
    for shape in shapes:
        x = torch.randn(shape)
        torch.testing.assert_close(plain(x), layer(x))


def test_onnx_stores_the_connections_of_a_large_layer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(SparseLinear(300, 200, sparsity=0.99), nn.ReLU(), SparseLinear(200, 4, sparsity=0.5))
    x = torch.randn(3, 300)
    sizes = []
    for largest in (2**24, 10_000):
        monkeypatch.setattr(linnet.convert.onnx, "LARGEST_DENSE_FILE", largest)
        linnet.to_onnx(model, x, tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
        for batch in (3, 5):
            data = torch.randn(batch, 300)
            (found,) = session.run(None, {session.get_inputs()[0].name: data.numpy()})
            np.testing.assert_allclose(found, model(data).detach(), rtol=1e-4, atol=1e-5)
        sizes.append((tmp_path / "model.onnx").stat().st_size)
    assert sizes[1] < sizes[0] / 5


@pytest.mark.parametrize("beings", [None, 2])
def test_a_frozen_layer_may_keep_a_dense_copy(beings: int | None) -> None:
    dense, thin = (SparseLinear(40, 30, sparsity=s, beings=beings) for s in (0.5, 0.95))
    for layer, keeps in ((dense, True), (thin, False)):
        x = torch.randn(1, *layer.leading, 40)
        expected = layer(x)
        with torch.no_grad(), frozen(layer):
            torch.testing.assert_close(layer(x), expected)
            kept = held(layer)
            assert bool(kept._kept) == keeps
            assert layer.weight.layout == torch.sparse_coo
            layer.values.mul_(2)
            torch.testing.assert_close(layer(x) - layer.bias, 2 * (expected - layer.bias))
        with frozen(layer):  # with gradients the sparse product
            layer(x).sum().backward()
        assert layer.values.grad is not None


# ---------------------------------------------------------------------- sparsify


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10))


def test_sparsify_shares_the_connections_out_by_erk() -> None:
    model = net()
    linears = [model[i] for i in (0, 2, 4)]
    total = sum(linear.weight.numel() for linear in linears)
    swaps = sparsify(model, 0.9)
    assert [swap.name for swap in swaps] == ["0", "2", "4"]
    assert sum(swap.layer.nnz for swap in swaps) == round(0.1 * total)
    density = [swap.layer.nnz / linear.weight.numel() for swap, linear in zip(swaps, linears, strict=True)]
    raw = [(linear.in_features + linear.out_features) / linear.weight.numel() for linear in linears]
    ratios = np.array(density) / np.array(raw)
    assert ratios.max() / ratios.min() < 1.01
    for swap, linear in zip(swaps, linears, strict=True):
        threshold = linear.weight.abs().flatten().sort().values[-swap.layer.nnz]
        expected = torch.where(linear.weight.abs() >= threshold, linear.weight, 0)
        assert torch.equal(swap.layer.to_dense(), expected) and torch.equal(swap.layer.bias, linear.bias)
        assert swap.moved == pytest.approx(((linear.weight - expected).norm() / linear.weight.norm()).item(), rel=1e-5)
    assert model(torch.randn(3, 64)).shape == (3, 10)


def test_layers_that_keep_all_their_connections_stay() -> None:
    model = net()
    head = model[4]
    swaps = sparsify(model, 0.3)
    assert model[4] is head and [swap.name for swap in swaps] == ["0", "2"]
    kept = sum(swap.layer.nnz for swap in swaps) + head.weight.numel()
    assert kept == round(0.7 * (64 * 128 + 128 * 96 + 960))


def test_sparsify_by_pattern_and_uniformly() -> None:
    model = net()
    swaps = sparsify(model, 0.5, {"0": 0.9, "[02]": 0.8})
    assert [swap.layer.nnz for swap in swaps] == [819, round(0.2 * 128 * 96), 480]
    model = net()
    swaps = sparsify(model, 0.75, "uniform", exclude=["4"])
    assert [swap.layer.nnz for swap in swaps] == [2048, 3072] and isinstance(model[4], nn.Linear)


def test_sparsify_with_a_wiring_draws_anew_and_with_a_rule_rewires() -> None:
    model = net()
    before = model[0].weight.detach().clone()
    swaps = sparsify(model, 0.9, wiring=SmallWorld(), rewiring=RigL(every=1))
    layer = swaps[0].layer
    assert isinstance(layer.connectivity, SmallWorld) and layer.rule == RigL(every=1) and swaps[0].moved is None
    assert not torch.isin(layer.values.detach(), before).any()
    optimizer = torch.optim.Adam(model.parameters())
    cells = [swap.layer.cells() for swap in swaps]
    model(torch.randn(8, 64)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(swap.layer.cells(), old) for swap, old in zip(swaps, cells, strict=True))
    assert sparsify(net(), 0.9, wiring=Uniform(), rewiring=True)[0].layer.rule == RigL(6000, 150_000, 0.1)


def test_sparsify_refuses_and_leaves_the_model_alone() -> None:
    tied = net()
    tied[4].weight = nn.Parameter(torch.randn(128, 64))
    tied[0].weight = tied[4].weight
    cases: list[tuple[nn.Module, tuple, dict, str]] = [
        (nn.ReLU(), (0.9,), {}, "sparsify needs an nn.Linear that is not excluded"),
        (net(), (0.9,), {"exclude": "*"}, "sparsify needs an nn.Linear that is not excluded"),
        (net(), (0.9,), {"exclude": "layer*"}, "Each pattern of exclude must match a layer"),
        (net(), (0.9, {"9": 0.5}), {}, "Each pattern of distribution must match a layer"),
        (net(), (0.9, "ers"), {}, "distribution must be one of erk, uniform"),
        (net(), (1.0,), {}, "sparsity must lie"),
        (net(), (0.9, {"0": -1.0}), {}, "sparsity must lie"),
        (nn.Sequential(nn.LazyLinear(4)), (0.9,), {}, "is lazy"),
        (tied, (0.9,), {}, "sparsify cannot share a tensor between layers"),
    ]
    for model, args, options, message in cases:
        before = list(model.modules())
        with pytest.raises(ValueError, match=message):
            sparsify(model, *args, **options)
        assert all(a is b for a, b in zip(before, model.modules(), strict=True))
    with pytest.raises(TypeError, match="distribution must be a name"):
        sparsify(net(), 0.9, 3)

"""The fast path of one map against the operators, and both against dense float64 products."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet import SparseLinear
from linnet.sparse.kernels import ops as kernels
from linnet.sparse.kernels.layout import widths, workspace
from linnet.sparse.kernels.ops import affine, product

BUFFERS = ("crow", "col", "ccol", "row", "perm")


def pieces(layer: SparseLinear) -> list[Tensor]:
    return [layer.get_buffer(name) for name in BUFFERS]


@given(
    st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.95), st.integers(0, 120), st.booleans(), st.integers(0, 99)
)
@settings(max_examples=80, deadline=None)
def test_the_fast_path_is_the_reference(n: int, m: int, s: float, batch: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    if round((1 - s) * n * m) == 0:
        return
    layer = SparseLinear(n, m, bias, sparsity=s, dtype=torch.float64)
    x = torch.randn(batch, n, dtype=torch.float64, requires_grad=True)
    g = torch.randn(batch, m, dtype=torch.float64)
    inputs = [x, layer.values, *([layer.bias] if bias else [])]
    fast = affine(x, layer.values, layer.bias, pieces(layer))
    slow = product(layer.values[None], x[None], *pieces(layer))[0] + (layer.bias if bias else 0)
    w = layer.to_dense()
    dense = x @ w.mT + (layer.bias if bias else 0)
    results = [[y, *torch.autograd.grad(y, inputs, g)] for y in (fast, slow, dense)]
    for a, b, c in zip(*results, strict=True):
        np.testing.assert_allclose(a.detach(), c.detach(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(b.detach(), c.detach(), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(affine(x, layer.values, layer.bias, pieces(layer)), fast)


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_what_is_wanted_is_computed(wanted: tuple[bool, bool, bool]) -> None:
    layer = SparseLinear(20, 30, sparsity=0.8, dtype=torch.float64)
    x = torch.randn(9, 20, dtype=torch.float64, requires_grad=wanted[0])
    layer.values.requires_grad_(wanted[1])
    layer.bias.requires_grad_(wanted[2])
    layer(x).square().sum().backward()
    dense = x.detach() @ layer.to_dense().detach().mT + layer.bias.detach()
    expected = (
        2 * dense @ layer.to_dense().detach(),
        (2 * dense.mT @ x.detach())[tuple(layer.indices)],
        2 * dense.sum(0),
    )
    for tensor, flag, truth in zip((x, layer.values, layer.bias), wanted, expected, strict=True):
        assert (tensor.grad is not None) == flag
        if flag:
            torch.testing.assert_close(tensor.grad, truth)


def test_gradients_of_gradients() -> None:
    layer = SparseLinear(7, 5, sparsity=0.5, dtype=torch.float64)
    x = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return affine(x, values, bias, pieces(layer)).sin()

    inputs = (x, layer.values.detach().requires_grad_(), layer.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("shape", [(0, 20), (0, 3, 20), (1, 20), (20,), (2, 0, 20), (3, 5, 20)])
def test_shapes_and_strides(shape: tuple[int, ...]) -> None:
    layer = SparseLinear(20, 30, sparsity=0.8)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 30) and y.is_contiguous()
    torch.testing.assert_close(y, torch.nn.functional.linear(x, layer.to_dense(), layer.bias))
    strided = torch.randn(40, 6)[::2].T  # (6, 20), by columns
    torch.testing.assert_close(layer(strided), layer(strided.contiguous()))
    wide = torch.randn(5, 40, requires_grad=True)
    layer(wide[:, ::2]).sum().backward()
    torch.testing.assert_close(wide.grad[:, ::2], layer.to_dense().sum(0).expand(5, 20))
    expanded = torch.randn(1, 20).expand(4, 20)
    torch.testing.assert_close(layer(expanded), layer(expanded.clone()))
    layer(x.requires_grad_()).sum().backward()  # a gradient that is expanded too
    assert x.grad.shape == x.shape


@given(st.integers(0, 500), st.integers(1, 20).map(lambda k: 8 * k))
def test_the_pieces_of_a_batch(batch: int, step: int) -> None:
    covered = 0
    for start, width in widths(batch, step):
        assert start == covered and width % 8 == 0 and 0 < width <= max(step, 8)
        covered = min(batch, start + width)
    assert covered == batch


def test_the_operators_compute_half_precision_in_single_under_autocast() -> None:
    layer = SparseLinear(20, 30, sparsity=0.8)
    x = torch.randn(1, 9, 20)
    with torch.autocast("cpu", torch.bfloat16):
        y = product(layer.values[None].bfloat16(), x.bfloat16(), *pieces(layer))
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, product(layer.values[None].bfloat16().float(), x.bfloat16().float(), *pieces(layer)))


def test_results_do_not_depend_on_what_ran_before() -> None:
    layer, other = SparseLinear(64, 48, sparsity=0.7), SparseLinear(90, 70, sparsity=0.5)
    x = torch.randn(37, 64)
    first = layer(x)
    other(torch.full((100, 90), torch.nan))
    assert torch.equal(layer(x), first)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(layer(x), first)
    finally:
        torch.set_num_threads(before)


def test_memory_that_is_kept_serves_every_mode() -> None:
    workspace.kept.clear()
    layer = SparseLinear(30, 20, sparsity=0.5)
    x = torch.randn(9, 30)
    with torch.inference_mode():
        inferred = layer(x)
    y = layer(x)
    assert torch.equal(y, inferred)
    y.sum().backward()
    with torch.inference_mode():
        assert torch.equal(layer(x), y)


def test_whoever_watches_sees_inputs_and_gradients() -> None:
    layer, seen = SparseLinear(20, 30, sparsity=0.8), []
    kernels.OBSERVERS[layer.col.data_ptr()] = lambda g, x: seen.append((g, x))
    try:
        x = torch.randn(5, 20)
        y = layer(x)
        g = torch.randn_like(y)
        y.backward(g)
        torch.autograd.grad(product(layer.values[None], x[None], *pieces(layer)), layer.values, g[None])
    finally:
        del kernels.OBSERVERS[layer.col.data_ptr()]
    assert len(seen) == 2
    for found in seen:
        assert torch.equal(found[0], g[None]) and torch.equal(found[1], x[None])
    layer(x).sum().backward()
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["col", "row", "perm", "ccol"])
def test_a_planted_fault_is_noticed(name: str) -> None:
    layer = SparseLinear(20, 30, sparsity=0.8, dtype=torch.float64)
    buffer = layer.get_buffer(name)
    if (
        name == "ccol"
    ):  # one entry goes to the column before; a pointer that falls would let MKL read outside its memory
        buffer[int((buffer.diff()[1:] > 0).nonzero()[0]) + 1] += 1
    else:
        other = int((buffer != buffer[3]).nonzero()[0])  # equal ones swapped would be no fault
        buffer[[3, other]] = buffer[[other, 3]]
    assert (layer.ccol.diff() >= 0).all() and int(layer.ccol[-1]) == layer.nnz
    for index, size in ((layer.col, 20), (layer.row, 30), (layer.perm, layer.nnz)):
        assert 0 <= int(index.min()) and int(index.max()) < size
    x = torch.randn(9, 20, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(30, 20, dtype=torch.float64)
    w[tuple(layer.indices)] = layer.values.detach()
    if name == "col":
        w[tuple(layer.indices)] = layer.values.detach().flip(0)
    layer(x).square().sum().backward()
    y = x.detach() @ w.mT + layer.bias.detach()
    good = torch.allclose(layer(x), y) and torch.allclose(x.grad, 2 * y @ w)
    assert not good

"""The blocked product of reflections against a loop over reflections and against its reference, to every order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from linnet import find_layer
from linnet.maps.math import householder
from linnet.maps.math.householder import householder_product, householder_product_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # forward_ad itself uses it


def loop(x, v):
    """x H₁⋯H_k, one reflection at a time, in float64; NumPy."""
    for row in v.astype(np.float64):
        size = np.linalg.norm(row)
        if size > 0:
            x = x - 2 * np.outer(x @ row, row) / size**2
    return x


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(householder, "block_size", lambda n: 3)


@settings(max_examples=60, deadline=None)
@given(
    b=st.integers(0, 6),
    n=st.integers(1, 12),
    k=st.integers(1, 14),
    block=st.integers(1, 5),
    maps=st.sampled_from([(), (2,), (2, 3)]),
    shared=st.booleans(),
    size=st.sampled_from([1e-30, 1.0, 1e4, 1e30]),
    seed=st.integers(0, 99),
)
def test_agrees_with_a_loop(b, n, k, block, maps, shared, size, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*[1] * len(maps) if shared else maps, b, n, generator=generator)
    v = size * torch.randn(*maps, k, n, generator=generator)
    v[..., 0, :] *= seed % 2  # a zero vector reflects nothing
    before = householder.block_size
    householder.block_size = lambda n: block
    try:
        found = householder_product(x, v)
    finally:
        householder.block_size = before
    assert found.shape == (*maps, b, n)
    count = math.prod(maps)
    xs = x.expand(*maps, b, n).reshape(count, b, n).double().numpy()
    for y, rows, vectors in zip(found.reshape(count, b, n), xs, v.reshape(count, k, n).numpy(), strict=True):
        np.testing.assert_allclose(y.numpy(), loop(rows, vectors), atol=3e-6 * max(1, np.abs(rows).max(initial=0)))


@pytest.mark.parametrize("maps", [(), (2,)])
@pytest.mark.parametrize("k", [2, 7])
def test_derivatives_of_both_orders(small_blocks, maps, k):
    x = torch.randn(*maps, 2, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(*maps, k, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(householder_product, (x, v), check_forward_ad=True, check_batched_grad=False)
    assert gradgradcheck(householder_product, (x, v))


@pytest.mark.parametrize("wants", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rows", [1, 5])
def test_only_what_is_wanted(small_blocks, wants, rows):
    x, v = torch.randn(rows, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    grad = torch.randn(rows, 5, dtype=torch.float64)
    kept = grad.clone()
    results = []
    for product in (householder_product, householder_product_reference):
        inputs = [t.clone().requires_grad_(want) for t, want in zip((x, v), wants, strict=True)]
        product(*inputs).backward(grad)
        results.append([t.grad for t in inputs])
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected)
    assert torch.equal(grad, kept)  # backward writes into no tensor of others


def test_backward_twice_and_transforms(small_blocks):
    x, v = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    y = householder_product(x, v)
    first = torch.autograd.grad(y.sin().sum(), (x, v), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(y.sin().sum(), (x, v)), strict=True):
        assert torch.equal(a, b)
    grads = torch.func.grad(lambda v: householder_product(x.detach(), v).sin().sum())(v.detach())
    torch.testing.assert_close(grads, first[1])
    stacked = torch.stack([v, v + 1]).detach()
    found = torch.func.vmap(lambda v: householder_product(x.detach(), v))(stacked)
    torch.testing.assert_close(found, torch.stack([householder_product(x, row) for row in stacked]).detach())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(v.detach(), torch.ones(5, 4))
        tangent = forward_ad.unpack_dual(householder_product(x.detach(), dual)).tangent
    jacobian = torch.func.jacrev(lambda v: householder_product(x.detach(), v))(v.detach())
    torch.testing.assert_close(tangent, jacobian.sum((-1, -2)))
    compiled = torch.compile(householder_product, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, v), y)


def test_a_planted_fault_would_be_seen(small_blocks, monkeypatch):
    """Blocks applied in the wrong order agree with the loop nowhere."""
    x, v = torch.randn(3, 5), torch.randn(9, 5)
    flipped = torch.cat(v.split(3)[::-1])
    assert not np.allclose(householder_product(x, flipped).numpy(), loop(x.double().numpy(), v.numpy()), atol=1e-2)


@pytest.mark.parametrize("name", ["orthogonal", "svd", "symplectic", "monarch", "circulant", "butterfly"])
@pytest.mark.parametrize("n", [8, 160])
def test_many_gradients_at_once(name, n):
    layer = find_layer(name)(n, n, bias=False, dtype=torch.float64)
    x = torch.randn(3, n, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    wanted = [x, *layer.parameters()]
    grads = torch.randn(4, *y.shape, dtype=torch.float64)
    found = torch.autograd.grad(y, wanted, grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        for a, b in zip(found, torch.autograd.grad(y, wanted, grad, retain_graph=True), strict=True):
            torch.testing.assert_close(a[i], b)


@pytest.mark.parametrize("size", [1e-37, 1e-39, 1e-42])
def test_subnormal_vectors_are_judged_alike_by_both(size):
    x, v = torch.randn(3, 6), size * torch.randn(4, 6)
    torch.testing.assert_close(householder_product(x, v), householder_product_reference(x, v), atol=1e-4, rtol=1e-4)

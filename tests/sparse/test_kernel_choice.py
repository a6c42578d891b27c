"""The function that chooses a kernel: its table, who asks it, and every kernel against dense float64 products."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from linnet import SparseLinear, frozen
from linnet.sparse import linear
from linnet.sparse.kernels import products
from linnet.sparse.kernels.choice import (
    Choice,
    Kernel,
    Operation,
    choose_kernel,
    maps_at_a_time,
    samples_at_a_time,
)

PRODUCT, FROZEN, SAMPLED = Operation.PRODUCT, Operation.FROZEN_PRODUCT, Operation.SAMPLED_PRODUCT
F32, F64 = torch.float32, torch.float64

# operation, rows, columns, nnz, batch, and what differs from one map in float32 on a CPU with AVX2 -> kernel, samples
TABLE: list[tuple[Operation, int, int, int, int, dict[str, Any], Kernel, int]] = [
    # no sample and one sample
    (PRODUCT, 1024, 1024, 100_000, 0, {}, Kernel.NOTHING, 0),
    (FROZEN, 64, 64, 4096, 0, {}, Kernel.NOTHING, 0),
    (SAMPLED, 1024, 1024, 100_000, 0, {}, Kernel.NOTHING, 0),
    (PRODUCT, 1024, 1024, 100_000, 1, {}, Kernel.CSR_VECTOR, 1),
    (PRODUCT, 1024, 1024, 100_000, 1, {"device": "cuda"}, Kernel.CSR_VECTOR, 1),
    (SAMPLED, 1024, 1024, 100_000, 1, {}, Kernel.SAMPLED, 1),
    # FBGEMM where torch has it: x86, float32, more than 8 samples at a time
    (PRODUCT, 1024, 1024, 100_000, 2, {}, Kernel.EMBEDDING_BAG, 64),
    (PRODUCT, 1024, 1024, 100_000, 64, {}, Kernel.EMBEDDING_BAG, 64),
    (PRODUCT, 1024, 1024, 100_000, 64, {"capability": "AVX512"}, Kernel.EMBEDDING_BAG, 64),
    (PRODUCT, 1024, 1024, 100_000, 64, {"capability": "DEFAULT"}, Kernel.CSR_COLUMNS, 32),
    (PRODUCT, 1024, 1024, 100_000, 64, {"capability": "SVE256"}, Kernel.CSR_COLUMNS, 32),
    (PRODUCT, 1024, 1024, 100_000, 64, {"dtype": F64}, Kernel.CSR_COLUMNS, 32),
    (PRODUCT, 1024, 1024, 100_000, 64, {"device": "cuda"}, Kernel.CSR_COLUMNS, 32),
    # fewer samples at a time where the matrix is large: of embedding_bag the columns count, of CSR the longer side
    (PRODUCT, 4096, 1024, 400_000, 64, {}, Kernel.EMBEDDING_BAG, 64),
    (PRODUCT, 1024, 4096, 400_000, 64, {}, Kernel.EMBEDDING_BAG, 32),
    (PRODUCT, 4096, 1024, 400_000, 64, {"dtype": F64}, Kernel.CSR_COLUMNS, 16),
    (PRODUCT, 1024, 2049, 400_000, 64, {"dtype": F64}, Kernel.CSR_COLUMNS, 16),
    (PRODUCT, 100_000, 100_000, 10**6, 64, {}, Kernel.EMBEDDING_BAG, 32),
    (PRODUCT, 10**6, 10**6, 10**7, 64, {}, Kernel.CSR_COLUMNS, 8),
    # more where a product is little more than a call
    (PRODUCT, 64, 64, 400, 500, {}, Kernel.EMBEDDING_BAG, 256),
    (PRODUCT, 256, 256, 20_000, 500, {}, Kernel.EMBEDDING_BAG, 104),
    (SAMPLED, 64, 64, 400, 500, {}, Kernel.SAMPLED, 256),
    (SAMPLED, 4096, 4096, 400_000, 64, {}, Kernel.SAMPLED, 64),
    (SAMPLED, 4096, 4096, 400_000, 64, {"dtype": F64}, Kernel.SAMPLED, 64),
    # a dense copy inside frozen: density above 0.1 for up to 4 samples, 0.25 for more, 0.35 where it leaves the cache
    (FROZEN, 100, 100, 1001, 4, {}, Kernel.DENSE, 0),
    (FROZEN, 100, 100, 1000, 1, {}, Kernel.CSR_VECTOR, 1),
    (FROZEN, 100, 100, 1001, 5, {}, Kernel.EMBEDDING_BAG, 256),
    (FROZEN, 100, 100, 2501, 5, {}, Kernel.DENSE, 0),
    (FROZEN, 2048, 1024, 600_000, 64, {}, Kernel.DENSE, 0),
    (FROZEN, 2048, 1025, 700_000, 1, {}, Kernel.CSR_VECTOR, 1),
    (FROZEN, 2048, 1025, 740_000, 1, {}, Kernel.DENSE, 0),
    (FROZEN, 2**13, 2**12, 2**24, 64, {}, Kernel.DENSE, 0),
    (FROZEN, 2**13, 2**12 + 1, 2**24, 64, {}, Kernel.EMBEDDING_BAG, 32),
    (FROZEN, 1024, 1024, 2**19, 64, {"maps": 32}, Kernel.DENSE, 0),
    (FROZEN, 1024, 1024, 2**19, 64, {"maps": 33}, Kernel.EMBEDDING_BAG, 64),
    (PRODUCT, 100, 100, 10_000, 4, {}, Kernel.EMBEDDING_BAG, 208),  # outside of frozen never
]


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_the_table(case: tuple[Any, ...]) -> None:
    operation, rows, columns, nnz, batch, other, kernel, samples = case
    options = {"capability": "AVX2", **other}
    assert choose_kernel(operation, rows, columns, nnz, batch, **options) == Choice(kernel, samples)


@pytest.mark.parametrize("nnz", [1, 10**3, 10**5, 10**7, 10**9])
@pytest.mark.parametrize("units", [1, 10**3, 10**5, 10**6, 10**8])
def test_samples_at_a_time(nnz: int, units: int) -> None:
    for best in (16, 64):
        step = samples_at_a_time(nnz, units, best)
        assert step % 8 == 0 and step >= 8 and (step == 8 or step * units <= 2**22)


def test_maps_at_a_time() -> None:
    assert maps_at_a_time(16, 16, 26) == 2**16 // 26
    assert maps_at_a_time(16, 500, 26) == 2**16 // 500 and maps_at_a_time(499, 16, 26) == 2**16 // 500
    assert maps_at_a_time(1024, 1024, 10**6) == 1


# ---------------------------------------------------------------------- every kernel against the reference


def random_matrix(rows: int, columns: int, dtype: torch.dtype) -> tuple[products.Matrix, Tensor]:
    """A matrix of which a third of the entries is not zero, and the same as a dense tensor."""
    mask = torch.rand(rows, columns, dtype=torch.float64) < 0.3
    mask[min(3, rows - 1)] = False  # an output without a connection
    mask[0, 0] = True
    dense = torch.where(mask, torch.randn(rows, columns, dtype=dtype), 0)
    csr = dense.to_sparse_csr()
    return products.Matrix(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), columns), dense


BY_COLUMNS = [Choice(kernel, samples) for kernel in Kernel if kernel.by_columns for samples in (8, 16, 64)]


@pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant)")
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("choice", [*BY_COLUMNS, Choice(Kernel.CSR_VECTOR, 1), Choice(Kernel.NOTHING, 0)], ids=str)
def test_every_kernel_gives_the_dense_product(choice: Choice, dtype: torch.dtype) -> None:
    for rows, columns in ((7, 5), (30, 44), (1, 9)):
        matrix, dense = random_matrix(rows, columns, dtype)
        for batch in (2, 8, 37, 100) if choice.kernel.by_columns else (choice.samples,):
            x = torch.randn(batch, columns, dtype=dtype)
            torch.testing.assert_close(products.multiply_one(matrix, x, choice), x @ dense.mT)
            y = torch.full((2, batch, rows), torch.nan, dtype=dtype)
            pair = [x, x.flip(0)]
            twice = next(iter(products.blocks(torch.stack([matrix.values] * 2), matrix.crow, matrix.col, columns)))[1]
            assert twice.rows == 2 * rows
            products.multiply_into(twice, pair, y.unbind(0), choice)
            torch.testing.assert_close(y, torch.stack(pair) @ dense.mT)


@pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant)")
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("choice", BY_COLUMNS, ids=str)
def test_every_kernel_gives_the_dense_gradients(choice: Choice, keep: bool) -> None:
    matrix, dense = random_matrix(30, 44, F64)
    csr = dense.mT.contiguous().to_sparse_csr()
    back = products.Matrix(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), 30)
    for batch in (2, 8, 37, 100):
        x, g = torch.randn(batch, 44, dtype=F64), torch.randn(batch, 30, dtype=F64)
        kept = products.Columns.keep(x) if keep else None
        products.multiply_one(matrix, x, choice, kept)
        entries = torch.zeros_like(matrix.values)
        places = products.Matrix(matrix.crow, matrix.col, entries, 44)
        h = products.multiply_and_add_sampled(back, places, g, x, choice, kept)
        torch.testing.assert_close(h, g @ dense)
        torch.testing.assert_close(entries, (g.mT @ x)[dense != 0])
    entries.zero_()
    products.add_sampled(places, (g,), (x,))
    torch.testing.assert_close(entries, (g.mT @ x)[dense != 0])


# ---------------------------------------------------------------------- who asks


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Operation, int, int, int]]:
    """Every question: operation, rows, columns and batch."""
    found: list[tuple[Operation, int, int, int]] = []

    def recorded(operation: Operation, rows: int, columns: int, nnz: int, batch: int, **placed: Any) -> Choice:
        found.append((operation, rows, columns, batch))
        return choose_kernel(operation, rows, columns, nnz, batch, **placed)

    monkeypatch.setattr(products, "choose_kernel", recorded)
    monkeypatch.setattr(linear, "choose_kernel", recorded)
    return found


@pytest.mark.parametrize("batch", [1, 5])
def test_forward_and_backward_ask(asked: list[tuple[Operation, int, int, int]], batch: int) -> None:
    layer, x = SparseLinear(20, 30, sparsity=0.8), torch.randn(batch, 20, requires_grad=True)
    y = layer(x)
    assert asked == [(PRODUCT, 30, 20, batch)]
    asked.clear()
    y.sum().backward()
    # Several samples: gradients follow the choice of the forward. One sample: each asks for itself.
    alone = [(PRODUCT, 20, 30, 1), (SAMPLED, 30, 20, 1)]
    assert asked == ([] if batch > 1 else alone)
    asked.clear()
    layer(x.detach()).sum().backward()
    assert asked == [(PRODUCT, 30, 20, batch), (SAMPLED, 30, 20, batch)]
    asked.clear()
    layer.values.requires_grad_(False)
    layer(x).sum().backward()
    assert asked == [(PRODUCT, 30, 20, batch), (PRODUCT, 20, 30, batch)]


def test_populations_ask_for_their_blocks(asked: list[tuple[Operation, int, int, int]]) -> None:
    layer, x = SparseLinear(20, 30, sparsity=0.8, beings=3), torch.randn(5, 3, 20, requires_grad=True)
    layer(x).sum().backward()
    assert sorted(asked, key=str) == sorted([(PRODUCT, 90, 60, 5), (PRODUCT, 60, 90, 5), (SAMPLED, 90, 60, 5)], key=str)


@pytest.mark.parametrize("sparsity", [0.5, 0.95])
def test_frozen_asks(asked: list[tuple[Operation, int, int, int]], sparsity: float) -> None:
    layer, x = SparseLinear(20, 30, sparsity=sparsity), torch.randn(3, 20)
    expected = layer(x)
    asked.clear()
    with torch.no_grad(), frozen(layer):
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x), expected)
    question = (FROZEN, 30, 20, 3)
    assert asked.count(question) == 2
    others = [one for one in asked if one != question]
    assert others == ([(FROZEN, 30, 20, 1)] if sparsity == 0.5 else [(PRODUCT, 30, 20, 3)] * 2)


@pytest.mark.parametrize("choice", BY_COLUMNS, ids=str)
def test_the_layer_follows_the_choice(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    def forced(operation: Operation, *sizes: int, **placed: Any) -> Choice:
        return choose_kernel(operation, *sizes, **placed) if operation is SAMPLED else choice

    ran: list[Kernel] = []
    run: Callable[..., Any] = products.column_product
    monkeypatch.setattr(products, "choose_kernel", forced)
    monkeypatch.setattr(products, "column_product", lambda m, k, w: ran.append(k) or run(m, k, w))
    layer = SparseLinear(20, 30, sparsity=0.8, dtype=F64)
    x = torch.randn(37, 20, dtype=F64, requires_grad=True)
    y = layer(x)
    found = torch.autograd.grad(y.square().sum(), [x, layer.values])
    dense = layer.to_dense().detach()
    z = x.detach() @ dense.mT + layer.bias.detach()
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(found[0], 2 * z @ dense)
    torch.testing.assert_close(found[1], (2 * z.mT @ x.detach())[tuple(layer.indices)])
    assert ran == [choice.kernel] * 2

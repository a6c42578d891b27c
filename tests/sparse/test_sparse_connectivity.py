"""Where the connections of a sparse layer are: drawn, given, refused; and the class that holds them."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.sparse import RigL, SmallWorld, SparseLinear, Uniform
from linnet.sparse.connectivity import STRUCTURE, SparseMap
from linnet.sparse.wiring.wiring import draw_cells, revive
from support.sparse_layers import COL, PAIRS, ROW, mask_of

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
            drawn.append([layer.values.detach(), *(layer.get_buffer(name) for name in STRUCTURE)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


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

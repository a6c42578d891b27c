"""Where connections start: exact numbers, no dead units, the law of each wiring; budgets and graph metrics by loops."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.sparse import NM, Blocks, ConstantFanIn, ErdosRenyi, SmallWorld, SparseLinear, Uniform
from linnet.sparse import small_world as small_world_of
from linnet.sparse.budget import erk, uniform
from linnet.sparse.metrics import _clustering, _path_length, _shuffled, degrees
from linnet.sparse.wiring.small_world import _root
from linnet.sparse.wiring.wiring import draw_in_groups

WIRINGS = [
    Uniform(),
    ErdosRenyi(),
    ConstantFanIn(),
    SmallWorld(),
    SmallWorld(ring=True),
    SmallWorld(exponent=1.3),
    SmallWorld(exponent=0.0),
    Blocks(size=3),
    Blocks(size=(2, 5)),
]
sizes = st.integers(1, 40)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(indices: Tensor) -> set[tuple[int, int]]:
    return {(int(r), int(c)) for r, c in indices.T}


@pytest.mark.parametrize("wiring", WIRINGS, ids=repr)
@given(n=sizes, m=sizes, share=st.floats(0, 1), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_exact_number_no_pair_twice_no_dead_unit(wiring, n: int, m: int, share: float, seed: int) -> None:
    nnz = max(1, round(share * n * m))
    indices = wiring(m, n, nnz, seeded(seed))
    found = pairs(indices)
    assert indices.shape == (2, nnz) and len(found) == nnz and indices.dtype == torch.int64
    outputs, inputs = {r for r, _ in found}, {c for _, c in found}
    assert outputs <= set(range(m)) and inputs <= set(range(n))
    if nnz >= max(n, m) and not isinstance(wiring, Blocks):
        assert len(outputs) == m and len(inputs) == n
    elif isinstance(wiring, SmallWorld):  # as many units as possible
        assert len(outputs) == min(m, nnz) and len(inputs) == min(n, nnz)
    assert torch.equal(indices, wiring(m, n, nnz, seeded(seed)))


def test_a_wiring_does_not_depend_on_threads_or_the_default_device() -> None:
    before = torch.get_num_threads()
    try:
        for wiring in WIRINGS:
            drawn = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                drawn.append(wiring(300, 500, 20_000, seeded(1)))
            with torch.device("meta"):
                drawn.append(wiring(300, 500, 20_000, seeded(1)))
            assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wiring", WIRINGS, ids=repr)
def test_a_hundred_thousand_by_a_hundred_thousand(wiring) -> None:
    row, col = wiring(100_000, 100_000, 1_000_000, seeded(0))
    assert (row * 100_000 + col).unique().numel() == 1_000_000
    if not isinstance(wiring, Blocks):
        assert row.unique().numel() == col.unique().numel() == 100_000


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1)), min_size=1, max_size=20), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_places_in_groups(groups: list[tuple[int, float]], seed: int) -> None:
    size = torch.tensor([n for n, _ in groups])
    wanted = torch.tensor([round(n * share) for n, share in groups])
    group, place = draw_in_groups(size, wanted, seeded(seed))
    assert torch.equal(torch.bincount(group, minlength=len(groups)), wanted)
    assert len(set(zip(group.tolist(), place.tolist(), strict=True))) == int(wanted.sum())
    assert (place >= 0).all() and (place < size[group]).all() and (group.diff() >= 0).all()


def test_places_in_groups_are_even() -> None:
    size, wanted = torch.tensor([5, 4, 6]), torch.tensor([1, 3, 3])
    counts = np.zeros(15)
    for seed in range(1000):
        group, place = draw_in_groups(size, wanted, seeded(seed))
        counts[torch.tensor([0, 5, 9])[group] + place] += 1
    for low, high, k in ((0, 5, 1), (5, 9, 3), (9, 15, 3)):
        n = high - low
        expected = 1000 * k / n
        statistic = ((counts[low:high] - expected) ** 2).sum() / (expected * (1 - k / n)) * (n - 1) / n
        assert scipy.stats.chi2.sf(statistic, n - 1) > 1e-4


# ---------------------------------------------------------------------- each wiring


def test_erdos_renyi_has_epsilon_connections_for_each_unit() -> None:
    assert ErdosRenyi(epsilon=20).nnz(784, 1000) == 20 * 1784
    assert ErdosRenyi(epsilon=20).nnz(4, 5) == 20 and ErdosRenyi(epsilon=1e-9).nnz(4, 5) == 1
    assert ErdosRenyi().nnz(4, 5) is None
    assert torch.equal(ErdosRenyi()(9, 8, 20, seeded(1)), Uniform()(9, 8, 20, seeded(1)))


@given(sizes, sizes, st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_constant_fan_in(n: int, m: int, share: float, seed: int) -> None:
    nnz = max(1, round(share * n * m))
    fan_in = torch.bincount(ConstantFanIn()(m, n, nnz, seeded(seed))[0], minlength=m)
    assert int(fan_in.max()) - int(fan_in.min()) <= 1
    layer = SparseLinear(n, m, connectivity=ConstantFanIn(fan_in=n // 2 + 1))
    assert degrees(layer)[0].unique().tolist() == [n // 2 + 1] and int(degrees(layer)[1].sum()) == layer.nnz


def test_blocks_are_dense() -> None:
    for (m, n), nnz in (((64, 48), 16 * 16 * 5), ((50, 70), 1000)):
        indices = Blocks(size=16)(m, n, nnz, seeded(0))
        filled = np.zeros((-(-m // 16), -(-n // 16)))
        for r, c in pairs(indices):
            filled[r // 16, c // 16] += 1
        area = np.outer(
            np.minimum(16, m - 16 * np.arange(filled.shape[0])), np.minimum(16, n - 16 * np.arange(filled.shape[1]))
        )
        part = (filled > 0) & (filled < area)
        assert part.sum() <= 1
    mask = torch.zeros(64, 64)
    mask[tuple(Blocks(size=16)(64, 64, 4 * 256, seeded(1)))] = 1
    blocks = mask.view(4, 16, 4, 16).sum((1, 3)) > 0
    assert blocks.any(0).all() and blocks.any(1).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 4), (3, 8)])
def test_n_of_every_m_inputs(n: int, m: int) -> None:
    layer = SparseLinear(5 * m, 7, connectivity=NM(n, m))
    mask = layer.to_dense().detach() != 0
    assert (mask.view(7, 5, m).sum(-1) == n).all() and layer.sparsity == pytest.approx(1 - n / m)
    assert 7 * n < m or mask.any(0).all()
    for seed in range(30):  # few outputs: inputs would be dead without care
        row, col = NM(1, 4)(4, 8, 8, seeded(seed))
        assert col.unique().numel() == 8 and torch.bincount(row * 2 + col // 4).eq(1).all()


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("exponent", [None, 1.0])
def test_the_probability_of_a_small_world_connection_falls_with_distance(ring: bool, exponent: float | None) -> None:
    n, nnz, rounds = 60, 500, 150
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    d = np.abs(i - j)
    d = np.minimum(d, n - d) if ring else d
    others = d > 0  # the diagonal is always connected
    if exponent is None:
        power = _root(lambda x: ((d[others] + 1.0) ** -x).sum() - (nnz - n), 0, 50)
        p = (d + 1.0) ** -power
    else:
        scale = _root(lambda c: (nnz - n) - np.minimum(1, math.exp(c) * (d[others] + 1.0) ** -exponent).sum(), -50, 50)
        p = np.minimum(1, math.exp(scale) * (d + 1.0) ** -exponent)
    counts = np.zeros((n, n))
    for seed in range(rounds):
        counts[tuple(SmallWorld(exponent, ring)(n, n, nnz, seeded(seed)))] += 1
    assert (counts[d == 0] == rounds).all()
    for distance in range(1, n):
        here = d == distance
        if not here.any():
            continue
        trials = rounds * here.sum()
        expected = p[here].mean()
        error = 5 * math.sqrt(expected * (1 - expected) / trials) + 1e-9
        assert abs(counts[here].sum() / trials - expected) < error, distance
    near = counts[d == 1]  # the same for all pairs at one distance
    assert near.std() < 2 * math.sqrt(rounds * p[d == 1].mean() * (1 - p[d == 1].mean()))


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (10, 2000), (2000, 10), (7, 100)])
def test_a_small_world_is_scaled_to_both_sides(shape: tuple[int, int]) -> None:
    out_features, in_features = shape
    nnz = max(shape) + out_features * in_features // 20
    row, col = SmallWorld()(out_features, in_features, nnz, seeded(0))
    apart = ((row + 0.5) / out_features - (col + 0.5) / in_features).abs()
    assert float((apart < 0.2).double().mean()) > 0.5 > 0.36  # evenly spread: 0.36
    share = torch.bincount((10 * apart).long().clamp_max(9), minlength=10)
    assert (share.diff()[1:] <= 4 * share[1:-1].sqrt() + 4).all()  # falling: there is no second band
    fan_out = torch.bincount(col, minlength=in_features)
    assert fan_out.min() >= 1


WRONG = [
    (lambda: ErdosRenyi(epsilon=0), "epsilon must be positive"),
    (lambda: ErdosRenyi(epsilon=True), "epsilon must be positive"),
    (lambda: ConstantFanIn(fan_in=0), "fan_in must be a positive integer"),
    (lambda: SparseLinear(4, 4, connectivity=ConstantFanIn(fan_in=5)), "fan_in must be at most in_features=4"),
    (lambda: SmallWorld(exponent=-1), "exponent must be a finite number >= 0"),
    (lambda: SmallWorld(exponent=math.nan), "exponent must be"),
    (lambda: Blocks(size=0), "outputs must be a positive integer"),
    (lambda: Blocks(size=(1, 2, 3)), "size must be one number or"),
    (lambda: NM(3, 2), "n must be at most m"),
    (lambda: NM(0, 2), "n must be a positive integer"),
    (lambda: SparseLinear(6, 4, connectivity=NM(2, 4)), "in_features must be a multiple of m=4, got 6"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_options_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------- budgets

shapes = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6)


@given(shapes, st.floats(0, 0.99))
@settings(max_examples=80, deadline=None)
def test_budgets(given_shapes: list[tuple[int, int]], sparsity: float) -> None:
    named = {f"layer{i}": shape for i, shape in enumerate(given_shapes)}
    size = {name: o * i for name, (o, i) in named.items()}
    total = round((1 - sparsity) * sum(size.values()))
    if total < len(named):
        for budget in (erk, uniform):
            with pytest.raises(ValueError, match="must have a connection"):
                budget(named, sparsity)
        return
    for budget in (erk, uniform):
        found = budget(named, sparsity)
        assert list(found) == list(named) and sum(found.values()) == total
        assert all(1 <= found[name] <= size[name] for name in named)
    # epsilon by bisection: the total of min(1, density) is monotone in it
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        used = sum(min(size[name], middle * sum(shape)) for name, shape in named.items())
        low, high = (middle, high) if used < total else (low, middle)
    found, slack = erk(named, sparsity), len(named)
    assert all(abs(found[name] - min(size[name], low * sum(shape))) <= slack for name, shape in named.items())
    even = uniform(named, sparsity)
    assert all(abs(even[name] - total * size[name] / sum(size.values())) <= slack for name in named)


# ---------------------------------------------------------------------- metrics


def graph(m: int, n: int, nnz: int, seed: int) -> tuple[Tensor, np.ndarray]:
    indices = Uniform()(m, n, nnz, seeded(seed))
    a = np.zeros((m + n, m + n), dtype=int)
    for r, c in pairs(indices):
        a[r, m + c] = a[m + c, r] = 1
    return indices, a


@pytest.mark.parametrize(("m", "n", "nnz"), [(6, 8, 20), (10, 5, 30), (9, 9, 12), (4, 4, 16), (3, 3, 3)])
def test_clustering_and_path_length_by_loops(m: int, n: int, nnz: int) -> None:
    for seed in range(3):
        (row, col), a = graph(m, n, nnz, seed)
        closed = paths = 0
        for i, j in zip(row.tolist(), (col + m).tolist(), strict=True):
            for other_j in np.flatnonzero(a[i]):
                for other_i in np.flatnonzero(a[j]):
                    if other_j != j and other_i != i:
                        paths += 1
                        closed += a[other_i, other_j]
        assert _clustering(row, col, m, n, 10**6, None) == pytest.approx(closed / max(1, paths))
        distance = scipy.sparse.csgraph.shortest_path(scipy.sparse.csr_array(a), unweighted=True)
        reached = np.isfinite(distance) & (distance > 0)
        assert _path_length(row, col, m, n, 100, None) == pytest.approx(distance[reached].mean())


def test_samples_estimate_the_whole() -> None:
    (row, col), _ = graph(60, 80, 700, 0)
    exact = _clustering(row, col, 60, 80, 10**7, None), _path_length(row, col, 60, 80, 1000, None)
    clustering = _clustering(row, col, 60, 80, 10_000, seeded(1))
    assert abs(clustering - exact[0]) < 5 * math.sqrt(exact[0] * (1 - exact[0]) / 10_000)
    assert _path_length(row, col, 60, 80, 40, seeded(1)) == pytest.approx(exact[1], rel=0.02)


@given(st.integers(2, 20), st.integers(2, 20), st.floats(0.05, 0.7), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_random_graphs_keep_the_degrees(m: int, n: int, share: float, seed: int) -> None:
    row, col = Uniform()(m, n, max(1, round(share * m * n)), seeded(seed))
    other = torch.stack(_shuffled(row, col, n, seeded(seed)))
    assert len(pairs(other)) == other.shape[1] <= row.shape[0]
    if other.shape[1] == row.shape[0]:
        assert torch.equal(torch.bincount(other[0], minlength=m), torch.bincount(row, minlength=m))
        assert torch.equal(torch.bincount(other[1], minlength=n), torch.bincount(col, minlength=n))
    else:
        assert share > 0.3


@pytest.mark.parametrize(("n", "m"), [(300, 300), (400, 150)])
def test_small_worlds_are_small_worlds_and_random_wirings_are_not(n: int, m: int) -> None:
    found = {}
    for name, wiring in {"small": SmallWorld(), "random": Uniform()}.items():
        layer = SparseLinear(n, m, sparsity=0.98, connectivity=wiring, generator=seeded(0))
        found[name] = small_world_of(layer, generator=seeded(1))
    assert found["small"].sigma > 1.5 > 1.2 > found["random"].sigma > 0.8
    assert found["small"].path_length < 1.3 * found["small"].random_path_length
    assert found["small"].clustering > 1.5 * found["small"].random_clustering


def test_metrics_refuse_what_they_cannot_take() -> None:
    population = SparseLinear(20, 20, beings=2, shared=False)
    with pytest.raises(ValueError, match="takes one wiring, got 2"):
        small_world_of(population)
    with pytest.raises(ValueError, match="paths must be a positive integer"):
        small_world_of(SparseLinear(20, 20), paths=0)
    assert [tuple(t.shape) for t in degrees(population)] == [(2, 20), (2, 20)]


def test_degrees() -> None:
    layer = SparseLinear(9, 7, sparsity=0.6)
    fan_in, fan_out = degrees(layer)
    rows, cols = layer.indices.tolist()
    assert fan_in.tolist() == [rows.count(i) for i in range(7)]
    assert fan_out.tolist() == [cols.count(j) for j in range(9)]
    assert list(itertools.accumulate(fan_in.tolist()))[-1] == layer.nnz

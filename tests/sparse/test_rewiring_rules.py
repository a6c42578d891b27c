"""Rules of dynamic sparse training, against dense matrices with a mask, updated by the papers' formulas in NumPy."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import linnet
from linnet import GSE, SET, GradualMagnitude, RigL, Rule, SparseLinear
from linnet.sparse.dynamic.rules import Connections, cells_elsewhere
from support.rewiring import Array, M, N, places, train, weight

# ---------------------------------------------------------------------- the reference: dense, with a mask


@dataclass
class Dense:
    """y = x Wᵀ + b with W dense, masked, its optimizer by formula, and RigL as in the paper."""

    w: Array
    mask: Array
    b: Array
    optimizer: str
    lr: float
    weight_decay: float
    steps: int = 0

    def __post_init__(self) -> None:
        self.state = {key: [np.zeros_like(self.w), np.zeros_like(self.b)] for key in ("first", "second")}
        self.taken = 0

    def gradient_step(self, gw: Array, gb: Array) -> None:
        self.taken += 1
        for i, (p, g) in enumerate(((self.w, gw * self.mask), (self.b, gb))):
            first, second = self.state["first"][i], self.state["second"][i]
            if self.optimizer == "sgd":
                g = g + self.weight_decay * p
                first[:] = g if self.taken == 1 else 0.9 * first + g
                p -= self.lr * first
                continue
            if self.optimizer == "adam":
                g = g + self.weight_decay * p
            else:
                p *= 1 - self.lr * self.weight_decay
            first[:] = 0.9 * first + 0.1 * g
            second[:] = 0.999 * second + 0.001 * g**2
            size = np.sqrt(second / (1 - 0.999**self.taken)) + 1e-8
            p -= self.lr * first / (1 - 0.9**self.taken) / size
        self.w *= self.mask

    def rigl(self, gw: Array, fraction: float) -> tuple[set[int], set[int]]:
        """Drop the weakest, grow the steepest: the dropped and the grown cells."""
        active = [int(c) for c in np.flatnonzero(self.mask)]
        k = int(fraction * len(active))
        ranked = sorted(active, key=lambda c: (-abs(self.w.flat[c]), c))
        kept = set(ranked[: len(active) - k])
        others = sorted(set(range(self.mask.size)) - kept, key=lambda c: (-abs(gw.flat[c]), c))
        now = kept | set(others[:k])
        dropped, grown = set(active) - now, now - set(active)
        for c in dropped | grown:
            self.w.flat[c] = 0
            for tensors in self.state.values():
                tensors[0].flat[c] = 0
        self.mask[:] = 0
        self.mask.flat[list(now)] = 1
        return dropped, grown


def loss_of(y: Tensor, target: Tensor) -> Tensor:
    return (y - target).square().sum()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, **kw: torch.optim.SGD(p, momentum=0.9, **kw),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@pytest.mark.parametrize(
    ("weight_decay", "variant"),
    [(0.0, {}), (0.1, {}), (0.1, {"foreach": True}), (0.1, {"fused": True})],
    ids=["no decay", "decay", "foreach", "fused"],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rigl_is_that_of_the_paper_connection_by_connection(name: str, weight_decay: float, variant: dict) -> None:
    every, updates, lr = 3, 50, 0.01
    until = every * updates + 1
    layer = SparseLinear(N, M, sparsity=0.7, dynamic=RigL(every, until, 0.4), dtype=torch.float64)
    mask = ~np.isnan(weight(layer))
    reference = Dense(
        np.nan_to_num(weight(layer)), mask * 1.0, layer.bias.detach().numpy().copy(), name, lr, weight_decay
    )
    optimizer = OPTIMIZERS[name](layer.parameters(), lr=lr, weight_decay=weight_decay, **variant)
    values, moved = layer.values, 0
    generator = torch.Generator().manual_seed(1)
    for t in range(1, until):
        x, target = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (N, M))
        before = places(layer)
        optimizer.zero_grad()
        loss_of(layer(x), target).backward()
        optimizer.step()
        g = 2 * (x.numpy() @ reference.w.T + reference.b - target.numpy())
        gw, gb = g.T @ x.numpy(), g.sum(0)
        if t % every:
            reference.gradient_step(gw, gb)
        else:
            fraction = 0.2 * (1 + math.cos(math.pi * t / until))
            dropped, grown = reference.rigl(gw, fraction)
            now = places(layer)
            assert {r * N + c for r, c in before - now} == dropped and {r * N + c for r, c in now - before} == grown, t
            moved += len(grown)
        np.testing.assert_allclose(np.nan_to_num(weight(layer)), reference.w, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer.bias.detach(), reference.b, rtol=1e-9, atol=1e-12)
        if t <= 10 * every:
            keys = {"first": ("momentum_buffer", "exp_avg"), "second": ("exp_avg_sq",)}
            for kind, names in keys.items():
                for key in names:
                    if key in optimizer.state[values]:
                        found = np.nan_to_num(weight(layer, optimizer.state[values][key]))
                        np.testing.assert_allclose(found, reference.state[kind][0], rtol=1e-9, atol=1e-14)
    assert layer.values is values and layer.nnz == len(places(layer)) == mask.sum() and moved > 100
    assert int(layer.step) == until - 1


def test_the_comparison_notices_a_planted_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = RigL.grown
    monkeypatch.setattr(
        RigL,
        "grown",
        lambda rule, now, k, kept: (
            chosen(rule, now, k, kept).flip(0)[:k] if k < 2 else torch.cat([chosen(rule, now, k + 1, kept)[1:]])
        ),
    )
    with pytest.raises(AssertionError):
        test_rigl_is_that_of_the_paper_connection_by_connection("sgd", 0.0, {})


# ---------------------------------------------------------------------- rules


def connections(values: list[float], cells: list[int], total: int, **fields: Any) -> Connections:
    given = {"first": len(cells), "generator": torch.Generator().manual_seed(0), "steepest": None, "slope": None}
    return Connections(torch.tensor(cells), torch.tensor(values), total, **{**given, **fields})


def test_set_drops_the_weakest_of_each_sign() -> None:
    values = [0.5, -0.1, 0.2, -0.9, 0.3, -0.3, 0.4, -0.2, 0.0, 0.6]
    found = SET(zeta=0.4).move(connections(values, list(range(0, 20, 2)), 1000), 1).tolist()
    kept = {0, 6, 8, 10, 12, 18}  # of six that are not negative two go, of four negative ones one
    assert kept | {14} <= set(found) and not {2, 4, 16} & set(found) and len(found) == 10 == len(set(found))
    assert found == sorted(found)


def test_set_grows_everywhere_evenly() -> None:
    counts, cells = np.zeros(30), [3, 9, 20, 29]
    for seed in range(1500):
        now = connections([0.1, 5, 5, 5], cells, 30, generator=torch.Generator().manual_seed(seed))
        found = SET(zeta=0.3).move(now, 1)
        counts[found] += 1
    assert (counts[[9, 20, 29]] == 1500).all()
    free = np.delete(counts, [9, 20, 29])
    assert free.sum() == 1500 and free.min() > 22 and free.max() < 95  # 56 on average


def test_cells_elsewhere() -> None:
    for total, taken in ((10, []), (10, [0, 1, 2]), (10, [7, 8, 9]), (10, [0, 4, 9]), (7, [1, 2, 3, 4, 5])):
        free = sorted(set(range(total)) - set(taken))
        counts = np.zeros(total)
        for seed in range(200):
            size = 1 + seed % len(free)
            rising = torch.tensor(taken, dtype=torch.int64)
            found = cells_elsewhere(total, size, rising, torch.Generator().manual_seed(seed)).tolist()
            assert found == sorted(set(found)) and len(found) == size and set(found) <= set(free)
            counts[found] += 1
        assert (counts[free] > 0).all()


def test_gse_grows_the_steepest_of_its_candidates() -> None:
    slope = torch.arange(100.0)
    asked: list[Tensor] = []

    def look(cells: Tensor) -> Tensor:
        asked.append(cells)
        return slope[cells]

    now = connections([1.0, 2, 3, 0.1, 0.2], [1, 5, 50, 70, 99], 100, slope=look)
    found = set(GSE(alpha=0.4, candidates=4.0).move(now, 1).tolist())
    (candidates,) = asked
    assert len(candidates) == 20 and not {1, 5, 50} & set(candidates.tolist())
    assert found == {1, 5, 50} | set(candidates.tolist()[-2:])


@pytest.mark.parametrize("apart", [None, 3])
def test_gradual_pruning_follows_the_cubic(apart: int | None) -> None:
    rule = GradualMagnitude(every=2, until=9, sparsity=0.9, begin=2)
    layer = SparseLinear(N, M, sparsity=0.5, dynamic=rule, beings=apart)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    values, before = layer.values, np.abs(weight(layer))
    for t in range(1, 13):
        train(layer, optimizer, 1, seed=t)
        s = 0.5 if t < 2 else 0.9 + (0.5 - 0.9) * (1 - (min(9, t - t % 2 if t < 9 else 9) - 2) / 7) ** 3
        assert layer.nnz == round((1 - s) * N * M), t
        assert layer.values is values and values.shape[-1] == layer.nnz == values.grad.shape[-1]
        assert optimizer.state[values]["exp_avg"].shape == values.shape
    now = np.abs(weight(layer))
    assert (~np.isnan(now) <= ~np.isnan(before)).all()
    assert layer.sparsity == 0.5 and layer.first_nnz == 54
    x = torch.randn(4, *layer.leading, N)
    dense = torch.from_numpy(np.nan_to_num(weight(layer))).float()
    torch.testing.assert_close(layer(x), torch.einsum("b...i,...oi->b...o", x, dense) + layer.bias)
    fresh = SparseLinear(N, M, sparsity=0.5, dynamic=rule, beings=apart)
    other = torch.optim.Adam(fresh.parameters(), lr=1e-2)
    fresh.load_state_dict(layer.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(fresh(x), layer(x))
    static = SparseLinear(N, M, sparsity=0.5, beings=apart)
    with pytest.raises(RuntimeError, match="as many connections"):
        nn.Sequential(static).load_state_dict({f"0.{k}": v for k, v in layer.state_dict().items()}, strict=False)


def test_pruning_takes_the_smallest() -> None:
    now = connections([0.3, -0.1, 0.2, 0.2, -0.5], [0, 3, 4, 8, 9], 10)
    assert GradualMagnitude(until=10, sparsity=0.8).move(now, 10).tolist() == [0, 9]
    assert GradualMagnitude(until=10, sparsity=0.7).move(now, 10).tolist() == [0, 4, 9]


WRONG_RULES = [
    (lambda: RigL(every=0), "every must be a positive integer"),
    (lambda: RigL(until=-1), "until must be a positive integer"),
    (lambda: RigL(alpha=1.5), r"alpha must lie in \[0, 1\]"),
    (lambda: SET(zeta=-0.1), "zeta must lie"),
    (lambda: GSE(candidates=0), "candidates must be positive"),
    (lambda: GradualMagnitude(sparsity=1.0), r"sparsity must lie in \[0, 1\)"),
    (lambda: GradualMagnitude(until=5, begin=5), "must end after it begins"),
    (lambda: GradualMagnitude().due(3), "must have an end"),
    (lambda: SparseLinear(4, 4, deltaT=5), "belong to dynamic=True"),
    (lambda: SparseLinear(4, 4, dynamic=True, deltaT=0), "every=deltaT"),
    (lambda: SparseLinear(4, 4, dynamic=SET(), alpha=0.5), "belong to dynamic=True"),
    (
        lambda: SparseLinear(4, 4, beings=2, shared=True, dynamic=True),
        "shared=True needs one wiring that all beings keep, got dynamic=RigL",
    ),
    (lambda: SparseLinear(4, 4, shared=True), "shared is for populations"),
    (lambda: SparseLinear(4, 4, max_size=0), "max_size must be a number of entries"),
    (lambda: SparseLinear(4, 4, small_world=True, connectivity=linnet.Uniform()), "Either connectivity or small_world"),
]


@pytest.mark.parametrize(("make", "message"), WRONG_RULES)
def test_wrong_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rule_of_the_wrong_kind_is_refused() -> None:
    for dynamic in (RigL, "rigl", None, 1):
        with pytest.raises(TypeError, match="dynamic must be True, False or a rule"):
            SparseLinear(4, 4, sparsity=0.5, dynamic=dynamic)


@dataclass(frozen=True)
class Shift(Rule):
    """A user's own rule: every connection goes to the next cell."""

    by: int = 1

    def move(self, now: Connections, step: int) -> Tensor:
        return ((now.cells + self.by) % now.total).sort().values


def test_a_rule_of_the_users_own() -> None:
    layer = SparseLinear(N, M, dynamic=Shift(every=2))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.cells()
    train(layer, optimizer, 3)
    assert layer.cells().tolist() == sorted((c + 1) % (N * M) for c in before.tolist())

    class Wrong(Shift):
        def move(self, now: Connections, step: int) -> Tensor:
            return now.cells.flip(0) if self.by == 1 else now.cells[: -self.by]

    for by in (1, 2):
        wrong = SparseLinear(N, M, dynamic=Wrong(every=1, by=by))
        kept = wrong.values.detach().clone(), wrong.cells()
        with pytest.raises(ValueError, match="must give 11 rising cells"):
            train(wrong, torch.optim.SGD(wrong.parameters(), lr=0.1), 1)
        assert torch.equal(wrong.values, kept[0]) and torch.equal(wrong.cells(), kept[1])


def test_a_rule_gets_an_end_from_the_number_of_steps() -> None:
    assert RigL().ending(1000) == RigL(until=750) and RigL(until=10).ending(1000) == RigL(until=10)
    assert replace(SET(every=7), until=75) == SET(every=7).ending(100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beings", [None, 3])
def test_pruning_while_the_last_loss_is_still_there(dtype, beings):
    """The usual loop: ``loss`` lives until the next one takes its name, and with it autograd's memory of the shape."""
    rule = linnet.GradualMagnitude(sparsity=0.9, every=1, until=8)
    layer = linnet.SparseLinear(12, 12, sparsity=0.0, dynamic=rule, beings=beings, dtype=dtype)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    counts = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = layer(torch.randn(5, *layer.leading, 12, dtype=dtype)).square().mean()
        loss.backward()
        assert layer.values.grad.shape == layer.values.shape and layer.values.dtype == dtype
        optimizer.step()
        counts.append(layer.nnz)
    assert counts[-1] < counts[0]

"""Connections that move, against dense matrices with a mask, updated by formulas from the papers in NumPy."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import linnet
from linnet import GSE, SET, GradualMagnitude, Rewiring, RigL, Rule, SparseLinear
from linnet.sparse.dynamic import gradient
from linnet.sparse.dynamic.rules import Connections, cells_elsewhere
from linnet.sparse.kernels import ops as kernels

Array = np.ndarray
N, M = 12, 9  # inputs and outputs


def weight(layer: SparseLinear, values: Tensor | None = None) -> Array:
    """What has the shape of ``values`` as a dense matrix, by a loop: ([beings,] out, in), NaN where nothing is."""
    tensor = layer.values if values is None else values
    w = np.full((*layer.leading, layer.out_features, layer.in_features), np.nan)
    flat = w.reshape(-1, layer.out_features, layer.in_features)
    for i, v in enumerate(tensor.detach().double().reshape(-1, layer.nnz)):
        crow, col = (t[i] if layer.apart else t for t in (layer.crow, layer.col))
        for row in range(layer.out_features):
            for k in range(int(crow[row]), int(crow[row + 1])):
                flat[i, row, int(col[k])] = v[k]
    return w


def places(layer: SparseLinear) -> set[tuple[int, int]]:
    return {(int(r), int(c)) for r, c in layer.indices.T}


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


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0, batch: int = 4) -> None:
    leaf = next(m for m in layer.modules() if isinstance(m, SparseLinear))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(batch, *leaf.leading, leaf.in_features, generator=generator, dtype=leaf.values.dtype)
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()


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
    """A user's own rule: every connection moves by one cell."""

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


# ---------------------------------------------------------------------- what counts as a step


RIGL = RigL(every=2, until=100, alpha=0.5)


def twin(**options: Any) -> tuple[SparseLinear, SparseLinear]:
    layer = SparseLinear(N, M, sparsity=0.7, dtype=torch.float64, **{"dynamic": RIGL, **options})
    return layer, copy.deepcopy(layer)


def same(first: SparseLinear, second: SparseLinear, exact: bool = True) -> None:
    for name, tensor in first.state_dict().items():
        if exact or not tensor.is_floating_point():
            assert torch.equal(tensor, second.state_dict()[name]), name
        else:
            torch.testing.assert_close(tensor, second.state_dict()[name])


def test_gradient_accumulation_is_one_large_batch() -> None:
    whole, parts = twin()
    optimizers = [torch.optim.Adam(layer.parameters(), lr=1e-2) for layer in (whole, parts)]
    for _ in range(12):
        x = torch.randn(12, N, dtype=torch.float64)
        whole(x).square().sum().backward()
        for part in x.split(3):
            parts(part).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        same(whole, parts, exact=False)
    assert int(parts.step) == 12


def test_a_gradient_that_was_thrown_away_does_not_count() -> None:
    first, second = twin()
    for layer in (first, second):
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
        for i in range(6):
            if layer is second:
                layer(torch.randn(40, N, dtype=torch.float64)).square().sum().backward()
                optimizer.zero_grad(set_to_none=i % 2 == 0)
                layer(torch.randn(3, N, dtype=torch.float64))  # and a forward without a backward
            train(layer, optimizer, 1, seed=i)
            optimizer.zero_grad(set_to_none=False)
    same(first, second)


def test_a_layer_used_twice() -> None:
    layer = SparseLinear(N, N, sparsity=0.7, dtype=torch.float64, dynamic=RigL(every=1, alpha=0.5))
    x = torch.randn(5, N, dtype=torch.float64)
    dense = layer.to_dense().detach().requires_grad_()
    h = x @ dense.mT + layer.bias.detach()
    (h @ dense.mT + layer.bias.detach()).square().sum().backward()
    k = int(0.5 * layer.nnz)
    kept = set(layer.cells()[layer.values.detach().abs().argsort(descending=True)[: layer.nnz - k]].tolist())
    free = [c for c in dense.grad.abs().flatten().argsort(descending=True).tolist() if c not in kept]
    layer(layer(x)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert set(layer.cells().tolist()) == kept | set(free[:k])


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips_do_not_count(fused: bool) -> None:
    layer, other = (SparseLinear(N, M, sparsity=0.7, dynamic=RIGL) for _ in range(2))
    other.load_state_dict(layer.state_dict())
    optimizers = [torch.optim.SGD(one.parameters(), lr=1e-2, fused=fused) for one in (layer, other)]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for i in range(8):
        x = torch.randn(4, N)
        if i in (2, 3, 5):  # overflow
            optimizers[0].zero_grad()
            scaler.scale(layer(x).sum() * math.inf).backward()
            scaler.step(optimizers[0])
            scaler.update()
        for one, optimizer in zip((layer, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss = one(x).square().sum()
            if one is layer:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
        same(layer, other, exact=False)
    assert int(layer.step) == 8


def test_several_optimizers() -> None:
    layer, other = twin()
    head, probe = nn.Linear(M, 3, dtype=torch.float64), nn.Linear(2, 2)
    optimizers = [torch.optim.SGD(p, lr=0.1) for p in ([layer.values], [layer.bias, *head.parameters()])]
    bias = layer.bias.detach().clone()
    for _ in range(2):
        head(layer(torch.randn(4, N, dtype=torch.float64))).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        torch.optim.SGD(probe.parameters(), lr=0.1).step()  # somebody else's
    assert int(layer.step) == 2 and not torch.equal(layer.cells(), other.cells())
    assert not torch.equal(layer.bias, bias)  # the optimizer that does not own `values` steps as always
    layer.values.requires_grad_(False)
    layer.values.grad = None
    layer(torch.randn(4, N, dtype=torch.float64)).sum().backward()
    optimizers[0].step()
    assert int(layer.step) == 2


def test_in_a_step_that_moves_connections_no_parameter_of_the_optimizer_moves() -> None:
    layer = SparseLinear(N, M, sparsity=0.7, dynamic=RigL(every=2))
    model = nn.Sequential(nn.Linear(N, N), layer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    train(model, optimizer, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = {key: t.clone() for key, t in optimizer.state[model[0].weight].items()}
    train(model, optimizer, 1, seed=1)
    for name, p in model.named_parameters():
        assert p.grad is not None and (name == "1.values" or torch.equal(p, before[name])), name
    assert all(torch.equal(t, state[key]) for key, t in optimizer.state[model[0].weight].items())
    train(model, optimizer, 1, seed=2)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_closures() -> None:
    layer, other = twin()
    first, second = (torch.optim.SGD(one.parameters(), lr=1e-2, momentum=0.9) for one in (layer, other))
    for i in range(6):
        x = torch.randn(4, N, dtype=torch.float64)

        def closure(x: Tensor = x) -> Tensor:
            first.zero_grad()
            loss = layer(x).square().sum()
            loss.backward()
            return loss

        loss = first.step(closure) if i % 2 else first.step(closure=closure)
        assert loss.item() > 0
        second.zero_grad()
        other(x).square().sum().backward()
        second.step()
    same(layer, other)


def test_an_optimizer_whose_state_cannot_follow_is_refused() -> None:
    layer = SparseLinear(N, M, dynamic=RigL(every=2))
    optimizer = torch.optim.LBFGS(layer.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = layer(torch.ones(4, N)).square().sum()
        loss.backward()
        return loss

    before = layer.cells()
    with pytest.raises(ValueError, match="must keep its state for each connection"):
        optimizer.step(closure)
    assert torch.equal(layer.cells(), before)
    wide = SparseLinear(N, M, dynamic=RigL(every=2), beings=3)
    with pytest.raises(ValueError, match=r"must keep state for each connection, .*row_var"):
        train(wide, torch.optim.Adafactor(wide.parameters()), 2)


def test_tied_layers_are_refused() -> None:
    layer = SparseLinear(N, M, dynamic=RIGL)
    other = SparseLinear(N, M, dynamic=RIGL)
    other.values = layer.values
    with pytest.raises(ValueError, match="must have values of its own, got 2 layers"):
        train(nn.Sequential(layer), torch.optim.SGD([layer.values], lr=0.1), 1)


# ---------------------------------------------------------------------- where the gradient comes from


@pytest.mark.parametrize("rule", [RIGL, GSE(every=2, alpha=0.5, candidates=3.0)])
@pytest.mark.parametrize("max_size", [1, 13, 40, 1e8])
def test_the_pieces_make_no_difference(rule: Rule, max_size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = twin(dynamic=rule)
    pieces.max_size = int(max_size)
    linnet.sparse.dynamic.optimizer_hooks.unregister(pieces)
    for batch in (2, 300):  # 300: the pairs outgrow the matrix and are summed up
        for layer in (whole, pieces):
            if layer is pieces:
                monkeypatch.setattr(gradient, "PIECE", 1)
            train(layer, torch.optim.SGD(layer.parameters(), lr=1e-3), 6, batch=batch)
            monkeypatch.undo()
        same(whole, pieces)


def test_a_population_is_a_loop_over_singles() -> None:
    for rule in (RIGL, SET(every=2), GSE(every=2, alpha=0.5)):
        population = SparseLinear(N, M, sparsity=0.7, dynamic=rule, beings=3, dtype=torch.float64)
        population.reset_parameters(seeds=[5, 6, 7])
        singles = []
        for seed in (5, 6, 7):
            single = SparseLinear(N, M, sparsity=0.7, dynamic=rule, dtype=torch.float64)
            single.reset_parameters(seeds=seed)
            singles.append(single)
        optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (population, *singles)]
        for _ in range(9):
            x = torch.randn(4, 3, N, dtype=torch.float64)
            population(x).square().sum().backward()
            for i, single in enumerate(singles):
                single(x[:, i]).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for i, single in enumerate(singles):
            for name, tensor in single.state_dict().items():
                own = population.state_dict()[name]
                torch.testing.assert_close(own if name == "step" else own[i], tensor)
        assert len({str(one.tolist()) for one in population.cells()}) == 3


def test_a_compiled_model_moves_the_same_connections() -> None:
    plain, compiled = twin()
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for layer, call in ((plain, plain), (compiled, graph)):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        for i in range(6):
            x = torch.randn(4, N, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            optimizer.zero_grad()
            call(x).square().sum().backward()
            optimizer.step()
    same(plain, compiled, exact=False)
    torch.compiler.reset()


@pytest.mark.parametrize("rule", [RIGL, GSE(every=2), SET(every=2), GradualMagnitude(every=2, until=7, sparsity=0.9)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(rule: Rule, dtype: torch.dtype) -> None:
    layer = SparseLinear(N, M, sparsity=0.7, dynamic=rule, dtype=dtype)
    before = layer.cells()
    train(layer, torch.optim.SGD(layer.parameters(), lr=1e-3), 6)
    assert layer.values.dtype == dtype and torch.isfinite(layer.values).all()
    assert layer.cells().shape != before.shape or not torch.equal(layer.cells(), before)
    single = SparseLinear(N, M, sparsity=0.7, dynamic=RigL(every=1))
    cells = single.cells()
    with torch.autocast("cpu", torch.bfloat16):
        single(torch.randn(4, N)).square().sum().backward()
    torch.optim.SGD(single.parameters(), lr=1e-3).step()
    assert not torch.equal(single.cells(), cells)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    plain, other = twin()
    for layer in (plain, other):
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
        for i in range(6):
            x = torch.randn(4, N, generator=torch.Generator().manual_seed(i), dtype=torch.float64, requires_grad=True)
            y = layer(x) if layer is plain else torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
            optimizer.zero_grad()
            y.square().sum().backward()
            optimizer.step()
    same(plain, other)


def test_nothing_is_kept_longer_than_needed() -> None:
    layer = SparseLinear(N, M, dynamic=RigL(every=3))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = dict(kernels.OBSERVERS)
    train(layer, optimizer, 1)
    assert before == kernels.OBSERVERS
    train(layer, optimizer, 1)  # the next step is due
    assert len(kernels.OBSERVERS) == len(before) + 1
    del layer, optimizer
    import gc

    gc.collect()
    assert before == kernels.OBSERVERS


# ---------------------------------------------------------------------- state


@pytest.mark.parametrize("rule", [RIGL, GSE(every=2), SET(every=3), GradualMagnitude(every=2, until=9, sparsity=0.9)])
@pytest.mark.parametrize("beings", [None, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(rule: Rule, beings: int | None, tmp_path: Any) -> None:
    def make() -> tuple[SparseLinear, torch.optim.Optimizer]:
        layer = SparseLinear(N, M, sparsity=0.6, dynamic=rule, beings=beings)
        return layer, torch.optim.AdamW(layer.parameters(), lr=1e-2)

    layer, optimizer = make()
    train(layer, optimizer, 5, seed=1)
    linnet.save(layer, tmp_path / "run.safetensors", optimizer=optimizer)
    buffer = io.BytesIO()
    torch.save([layer.state_dict(), optimizer.state_dict()], buffer)
    train(layer, optimizer, 8, seed=2)
    fresh, other = make()
    train(fresh, other, 2, seed=9)
    linnet.load(tmp_path / "run.safetensors", into=fresh, optimizer=other)
    train(fresh, other, 8, seed=2)
    same(layer, fresh)
    again, third = make()
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    again.load_state_dict(states[0])
    third.load_state_dict(states[1])
    train(again, third, 8, seed=2)
    same(layer, again)


def check_invariants(layer: SparseLinear, optimizer: torch.optim.Optimizer, values: Any) -> None:
    cells = layer.cells()
    assert layer.values is values and values in set(optimizer.param_groups[0]["params"])
    assert bool((cells.diff() > 0).all()) and int(cells.min()) >= 0 and int(cells.max()) < N * M
    assert values.shape == (*layer.leading, layer.nnz) and layer.nnz == layer.first_nnz
    crow, col = torch.zeros_like(layer.crow), torch.zeros_like(layer.col)
    flat = zip(crow.view(-1, M + 1), col.view(-1, layer.nnz), cells.view(-1, layer.nnz), strict=True)
    for own_crow, own_col, own in flat:
        for k, c in enumerate(own.tolist()):
            own_crow[c // N + 1 :] += 1
            own_col[k] = c % N
    assert torch.equal(crow, layer.crow) and torch.equal(col, layer.col)
    for ccol, row, perm, own in zip(
        layer.ccol.view(-1, N + 1),
        layer.row.view(-1, layer.nnz),
        layer.perm.view(-1, layer.nnz),
        cells.view(-1, layer.nnz),
        strict=True,
    ):
        expected = sorted(range(layer.nnz), key=lambda k, own=own: (int(own[k]) % N, k))
        assert perm.tolist() == expected and row.tolist() == [int(own[k]) // N for k in expected]
        assert ccol.tolist() == [sum(int(c) % N < j for c in own) for j in range(N + 1)]
    for tensor in optimizer.state.get(values, {}).values():
        assert tensor.numel() == 1 or tensor.shape == values.shape
    assert torch.isfinite(values).all() and layer.violation().max() == 0
    if layer.device_type == "cpu":
        x = torch.randn(3, *layer.leading, N, dtype=values.dtype)
        dense = torch.from_numpy(np.nan_to_num(weight(layer))).to(values.dtype)
        expected_y = torch.einsum("b...i,...oi->b...o", x.double(), dense.double()) + layer.bias.double()
        torch.testing.assert_close(layer(x).double(), expected_y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("seed", "beings"),
    [(0, None), (1, 2), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((2, None), (0, 2), (2, 2)))],
)
def test_two_hundred_random_operations(seed: int, beings: int | None) -> None:
    choose = np.random.default_rng(seed)
    rules = [RigL(every=1, alpha=0.5), RigL(every=3), SET(every=2), GSE(every=2, alpha=0.4)]

    def make() -> tuple[SparseLinear, torch.optim.Optimizer]:
        layer = SparseLinear(N, M, sparsity=0.8, dynamic=rules[seed], beings=beings)
        kinds = [
            lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
            lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
            lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
        ]
        return layer, kinds[seed](layer.parameters())

    layer, optimizer = make()
    layer.device_type = "cpu"
    for turn in range(200):
        operation = choose.choice(["train", "reload", "dtype", "copy", "pickle", "assign", "rule", "eval", "clone"])
        if operation == "train":
            train(layer, optimizer, int(choose.integers(1, 4)), seed=turn)
        elif operation == "reload":
            state, own = copy.deepcopy(layer.state_dict()), copy.deepcopy(optimizer.state_dict())
            fresh, optimizer = make()
            layer = fresh.to(layer.values.dtype)
            layer.set_rule(rules[choose.integers(4)])
            layer.load_state_dict(state, assign=False)
            optimizer.load_state_dict(own)
        elif operation == "dtype":
            layer.to([torch.float32, torch.float64][choose.integers(2)])
            for tensors in optimizer.state.values():
                for name, tensor in tensors.items():
                    if isinstance(tensor, Tensor) and tensor.dim():
                        tensors[name] = tensor.to(layer.values.dtype)
        elif operation in ("copy", "pickle"):
            both = (layer, optimizer)
            layer, optimizer = copy.deepcopy(both) if operation == "copy" else pickle.loads(pickle.dumps(both))
        elif operation == "assign":
            layer.assign(torch.randn(*layer.leading, M, N))
        elif operation == "rule":
            layer.set_rule(rules[choose.integers(4)])
        elif operation == "clone" and beings:
            layer.clone_being(0, 1)
            assert torch.equal(layer.cells()[0], layer.cells()[1])
        else:
            layer.train(not layer.training)
        layer.device_type = "cpu"
        check_invariants(layer, optimizer, layer.values)


def test_a_copy_goes_its_own_way() -> None:
    layer = SparseLinear(N, M, sparsity=0.7, dynamic=RigL(every=1))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        before = layer.cells()
        train(other, torch.optim.SGD(other.parameters(), lr=0.1), 4)
        assert torch.equal(layer.cells(), before) and int(layer.step) == 0
        assert int(other.step) == 4 and not torch.equal(other.cells(), before)


def test_the_state_dict_of_a_dynamic_layer() -> None:
    layer = SparseLinear(N, M, dynamic=True)
    assert sorted(layer.state_dict()) == ["bias", "col", "crow", "seed", "step", "values"]
    assert repr(layer.rule) == "RigL(every=6000, until=150000, alpha=0.1)"
    assert "dynamic=RigL(every=6000" in repr(layer)
    layer.set_rule(None)
    assert sorted(layer.state_dict()) == ["bias", "col", "crow", "values"] and layer.dynamic is False
    with pytest.raises(ValueError, match="as many connections"):
        layer.load_state_dict(SparseLinear(N, M, sparsity=0.5).state_dict())


# ---------------------------------------------------------------------- Rewiring


def test_rewiring_reports_what_moved() -> None:
    model = nn.Sequential(SparseLinear(N, N, sparsity=0.7), nn.Tanh(), SparseLinear(N, M, sparsity=0.6))
    average = [model[0].values.detach().clone(), model[2].values.detach().clone()]
    moves = []

    def on_move(move: linnet.Move) -> None:
        i = 0 if move.layer is model[0] else 1
        average[i] = move.carried(average[i])
        moves.append(move)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rewiring = Rewiring(model, optimizer, SET(every=2, until=9), on_move=on_move)
    seen = {name: set(layer.cells().tolist()) for name, layer in rewiring.layers.items()}
    first = {
        name: dict(zip(layer.cells().tolist(), layer.values.tolist(), strict=True))
        for name, layer in rewiring.layers.items()
    }
    for t in range(1, 11):
        before = {name: set(layer.cells().tolist()) for name, layer in rewiring.layers.items()}
        train(model, optimizer, 1, seed=t)
        for name, layer in rewiring.layers.items():
            now = set(layer.cells().tolist())
            seen[name] |= now
            first[name] = {c: first[name].get(c, 0.0) if c in before[name] else 0.0 for c in now}
            if t % 2 == 0 and t < 9:
                update = next(u for u in rewiring.updates if (u.layer, u.step) == (name, t))
                assert (update.dropped, update.grown) == (len(before[name] - now), len(now - before[name]))
                assert update.explored == len(seen[name]) / (layer.in_features * layer.out_features)
                assert update.nnz == layer.nnz == len(now)
            else:
                assert now == before[name]
    assert len(rewiring.updates) == 8 == len(moves) and rewiring.exploration()["0"] == len(seen["0"]) / N**2
    for i, (name, layer) in enumerate(rewiring.layers.items()):
        assert dict(zip(layer.cells().tolist(), average[i].tolist(), strict=True)) == first[name]
    state = rewiring.state_dict()
    assert state["updates"][0]["step"] == 2
    rewiring.remove()
    assert all(layer.rule is None for layer in rewiring.layers.values())
    again = Rewiring(model, optimizer, SET(every=2), total_steps=100)
    again.load_state_dict(state)
    assert again.exploration() == {name: u.explored for name, u in zip(["0", "2"], rewiring.updates[-2:], strict=True)}
    assert model[0].rule == SET(every=2, until=75)


def test_rewiring_keeps_the_rules_of_the_layers() -> None:
    model = nn.Sequential(SparseLinear(N, M, dynamic=RigL(every=2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewiring = Rewiring(model, optimizer)
    train(model, optimizer, 2)
    rewiring.remove()
    train(model, optimizer, 2)
    assert len(rewiring.updates) == 1 and model[0].rule == RigL(every=2) and int(model[0].step) == 4


def test_rewiring_refuses_what_cannot_work() -> None:
    layer = SparseLinear(N, M)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    shared = SparseLinear(N, M, beings=2)
    for call, message in (
        (lambda: Rewiring(nn.Linear(2, 2), optimizer, RigL()), "needs a model with sparse layers"),
        (lambda: Rewiring(SparseLinear(N, M), optimizer, RigL()), "must own the values"),
        (lambda: Rewiring(layer, optimizer), "must have a rule"),
        (lambda: Rewiring(layer, optimizer, GradualMagnitude()), "must have an end"),
        (lambda: SparseLinear(N, M, dynamic=GradualMagnitude()), "must have an end"),
        (lambda: Rewiring(layer, optimizer, RigL(), total_steps=0), "total_steps must be a positive integer"),
        (lambda: Rewiring(shared, torch.optim.SGD(shared.parameters(), lr=0.1), RigL()), "shared=False"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert layer.rule is None
    with pytest.raises(TypeError, match="such as RigL"):
        Rewiring(layer, optimizer, RigL)


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

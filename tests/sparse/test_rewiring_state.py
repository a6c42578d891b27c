"""Dynamic layers that are saved, copied and resumed, and the statistics of Rewiring."""

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import linnet
from linnet import GSE, SET, GradualMagnitude, Rewiring, RigL, Rule, SparseLinear
from support.rewiring import RIGL, M, N, same, train, weight

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

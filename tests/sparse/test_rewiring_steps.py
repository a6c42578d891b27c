"""Which optimizer steps count, and where the gradient of a rewiring comes from."""

import math

import pytest
import torch
from torch import Tensor, nn

import linnet
from linnet import GSE, SET, GradualMagnitude, RigL, Rule, SparseLinear
from linnet.sparse.dynamic import gradient
from linnet.sparse.kernels import ops as kernels
from support.rewiring import RIGL, M, N, same, train, twin

# ---------------------------------------------------------------------- what counts as a step


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


def test_in_a_step_that_rewires_no_parameter_of_the_optimizer_changes() -> None:
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


def test_a_compiled_model_is_rewired_in_the_same_way() -> None:
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

"""K-winners against a loop in NumPy: exact numbers under ties, rates, boosting that only chooses."""

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import linnet
from linnet import ActivationSparsity, KWinners
from linnet.sparse.activations import largest_k, largest_k_reference


def chosen(score: np.ndarray, k: int) -> np.ndarray:
    """Row by row, by a stable sort."""
    flat = score.reshape(-1, score.shape[-1])
    mask = np.zeros(flat.shape, bool)
    for row, own in zip(flat, mask, strict=True):
        own[np.argsort(-row, kind="stable")[:k]] = True
    return mask.reshape(score.shape)


def reference(x: np.ndarray, duty: np.ndarray, k: int, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Output and new duty cycle of (*, n)."""
    won = chosen(x * np.exp(beta * (k / x.shape[-1] - duty)), k)
    rate = won.reshape(-1, x.shape[-1]).mean(0)
    return np.where(won, x, 0), (1 - alpha) * duty + alpha * rate


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 30), st.integers(0, 99), st.booleans())
@settings(max_examples=80, deadline=None)
def test_exactly_k_win_ties_by_index(n: int, rows: int, k: int, seed: int, double: bool) -> None:
    score = np.random.default_rng(seed).integers(-3, 4, (rows, n)).astype(float) / 2
    tensor = torch.from_numpy(score).to(torch.float64 if double else torch.float32)
    k = min(k, n)
    for select in (largest_k, largest_k_reference):
        if k:
            np.testing.assert_array_equal(select(tensor, k), chosen(score, k))
    assert torch.equal(largest_k(tensor.T.contiguous().T, max(1, k)), largest_k_reference(tensor, max(1, k)))


@pytest.mark.parametrize("shape", [(20,), (6, 20), (4, 3, 20), (2, 2, 3, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_duty_cycle(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, duty = KWinners(20, alpha=0.3, beta=2.0), np.zeros(20)
    for seed in range(5):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        y, duty = reference(x.double().numpy(), duty, 7, 0.3, 2.0)
        np.testing.assert_array_equal(layer(x), y.astype(x.numpy().dtype))
        np.testing.assert_allclose(layer.duty_cycle, duty, rtol=1e-5, atol=1e-7)
    layer.eval()
    before = layer.duty_cycle.clone()
    y, _ = reference(x.double().numpy(), before.double().numpy(), 7, 0.3, 2.0)
    np.testing.assert_array_equal(layer(x), y.astype(x.numpy().dtype))  # boosted in eval mode too
    assert torch.equal(layer.duty_cycle, before)


@pytest.mark.parametrize(
    ("act_sparsity", "n", "k"), [(0.65, 20, 7), (0.9, 10, 1), (0.5, 7, 3), (0.0, 5, 5), (0.7, 10, 3)]
)
def test_k_is_the_floor(act_sparsity: float, n: int, k: int) -> None:
    assert (KWinners(n, act_sparsity)(torch.rand(9, n) + 1) != 0).sum(-1).tolist() == [k] * 9


def test_the_duty_cycle_is_a_rate_at_any_batch_size() -> None:
    layer = KWinners(50, act_sparsity=0.8)
    for _ in range(30):  # as a count of the batch it reached hundreds, and boosting destroyed the choice
        layer(torch.randn(512, 50))
    assert 0 <= float(layer.duty_cycle.min()) and float(layer.duty_cycle.max()) <= 1
    assert float(layer.duty_cycle.mean()) == pytest.approx(0.2 * (1 - 0.9**30), rel=1e-4)
    x = torch.randn(512, 50)
    plain = float(x.topk(10).values.mean())
    assert float(layer(x).sum() / (512 * 10)) > 0.97 * plain


def test_boosting_lets_every_unit_win_sometimes() -> None:
    offset = torch.linspace(-3, 3, 40)
    winners = {}
    for beta in (0.0, 20.0):
        layer = KWinners(40, act_sparsity=0.9, beta=beta)
        for seed in range(150):
            layer(torch.randn(16, 40, generator=torch.Generator().manual_seed(seed)) * 0.3 + offset + 4)
        winners[beta] = layer.duty_cycle > 0.005
        entropy = float(layer.entropy())
        p = layer.duty_cycle.double().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = -np.nansum(p * np.log2(p)) - np.nansum((1 - p) * np.log2(1 - p))
        assert entropy == pytest.approx(expected, rel=1e-4) and entropy <= layer.max_entropy() + 1e-3
    assert winners[20.0].all() and not winners[0.0].all()
    assert KWinners(40, 0.9).max_entropy() == pytest.approx(-40 * (0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)))


def test_gradient_passes_to_winners_only() -> None:
    layer = KWinners(10, act_sparsity=0.7).double()
    x = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    layer.eval()
    y = layer(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, (y != 0).double())
    assert torch.autograd.gradcheck(layer, (x,))


def test_more_may_win_in_eval_mode_and_boost_decays() -> None:
    layer = KWinners(20, act_sparsity=0.8, inference_factor=1.5, boost_decay=0.5, beta=2.0)
    x = torch.rand(5, 20) + 1
    assert (layer(x) != 0).sum(-1).tolist() == [4] * 5
    assert (layer.eval()(x) != 0).sum(-1).tolist() == [6] * 5
    layer.inference_factor = 100.0
    assert (layer(x) != 0).all()
    layer.decay_boost()
    assert float(layer.boost) == 1.0 and layer.beta == 2.0
    layer.reset_parameters()
    assert float(layer.boost) == 2.0 and not layer.duty_cycle.any()


def test_images() -> None:
    x = torch.randn(3, 10, 4, 5)
    local = KWinners(10, act_sparsity=0.7, dim=1)
    y = local(x)
    assert y.shape == x.shape and ((y != 0).sum(1) == 3).all()
    expected = chosen(x.movedim(1, -1).numpy(), 3)
    np.testing.assert_array_equal(y.movedim(1, -1) != 0, expected)
    np.testing.assert_allclose(local.duty_cycle, 0.1 * expected.reshape(-1, 10).mean(0), rtol=1e-5)
    whole = KWinners(10, act_sparsity=0.72, dim=1, scope="global")
    y = whole(x)
    assert ((y != 0).flatten(1).sum(1) == math.floor(0.28 * 200)).all()
    np.testing.assert_array_equal(y != 0, chosen(x.flatten(1).numpy(), 56).reshape(x.shape))
    np.testing.assert_allclose(whole.duty_cycle, 0.1 * (y != 0).double().mean((0, 2, 3)), rtol=1e-5)
    assert float(whole.duty_cycle.mean()) == pytest.approx(0.028)


def test_a_population_is_a_loop() -> None:
    population = KWinners(10, act_sparsity=0.7, beings=3)
    singles = [KWinners(10, act_sparsity=0.7) for _ in range(3)]
    for seed in range(4):
        x = torch.randn(6, 3, 10, generator=torch.Generator().manual_seed(seed))
        loop = torch.stack([single(x[:, i]) for i, single in enumerate(singles)], 1)
        assert torch.equal(population(x), loop)
        torch.testing.assert_close(population.duty_cycle, torch.stack([single.duty_cycle for single in singles]))
    shared = torch.randn(6, 1, 10)
    assert population(shared).shape == (6, 3, 10) and population(torch.randn(10)).shape == (3, 10)
    assert population.entropy().shape == (3,)


def test_nan_is_seen() -> None:
    x = torch.randn(2, 10)
    x[0, 3] = math.nan
    y = KWinners(10)(x)
    assert y[0, 3].isnan() and not y[1].isnan().any() and (y[0] != 0).sum() == 3
    x[1, 2] = -math.inf
    assert torch.equal(KWinners(10)(x)[1], torch.where(torch.from_numpy(chosen(x[1:].numpy(), 3))[0], x[1], 0))


def test_an_empty_batch_changes_nothing() -> None:
    layer = KWinners(10)
    layer(torch.randn(4, 10))
    before = layer.duty_cycle.clone()
    assert layer(torch.randn(0, 10)).shape == (0, 10) and torch.equal(layer.duty_cycle, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rates_are_kept_in_single_precision(dtype: torch.dtype) -> None:
    layer = KWinners(10, alpha=1e-4).to(dtype)
    assert layer.duty_cycle.dtype == torch.float32 and layer.to(torch.float64).duty_cycle.dtype == torch.float64
    layer = KWinners(10, alpha=1e-4).to(dtype)
    for _ in range(50):
        assert layer(torch.randn(4, 10, dtype=dtype)).dtype == dtype
    assert float(layer.duty_cycle.mean()) == pytest.approx(0.3 * (1 - (1 - 1e-4) ** 50), rel=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        net = nn.Sequential(nn.Linear(4, 10), KWinners(10))
        assert net(torch.randn(3, 4)).dtype == torch.bfloat16


def test_checkpointed_recomputation_chooses_as_the_forward_did() -> None:
    for reentrant in (False, True):
        plain, other = (nn.Sequential(nn.Linear(6, 20), KWinners(20, alpha=0.9, beta=9.0)) for _ in range(2))
        other.load_state_dict(plain.state_dict())
        for seed in range(4):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed), requires_grad=True)
            plain(x).square().sum().backward()
            torch.utils.checkpoint.checkpoint(other, x, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(plain[0].weight.grad, other[0].weight.grad)
        assert torch.equal(plain[1].duty_cycle, other[1].duty_cycle)


@pytest.mark.parametrize("training", [True, False])
def test_compile_and_export(training: bool) -> None:
    layer = KWinners(20, act_sparsity=0.8).train(training)
    layer(torch.randn(4, 20))
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(4, 20)
        assert torch.equal(compiled(x), layer(x))
    torch.testing.assert_close(twin.duty_cycle, layer.duty_cycle)
    torch.compiler.reset()
    layer.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (torch.randn(4, 20),), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(7, 20)
    assert torch.equal(program(x), layer(x))


def test_ensembles_by_vmap() -> None:
    members = [KWinners(10, act_sparsity=0.7) for _ in range(4)]
    for member in members:
        member(torch.randn(3, 10))
    parameters, buffers = stack_module_state(members)
    x = torch.randn(4, 5, 10)

    def call(buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(members[0], (parameters, buffers), (x,))

    own = [copy.deepcopy(member) for member in members]
    found = vmap(call)(buffers, x)
    assert torch.equal(found, torch.stack([member(one) for member, one in zip(own, x, strict=True)]))
    torch.testing.assert_close(buffers["duty_cycle"], torch.stack([member.duty_cycle for member in own]))


def test_state_copies_and_meta() -> None:
    layer = KWinners(10, beta=3.0, boost_decay=0.5)
    layer(torch.randn(4, 10))
    layer.decay_boost()
    assert sorted(layer.state_dict()) == ["boost", "duty_cycle"]
    buffer = io.BytesIO(safetensors.torch.save(layer.state_dict()))
    fresh = KWinners(10, beta=3.0)
    fresh.load_state_dict(safetensors.torch.load(buffer.getvalue()))
    x = torch.randn(4, 10)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.equal(other.eval()(x), layer.eval()(x))
        assert torch.equal(other.boost, layer.boost)
    empty = KWinners(10, device="meta").to_empty(device="cpu")
    empty.duty_cycle.fill_(math.nan)
    empty.reset_parameters()
    assert not empty.duty_cycle.any() and float(empty.boost) == 1.5


def test_a_module_that_is_sized_at_first_use() -> None:
    layer = ActivationSparsity(act_sparsity=0.5)
    assert "not sized yet" in repr(layer) and layer.num_features is None
    same = KWinners(12, act_sparsity=0.5)
    for seed in range(3):
        x = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(layer(x), same(x))
    with pytest.raises(ValueError, match="num_features=12"):
        layer(torch.randn(4, 13))
    fresh = ActivationSparsity(act_sparsity=0.5)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.num_features == 12 and torch.equal(fresh.duty_cycle, layer.duty_cycle)
    unsized = ActivationSparsity()
    unsized.load_state_dict(ActivationSparsity().state_dict())
    assert unsized(torch.randn(3, 10)).count_nonzero(-1).tolist() == [3, 3, 3]
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(ActivationSparsity().state_dict())


def test_checkpoints_of_linnet(tmp_path: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 10), ActivationSparsity())
    net(torch.randn(3, 4))
    linnet.save(net, tmp_path / "net.safetensors")
    fresh = nn.Sequential(nn.Linear(4, 10), ActivationSparsity())
    linnet.load(tmp_path / "net.safetensors", into=fresh)
    assert torch.equal(fresh[1].duty_cycle, net[1].duty_cycle)


WRONG = [
    (lambda: KWinners(0), "num_features must be a positive integer"),
    (lambda: KWinners(None), "num_features must be a positive integer"),
    (lambda: KWinners(10, 0.95), "A unit must win"),
    (lambda: KWinners(10, 1.0), "act_sparsity must lie"),
    (lambda: KWinners(10, -0.1), "act_sparsity must lie"),
    (lambda: KWinners(10, alpha=0), "alpha is a rate"),
    (lambda: KWinners(10, beta=-1), "beta must be a finite number"),
    (lambda: KWinners(10, beta=math.inf), "beta must be a finite number"),
    (lambda: KWinners(10, scope="all"), "scope must be 'local' or 'global'"),
    (lambda: KWinners(10, beings=2, dim=1), "A population needs dim=-1"),
    (lambda: KWinners(10)(torch.tensor(1.0)), "must have an axis"),
    (lambda: KWinners(10)(torch.randn(3, 9)), "must have num_features=10 units"),
    (lambda: KWinners(10, dim=1)(torch.randn(3, 9, 10)), "units at axis 1"),
    (lambda: KWinners(10, beings=2)(torch.randn(3, 10)), "of a population must have shape"),
    (lambda: ActivationSparsity(10), r"KWinners\(10\) has 10 units"),
    (lambda: ActivationSparsity(act_sparsity=0.9)(torch.randn(4, 5)), "A unit must win"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_mistakes_are_told(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="must be floating-point"):
        KWinners(10)(torch.ones(3, 10, dtype=torch.int64))

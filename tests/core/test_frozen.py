"""frozen(model) and materialize(): one matrix for many products, always up to date, differentiable at will."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

import linnet
from linnet import L0Linear, OrthogonalLinear, SVDLinear, frozen
from linnet.core.frozen import held
from linnet.testing import cases

LAYERS = {name: cls for name, cls in linnet.catalogue().items() if cls.__module__.startswith("linnet.")}
N = 6


@pytest.fixture
def count(monkeypatch):
    """How often an OrthogonalLinear computes its matrix."""
    made, build = [], OrthogonalLinear._weight
    monkeypatch.setattr(OrthogonalLinear, "_weight", lambda self, **raw: made.append(1) or build(self, **raw))
    return made


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("beings", [None, 3])
def test_a_frozen_layer_is_the_same_function_with_the_same_gradients(name, beings):
    for case in cases(LAYERS[name]):
        if case.beings != beings:
            continue
        layer = case.layer(dtype=torch.float64).eval()
        x = case.randn(4, *layer.leading, layer.in_features, dtype=torch.float64).requires_grad_()

        def gradients(step, layer=layer, x=x):
            wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
            return torch.autograd.grad((step(x) ** 2).sum(), wanted, allow_unused=True)

        y, g = layer(x), gradients(layer)
        with frozen(layer):
            results = [(layer(x), gradients(layer)), (layer.materialize()(x), gradients(layer.materialize()))]
        for found, grads in results:
            torch.testing.assert_close(found, y)
            for a, b in zip(grads, g, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b)


def test_cached_is_frozen_by_another_name():
    assert linnet.cached is linnet.frozen


def test_w_is_computed_once(count):
    layer, x = OrthogonalLinear(N, N), torch.randn(2, N)
    with frozen(nn.Sequential(layer)):
        for _ in range(5):
            x = layer(x) + layer.weight[0]
    assert len(count) == 1
    step = layer.materialize()
    for _ in range(5):
        x = step(x)
    assert len(count) == 2
    with torch.no_grad():
        step(x), step(x)
    assert len(count) == 3  # without a graph
    step(x)
    assert len(count) == 3  # the one with a graph is still there


def test_two_forwards_then_two_backwards_pass_through_the_computation_of_w_once_each(count):
    layer, x = OrthogonalLinear(N, N, dtype=torch.float64), torch.randn(2, N, dtype=torch.float64)
    with frozen(layer):
        first, second = (layer(layer(x)) ** 4).sum(), layer(x).sin().sum()
        first.backward()
        second.backward()
    assert len(count) == 1
    found = layer.vectors.grad.clone()
    layer.zero_grad()
    ((layer(layer(x)) ** 4).sum() + layer(x).sin().sum()).backward()
    torch.testing.assert_close(layer.vectors.grad, found)


@pytest.mark.parametrize("population", [None, 2])
def test_gradients_of_gradients(population):
    layer = SVDLinear(3, 3, bias=False, beings=population, dtype=torch.float64)
    x = torch.randn(2, *layer.leading, 3, dtype=torch.float64)
    raw = (layer.u_vectors, layer.v_vectors, layer.angles)

    def curvature():
        g = torch.autograd.grad((layer(x).sin() ** 2).sum(), raw, create_graph=True)
        return torch.autograd.grad(sum((t**2).sum() for t in g), raw)

    with frozen(layer):
        found = curvature()
    for a, b in zip(found, curvature(), strict=True):
        torch.testing.assert_close(a, b)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("grad", [True, False])
def test_never_stale_after_a_step(optimizer, grad):
    layer, x = OrthogonalLinear(N, N), torch.randn(3, N)
    step, steps = layer.materialize(), OPTIMIZERS[optimizer](layer.parameters())
    with frozen(layer):
        for _ in range(3):
            (layer(x) * torch.arange(6.0)).sum().backward()
            with torch.set_grad_enabled(grad):
                before = layer(x), step(x)
                steps.step()
                after = layer(x), step(x)
            now = copy.deepcopy(layer)(x)
            for old, new in zip(before, after, strict=True):
                assert not torch.equal(old, new)
                torch.testing.assert_close(new, now)


CHANGES = {
    "assign": lambda layer, other: layer.assign(other.weight),
    "weight =": lambda layer, other: setattr(layer, "weight", other.weight),
    "reset_parameters": lambda layer, other: layer.reset_parameters(),
    "load_state_dict": lambda layer, other: layer.load_state_dict(other.state_dict()),
    "load_state_dict assign": lambda layer, other: layer.load_state_dict(other.state_dict(), assign=True),
    "to float64": lambda layer, other: layer.double(),
    "in place": lambda layer, other: layer.vectors.detach().neg_().add_(1),
    "a new Parameter": lambda layer, other: setattr(layer, "vectors", nn.Parameter(other.vectors.detach().clone())),
    ".data is another tensor": lambda layer, other: setattr(layer.vectors, "data", other.vectors.detach().clone()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_never_stale_after(change):
    layer, other, x = OrthogonalLinear(N, N), OrthogonalLinear(N, N), torch.randn(3, N)
    with frozen(layer), torch.no_grad():
        before = layer(x)
        CHANGES[change](layer, other)
        x = x.to(layer.vectors.dtype)
        after = layer(x)
    assert not torch.equal(before.to(after.dtype), after)
    torch.testing.assert_close(after, layer(x))


def test_a_parameter_frozen_or_thawed_between_two_calls():
    layer, x = OrthogonalLinear(N, N, bias=False), torch.randn(3, N)
    with frozen(layer):
        layer.requires_grad_(False)
        assert not layer(x).requires_grad
        layer.requires_grad_(True)
        layer(x)[0, 0].backward()
    assert layer.vectors.grad.abs().sum() > 0


def test_nothing_stays_behind():
    layer, x = OrthogonalLinear(N, N), torch.randn(3, N)
    with frozen(layer):
        layer(x)
        with frozen(layer):
            layer(x)
        copied = copy.deepcopy(layer)
        again = pickle.loads(pickle.dumps(layer))
    layer.vectors.data.add_(1)  # outside nothing is kept, so even this is seen
    assert not torch.equal(layer(x), copied(x))
    assert torch.equal(again(x), copied(x))
    with pytest.raises(RuntimeError, match="gone"), frozen(layer):
        raise RuntimeError("gone")
    layer.vectors.data.add_(1)
    torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))


def test_inference_mode_does_not_leak_into_training():
    layer, x = OrthogonalLinear(N, N), torch.randn(3, N)
    with frozen(layer):
        with torch.inference_mode():
            layer(x)
        with torch.no_grad():
            layer(x)
        layer(x).sum().backward()
    with torch.inference_mode():
        layer = OrthogonalLinear(N, N)
        with frozen(layer):
            before = layer(x)
            layer.vectors.add_(1)  # without a version counter
            assert not torch.equal(before, layer(x))


def test_hooks_on_a_parameter_run_once():
    layer, x = OrthogonalLinear(N, N, bias=False), torch.randn(3, N)
    layer(x).sin().sum().backward()
    expected = 2 * layer.vectors.grad
    layer.zero_grad()
    layer.vectors.register_hook(lambda grad: 2 * grad)
    with frozen(layer):
        layer(x).sin().sum().backward()
    torch.testing.assert_close(layer.vectors.grad, expected)


def test_transforms_vmap_and_functional_call_see_their_own_parameters():
    layer, x = OrthogonalLinear(N, N), torch.randn(3, N)
    others = [OrthogonalLinear(N, N) for _ in range(4)]
    params, buffers = torch.func.stack_module_state(others)
    with frozen(layer):
        layer(x)
        call = torch.func.vmap(lambda p, b: torch.func.functional_call(layer, (p, b), (x,)))
        found = call(params, buffers)
        one = torch.func.functional_call(layer, others[0].state_dict(), (x,))
        grads = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).sin().sum())(
            {name: p.detach() for name, p in layer.named_parameters()}
        )
        torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))
    torch.testing.assert_close(found, torch.stack([other(x) for other in others]))
    torch.testing.assert_close(one, others[0](x))
    layer(x).sin().sum().backward()
    torch.testing.assert_close(grads["vectors"], layer.vectors.grad)


def test_compiled_inside_the_context():
    layer, x = OrthogonalLinear(N, N), torch.randn(3, N)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with frozen(layer):
        torch.testing.assert_close(compiled(x), layer(x))
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_inside_the_context(reentrant):
    layer, x = OrthogonalLinear(N, N), torch.randn(3, N, requires_grad=True)
    layer(layer(x).tanh()).sum().backward()
    expected = layer.vectors.grad.clone()
    layer.zero_grad()
    with frozen(layer):
        y = torch.utils.checkpoint.checkpoint(lambda x: layer(layer(x).tanh()), x, use_reentrant=reentrant)
        y.sum().backward()
    torch.testing.assert_close(layer.vectors.grad, expected)


def test_autocast():
    layer, x = OrthogonalLinear(N, N), torch.randn(3, N)
    with frozen(layer), torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=2e-2, rtol=2e-2)


def test_the_noise_of_l0_is_one_mask_for_a_sequence():
    x = torch.randn(4, 32)
    for noise in ("batch", "held"):
        layer = L0Linear(32, 5, noise=noise)
        step = layer.materialize()
        assert torch.equal(step(x), step(x))
        assert not torch.equal(step(x), layer.materialize()(x)) or noise == "held"
        assert not torch.equal(step(x), F.linear(x, layer.weight, layer.bias))
        torch.testing.assert_close(layer.eval().materialize()(x), layer(x))
        with frozen(layer.train()):
            assert torch.equal(layer(x), layer(x))
            assert torch.equal(layer.weight, layer.weight) and layer.weight.count_nonzero() == layer.weight.numel()
    layer = L0Linear(32, 5, noise="held")
    step = layer.materialize()
    before = step(x)
    torch.testing.assert_close(before, layer(x))
    layer.resample()
    torch.testing.assert_close(step(x), layer(x))
    assert not torch.equal(before, step(x))
    layer = L0Linear(32, 5, noise="sample")  # a mask of its own for every sample is no matrix
    step = layer.materialize()
    rows = step(x[:1].expand(4, -1))
    assert not torch.equal(rows[0], rows[1])


def test_a_large_fast_layer_stays_fast():
    layer, x = linnet.CirculantLinear(2048, 2048, bias=False), torch.randn(2, 2048)
    with frozen(layer):
        assert not layer._pays_dense() and torch.equal(layer(x), layer.materialize()(x))
    assert linnet.CirculantLinear(64, 64)._pays_dense()


def test_bad_input_is_refused_as_by_the_layer():
    layer = OrthogonalLinear(N, N)
    with pytest.raises(ValueError, match=r"The input must have shape \(\*, in_features=6\), got \(2, 5\)"):
        layer.materialize()(torch.randn(2, 5))
    with frozen(layer), pytest.raises(ValueError, match="in_features=6"):
        layer(torch.randn(2, 5))


def test_memory_that_is_used_again_does_not_pass_for_the_same_tensor():
    for n in range(3, 120):  # .half().float() frees the memory and is often handed it again
        layer = linnet.CirculantLinear(n, n, bias=False)
        with torch.no_grad(), frozen(layer):
            layer(torch.randn(2, n))
            layer.half().float()
            found = layer.weight.clone()
        assert torch.equal(found, layer.weight), n


def test_nothing_hangs_on_to_what_is_gone():
    layer, x, refs = SVDLinear(8, 8), torch.randn(2, 8), []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(5):
            with frozen(layer):
                refs.append(weakref.ref(layer.weight))
                layer(x).sum().backward()
        assert sum(ref() is not None for ref in refs) <= 1
    finally:
        if collecting:
            gc.enable()


def test_w_that_somebody_wrote_into_is_made_anew():
    layer, x = SVDLinear(6, 6), torch.randn(2, 6)
    expected = layer(x)
    with torch.no_grad(), frozen(layer):
        layer.weight.mul_(0)
        torch.testing.assert_close(layer(x), expected)


def test_a_handle_can_be_copied_and_pickled_after_use():
    step, x = SVDLinear(6, 6).materialize(), torch.randn(2, 6)
    step(x)
    for other in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        torch.testing.assert_close(other(x), step(x))
        assert other.layer is not step.layer


def test_contexts_of_generators_may_end_in_any_order():
    def steps(layer, x):
        with frozen(layer):
            while True:
                yield layer(x)

    x = torch.randn(2, 6)
    layers = [SVDLinear(6, 6), SVDLinear(6, 6)]
    first, second = (steps(layer, x) for layer in layers)
    next(first), next(second)
    first.close()
    assert held(layers[0]) is None and held(layers[1]) is not None
    second.close()
    assert held(layers[1]) is None


def test_sparse_layers_are_left_as_they_are():
    for beings in (None, 2):
        layer = linnet.SparseLinear(8, 8, beings=beings)
        x = torch.randn(3, *layer.leading, 8)
        with torch.no_grad(), frozen(layer):
            torch.testing.assert_close(layer.materialize()(x), layer(x))
            assert layer.materialize().weight.to_dense().shape == (*layer.leading, 8, 8)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_forward_mode_and_tracing_inside_the_context():
    layer, x = SVDLinear(6, 6), torch.randn(2, 6)
    names = dict(layer.named_parameters())
    with frozen(layer), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(p, torch.ones_like(p)) for name, p in names.items()}
        tangent = forward_ad.unpack_dual(torch.func.functional_call(layer, duals, (x,))).tangent
    assert tangent.abs().sum() > 0
    with torch.no_grad(), frozen(layer):
        layer(x)
        traced = torch.jit.trace(layer, (x,), check_trace=False)
        layer.angles.add_(0.3)
        torch.testing.assert_close(traced(x), layer(x))
